//! `faas vpn`: the server's peers (through the API), and this machine's own tunnel (without a daemon).

mod connect;
mod disconnect;
mod export;
mod hand_over;
mod invite;
mod peers;
mod revoke;
mod role;
mod rotate;
mod status;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{Context, Exit, Failure, block_on};
use crate::tunnel::client::{ClientError, INTERFACE, Options};
use crate::tunnel::dns::DnsMode;
use crate::tunnel::{Choice, Launch};

/// Where a machine keeps whom it joined.
const STATE: &str = "/var/lib/faas";

/// Which of this machine's connections is meant.
#[derive(Debug, Args)]
struct Local {
    /// The interface's name
    #[arg(long, value_name = "NAME", default_value = INTERFACE)]
    interface: String,
    /// Where the connection's key is kept
    #[arg(long, value_name = "DIR", default_value = STATE)]
    state_dir: PathBuf,
}

impl Local {
    fn options(self, choice: Choice, dns: DnsMode) -> Result<Options, Failure> {
        // The tunnel's process, where it takes one, is this program again.
        let program = std::env::current_exe()
            .map_err(|e| Failure::new(Exit::Failed, format!("cannot find this program's own file: {e}")))?;
        let launch = Launch::new(program);
        Ok(Options { name: self.interface, state_dir: self.state_dir, launch, choice, dns })
    }
}

/// A failure of this machine's tunnel. Without root, that is nearly always why.
fn failure(error: &ClientError) -> Failure {
    if matches!(error, ClientError::NeverJoined) {
        return Failure::new(Exit::NoInput, error.to_string());
    }
    let failure = Failure::chain(Exit::Failed, error);
    if rustix::process::geteuid().is_root() {
        return failure;
    }
    Failure { exit: Exit::Permission, ..failure.hint("run this as root, for instance with sudo") }
}

/// Let machines in, and join from one
#[derive(Debug, Args)]
#[command(disable_help_subcommand = true)]
#[command(after_help = "Examples:
  faas vpn invite laptop                          on the server
  sudo faas vpn connect INVITATION                on the laptop
  faas vpn invite laptop | ssh laptop sudo faas vpn connect -")]
pub struct Vpn {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Invite(invite::Invite),
    Connect(connect::Connect),
    Disconnect(disconnect::Disconnect),
    Status(status::Status),
    Rotate(rotate::Rotate),
    Export(export::Export),
    Peers(peers::Peers),
    Revoke(revoke::Revoke),
    Role(role::SetRole),
}

impl Vpn {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        match self.verb {
            Verb::Invite(verb) => block_on(verb.run(context)),
            Verb::Connect(verb) => verb.run(context),
            Verb::Disconnect(verb) => verb.run(context),
            Verb::Status(verb) => verb.run(context),
            Verb::Rotate(verb) => verb.run(context),
            Verb::Export(verb) => block_on(verb.run(context)),
            Verb::Peers(verb) => block_on(verb.run(context)),
            Verb::Revoke(verb) => block_on(verb.run(context)),
            Verb::Role(verb) => block_on(verb.run(context)),
        }
    }
}
