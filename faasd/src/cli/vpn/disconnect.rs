//! `faas vpn disconnect`

use clap::Args;

use super::{Local, failure};
use crate::cli::{Context, Failure};
use crate::tunnel::Choice;
use crate::tunnel::client;
use crate::tunnel::dns::DnsMode;

/// Take this machine off the network, and undo what connect did
///
/// The membership stays: `faas vpn connect` takes it up again.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  sudo faas vpn disconnect")]
pub struct Disconnect {
    #[command(flatten)]
    local: Local,
}

impl Disconnect {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let options = self.local.options(Choice::Auto, DnsMode::Auto)?;
        client::disconnect(&options).map_err(|e| failure(&e))?;
        context.ui.note(&format!("{} is disconnected", options.name));
        Ok(())
    }
}
