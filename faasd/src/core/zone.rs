//! The zone `faas.`: which address a name has, and what to say about every other one.
//!
//! A [`Zone`] is a value. A change makes a new one, which shares all but a fraction of the old one's names, so that
//! it can be published with one pointer swap while queries go on reading the old one.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::net::Ipv6Addr;
use std::ops::Bound;
use std::str::FromStr;
use std::sync::Arc;

use super::name::{FunctionName, NAME_BYTES_MAX};

/// The zone's only label below the root.
pub const ZONE: &str = "faas";

/// The SOA's timers (RFC 1035, 3.3.13), for secondaries.
pub const REFRESH_SECONDS: u32 = 3600;
pub const RETRY_SECONDS: u32 = 1800;
pub const EXPIRE_SECONDS: u32 = 604_800;

/// The longest name below the zone, in bytes: a name has at most 253 as text (RFC 1035, 2.3.4).
pub const RECORD_NAME_BYTES_MAX: usize = 253 - ZONE.len() - 1;

/// An update copies one shard and the table of shards. With 10,000 names that is 40 names and 256 pointers, which
/// takes 3 µs, where a copy of one map of them all takes 340 µs of the millisecond that a deploy may take. Not more
/// shards, since the table is copied too.
const SHARDS: usize = 256;

/// What holds for the zone as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneSettings {
    /// The address of `ns.faas.`.
    pub server: Ipv6Addr,
    /// How long a resolver may keep a positive answer.
    pub ttl_seconds: u32,
    /// How long a resolver may keep "no such name". Who asks before a deploy sees the name this much later, so it is
    /// short. It is the SOA's minimum *and* its TTL, since resolvers take the lesser of the two (RFC 2308, 5).
    pub negative_ttl_seconds: u32,
}

impl ZoneSettings {
    #[must_use]
    pub const fn new(server: Ipv6Addr) -> Self {
        Self { server, ttl_seconds: 60, negative_ttl_seconds: 1 }
    }
}

/// A name relative to the zone: one or more labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordName(Key);

/// Why a name cannot stand in the zone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordNameError {
    #[error(
        "'{0}' is no name below '{ZONE}.'; join labels of 1 to {NAME_BYTES_MAX} of a-z, 0-9 and '-' by dots"
    )]
    Label(String),
    #[error("a name below '{ZONE}.' has at most {RECORD_NAME_BYTES_MAX} characters, not {0}")]
    TooLong(usize),
}

/// Labels in reverse order, joined by a byte that no label has: a name's descendants follow it directly.
type Key = Arc<[u8]>;
const SEPARATOR: u8 = 0;

impl FromStr for RecordName {
    type Err = RecordNameError;

    fn from_str(s: &str) -> Result<Self, RecordNameError> {
        if s.len() > RECORD_NAME_BYTES_MAX {
            return Err(RecordNameError::TooLong(s.len()));
        }
        // A label is what a function's name is, so that both have one definition.
        if s.split('.').any(|label| label.parse::<FunctionName>().is_err()) {
            return Err(RecordNameError::Label(s.to_owned()));
        }
        Ok(Self(key_of(s)))
    }
}

impl From<&FunctionName> for RecordName {
    fn from(name: &FunctionName) -> Self {
        Self(key_of(name.as_str()))
    }
}

impl fmt::Display for RecordName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_name(f, &self.0)
    }
}

fn key_of(name: &str) -> Key {
    let mut key = Vec::with_capacity(name.len());
    for label in name.rsplit('.') {
        if !key.is_empty() {
            key.push(SEPARATOR);
        }
        key.extend_from_slice(label.as_bytes());
    }
    key.into()
}

fn write_name(f: &mut impl fmt::Write, key: &[u8]) -> fmt::Result {
    for (i, label) in key.rsplit(|byte| *byte == SEPARATOR).enumerate() {
        if i > 0 {
            f.write_char('.')?;
        }
        // Keys are made of checked labels, so every byte is ASCII.
        label.iter().try_for_each(|byte| f.write_char(char::from(*byte)))?;
    }
    Ok(())
}

/// What is asked of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Aaaa,
    Soa,
    Ns,
    Any,
    /// A type that no name in the zone has.
    Other,
}

/// What the zone says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Aaaa(Ipv6Addr),
    Soa,
    Ns,
    /// SOA and NS: everything that the apex has.
    Apex,
    /// The name exists, the type does not.
    NoData,
    NxDomain,
    /// The name is not below the zone.
    Outside,
}

type Shard = BTreeMap<Key, Ipv6Addr>;

/// All names of the zone.
#[derive(Clone)]
pub struct Zone {
    settings: ZoneSettings,
    serial: u32,
    len: usize,
    shards: Box<[Arc<Shard>]>,
}

impl fmt::Debug for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Zone").field("serial", &self.serial).field("names", &self.len).finish_non_exhaustive()
    }
}

/// The serial of a store's revision: its low 32 bits, which is how serials are counted (RFC 1982).
#[must_use]
pub const fn serial(revision: u64) -> u32 {
    revision as u32
}

/// Whether serial `a` is later than `b` (RFC 1982, 3.2).
#[must_use]
pub const fn serial_is_later(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

impl Zone {
    /// A zone of these names. `ns` is always there.
    #[must_use]
    pub fn new(
        settings: ZoneSettings,
        serial: u32,
        names: impl IntoIterator<Item = (RecordName, Ipv6Addr)>,
    ) -> Self {
        let mut shards = vec![Shard::new(); SHARDS];
        for (RecordName(key), address) in names {
            shards[shard_of(&key)].insert(key, address);
        }
        let ns = key_of("ns");
        shards[shard_of(&ns)].insert(ns, settings.server);
        let len = shards.iter().map(Shard::len).sum();
        Self { settings, serial, len, shards: shards.into_iter().map(Arc::new).collect() }
    }

    /// The zone with this name at this address, under a serial later than this one's.
    #[must_use]
    pub fn with(&self, name: impl Into<RecordName>, address: Ipv6Addr, serial: u32) -> Self {
        let RecordName(key) = name.into();
        let mut zone = Self { serial, ..self.clone() };
        if Arc::make_mut(&mut zone.shards[shard_of(&key)]).insert(key, address).is_none() {
            zone.len += 1;
        }
        zone
    }

    /// The zone without this name, under a serial later than this one's.
    #[must_use]
    pub fn without(&self, name: impl Into<RecordName>, serial: u32) -> Self {
        let RecordName(key) = name.into();
        let mut zone = Self { serial, ..self.clone() };
        if Arc::make_mut(&mut zone.shards[shard_of(&key)]).remove(&key).is_some() {
            zone.len -= 1;
        }
        zone
    }

    /// Answers for the absolute name of these labels, in the order they are written; case does not matter.
    pub fn lookup<'a>(&self, labels: impl DoubleEndedIterator<Item = &'a [u8]>, kind: Kind) -> Answer {
        let mut labels = labels.rev();
        if !labels.next().is_some_and(|label| label.eq_ignore_ascii_case(ZONE.as_bytes())) {
            return Answer::Outside;
        }
        // On the stack: a query allocates nothing here.
        let mut buffer = [SEPARATOR; RECORD_NAME_BYTES_MAX + 1];
        let mut end = 0;
        for label in labels {
            let start = if end == 0 { 0 } else { end + 1 };
            // A label on the wire may hold any byte; one with the separator in it must not pass for two.
            if start + label.len() > RECORD_NAME_BYTES_MAX || label.contains(&SEPARATOR) {
                return Answer::NxDomain;
            }
            end = start + label.len();
            buffer[start..end].copy_from_slice(label);
            buffer[start..end].make_ascii_lowercase();
        }
        if end == 0 {
            return match kind {
                Kind::Soa => Answer::Soa,
                Kind::Ns => Answer::Ns,
                Kind::Any => Answer::Apex,
                Kind::Aaaa | Kind::Other => Answer::NoData,
            };
        }
        let shard = &self.shards[shard_of(&buffer[..end])];
        match (shard.get(&buffer[..end]), kind) {
            (Some(address), Kind::Aaaa | Kind::Any) => Answer::Aaaa(*address),
            (Some(_), _) => Answer::NoData,
            // `a.b.faas` makes `b.faas` exist, if with nothing at it (RFC 8020); it would follow here.
            (None, _) if has_descendant(shard, &buffer[..=end]) => Answer::NoData,
            (None, _) => Answer::NxDomain,
        }
    }

    #[must_use]
    pub const fn settings(&self) -> &ZoneSettings {
        &self.settings
    }

    #[must_use]
    pub const fn serial(&self) -> u32 {
        self.serial
    }

    /// How many names have an address, `ns` among them.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All names and addresses, in the order of their reversed labels.
    #[must_use]
    pub fn names(&self) -> Vec<(RecordName, Ipv6Addr)> {
        let mut all: Vec<_> = self.shards.iter().flat_map(|shard| shard.iter()).collect();
        all.sort_unstable();
        all.into_iter().map(|(key, address)| (RecordName(Arc::clone(key)), *address)).collect()
    }

    /// The zone as a master file (RFC 1035, 5), the same for the same zone.
    #[must_use]
    pub fn to_zone_file(&self) -> String {
        self.to_zone_file_with_serial(self.serial)
    }

    /// The same under another serial.
    #[must_use]
    pub fn to_zone_file_with_serial(&self, serial: u32) -> String {
        let ZoneSettings { ttl_seconds, negative_ttl_seconds, .. } = self.settings;
        let mut text = String::with_capacity(512 + self.len * 64);
        let _ = write!(
            text,
            "; The zone of this machine's functions, written by faasd at every change. Edits are lost.\n\
             $ORIGIN {ZONE}.\n\
             $TTL {ttl_seconds}\n\
             @ {negative_ttl_seconds} IN SOA ns.{ZONE}. admin.{ZONE}. (\n\
             \t{serial} {SERIAL_MARK}\n\
             \t{REFRESH_SECONDS} ; refresh\n\
             \t{RETRY_SECONDS} ; retry\n\
             \t{EXPIRE_SECONDS} ; expire\n\
             \t{negative_ttl_seconds} ; minimum: the TTL of negative answers\n\
             )\n\
             @ IN NS ns.{ZONE}.\n",
        );
        for (name, address) in self.names() {
            let _ = writeln!(text, "{name} IN AAAA {address}");
        }
        text
    }
}

/// Stands after the serial in a zone file.
const SERIAL_MARK: &str = "; serial";

/// The serial of a zone file written by [`Zone::to_zone_file`].
#[must_use]
pub fn zone_file_serial(text: &str) -> Option<u32> {
    text.lines().find_map(|line| line.strip_suffix(SERIAL_MARK)?.trim().parse().ok())
}

fn has_descendant(shard: &Shard, prefix: &[u8]) -> bool {
    shard
        .range::<[u8], _>((Bound::Included(prefix), Bound::Unbounded))
        .next()
        .is_some_and(|(key, _)| key.starts_with(prefix))
}

/// The shard of a key: FNV-1a of its first label, the one nearest to the apex, so that descendants share it.
fn shard_of(key: &[u8]) -> usize {
    let hash = key
        .iter()
        .take_while(|byte| **byte != SEPARATOR)
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    // The high bits of the product are the better mixed ones.
    (hash >> 24) as usize % SHARDS
}

#[cfg(test)]
mod tests;
