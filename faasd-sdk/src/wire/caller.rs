//! Who dialled a connection: the second part of a record in `Connections`.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};

/// Bytes of it within a record: address, port (u16), where the name begins after the records (u16), its length (u16),
/// two bytes of nothing.
pub const CALLER_BYTES: usize = 24;

/// The longest name of a caller: a function's, with [`FUNCTION_PREFIX`] before it.
pub const CALLER_NAME_BYTES_MAX: usize = FUNCTION_PREFIX.len() + super::NAME_BYTES_MAX;

/// What the name of a caller that is a function begins with. No peer's name has a colon.
pub const FUNCTION_PREFIX: &str = "fn:";

/// Who dialled: the address that the kernel saw, and the name that the platform knows it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    pub address: Ipv6Addr,
    pub port: u16,
    pub name: CallerName,
}

/// A peer's name, `fn:` and a function's, or nothing if the address is nobody's that is known. It is copied, not
/// allocated.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CallerName {
    length: u8,
    bytes: [u8; CALLER_NAME_BYTES_MAX],
}

impl CallerName {
    /// Nobody's that is known.
    pub const UNKNOWN: Self = Self { length: 0, bytes: [0; CALLER_NAME_BYTES_MAX] };

    /// `None` if it is too long to be a name.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let mut bytes = [0; CALLER_NAME_BYTES_MAX];
        bytes.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
        Some(Self { length: u8::try_from(name.len()).ok()?, bytes })
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    #[must_use]
    pub const fn is_known(&self) -> bool {
        self.length > 0
    }
}

impl Default for CallerName {
    fn default() -> Self {
        Self::UNKNOWN
    }
}

impl fmt::Debug for CallerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl Default for Caller {
    fn default() -> Self {
        Self { address: Ipv6Addr::UNSPECIFIED, port: 0, name: CallerName::UNKNOWN }
    }
}

impl Caller {
    /// The caller's end of the connection; `None` if it was not told.
    #[must_use]
    pub fn socket_address(&self) -> Option<SocketAddr> {
        (self.port != 0).then(|| match self.address.to_ipv4_mapped() {
            Some(address) => SocketAddr::from((address, self.port)),
            None => SocketAddrV6::new(self.address, self.port, 0, 0).into(),
        })
    }

    /// The caller's bytes, with its name standing at `name_at` after the records.
    #[must_use]
    pub fn encode(&self, name_at: u16) -> [u8; CALLER_BYTES] {
        let mut out = [0; CALLER_BYTES];
        out[0..16].copy_from_slice(&self.address.octets());
        out[16..18].copy_from_slice(&self.port.to_le_bytes());
        out[18..20].copy_from_slice(&name_at.to_le_bytes());
        out[20..22].copy_from_slice(&u16::from(self.name.length).to_le_bytes());
        out
    }

    /// Reads a caller; `bytes` holds at least [`CALLER_BYTES`], `names` is what follows the records. A name that is not
    /// there, or is none, is unknown.
    #[must_use]
    pub fn decode(bytes: &[u8], names: &[u8]) -> Self {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let address = Ipv6Addr::from(std::array::from_fn::<u8, 16, _>(|i| bytes[i]));
        let (at, length) = (usize::from(word(18)), usize::from(word(20)));
        let name = names.get(at..at + length).and_then(|name| std::str::from_utf8(name).ok());
        Self { address, port: word(16), name: name.and_then(CallerName::new).unwrap_or_default() }
    }
}
