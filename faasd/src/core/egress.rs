//! What a function may connect to: other functions by `allow`, the outside by `outside`. Nothing without a grant.
//!
//! Names reach a container as lines of its `/etc/hosts`: a function's name with the function's own address, a name of the
//! outside with an address that stands for it ([`OUTSIDE_PREFIX`]) and is turned back when it is connected to.

use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::address::{OUTSIDE_PREFIX, Prefix};
use super::name::{FunctionName, NAME_BYTES_MAX, NameError};
use super::zone::ZONE;

/// The most functions that one may connect to, and the most places outside.
pub const GRANTS_MAX: usize = 64;

/// The port of a grant that names none: that of functions that name none.
const PORT: u16 = 80;

/// The longest name of a host, as text (RFC 1035, 2.3.4).
const HOST_BYTES_MAX: usize = 253;

/// The lines that every container's `/etc/hosts` begins with.
pub const HOSTS: &str = "127.0.0.1 localhost\n::1 localhost\n";

/// A function that may be connected to, and at which port: `db.faas:5432`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Grant {
    pub function: FunctionName,
    pub port: u16,
}

/// A place outside that may be connected to: `api.example.com:443`, `203.0.113.7:443`, `[2001:db8::1]:443`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Outside {
    pub host: Host,
    pub port: u16,
}

/// Who is there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    Name(String),
    Address(IpAddr),
}

/// Why a grant is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    #[error(
        "'{0}' is no function's name; write one like db.{ZONE} or db.{ZONE}:5432 (what is not a function's goes into `outside`)"
    )]
    NotAFunction(String),
    #[error("in '{text}': {source}")]
    Name { text: String, source: NameError },
    #[error("in '{0}' the port is missing or no number from 1 to 65535; write one like {1}")]
    Port(String, &'static str),
    #[error(
        "'{0}' is no host; write a full name or an address, like api.example.com:443, 203.0.113.7:443 or [2001:db8::1]:443"
    )]
    Host(String),
    #[error("'{0}' is a function's name; functions go into `allow`")]
    Function(String),
    #[error(
        "'{0}' is not outside: within a container, loopback is the container's own, and link-local and multicast addresses lead nowhere"
    )]
    NotOutside(IpAddr),
}

impl FromStr for Grant {
    type Err = GrantError;

    fn from_str(s: &str) -> Result<Self, GrantError> {
        let (name, port) = match s.split_once(':') {
            Some((name, port)) => {
                (name, self::port(port).ok_or_else(|| GrantError::Port(s.to_owned(), "db.faas:5432"))?)
            }
            None => (s, PORT),
        };
        let label = name.strip_suffix(ZONE).and_then(|rest| rest.strip_suffix('.'));
        let label = label.ok_or_else(|| GrantError::NotAFunction(s.to_owned()))?;
        let function = label.parse().map_err(|source| GrantError::Name { text: s.to_owned(), source })?;
        Ok(Self { function, port })
    }
}

impl FromStr for Outside {
    type Err = GrantError;

    fn from_str(s: &str) -> Result<Self, GrantError> {
        let no_port = || GrantError::Port(s.to_owned(), "api.example.com:443");
        let (host, text) = s.rsplit_once(':').ok_or_else(no_port)?;
        let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if bracketed.is_none() && s.parse::<Ipv6Addr>().is_ok() {
            return Err(GrantError::Host(s.to_owned()));
        }
        let port = port(text).ok_or_else(no_port)?;
        let address = match bracketed {
            Some(inner) => {
                Some(inner.parse::<Ipv6Addr>().map_err(|_| GrantError::Host(s.to_owned()))?.into())
            }
            None => host.parse::<Ipv4Addr>().ok().map(IpAddr::from),
        };
        let host = match address.map(|address| address.to_canonical()) {
            Some(address) if !is_somewhere(address) => return Err(GrantError::NotOutside(address)),
            Some(address) => Host::Address(address),
            None => Host::Name(host_name(host).ok_or_else(|| GrantError::Host(s.to_owned()))?),
        };
        match &host {
            Host::Name(name) if name.rsplit('.').next() == Some(ZONE) => {
                Err(GrantError::Function(s.to_owned()))
            }
            _ => Ok(Self { host, port }),
        }
    }
}

fn port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0 && !text.starts_with('+'))
}

/// A full name in lower case. One label alone would mean something else on every machine.
fn host_name(text: &str) -> Option<String> {
    let name = text.to_ascii_lowercase();
    let is_label = |label: &str| {
        (1..=NAME_BYTES_MAX).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_number = |label: &str| label.bytes().all(|b| b.is_ascii_digit());
    let is_name = name.len() <= HOST_BYTES_MAX
        && name.contains('.')
        && name.split('.').all(is_label)
        // What ends in a number is meant as an address.
        && !name.rsplit('.').next().is_some_and(is_number);
    is_name.then_some(name)
}

/// Whether an address can be that of another host at all.
fn is_somewhere(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            // 0.0.0.0/8 and 240.0.0.0/4 are nobody's; "this host" is loopback by another name.
            !(v4.is_loopback() || v4.is_link_local() || v4.is_multicast())
                && v4.octets()[0] != 0
                && v4.octets()[0] < 240
        }
        IpAddr::V6(v6) => {
            // The first 96 bits zero: unspecified, loopback, and IPv4 in a form long given up.
            !(v6.is_unicast_link_local() || v6.is_multicast() || OUTSIDE_PREFIX.contains(v6))
                && v6.to_bits() >> 32 != 0
        }
    }
}

/// What a connect is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// Loopback, within the container.
    Own,
    /// A function, by its own address.
    Function(Ipv6Addr),
    /// An address that was granted as such.
    Address(SocketAddr),
    /// A name, which is to be resolved.
    Name(&'a str),
    /// Nothing that was granted.
    Refused,
}

/// One function's grants, ready to be asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    functions: Vec<(Ipv6Addr, Grant)>,
    outside: Vec<Outside>,
    /// The names outside, in order: the first stands at `::1` of [`OUTSIDE_PREFIX`].
    names: Vec<String>,
}

impl Grants {
    /// `functions` is the prefix of functions' addresses.
    #[must_use]
    pub fn new(allow: &[Grant], outside: &[Outside], functions: Prefix) -> Self {
        let mut names: Vec<String> = outside
            .iter()
            .filter_map(|outside| match &outside.host {
                Host::Name(name) => Some(name.clone()),
                Host::Address(_) => None,
            })
            .collect();
        names.sort_unstable();
        names.dedup();
        let functions =
            allow.iter().map(|grant| (functions.function(&grant.function), grant.clone())).collect();
        Self { functions, outside: outside.to_vec(), names }
    }

    /// Whether anything outside was granted: then the function comes to hold sockets of the host's namespace.
    #[must_use]
    pub fn lead_outside(&self) -> bool {
        !self.outside.is_empty()
    }

    /// What a connect to this address is about.
    #[must_use]
    pub fn judge(&self, to: SocketAddr) -> Verdict<'_> {
        let (address, port) = (to.ip().to_canonical(), to.port());
        if address.is_loopback() || address.is_unspecified() {
            return Verdict::Own;
        }
        if let IpAddr::V6(v6) = address {
            if self.functions.iter().any(|(of, grant)| *of == v6 && grant.port == port) {
                return Verdict::Function(v6);
            }
            if let Some(name) = self.named(v6) {
                let is_granted =
                    |o: &Outside| o.port == port && matches!(&o.host, Host::Name(n) if n == name);
                return if self.outside.iter().any(is_granted) {
                    Verdict::Name(name)
                } else {
                    Verdict::Refused
                };
            }
        }
        match self.outside.iter().any(|o| o.port == port && o.host == Host::Address(address)) {
            true => Verdict::Address(SocketAddr::new(address, port)),
            false => Verdict::Refused,
        }
    }

    /// The name that an address stands for.
    fn named(&self, address: Ipv6Addr) -> Option<&str> {
        let number = usize::try_from(address.to_bits() as u64).ok()?.checked_sub(1)?;
        self.names.get(number).filter(|_| OUTSIDE_PREFIX.contains(address)).map(String::as_str)
    }

    /// Whether an address is one that a grant names, at whatever port: resolvers ask the kernel how each could be reached,
    /// which is no attempt to.
    #[must_use]
    pub fn know(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let is_function = self.functions.iter().any(|(of, _)| IpAddr::V6(*of) == address);
        let is_named = matches!(address, IpAddr::V6(v6) if self.named(v6).is_some());
        is_function || is_named || self.outside.iter().any(|o| o.host == Host::Address(address))
    }

    /// The container's `/etc/hosts`.
    #[must_use]
    pub fn hosts(&self) -> String {
        let mut text = HOSTS.to_owned();
        let mut functions: Vec<_> = self.functions.iter().map(|(of, grant)| (&grant.function, of)).collect();
        functions.sort_unstable();
        functions.dedup();
        // Writing to a string does not fail.
        for (name, address) in functions {
            let _ = writeln!(text, "{address} {name}.{ZONE}");
        }
        for (number, name) in (1..).zip(&self.names) {
            let _ = writeln!(text, "{} {name}", OUTSIDE_PREFIX.host(number));
        }
        text
    }
}

/// Whether what a name outside resolves to may be connected to: whoever answers for a name must not thereby choose
/// something of ours, nor of the host's (`own`), for its destination.
#[must_use]
pub fn may_resolve_to(address: IpAddr, ours: &[Prefix], is_own: impl Fn(IpAddr) -> bool) -> bool {
    let address = address.to_canonical();
    let is_ours = matches!(address, IpAddr::V6(v6) if ours.iter().any(|prefix| prefix.contains(v6)));
    is_somewhere(address) && !is_ours && !is_own(address)
}

impl TryFrom<String> for Grant {
    type Error = GrantError;

    fn try_from(s: String) -> Result<Self, GrantError> {
        s.parse()
    }
}

impl TryFrom<String> for Outside {
    type Error = GrantError;

    fn try_from(s: String) -> Result<Self, GrantError> {
        s.parse()
    }
}

impl From<Grant> for String {
    fn from(grant: Grant) -> Self {
        grant.to_string()
    }
}

impl From<Outside> for String {
    fn from(outside: Outside) -> Self {
        outside.to_string()
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{ZONE}:{}", self.function, self.port)
    }
}

impl fmt::Display for Outside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Name(name) => write!(f, "{name}:{}", self.port),
            Host::Address(address) => write!(f, "{}", SocketAddr::new(*address, self.port)),
        }
    }
}

impl JsonSchema for Grant {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Grant".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A function and its port (80 without one)",
            "type": "string",
            "pattern": r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?\.faas(:[0-9]{1,5})?$",
        })
    }
}

impl JsonSchema for Outside {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Outside".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A host's name or address, and a port",
            "type": "string",
            "pattern": r"^([A-Za-z0-9._-]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}$",
        })
    }
}

#[cfg(test)]
mod tests;
