//! `faas secret`: what functions read and nobody else.

mod ls;
mod rm;
mod set;

use clap::{Args, Subcommand};

use super::{Context, Failure, Output};

/// Set, list and remove secrets, which functions read as files in /run/secrets
#[derive(Debug, Args)]
#[command(disable_help_subcommand = true)]
#[command(after_help = "Examples:
  pass show db | faas secret set db-password
  faas secret set tls.key --from-file key.pem
  echo 'secrets = [\"db-password\"]' >> faas.toml
  faas secret ls")]
pub struct Secret {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Set(set::Set),
    Ls(ls::Ls),
    Rm(rm::Rm),
}

impl Secret {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        match self.verb {
            Verb::Set(verb) => verb.run(context).await,
            Verb::Ls(verb) => verb.run(context).await,
            Verb::Rm(verb) => verb.run(context).await,
        }
    }
}
