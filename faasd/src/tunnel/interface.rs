//! What can be asked of a WireGuard interface, whoever runs it.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::SystemTime;

use super::Error;
use super::dropped::Dropped;
use super::keys::{PrivateKey, PublicKey};

/// Peers changed in one request. A thousand at once held up the packets of all others for more than a second.
pub const PEERS_PER_REQUEST_MAX: usize = 50;

/// Who encrypts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The kernel's own WireGuard.
    Kernel,
    /// A process of ours on a TUN interface.
    Userspace,
}

impl Kind {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A prefix whose addresses belong to one peer: what it may send from, and what is sent to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AllowedIp {
    address: IpAddr,
    bits: u8,
}

/// A text that is no prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no prefix; write one like fd00:faa5:0:100::2/128")]
pub struct AllowedIpError(String);

impl AllowedIp {
    /// The prefix that `address` lies in. As in WireGuard, bits beyond the prefix do not count; `None` if there
    /// are more bits than the address has.
    #[must_use]
    pub fn new(address: impl Into<IpAddr>, bits: u8) -> Option<Self> {
        let address = address.into();
        let address = match address {
            IpAddr::V4(v4) => {
                let host = u32::MAX.checked_shr(u32::from(bits)).unwrap_or(0);
                (bits <= 32).then(|| IpAddr::V4((v4.to_bits() & !host).into()))
            }
            IpAddr::V6(v6) => {
                let host = u128::MAX.checked_shr(u32::from(bits)).unwrap_or(0);
                (bits <= 128).then(|| IpAddr::V6((v6.to_bits() & !host).into()))
            }
        }?;
        Some(Self { address, bits })
    }

    /// One address.
    #[must_use]
    pub const fn host(address: Ipv6Addr) -> Self {
        Self { address: IpAddr::V6(address), bits: 128 }
    }

    #[must_use]
    pub const fn address(self) -> IpAddr {
        self.address
    }

    #[must_use]
    pub const fn bits(self) -> u8 {
        self.bits
    }
}

impl FromStr for AllowedIp {
    type Err = AllowedIpError;

    fn from_str(s: &str) -> Result<Self, AllowedIpError> {
        let parse = || {
            let (address, bits) = s.split_once('/')?;
            Self::new(address.parse::<IpAddr>().ok()?, bits.parse().ok()?)
        };
        parse().ok_or_else(|| AllowedIpError(s.to_owned()))
    }
}

impl fmt::Display for AllowedIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// A peer, as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    pub public_key: PublicKey,
    pub allowed_ips: Vec<AllowedIp>,
    /// Where to send to until the peer says otherwise. With one, a handshake starts at once; without, the peer
    /// has to begin.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between packets that keep the path through a NAT open; 0 and none are never.
    pub keepalive_s: Option<u16>,
}

/// A peer, as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    pub public_key: PublicKey,
    pub endpoint: Option<SocketAddr>,
    pub last_handshake: Option<SystemTime>,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub allowed_ips: Vec<AllowedIp>,
    pub keepalive_s: Option<u16>,
}

/// An interface, as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceStatus {
    pub listen_port: u16,
    /// None until a private key is set.
    pub public_key: Option<PublicKey>,
    pub peers: Vec<PeerStatus>,
}

/// An interface without its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceStatus {
    pub listen_port: u16,
    /// None until a private key is set.
    pub public_key: Option<PublicKey>,
}

/// One change to the peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerChange {
    /// Adds the peer, or makes it so. Its allowed IPs replace those it had, and are taken from whoever had them.
    Set(PeerConfig),
    /// Forgets the peer and its session. One that is not there is no error.
    Remove(PublicKey),
}

/// A WireGuard interface that is up. Calls block, for milliseconds at most.
///
/// A change to one peer leaves the sessions of all others alone, and the session of that peer too, unless it is
/// removed.
pub trait Interface: Send + Sync + fmt::Debug {
    fn kind(&self) -> Kind;

    /// The interface's name, within its namespace.
    fn name(&self) -> &str;

    /// Sets the key and the UDP port; port 0 lets the kernel choose one. What is set already is not touched.
    ///
    /// # Errors
    /// If the interface is gone, or the port is taken.
    fn configure(&self, private_key: &PrivateKey, listen_port: u16) -> Result<(), Error>;

    /// Applies the changes in order, in batches.
    ///
    /// # Errors
    /// If the interface is gone. Earlier batches stay applied.
    fn update(&self, changes: &[PeerChange]) -> Result<(), Error>;

    /// What the interface knows.
    ///
    /// # Errors
    /// If the interface is gone.
    fn status(&self) -> Result<InterfaceStatus, Error>;

    /// The key and the port that the interface has, without its peers: a question that costs the same with any number
    /// of them.
    ///
    /// # Errors
    /// If the interface is gone.
    fn device(&self) -> Result<DeviceStatus, Error>;

    /// Whether the interface is there and answers, as cheaply as that can be known.
    ///
    /// # Errors
    /// If it is gone.
    fn check(&self) -> Result<(), Error> {
        self.device().map(drop)
    }

    /// How many packets went no further since the interface began, and why.
    ///
    /// # Errors
    /// If the interface is gone.
    fn dropped(&self) -> Result<Dropped, Error>;

    /// One peer, if it is there.
    ///
    /// # Errors
    /// If the interface is gone.
    fn peer(&self, key: PublicKey) -> Result<Option<PeerStatus>, Error> {
        Ok(self.status()?.peers.into_iter().find(|peer| peer.public_key == key))
    }

    /// Makes the peers exactly these, changing only what differs: safe to call again after a restart. For a peer
    /// that is there with an endpoint, [`PeerConfig::endpoint`] is not used: the one it roamed to is newer.
    ///
    /// # Errors
    /// If the interface is gone. Earlier batches stay applied.
    fn set_peers(&self, wanted: &[PeerConfig]) -> Result<(), Error> {
        self.update(&changes(&self.status()?.peers, wanted))
    }

    /// Adds one peer, or makes it so.
    ///
    /// # Errors
    /// If the interface is gone.
    fn set_peer(&self, peer: PeerConfig) -> Result<(), Error> {
        self.update(&[PeerChange::Set(peer)])
    }

    /// Removes one peer and its session.
    ///
    /// # Errors
    /// If the interface is gone.
    fn remove_peer(&self, key: PublicKey) -> Result<(), Error> {
        self.update(&[PeerChange::Remove(key)])
    }
}

/// What leads from the peers that are there to those that are wanted. Removals come first, since the address of
/// a removed peer may belong to a new one.
fn changes(there: &[PeerStatus], wanted: &[PeerConfig]) -> Vec<PeerChange> {
    let want: HashMap<PublicKey, &PeerConfig> = wanted.iter().map(|peer| (peer.public_key, peer)).collect();
    let have: HashMap<PublicKey, &PeerStatus> = there.iter().map(|peer| (peer.public_key, peer)).collect();
    let mut changes: Vec<PeerChange> = there
        .iter()
        .filter(|peer| !want.contains_key(&peer.public_key))
        .map(|peer| PeerChange::Remove(peer.public_key))
        .collect();
    for peer in wanted {
        let Some(now) = have.get(&peer.public_key) else {
            changes.push(PeerChange::Set(peer.clone()));
            continue;
        };
        let sorted = |ips: &[AllowedIp]| {
            let mut ips = ips.to_vec();
            ips.sort_unstable();
            ips.dedup();
            ips
        };
        let endpoint = if now.endpoint.is_none() { peer.endpoint } else { None };
        let same = sorted(&now.allowed_ips) == sorted(&peer.allowed_ips)
            && now.keepalive_s.unwrap_or(0) == peer.keepalive_s.unwrap_or(0)
            && endpoint.is_none();
        if !same {
            changes.push(PeerChange::Set(PeerConfig { endpoint, ..peer.clone() }));
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(n: u8) -> PeerConfig {
        PeerConfig {
            public_key: PublicKey::from_bytes([n; 32]),
            allowed_ips: vec![AllowedIp::host(format!("fd00:faa5:0:100::{n}").parse().unwrap())],
            endpoint: Some(([192, 0, 2, n], 51820).into()),
            keepalive_s: Some(0),
        }
    }

    fn status(n: u8) -> PeerStatus {
        let PeerConfig { public_key, allowed_ips, .. } = config(n);
        PeerStatus {
            public_key,
            endpoint: Some(([198, 51, 100, n], 1).into()),
            last_handshake: None,
            rx_bytes: 0,
            tx_bytes: 0,
            allowed_ips,
            keepalive_s: None,
        }
    }

    #[test]
    fn only_what_differs_is_changed() {
        assert_eq!(changes(&[status(1), status(2)], &[config(2), config(1)]), []);
        assert_eq!(
            changes(&[status(1), status(2)], &[config(3), config(2)]),
            [PeerChange::Remove(PublicKey::from_bytes([1; 32])), PeerChange::Set(config(3))]
        );
    }

    #[test]
    fn an_endpoint_is_given_only_to_who_has_none() {
        let roamed = PeerConfig { keepalive_s: Some(25), ..config(1) };
        assert_eq!(
            changes(&[status(1)], std::slice::from_ref(&roamed)),
            [PeerChange::Set(PeerConfig { endpoint: None, ..roamed })]
        );
        let lost = PeerStatus { endpoint: None, ..status(1) };
        assert_eq!(changes(&[lost], &[config(1)]), [PeerChange::Set(config(1))]);
    }

    #[test]
    fn prefixes_are_read_and_cut() {
        for (text, cut) in [
            ("fd00::1:2/112", "fd00::1:0/112"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("::/0", "::/0"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("fd00::1/128", "fd00::1/128"),
        ] {
            assert_eq!(text.parse::<AllowedIp>().unwrap().to_string(), cut);
        }
        for bad in ["fd00::/129", "10.0.0.0/33", "10.0.0.0", "-fd00::1/128", "x/1"] {
            assert!(bad.parse::<AllowedIp>().is_err(), "{bad}");
        }
    }
}
