//! The text that WireGuard's tools exchange with a userspace implementation over its unix socket
//! (<https://www.wireguard.com/xplatform/>): both ends of it, and no I/O.

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::dropped::{Dropped, Reason};
use super::interface::{AllowedIp, InterfaceStatus, PeerStatus};
use super::keys::{PrivateKey, PublicKey};

/// The longest request, in bytes: room for more than 10,000 peers, of which the daemon sends some at a time.
pub const REQUEST_BYTES_MAX: usize = 8 << 20;

/// The longest answer, in bytes: room for all the peers that there are addresses for, at some 330 bytes each.
pub const ANSWER_BYTES_MAX: usize = 32 << 20;

/// What the counts of dropped packets are called in an answer, before the reason.
const DROPPED: &str = "dropped_";

/// A text that is not the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not the WireGuard configuration protocol: '{0}'")]
pub struct ProtocolError(String);

/// A request.
#[derive(Debug)]
pub enum Request {
    Get(Scope),
    Set(Set),
}

/// What is asked for. The protocol knows all of it alone; the others are ours, for our own process, so that a question
/// about one peer is not answered with ten thousand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    All,
    /// The interface without its peers.
    Device,
    /// The interface, and this peer if it is there.
    Peer(PublicKey),
    /// How many packets went no further, and why.
    Dropped,
}

impl Scope {
    /// The request's text.
    #[must_use]
    pub fn write(&self) -> String {
        match self {
            Self::All => "get=1\n\n".to_owned(),
            Self::Device => "get=1\npeers=none\n\n".to_owned(),
            Self::Peer(peer) => format!("get=1\npublic_key={}\n\n", hex(peer.as_bytes())),
            Self::Dropped => "get=1\ndropped=true\n\n".to_owned(),
        }
    }

    fn parse(line: Option<&str>) -> Option<Self> {
        match line.map(|line| line.split_once('=')) {
            None => Some(Self::All),
            Some(Some(("peers", "none"))) => Some(Self::Device),
            Some(Some(("dropped", "true"))) => Some(Self::Dropped),
            Some(Some(("public_key", value))) => Some(Self::Peer(PublicKey::from_bytes(key(value)?))),
            Some(_) => None,
        }
    }
}

/// Changes. What is `None` stays as it is.
#[derive(Debug, Default)]
pub struct Set {
    pub private_key: Option<PrivateKey>,
    pub listen_port: Option<u16>,
    pub fwmark: Option<u32>,
    /// The peers that are not named are removed.
    pub replace_peers: bool,
    pub peers: Vec<SetPeer>,
}

/// Changes to a peer.
#[derive(Debug, Clone)]
pub struct SetPeer {
    pub public_key: PublicKey,
    pub remove: bool,
    pub update_only: bool,
    /// All zeroes take a key away.
    pub preshared_key: Option<[u8; 32]>,
    pub endpoint: Option<SocketAddr>,
    pub keepalive_s: Option<u16>,
    pub replace_allowed_ips: bool,
    pub allowed_ips: Vec<AllowedIp>,
}

impl SetPeer {
    #[must_use]
    pub const fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            remove: false,
            update_only: false,
            preshared_key: None,
            endpoint: None,
            keepalive_s: None,
            replace_allowed_ips: false,
            allowed_ips: Vec::new(),
        }
    }
}

impl Set {
    /// The request's text, with the empty line that ends it.
    #[must_use]
    pub fn write(&self) -> String {
        let mut text = String::from("set=1\n");
        if let Some(key) = &self.private_key {
            line(&mut text, "private_key", hex(&key.to_bytes()));
        }
        if let Some(port) = self.listen_port {
            line(&mut text, "listen_port", port);
        }
        if let Some(mark) = self.fwmark {
            line(&mut text, "fwmark", mark);
        }
        if self.replace_peers {
            line(&mut text, "replace_peers", true);
        }
        for peer in &self.peers {
            line(&mut text, "public_key", hex(peer.public_key.as_bytes()));
            for (key, set) in [
                ("remove", peer.remove),
                ("update_only", peer.update_only),
                ("replace_allowed_ips", peer.replace_allowed_ips),
            ] {
                if set {
                    line(&mut text, key, true);
                }
            }
            if let Some(key) = &peer.preshared_key {
                line(&mut text, "preshared_key", hex(key));
            }
            if let Some(endpoint) = peer.endpoint {
                line(&mut text, "endpoint", endpoint);
            }
            if let Some(seconds) = peer.keepalive_s {
                line(&mut text, "persistent_keepalive_interval", seconds);
            }
            for ip in &peer.allowed_ips {
                line(&mut text, "allowed_ip", ip);
            }
        }
        text.push('\n');
        text
    }
}

impl Request {
    /// Reads a request, without the empty line that ends it.
    ///
    /// # Errors
    /// Names the first line that is not understood.
    pub fn parse(text: &str) -> Result<Self, ProtocolError> {
        let mut lines = text.lines();
        match lines.next() {
            Some("get=1") => {
                let line = lines.next();
                let scope = Scope::parse(line).filter(|_| lines.next().is_none());
                scope.map(Self::Get).ok_or_else(|| ProtocolError(line.unwrap_or_default().to_owned()))
            }
            Some("set=1") => {
                let mut set = Set::default();
                for line in lines {
                    // A line may hold a key: only its name goes into the error.
                    let (name, value) = line.split_once('=').unwrap_or((line, ""));
                    let done = match set.peers.last_mut() {
                        _ if name == "public_key" => {
                            key(value).map(|key| set.peers.push(SetPeer::new(PublicKey::from_bytes(key))))
                        }
                        Some(peer) => peer_line(peer, name, value),
                        None => device_line(&mut set, name, value),
                    };
                    done.ok_or_else(|| ProtocolError(name.to_owned()))?;
                }
                Ok(Self::Set(set))
            }
            other => Err(ProtocolError(other.unwrap_or_default().to_owned())),
        }
    }
}

fn device_line(set: &mut Set, name: &str, value: &str) -> Option<()> {
    match name {
        "private_key" => set.private_key = Some(PrivateKey::from_bytes(key(value)?)),
        "listen_port" => set.listen_port = Some(value.parse().ok()?),
        "fwmark" => set.fwmark = Some(value.parse().ok()?),
        "replace_peers" => set.replace_peers = truth(value)?,
        _ => return None,
    }
    Some(())
}

fn peer_line(peer: &mut SetPeer, name: &str, value: &str) -> Option<()> {
    match name {
        "remove" => peer.remove = truth(value)?,
        "update_only" => peer.update_only = truth(value)?,
        "preshared_key" => peer.preshared_key = Some(key(value)?),
        "endpoint" => peer.endpoint = Some(value.parse().ok()?),
        "persistent_keepalive_interval" => peer.keepalive_s = Some(value.parse().ok()?),
        "replace_allowed_ips" => peer.replace_allowed_ips = truth(value)?,
        "allowed_ip" => peer.allowed_ips.push(value.parse().ok()?),
        "protocol_version" if value == "1" => {}
        _ => return None,
    }
    Some(())
}

/// The answer to [`Request::Get`].
#[must_use]
pub fn write_status(key: Option<&PrivateKey>, fwmark: Option<u32>, status: &InterfaceStatus) -> String {
    let mut text = String::new();
    if let Some(key) = key {
        line(&mut text, "private_key", hex(&key.to_bytes()));
    }
    line(&mut text, "listen_port", status.listen_port);
    if let Some(mark) = fwmark {
        line(&mut text, "fwmark", mark);
    }
    for peer in &status.peers {
        line(&mut text, "public_key", hex(peer.public_key.as_bytes()));
        if let Some(endpoint) = peer.endpoint {
            line(&mut text, "endpoint", endpoint);
        }
        for ip in &peer.allowed_ips {
            line(&mut text, "allowed_ip", ip);
        }
        let since = peer.last_handshake.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        line(&mut text, "last_handshake_time_sec", since.as_secs());
        line(&mut text, "last_handshake_time_nsec", since.subsec_nanos());
        line(&mut text, "tx_bytes", peer.tx_bytes);
        line(&mut text, "rx_bytes", peer.rx_bytes);
        line(&mut text, "persistent_keepalive_interval", peer.keepalive_s.unwrap_or(0));
        line(&mut text, "protocol_version", 1);
    }
    text.push_str(&write_errno(0));
    text
}

/// The answer to [`Scope::Dropped`].
#[must_use]
pub fn write_dropped(dropped: &Dropped) -> String {
    let mut text = String::new();
    for (reason, packets) in dropped.iter() {
        line(&mut text, &format!("{DROPPED}{}", reason.as_str()), packets);
    }
    text.push_str(&write_errno(0));
    text
}

/// Reads the answer to [`Scope::Dropped`]. Reasons that are not known are passed over: the process may be of a later
/// version.
///
/// # Errors
/// Names the first known reason whose count is not understood.
pub fn read_dropped(text: &str) -> Result<Dropped, ProtocolError> {
    let mut dropped = Dropped::default();
    for line in text.lines() {
        let Some((name, packets)) = line.strip_prefix(DROPPED).and_then(|rest| rest.split_once('=')) else {
            continue;
        };
        if let Some(reason) = Reason::ALL.into_iter().find(|reason| reason.as_str() == name) {
            let packets = packets.parse().map_err(|_| ProtocolError(name.to_owned()))?;
            dropped.add(reason, packets);
        }
    }
    Ok(dropped)
}

/// The end of every answer; to [`Request::Set`], all of it.
#[must_use]
pub fn write_errno(errno: i32) -> String {
    format!("errno={errno}\n\n")
}

/// The error number of an answer: 0 is success.
///
/// # Errors
/// If there is none.
pub fn read_errno(text: &str) -> Result<i32, ProtocolError> {
    text.lines()
        .find_map(|line| line.strip_prefix("errno="))
        .and_then(|errno| errno.parse().ok())
        .ok_or_else(|| ProtocolError("an answer without errno".into()))
}

/// Reads the answer to [`Request::Get`]. Lines that are not known are passed over, since implementations add some.
///
/// # Errors
/// Names the first known line whose value is not understood.
pub fn read_status(text: &str) -> Result<InterfaceStatus, ProtocolError> {
    let mut status = InterfaceStatus { listen_port: 0, public_key: None, peers: Vec::new() };
    for line in text.lines().take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once('=').unwrap_or((line, ""));
        status_line(&mut status, name, value).ok_or_else(|| ProtocolError(name.to_owned()))?;
    }
    for peer in &mut status.peers {
        peer.last_handshake = peer.last_handshake.filter(|at| *at != UNIX_EPOCH);
        peer.keepalive_s = peer.keepalive_s.filter(|seconds| *seconds != 0);
    }
    Ok(status)
}

fn status_line(status: &mut InterfaceStatus, name: &str, value: &str) -> Option<()> {
    let later = |at: Option<SystemTime>, by| Some(at.unwrap_or(UNIX_EPOCH) + by);
    match (name, status.peers.last_mut()) {
        ("private_key", _) => status.public_key = Some(PrivateKey::from_bytes(key(value)?).public()),
        ("listen_port", _) => status.listen_port = value.parse().ok()?,
        ("public_key", _) => status.peers.push(PeerStatus {
            public_key: PublicKey::from_bytes(key(value)?),
            endpoint: None,
            last_handshake: None,
            rx_bytes: 0,
            tx_bytes: 0,
            allowed_ips: Vec::new(),
            keepalive_s: None,
        }),
        ("endpoint", Some(peer)) => peer.endpoint = Some(value.parse().ok()?),
        ("allowed_ip", Some(peer)) => peer.allowed_ips.push(value.parse().ok()?),
        ("rx_bytes", Some(peer)) => peer.rx_bytes = value.parse().ok()?,
        ("tx_bytes", Some(peer)) => peer.tx_bytes = value.parse().ok()?,
        ("persistent_keepalive_interval", Some(peer)) => peer.keepalive_s = Some(value.parse().ok()?),
        ("last_handshake_time_sec", Some(peer)) => {
            // A century beyond 2000 does; more would overflow the addition.
            let seconds = value.parse::<u32>().ok()?;
            peer.last_handshake = later(peer.last_handshake, Duration::from_secs(seconds.into()));
        }
        ("last_handshake_time_nsec", Some(peer)) => {
            peer.last_handshake =
                later(peer.last_handshake, Duration::from_nanos(value.parse::<u32>().ok()?.into()));
        }
        _ => {}
    }
    Some(())
}

fn line(text: &mut String, name: &str, value: impl std::fmt::Display) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{name}={value}");
}

fn truth(value: &str) -> Option<bool> {
    (value == "true").then_some(true)
}

fn hex(bytes: &[u8; 32]) -> String {
    let digit = |nibble: u8| char::from_digit(nibble.into(), 16).unwrap_or('0');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

fn key(hex: &str) -> Option<[u8; 32]> {
    if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut key = [0; 32];
    for (byte, pair) in key.iter_mut().zip(0..) {
        *byte = u8::from_str_radix(hex.get(2 * pair..2 * pair + 2)?, 16).ok()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_survives_writing_and_reading() {
        let private = PrivateKey::from_bytes([7; 32]);
        let peer = SetPeer {
            endpoint: Some("[2001:db8::1]:51820".parse().unwrap()),
            keepalive_s: Some(25),
            replace_allowed_ips: true,
            allowed_ips: vec!["fd00::2/128".parse().unwrap(), "10.0.0.0/8".parse().unwrap()],
            ..SetPeer::new(PublicKey::from_bytes([0xab; 32]))
        };
        let gone = SetPeer { remove: true, ..SetPeer::new(PublicKey::from_bytes([2; 32])) };
        let set = Set {
            private_key: Some(private),
            listen_port: Some(51820),
            peers: vec![peer, gone],
            ..Set::default()
        };
        let text = set.write();
        assert!(text.ends_with("\n\n"));
        let Request::Set(read) = Request::parse(text.trim_end()).unwrap() else { panic!("{text}") };
        assert_eq!(read.write(), text);
    }

    #[test]
    fn what_is_not_understood_is_refused_without_repeating_a_key() {
        for (bad, named) in [
            ("", "''"),
            ("get=2", "get=2"),
            ("set=1\nprivate_key=abc", "'private_key'"),
            ("set=1\nendpoint=1.2.3.4:5", "'endpoint'"),
            (&format!("set=1\npublic_key={}\nallowed_ip=fd00::", "0".repeat(64)), "'allowed_ip'"),
            (&format!("set=1\npublic_key={}", "é".repeat(32)), "'public_key'"),
        ] {
            let error = Request::parse(bad).unwrap_err().to_string();
            assert!(error.contains(named) && !error.contains("abc"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_part_can_be_asked_for() {
        let key = PublicKey::from_bytes([0xab; 32]);
        for scope in [Scope::All, Scope::Device, Scope::Peer(key), Scope::Dropped] {
            let text = scope.write();
            let Request::Get(read) = Request::parse(text.trim_end()).unwrap() else { panic!("{text}") };
            assert_eq!(read, scope);
        }
        for bad in ["get=1\npeers=some", "get=1\npublic_key=00", "get=1\npeers=none\npeers=none"] {
            assert!(Request::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn counts_of_what_was_dropped_survive_writing_and_reading() {
        let mut dropped = Dropped::default();
        for (n, reason) in (1..).zip(Reason::ALL) {
            dropped.add(reason, n);
        }
        let text = write_dropped(&dropped);
        assert_eq!(read_errno(&text), Ok(0));
        assert_eq!(read_dropped(&format!("dropped_of_late=3\n{text}")).unwrap(), dropped);
        assert!(read_dropped("dropped_source=many\n").is_err());
    }

    #[test]
    fn a_status_survives_writing_and_reading() {
        let key = PrivateKey::from_bytes([7; 32]);
        let peer = |n: u8, at| PeerStatus {
            public_key: PublicKey::from_bytes([n; 32]),
            endpoint: Some(([192, 0, 2, n], 7).into()),
            last_handshake: at,
            rx_bytes: 1,
            tx_bytes: 2,
            allowed_ips: vec!["fd00::2/128".parse().unwrap()],
            keepalive_s: None,
        };
        let at = UNIX_EPOCH + Duration::new(1_700_000_000, 5);
        let status = InterfaceStatus {
            listen_port: 51820,
            public_key: Some(key.public()),
            peers: vec![peer(1, Some(at)), peer(2, None)],
        };
        let text = write_status(Some(&key), None, &status);
        assert_eq!(read_status(&text), Ok(status));
        assert_eq!(read_errno(&text), Ok(0));
        assert_eq!(read_errno("errno=-22\n\n"), Ok(-22));
    }
}
