//! `faas vpn`: the server's peers (through the API), and this machine's own tunnel (without a daemon).

mod connect;
mod disconnect;
mod invite;
mod peers;
mod revoke;
mod status;

use clap::{Args, Subcommand};

use super::{Context, Failure, block_on};

/// The interface of a machine that joined.
const INTERFACE: &str = "faas0";

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
    Peers(peers::Peers),
    Revoke(revoke::Revoke),
}

impl Vpn {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        match self.verb {
            Verb::Invite(verb) => block_on(verb.run(context)),
            Verb::Connect(verb) => verb.run(context),
            Verb::Disconnect(verb) => verb.run(context),
            Verb::Status(verb) => verb.run(context),
            Verb::Peers(verb) => block_on(verb.run(context)),
            Verb::Revoke(verb) => block_on(verb.run(context)),
        }
    }
}
