//! `faas secret rm`

use clap::Args;

use super::{Context, Failure};
use crate::core::secret::SecretName;

/// Remove a secret
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  faas secret rm db-password\n  faas secret rm db-password --force")]
pub struct Rm {
    /// The secret
    name: SecretName,
    /// Also if a function reads it, of which no instance starts any more then
    #[arg(long)]
    force: bool,
}

impl Rm {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        context.client.remove_secret(&self.name, self.force).await?;
        context.ui.note(&format!("removed {}", self.name));
        Ok(())
    }
}
