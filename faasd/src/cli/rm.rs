//! `faas rm`

use std::io::{self, IsTerminal, Write};

use clap::Args;

use super::{Context, Exit, Failure};
use crate::core::name::FunctionName;

/// Remove a function, its instances and its name
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  faas rm hello\n  faas rm hello --yes")]
pub struct Rm {
    /// The function
    name: FunctionName,
    /// Do not ask (nor is anybody asked where there is no terminal)
    #[arg(short, long)]
    yes: bool,
}

impl Rm {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let question = format!("Remove {} and end its connections once they are served?", self.name);
        if !self.yes && !confirm(&question)? {
            return Err(Failure::new(Exit::Failed, format!("{} stays", self.name)));
        }
        let spinner = context.ui.spinner(format!("removing {}", self.name));
        let removed = context.client.remove(&self.name).await;
        spinner.finish_and_clear();
        removed?;
        context.ui.note(&format!("removed {}", self.name));
        Ok(())
    }
}

/// Asks on a terminal. Where there is none, whoever wrote the script has decided.
pub fn confirm(question: &str) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(true);
    }
    write!(io::stderr(), "{question} [y/N] ")?;
    let mut answer = String::new();
    io::stdin()
        .read_line(&mut answer)
        .map_err(|e| Failure::new(Exit::Io, format!("cannot read the answer: {e}")))?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
