//! `faas completions`

use clap::Args;
use clap_complete::Shell;

use super::{Context, Failure, When};

/// Print a shell's completion script
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  faas completions bash > /etc/bash_completion.d/faas
  faas completions zsh > \"${fpath[1]}/_faas\"
  faas completions fish > ~/.config/fish/completions/faas.fish")]
pub struct Completions {
    shell: Shell,
}

impl Completions {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        // clap_complete panics when its writer fails, so it writes to memory.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::command(When::Never), "faas", &mut script);
        context.ui.print(&String::from_utf8_lossy(&script))
    }
}
