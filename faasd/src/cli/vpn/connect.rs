//! `faas vpn connect`

use std::fs::File;
use std::io::Read;
use std::path::Path;

use clap::Args;
use comfy_table::Cell;
use jiff::Timestamp;

use super::{Local, failure};
use crate::cli::ui::took;
use crate::cli::{Context, Exit, Failure};
use crate::core::invitation::{Invitation, MARK};
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
  sudo faas vpn connect laptop.faas
  ssh server faas vpn invite laptop | sudo faas vpn connect -
  sudo faas vpn connect                           again, after a disconnect or a restart")]
pub struct Connect {
    /// What `faas vpn invite` printed, the file that it wrote, or - for standard input
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
            Some("-") => Some(read(std::io::stdin(), "standard input")?),
            // An invitation says that it is one, so that a file may have any other name.
            Some(text) if text.trim_start().starts_with(MARK) => Some(text.to_owned()),
            Some(path) if Path::new(path).exists() => {
                let file = File::open(path).map_err(|e| {
                    Failure::new(Exit::NoInput, format!("cannot open the invitation {path}: {e}"))
                })?;
                Some(read(file, path)?)
            }
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
            ("names", Cell::new(connected.dns.describe())),
        ])?;
        if let Dns::ByHand(_) = connected.dns {
            context.ui.note(&format!(
                "have your resolver ask {server} for names in `faas.`, or, if it can only have one server for all names, \
                 for all of them: `nameserver {server}` as the first line of /etc/resolv.conf",
                server = connected.server
            ));
        }
        Ok(())
    }
}

fn read(from: impl Read, name: &str) -> Result<String, Failure> {
    let mut text = String::new();
    from.take(INPUT_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|e| Failure::new(Exit::NoInput, format!("cannot read the invitation from {name}: {e}")))?;
    if text.trim().is_empty() {
        return Err(Failure::new(Exit::NoInput, format!("there is no invitation in {name}")));
    }
    Ok(text)
}
