//! `faas vpn status`

use std::net::{Ipv6Addr, SocketAddr};

use clap::Args;
use comfy_table::Cell;
use jiff::Timestamp;
use serde::Serialize;

use super::{Local, failure};
use crate::cli::ago::relative;
use crate::cli::ui::{size, state_cell};
use crate::cli::{Context, Failure, Format, Output};
use crate::tunnel::Choice;
use crate::tunnel::client::{self, ClientStatus};
use crate::tunnel::dns::{self, Dns, DnsMode};

/// Show this machine's own connection
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  sudo faas vpn status\n  sudo faas vpn status -o json")]
pub struct Status {
    #[command(flatten)]
    local: Local,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Serialize)]
struct Connection {
    /// Ours, as the server knows it.
    name: String,
    address: Ipv6Addr,
    server: Ipv6Addr,
    endpoint: String,
    connected: bool,
    /// `kernel` or `userspace`, while connected.
    #[serde(skip_serializing_if = "Option::is_none")]
    wireguard: Option<&'static str>,
    /// What the endpoint resolved to.
    #[serde(skip_serializing_if = "Option::is_none")]
    resolved: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_handshake: Option<Timestamp>,
    received_bytes: u64,
    sent_bytes: u64,
    /// What was done about name resolution, while connected.
    #[serde(skip_serializing_if = "Option::is_none")]
    names: Option<String>,
    /// Whether this machine's resolver knows the server by its name, while connected.
    #[serde(skip_serializing_if = "Option::is_none")]
    resolves: Option<bool>,
}

impl From<ClientStatus> for Connection {
    fn from(status: ClientStatus) -> Self {
        let ClientStatus { membership, interface, dns } = status;
        // The server is the only peer of a client.
        let server = interface.as_ref().and_then(|(_, interface)| interface.peers.first());
        Self {
            connected: interface.is_some(),
            wireguard: interface.as_ref().map(|(kind, _)| kind.as_str()),
            names: dns.map(|(dns, in_effect)| match (&dns, in_effect) {
                (Dns::ByHand(_), _) | (_, true) => dns.describe(),
                (_, false) => format!("were {}; somebody has changed that since", dns.describe()),
            }),
            resolves: interface.is_some().then(|| dns::probe() == Some(membership.server.into())),
            resolved: server.and_then(|server| server.endpoint),
            last_handshake: server
                .and_then(|server| server.last_handshake)
                .and_then(|at| Timestamp::try_from(at).ok()),
            received_bytes: server.map_or(0, |server| server.rx_bytes),
            sent_bytes: server.map_or(0, |server| server.tx_bytes),
            name: membership.name,
            address: membership.address,
            server: membership.server,
            endpoint: membership.endpoint,
        }
    }
}

impl Status {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let options = self.local.options(Choice::Auto, DnsMode::Auto)?;
        let found = Connection::from(client::status(&options).map_err(|e| failure(&e))?);
        if self.output.format == Format::Json {
            return context.ui.json(&found);
        }
        let mut pairs = vec![
            ("name", Cell::new(&found.name)),
            ("state", if found.connected { state_cell("ok") } else { Cell::new("disconnected") }),
            ("address", Cell::new(found.address)),
            ("server", Cell::new(format!("{}, at {}", found.server, found.endpoint))),
        ];
        if let Some(wireguard) = found.wireguard {
            let now = Timestamp::now();
            let handshake = found.last_handshake.map_or_else(|| "never".to_owned(), |at| relative(at, now));
            pairs.extend([
                ("interface", Cell::new(format!("{} ({wireguard})", options.name))),
                ("handshake", Cell::new(handshake)),
                ("received", Cell::new(size(found.received_bytes))),
                ("sent", Cell::new(size(found.sent_bytes))),
                ("names", Cell::new(found.names.as_deref().unwrap_or("left alone"))),
                (
                    "ns.faas",
                    Cell::new(if found.resolves == Some(true) { "resolves" } else { "does not resolve" }),
                ),
            ]);
        }
        context.ui.pairs(pairs)
    }
}
