//! `faas vpn peers`

use clap::Args;
use comfy_table::Cell;
use jiff::Timestamp;

use crate::cli::ago::relative;
use crate::cli::ui::{size, state_cell};
use crate::cli::{Context, Failure, Format, Output};

/// A live WireGuard session renews its keys every two minutes and gives up after three.
const SESSION_SECONDS: i64 = 180;

/// List the machines that may join, and have
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  faas vpn peers\n  faas vpn peers -o json | jq '.peers[].address'")]
pub struct Peers {
    #[command(flatten)]
    output: Output,
}

impl Peers {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let found = context.client.peers().await?;
        if self.output.format == Format::Json {
            return context.ui.json(&found);
        }
        if found.peers.is_empty() {
            context.ui.note("no peers yet; `faas vpn invite NAME` makes an invitation");
            return Ok(());
        }
        let now = Timestamp::now();
        let rows = found.peers.iter().map(|peer| {
            let recent =
                peer.last_handshake.is_some_and(|at| now.as_second() - at.as_second() <= SESSION_SECONDS);
            let state = match peer.invited_until {
                Some(until) if until < now => "expired",
                Some(_) => "invited",
                None if recent => "ok",
                None => "idle",
            };
            let handshake = match (peer.invited_until, peer.last_handshake) {
                (Some(until), _) => format!("invitation expires {}", relative(until, now)),
                (None, Some(at)) => relative(at, now),
                (None, None) => "never".to_owned(),
            };
            let groups: Vec<_> = peer.groups.iter().map(|group| format!("@{group}")).collect();
            vec![
                Cell::new(&peer.name),
                state_cell(state),
                Cell::new(peer.role.as_str()),
                Cell::new(groups.join(" ")),
                Cell::new(peer.address),
                Cell::new(handshake),
                Cell::new(peer.endpoint.map_or_else(|| "-".to_owned(), |endpoint| endpoint.to_string())),
                Cell::new(size(peer.received_bytes)),
                Cell::new(size(peer.sent_bytes)),
            ]
        });
        context.ui.table(
            ["NAME", "STATE", "ROLE", "GROUPS", "ADDRESS", "HANDSHAKE", "ENDPOINT", "RECEIVED", "SENT"],
            rows,
        )
    }
}
