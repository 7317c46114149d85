//! `faas vpn connect`

use std::io::Read;

use clap::Args;
use comfy_table::Cell;
use jiff::Timestamp;

use super::{Local, failure};
use crate::cli::ui::took;
use crate::cli::{Context, Exit, Failure};
use crate::core::invitation::Invitation;
use crate::tunnel::Choice;
use crate::tunnel::client;
use crate::tunnel::dns::{Dns, DnsMode};

/// How much is read in search of an invitation, in bytes.
const INPUT_BYTES_MAX: u64 = 16 << 10;

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
    #[command(flatten)]
    local: Local,
    /// Leave name resolution alone
    #[arg(long)]
    no_dns: bool,
    /// Who encrypts: auto (the kernel if it can), kernel or userspace
    #[arg(long, value_name = "WHO", default_value = "auto", hide_possible_values = true)]
    wireguard: Choice,
}

impl Connect {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let text = match self.invitation.as_deref() {
            Some("-") => Some(read_stdin()?),
            other => other.map(str::to_owned),
        };
        let invitation = text
            .map(|text| Invitation::decode(&text, Timestamp::now()))
            .transpose()
            .map_err(|e| Failure::new(Exit::Data, e.to_string()))?;
        let dns = if self.no_dns { DnsMode::None } else { DnsMode::Auto };
        let options = self.local.options(self.wireguard, dns)?;
        let spinner = context.ui.spinner("connecting".to_owned());
        let connected = match &invitation {
            Some(invitation) => client::join(invitation, &options),
            None => client::connect(&options),
        };
        spinner.finish_and_clear();
        let connected = connected.map_err(|e| failure(&e))?;
        let names = match connected.dns {
            Dns::Split => "NAME.faas through the tunnel, all others as before",
            Dns::File => "all through the tunnel (/etc/resolv.conf; no systemd-resolved here)",
            Dns::Untouched => "left alone",
        };
        let handshake = connected.handshake.map_or_else(
            || "none yet: the server does not answer at the moment".to_owned(),
            |after| format!("took {}", took(after)),
        );
        context.ui.pairs([
            ("name", Cell::new(&connected.name)),
            ("interface", Cell::new(format!("{} ({})", options.name, connected.kind))),
            ("address", Cell::new(connected.address)),
            ("server", Cell::new(connected.server)),
            ("handshake", Cell::new(handshake)),
            ("names", Cell::new(names)),
        ])
    }
}

fn read_stdin() -> Result<String, Failure> {
    let mut text = String::new();
    std::io::stdin()
        .take(INPUT_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|e| Failure::new(Exit::NoInput, format!("cannot read the invitation: {e}")))?;
    if text.trim().is_empty() {
        return Err(Failure::new(Exit::NoInput, "there is no invitation on standard input"));
    }
    Ok(text)
}
