//! `faas tunnel`: the userspace tunnel's process. `faas vpn connect` and the daemon start it where the kernel has no
//! WireGuard, and it outlives them.

use clap::Args;

use super::{Exit, Failure};
use crate::tunnel::process::{self, ProcessArgs};

/// The userspace tunnel's process; faasd and `faas vpn connect` start it
#[derive(Debug, Args)]
#[command(hide = true)]
pub struct Tunnel {
    #[command(flatten)]
    args: ProcessArgs,
}

impl Tunnel {
    pub fn run(self) -> Result<(), Failure> {
        process::run(&self.args).map_err(|e| Failure::chain(Exit::Failed, &e))
    }
}
