//! The zones of this machine: `faas.`, and the reverse zones of the tunnel's prefix and of the functions'.
//!
//! A [`Zone`] is a value. A change makes a new one, which shares all but a few nodes of the old one's trees, so that it
//! can be published with one pointer swap while queries go on reading the old one. No change and no query costs
//! more than the depth of a tree.

mod file;
mod find;
mod message;
mod records;
mod wire;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv6Addr;
use std::sync::Arc;

use imbl::OrdMap;
use smol_str::SmolStr;

use super::address::Prefix;
use super::name::FunctionName;
use super::revision::Alias;

pub use file::{BANNER, write_zone_file};
pub use find::{Found, Labels};
pub use message::{
    ANSWER_BYTES_MAX, Caller, Outcome, Question, UDP_PAYLOAD_BYTES_MAX, UDP_PAYLOAD_BYTES_MIN, Verdict,
    answer, refusal, soa_answer, truncated_answer,
};
pub use records::{Data, Record};

/// The forward zone's only label below the root.
pub const ZONE: &str = "faas";
/// Peers' names are below this label, so that a peer and a function may have the same name.
pub const PEERS_LABEL: &str = "peers";
/// The name server's label.
pub const SERVER_LABEL: &str = "ns";

/// The SOA's timers (RFC 1035, 3.3.13), for secondaries.
pub const REFRESH_SECONDS: u32 = 3600;
pub const RETRY_SECONDS: u32 = 1800;
pub const EXPIRE_SECONDS: u32 = 604_800;

/// What holds for all zones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneSettings {
    /// The tunnel's addresses; `ns.faas.` is the first of them.
    pub vpn: Prefix,
    pub functions: Prefix,
    /// How long a resolver may keep a positive answer.
    pub ttl_seconds: u32,
    /// How long a resolver may keep "no such name". Who asks before a deploy sees the name this much later, so it is
    /// short. It is the SOA's minimum *and* its TTL, since resolvers take the lesser of the two (RFC 2308, 5).
    pub negative_ttl_seconds: u32,
}

impl ZoneSettings {
    #[must_use]
    pub const fn new(vpn: Prefix, functions: Prefix) -> Self {
        Self { vpn, functions, ttl_seconds: 60, negative_ttl_seconds: 1 }
    }
}

/// One of the zones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// `faas.`
    Names,
    /// The reverse zone of the tunnel's prefix.
    Peers,
    /// The reverse zone of the functions' prefix.
    Functions,
}

impl Origin {
    pub const ALL: [Self; 3] = [Self::Names, Self::Peers, Self::Functions];
}

/// A function's names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionNames {
    pub name: FunctionName,
    pub address: Ipv6Addr,
    /// Where it serves: `_http._tcp.NAME.faas.`
    pub port: Option<u16>,
    /// `vN.NAME.faas.`
    pub revisions: BTreeMap<u64, Ipv6Addr>,
    /// `ALIAS.NAME.faas.`, the same as `vN.NAME.faas.` One of a revision that has no address is left out.
    pub aliases: BTreeMap<Alias, u64>,
}

impl FunctionNames {
    /// A function without names for its revisions.
    #[must_use]
    pub const fn new(name: FunctionName, address: Ipv6Addr, port: Option<u16>) -> Self {
        Self { name, address, port, revisions: BTreeMap::new(), aliases: BTreeMap::new() }
    }

    /// Its addresses, and of which revision each is; none for its own.
    fn addresses(&self) -> impl Iterator<Item = (Ipv6Addr, Option<u64>)> {
        let own = std::iter::once((self.address, None));
        own.chain(self.revisions.iter().map(|(number, address)| (*address, Some(*number))))
    }

    /// How many names it has.
    fn names(&self) -> usize {
        1 + usize::from(self.port.is_some()) + self.revisions.len() + self.aliases().count()
    }

    /// Aliases, the numbers that they stand for, and the addresses of these.
    fn aliases(&self) -> impl Iterator<Item = (&Alias, u64, Ipv6Addr)> {
        self.aliases.iter().filter_map(|(alias, number)| Some((alias, *number, *self.revisions.get(number)?)))
    }
}

/// Who an address of the functions' prefix belongs to.
#[derive(Clone, Debug)]
struct Owner {
    function: Arc<FunctionNames>,
    revision: Option<u64>,
}

/// All names.
#[derive(Clone)]
pub struct Zone {
    settings: Arc<ZoneSettings>,
    serial: u32,
    /// How many names there are in `faas.`, but for the apex.
    names: usize,
    functions: OrdMap<SmolStr, Arc<FunctionNames>>,
    peers: OrdMap<SmolStr, Ipv6Addr>,
    /// By the host part of their addresses.
    owners: OrdMap<u64, Owner>,
    peers_by_host: OrdMap<u64, SmolStr>,
}

impl fmt::Debug for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Zone")
            .field("serial", &self.serial)
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

/// Whether serial `a` is later than `b` (RFC 1982, 3.2).
#[must_use]
pub const fn serial_is_later(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

impl Zone {
    /// A zone with no names but the server's own.
    #[must_use]
    pub fn new(settings: ZoneSettings, serial: u32) -> Self {
        Self {
            settings: Arc::new(settings),
            serial,
            names: 1,
            functions: OrdMap::new(),
            peers: OrdMap::new(),
            owners: OrdMap::new(),
            peers_by_host: OrdMap::new(),
        }
    }

    /// The same names under another serial.
    #[must_use]
    pub fn numbered(&self, serial: u32) -> Self {
        Self { serial, ..self.clone() }
    }

    /// The zone with this function's names in place of those that it had, under the next serial; `None` if it has them
    /// already.
    #[must_use]
    pub fn with_function(&self, function: &Arc<FunctionNames>) -> Option<Self> {
        let old = self.functions.get(function.name.as_str());
        if old.is_some_and(|old| old == function) {
            return None;
        }
        let mut zone = self.next();
        if let Some(old) = old {
            zone.forget_addresses(old);
            zone.names -= old.names();
        }
        zone.names += function.names();
        for (address, revision) in function.addresses() {
            if self.settings.functions.contains(address) {
                zone.owners.insert(host(address), Owner { function: Arc::clone(function), revision });
            }
        }
        zone.functions.insert(function.name.as_str().into(), Arc::clone(function));
        Some(zone)
    }

    /// The zone without this function's names, under the next serial; `None` if it has none.
    #[must_use]
    pub fn without_function(&self, name: &FunctionName) -> Option<Self> {
        let old = self.functions.get(name.as_str())?;
        let mut zone = self.next();
        zone.forget_addresses(old);
        zone.names -= old.names();
        zone.functions.remove(name.as_str());
        Some(zone)
    }

    /// The zone with `NAME.peers.faas.` at this address, under the next serial; `None` if it is there already.
    #[must_use]
    pub fn with_peer(&self, name: &FunctionName, address: Ipv6Addr) -> Option<Self> {
        if self.peers.get(name.as_str()) == Some(&address) {
            return None;
        }
        let mut zone = self.without_peer(name).unwrap_or_else(|| self.clone());
        zone.serial = self.serial.wrapping_add(1);
        zone.names += 1;
        let label = SmolStr::from(name.as_str());
        if self.settings.vpn.contains(address) {
            zone.peers_by_host.insert(host(address), label.clone());
        }
        zone.peers.insert(label, address);
        Some(zone)
    }

    /// The zone without this peer, under the next serial; `None` if it is not there.
    #[must_use]
    pub fn without_peer(&self, name: &FunctionName) -> Option<Self> {
        let address = *self.peers.get(name.as_str())?;
        let mut zone = self.next();
        zone.names -= 1;
        zone.peers.remove(name.as_str());
        if zone.peers_by_host.get(&host(address)).is_some_and(|owner| owner == name.as_str()) {
            zone.peers_by_host.remove(&host(address));
        }
        Some(zone)
    }

    fn next(&self) -> Self {
        Self { serial: self.serial.wrapping_add(1), ..self.clone() }
    }

    /// An address that somebody else has by now stays theirs.
    fn forget_addresses(&mut self, function: &FunctionNames) {
        for (address, _) in function.addresses() {
            if self.owners.get(&host(address)).is_some_and(|owner| owner.function.name == function.name) {
                self.owners.remove(&host(address));
            }
        }
    }

    #[must_use]
    pub fn settings(&self) -> &ZoneSettings {
        &self.settings
    }

    #[must_use]
    pub const fn serial(&self) -> u32 {
        self.serial
    }

    /// How many names below `faas.` have a record, `ns` among them.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.names
    }

    /// Never: the server has a name.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.names == 0
    }
}

/// The part of an address that is not its prefix.
fn host(address: Ipv6Addr) -> u64 {
    address.to_bits() as u64
}

/// The zone's name, without the dot of the root: `faas`, or the prefix's sixteen digits reversed below `ip6.arpa`.
#[must_use]
pub fn origin_name(origin: Origin, settings: &ZoneSettings) -> String {
    let prefix = match origin {
        Origin::Names => return ZONE.to_owned(),
        Origin::Peers => settings.vpn,
        Origin::Functions => settings.functions,
    };
    let network = (prefix.network().to_bits() >> 64) as u64;
    format!("{}.ip6.arpa", nibbles(network))
}

/// Sixteen hexadecimal digits, the last one first, joined by dots.
fn nibbles(half: u64) -> String {
    let mut text = String::with_capacity(31);
    for i in 0..16 {
        if i > 0 {
            text.push('.');
        }
        text.push(char::from(b"0123456789abcdef"[(half >> (4 * i) & 0xf) as usize]));
    }
    text
}
