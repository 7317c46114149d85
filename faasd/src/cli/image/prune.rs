//! `faas image prune`

use clap::Args;

use crate::cli::rm::confirm;
use crate::cli::ui::size;
use crate::cli::{Context, Exit, Failure, Format, Output};

/// Remove what no name and no function needs
///
/// Layers and images without a name that no function runs go by themselves after an hour; this is for those who need
/// the room now. With --all, images that no function runs go as well, name and all.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  faas image prune\n  faas image prune --all --yes")]
pub struct Prune {
    /// Also images that have a name, but no function
    #[arg(long)]
    all: bool,
    /// Do not ask (nor is anybody asked where there is no terminal)
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    output: Output,
}

impl Prune {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        if self.all && !self.yes && !confirm("Remove every image that no function runs?")? {
            return Err(Failure::new(Exit::Failed, "all images stay"));
        }
        let pruned = context.client.prune_images(self.all).await?;
        if self.output.format == Format::Json {
            return context.ui.json(&pruned);
        }
        for name in &pruned.names {
            context.ui.note(&format!("removed {name}"));
        }
        context.ui.note(&format!("freed {}", size(pruned.freed_bytes)));
        Ok(())
    }
}
