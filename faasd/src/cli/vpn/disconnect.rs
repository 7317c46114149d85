//! `faas vpn disconnect`

use clap::Args;

use super::INTERFACE;
use crate::cli::{Context, Failure, tunnel};

/// Take this machine off the network, and undo what connect did
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  sudo faas vpn disconnect")]
pub struct Disconnect {
    /// The interface's name
    #[arg(long, value_name = "NAME", default_value = INTERFACE)]
    interface: String,
}

impl Disconnect {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let said = tunnel::disconnect(&self.interface)?;
        context.ui.print(&said)
    }
}
