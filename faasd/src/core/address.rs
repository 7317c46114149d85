//! Addresses: the two prefixes, and the one address that a function's name always has.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::name::FunctionName;

/// The tunnel's addresses: the server is `::1`, peers follow from `::2`.
pub const VPN_PREFIX: Prefix = Prefix(Ipv6Addr::new(0xfd00, 0xfaa5, 0, 0x100, 0, 0, 0, 0));

/// The functions' addresses, one each.
pub const FUNCTION_PREFIX: Prefix = Prefix(Ipv6Addr::new(0xfd00, 0xfaa5, 0, 0x200, 0, 0, 0, 0));

/// The last bits of a function's addresses, which tell its revisions apart.
pub const REVISION_BITS: u32 = 16;

/// What names of the outside stand for within a container. Nothing is ever sent there: the prefix is set aside for being
/// discarded (RFC 6666).
pub const OUTSIDE_PREFIX: Prefix = Prefix(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0));

/// An IPv6 /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix(Ipv6Addr);

/// A prefix that is no /64.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no IPv6 /64; write one like fd00:faa5:0:200::/64")]
pub struct PrefixError(String);

impl Prefix {
    /// The prefix's length in bits.
    pub const BITS: u8 = 64;

    /// The first address, with a host part of zero.
    #[must_use]
    pub const fn network(self) -> Ipv6Addr {
        self.0
    }

    /// The address with the given host part.
    #[must_use]
    pub fn host(self, host: u64) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.0.to_bits() | u128::from(host))
    }

    #[must_use]
    pub fn contains(self, address: Ipv6Addr) -> bool {
        address.to_bits() >> 64 == self.0.to_bits() >> 64
    }

    /// The server's own address in the tunnel.
    #[must_use]
    pub fn server(self) -> Ipv6Addr {
        self.host(1)
    }

    /// The address of a function: its name's hash, so that it is the same on every machine and after every
    /// restart, and needs no allocation. Two names share one with a probability of 2⁻⁴⁸; a deploy checks. The last
    /// 16 bits are 0, and other numbers in the addresses of its revisions.
    #[must_use]
    pub fn function(self, name: &FunctionName) -> Ipv6Addr {
        let digest = Sha256::digest(name.as_str().as_bytes());
        let host = digest.iter().take(6).fold(0u64, |host, byte| host << 8 | u64::from(*byte));
        self.host(host << REVISION_BITS)
    }

    /// The address of a function's revision. Numbers begin anew after 65,535, long after that revision was forgotten.
    #[must_use]
    pub fn revision(self, name: &FunctionName, revision: u64) -> Ipv6Addr {
        let number = revision.saturating_sub(1) % ((1 << REVISION_BITS) - 1) + 1;
        Ipv6Addr::from_bits(self.function(name).to_bits() | u128::from(number))
    }

    /// The function that is dialled by its own address or by a revision's.
    #[must_use]
    pub fn function_at(self, address: Ipv6Addr) -> Option<Ipv6Addr> {
        let revision = u128::from((1u64 << REVISION_BITS) - 1);
        self.contains(address).then(|| Ipv6Addr::from_bits(address.to_bits() & !revision))
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(s: &str) -> Result<Self, PrefixError> {
        let error = || PrefixError(s.to_owned());
        let address: Ipv6Addr = s.strip_suffix("/64").ok_or_else(error)?.parse().map_err(|_| error())?;
        if address.to_bits() as u64 != 0 { Err(error()) } else { Ok(Self(address)) }
    }
}

impl TryFrom<String> for Prefix {
    type Error = PrefixError;

    fn try_from(s: String) -> Result<Self, PrefixError> {
        s.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.to_string()
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0, Self::BITS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_keeps_its_address() {
        let hello = FUNCTION_PREFIX.function(&"hello".parse().unwrap());
        // SHA-256("hello") begins 2cf24dba5fb0.
        assert_eq!(hello.to_string(), "fd00:faa5:0:200:2cf2:4dba:5fb0:0");
        assert!(FUNCTION_PREFIX.contains(hello) && !VPN_PREFIX.contains(hello));
    }

    #[test]
    fn a_revision_has_an_address_beside_its_functions() {
        let address = |number| FUNCTION_PREFIX.revision(&"hello".parse().unwrap(), number).to_string();
        assert_eq!(address(3), "fd00:faa5:0:200:2cf2:4dba:5fb0:3");
        assert_eq!(address(65_535), "fd00:faa5:0:200:2cf2:4dba:5fb0:ffff");
        // Never the function's own.
        assert_eq!(address(65_536), "fd00:faa5:0:200:2cf2:4dba:5fb0:1");
    }

    #[test]
    fn prefixes_are_read_and_written() {
        assert_eq!("fd00:faa5:0:200::/64".parse(), Ok(FUNCTION_PREFIX));
        assert_eq!(FUNCTION_PREFIX.to_string(), "fd00:faa5:0:200::/64");
        assert_eq!(VPN_PREFIX.server().to_string(), "fd00:faa5:0:100::1");
        for bad in ["fd00::/48", "fd00::1/64", "10.0.0.0/8", "fd00::"] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
    }
}
