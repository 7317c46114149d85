//! `faas vpn revoke`

use clap::Args;

use crate::cli::rm::confirm;
use crate::cli::{Context, Exit, Failure};
use crate::core::name::FunctionName;

/// Shut a machine out, and cut its connections
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  faas vpn revoke laptop\n  faas vpn revoke laptop --yes")]
pub struct Revoke {
    /// The machine's name
    name: FunctionName,
    /// Do not ask (nor is anybody asked where there is no terminal)
    #[arg(short, long)]
    yes: bool,
}

impl Revoke {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        if !self.yes && !confirm(&format!("Shut {} out and cut its connections?", self.name))? {
            return Err(Failure::new(Exit::Failed, format!("{} stays", self.name)));
        }
        context.client.revoke(&self.name).await?;
        context.ui.note(&format!("revoked {}", self.name));
        Ok(())
    }
}
