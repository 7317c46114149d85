//! `faas vpn connect`

use std::io::Read;

use clap::Args;

use super::INTERFACE;
use crate::cli::{Context, Exit, Failure, tunnel};

/// The longest invitation, in bytes.
const INVITATION_BYTES_MAX: u64 = 16 << 10;

/// Join this machine to the network, and resolve NAME.faas here
///
/// With an invitation, a key is made here and replaces the invitation's own. Without one, the connection of an earlier
/// time is taken up again.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sudo faas vpn connect INVITATION
  sudo faas vpn connect - < invitation.txt
  sudo faas vpn connect                           again, after a disconnect or a restart")]
pub struct Connect {
    /// The text that `faas vpn invite` printed, or - for standard input
    invitation: Option<String>,
    /// The interface's name
    #[arg(long, value_name = "NAME", default_value = INTERFACE)]
    interface: String,
    /// Leave name resolution alone
    #[arg(long)]
    no_dns: bool,
}

impl Connect {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let invitation = match self.invitation.as_deref() {
            Some("-") => Some(read_stdin()?),
            other => other.map(|text| text.trim().to_owned()),
        };
        let said = tunnel::connect(invitation.as_deref(), &self.interface, !self.no_dns)?;
        context.ui.print(&said)
    }
}

fn read_stdin() -> Result<String, Failure> {
    let mut text = String::new();
    std::io::stdin()
        .take(INVITATION_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|e| Failure::new(Exit::NoInput, format!("cannot read the invitation: {e}")))?;
    match text.trim() {
        "" => Err(Failure::new(Exit::NoInput, "there is no invitation on standard input")),
        text => Ok(text.to_owned()),
    }
}
