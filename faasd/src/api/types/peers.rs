//! Peers of the tunnel, and how they become such.

use std::net::{Ipv6Addr, SocketAddr};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::core::access::{GroupName, Role};
use crate::core::name::FunctionName;

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Peers {
    pub peers: Vec<Peer>,
    /// There is more: ask again with `after` as this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Peer {
    pub name: FunctionName,
    pub address: Ipv6Addr,
    pub role: Role,
    /// Those that it is in.
    pub groups: Vec<GroupName>,
    /// Base64, as WireGuard writes it. While the invitation is open, that of the invitation's own key.
    pub public_key: String,
    /// Not joined yet; until when the invitation is good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invited_until: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_handshake: Option<Timestamp>,
    pub received_bytes: u64,
    pub sent_bytes: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Invite {
    pub name: FunctionName,
    /// How long the invitation is good for.
    pub expires_in_ms: u64,
    /// What the peer may do when it has joined.
    #[serde(default)]
    pub role: Role,
    /// `HOST:PORT` that clients dial, if not the daemon's own setting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The key is not replaced by the client's own: for a plain WireGuard configuration, whose private key is made by the
    /// server and which does not expire.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub plain: bool,
}

/// What `faas vpn invite` prints: the text that `faas vpn connect` takes.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Invited {
    pub name: FunctionName,
    pub address: Ipv6Addr,
    pub expires_at: Timestamp,
    pub invitation: String,
}

/// Sent through the tunnel that the invitation's key opened; the sender's address says whose it is.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// The key that the client made and keeps, base64.
    pub public_key: String,
}
