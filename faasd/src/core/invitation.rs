//! An invitation to the tunnel: everything that a client needs to join, as one word that can be pasted.

use std::net::Ipv6Addr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::address::{OUTSIDE_PREFIX, Prefix};
use super::endpoint;
use super::name::FunctionName;

/// What every invitation begins with. The number is that of the text form, not of what it carries.
pub const MARK: &str = "faas1-";

/// The version of the content that this program writes and reads.
pub const VERSION: u32 = 1;

/// The longest invitation that is looked at. A real one has about 600 bytes.
const TEXT_BYTES_MAX: usize = 4096;

/// What an invitation carries, as JSON within base64url.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// The form's version: 1.
    pub v: u32,
    pub name: String,
    /// The client's address in the tunnel.
    pub address: Ipv6Addr,
    /// A key good for one exchange: the client's own replaces it.
    pub private_key: String,
    pub server_public_key: String,
    /// `HOST:PORT`; an IPv6 host stands in brackets.
    pub endpoint: String,
    /// The server's address in the tunnel: DNS, join, metrics.
    pub server: Ipv6Addr,
    pub vpn_prefix: Prefix,
    pub function_prefix: Prefix,
    /// The port of `/v1/join`, `/v1/rotate` and `/metrics` on the server's address.
    pub http_port: u16,
    pub expires_at: Timestamp,
}

/// Why a text is no invitation to act on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvitationError {
    #[error(
        "this is no invitation: one begins with '{MARK}'; `faas vpn invite NAME` on the server makes one"
    )]
    Foreign,
    #[error("the invitation is damaged ({0}); copy it again, as one line")]
    Damaged(String),
    #[error("the invitation is none that a server writes: {0}; ask for a new one (`faas vpn invite NAME`)")]
    Wrong(String),
    #[error("the invitation has version {0}, from a newer faasd; this one reads {VERSION}: upgrade it")]
    Newer(u32),
    #[error("the invitation for '{name}' expired at {at}; ask for a new one (`faas vpn invite {name}`)")]
    Expired { name: String, at: Timestamp },
}

/// Read before the rest, which another version may have changed.
#[derive(Deserialize)]
struct Version {
    v: u32,
}

impl Invitation {
    /// The text that a client is given.
    ///
    /// # Errors
    /// None that a value of this type can cause; `serde_json`'s signature has one.
    pub fn encode(&self) -> Result<String, InvitationError> {
        let json = serde_json::to_vec(self).map_err(|e| InvitationError::Damaged(e.to_string()))?;
        Ok(format!("{MARK}{}", URL_SAFE_NO_PAD.encode(json)))
    }

    /// Reads a text. White space within it is left out: terminals and mail programs break long lines.
    ///
    /// # Errors
    /// Says which of the ways of not being a valid invitation it is.
    pub fn decode(text: &str, now: Timestamp) -> Result<Self, InvitationError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(InvitationError::Damaged(format!("longer than {TEXT_BYTES_MAX} bytes")));
        }
        let text: String = text.split_ascii_whitespace().collect();
        let body = text.strip_prefix(MARK).ok_or(InvitationError::Foreign)?;
        let json =
            URL_SAFE_NO_PAD.decode(body).map_err(|_| InvitationError::Damaged("not base64url".into()))?;
        let damaged = |e: serde_json::Error| InvitationError::Damaged(e.to_string());
        let Version { v } = serde_json::from_slice(&json).map_err(damaged)?;
        if v > VERSION {
            return Err(InvitationError::Newer(v));
        }
        let invitation: Self = serde_json::from_slice(&json).map_err(damaged)?;
        invitation.check().map_err(InvitationError::Wrong)?;
        if invitation.expires_at <= now {
            return Err(InvitationError::Expired { name: invitation.name, at: invitation.expires_at });
        }
        Ok(invitation)
    }

    /// What root on the client is about to do by it: addresses, routes, a name in files.
    fn check(&self) -> Result<(), String> {
        self.name.parse::<FunctionName>().map_err(|e| format!("its name: {e}"))?;
        let (vpn, functions) = (self.vpn_prefix, self.function_prefix);
        for prefix in [vpn, functions] {
            let first = prefix.network();
            let is_special = first.is_unspecified() || first.is_unicast_link_local() || first.is_multicast();
            if is_special || prefix == OUTSIDE_PREFIX {
                return Err(format!("{prefix} is set aside for something else"));
            }
        }
        if vpn == functions {
            return Err(format!("{vpn} is the prefix of both peers and functions"));
        }
        if self.server != vpn.server() {
            return Err(format!("the server {} is not the first address of {vpn}", self.server));
        }
        if !vpn.contains(self.address) || [vpn.network(), self.server].contains(&self.address) {
            return Err(format!("{} is no peer's address in {vpn}", self.address));
        }
        if self.http_port == 0 {
            return Err("it has no port for the API".to_owned());
        }
        let endpoint = endpoint::normalize(&self.endpoint, 0).map_err(|e| e.to_string())?;
        if endpoint != self.endpoint {
            return Err(format!("its endpoint '{}' is not HOST:PORT", self.endpoint));
        }
        Ok(())
    }
}

impl std::fmt::Debug for Invitation {
    /// Leaves out the key: invitations end up in logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Invitation")
            .field("name", &self.name)
            .field("address", &self.address)
            .field("endpoint", &self.endpoint)
            .field("server", &self.server)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::address::{FUNCTION_PREFIX, VPN_PREFIX};

    fn sample() -> Invitation {
        Invitation {
            v: VERSION,
            name: "laptop".into(),
            address: VPN_PREFIX.host(2),
            private_key: "cGyVmbKuhz+/rrqTfnXVn1zVaaHdRPYhdtCVdBEAl2Y=".into(),
            server_public_key: "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=".into(),
            endpoint: "[2001:db8::1]:51820".into(),
            server: VPN_PREFIX.server(),
            vpn_prefix: VPN_PREFIX,
            function_prefix: FUNCTION_PREFIX,
            http_port: 9180,
            expires_at: "2026-01-02T00:00:00Z".parse().unwrap(),
        }
    }

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    #[test]
    fn a_round_trip_keeps_everything_even_with_the_line_broken() {
        let text = sample().encode().unwrap();
        assert!(text.starts_with("faas1-") && text.is_ascii());
        assert_eq!(Invitation::decode(&text, now()), Ok(sample()));
        let (a, b) = text.split_at(70);
        assert_eq!(Invitation::decode(&format!("  {a}\r\n {b}\n"), now()), Ok(sample()));
    }

    #[test]
    fn each_refusal_says_what_is_wrong() {
        let text = sample().encode().unwrap();
        assert_eq!(Invitation::decode("hello", now()), Err(InvitationError::Foreign));
        for cut in [MARK.len(), MARK.len() + 1, text.len() / 2, text.len() - 1] {
            let error = Invitation::decode(&text[..cut], now()).unwrap_err();
            assert!(matches!(error, InvitationError::Damaged(_)), "{cut}: {error}");
        }
        let long = format!("{text}{}", "A".repeat(TEXT_BYTES_MAX));
        assert!(matches!(Invitation::decode(&long, now()), Err(InvitationError::Damaged(_))));
    }

    #[test]
    fn what_no_server_writes_is_not_acted_upon() {
        let change = |change: &dyn Fn(&mut Invitation), why: &str| {
            let mut invitation = sample();
            change(&mut invitation);
            let error = Invitation::decode(&invitation.encode().unwrap(), now()).unwrap_err();
            assert!(matches!(error, InvitationError::Wrong(_)), "{error}");
            assert!(error.to_string().contains(why), "{error}");
        };
        change(&|i| i.name = "../../etc/x".into(), "name");
        change(&|i| i.vpn_prefix = "fe80::/64".parse().unwrap(), "set aside");
        change(&|i| i.function_prefix = "::/64".parse().unwrap(), "set aside");
        change(&|i| i.function_prefix = "ff02::/64".parse().unwrap(), "set aside");
        change(&|i| i.function_prefix = i.vpn_prefix, "both");
        change(&|i| i.server = i.vpn_prefix.host(7), "first address");
        change(&|i| i.address = i.server, "no peer's address");
        change(&|i| i.address = i.function_prefix.host(2), "no peer's address");
        change(&|i| i.http_port = 0, "no port");
        change(&|i| i.endpoint = "host".into(), "not HOST:PORT");
        change(&|i| i.endpoint = "host:99999".into(), "1 to 65535");
        change(&|i| i.endpoint = "[fe80::1%eth0]:51820".into(), "zone");
    }

    #[test]
    fn a_newer_version_is_named_even_if_its_fields_differ() {
        let text = format!("{MARK}{}", URL_SAFE_NO_PAD.encode(br#"{"v":2,"anything":[]}"#));
        assert_eq!(Invitation::decode(&text, now()), Err(InvitationError::Newer(2)));
    }

    #[test]
    fn it_expires_at_its_very_second() {
        let text = sample().encode().unwrap();
        let at = sample().expires_at;
        assert!(Invitation::decode(&text, at - jiff::SignedDuration::from_nanos(1)).is_ok());
        let error = Invitation::decode(&text, at).unwrap_err();
        assert!(error.to_string().contains("faas vpn invite laptop"), "{error}");
    }

    #[test]
    fn the_key_is_not_printed() {
        assert!(!format!("{:?}", sample()).contains("cGyV"));
    }
}
