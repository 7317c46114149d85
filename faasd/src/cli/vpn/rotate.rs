//! `faas vpn rotate`

use clap::Args;

use super::{Local, failure};
use crate::cli::ui::took;
use crate::cli::{Context, Failure};
use crate::tunnel::Choice;
use crate::tunnel::client;
use crate::tunnel::dns::DnsMode;

/// Replace this machine's key by a new one; connections go on
///
/// The new key is made here, and the server is told its public half through the tunnel. The machine keeps its name,
/// address and permissions.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  sudo faas vpn rotate")]
pub struct Rotate {
    #[command(flatten)]
    local: Local,
}

impl Rotate {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let options = self.local.options(Choice::Auto, DnsMode::Auto)?;
        let spinner = context.ui.spinner("changing the key".to_owned());
        let rotated = client::rotate(&options);
        spinner.finish_and_clear();
        let rotated = rotated.map_err(|e| failure(&e))?;
        context.ui.note(&format!("{} has a new key; the handshake took {}", options.name, took(rotated)));
        Ok(())
    }
}
