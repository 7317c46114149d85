//! Whose an address is: the owner of the longest prefix that it lies in.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::tunnel::AllowedIp;

/// Prefixes and their owners. A look-up costs one hash for each length that is in use, with any number of prefixes;
/// peers of functions have whole addresses, which is one length.
#[derive(Debug)]
pub(super) struct Routes<T> {
    v4: Lengths<T>,
    v6: Lengths<T>,
}

/// The lengths in use, the longest first, each with the prefixes that have it. Addresses stand at the left.
type Lengths<T> = Vec<(u8, HashMap<u128, T>)>;

impl<T> Default for Routes<T> {
    fn default() -> Self {
        Self { v4: Vec::new(), v6: Vec::new() }
    }
}

impl<T: Copy> Routes<T> {
    /// The owner of the address.
    pub(super) fn find(&self, address: IpAddr) -> Option<T> {
        let (lengths, bits) = match address {
            IpAddr::V4(v4) => (&self.v4, u128::from(v4.to_bits()) << 96),
            IpAddr::V6(v6) => (&self.v6, v6.to_bits()),
        };
        lengths.iter().find_map(|(length, owners)| owners.get(&(bits & mask(*length)))).copied()
    }

    /// The owner of this very prefix.
    pub(super) fn owner(&self, prefix: AllowedIp) -> Option<T> {
        let (lengths, bits) = match prefix.address() {
            IpAddr::V4(v4) => (&self.v4, u128::from(v4.to_bits()) << 96),
            IpAddr::V6(v6) => (&self.v6, v6.to_bits()),
        };
        let at = lengths.binary_search_by(|(length, _)| prefix.bits().cmp(length)).ok()?;
        lengths.get(at)?.1.get(&bits).copied()
    }

    /// Gives the prefix to an owner, whoever had it before.
    pub(super) fn insert(&mut self, prefix: AllowedIp, owner: T) {
        let (lengths, bits) = self.lengths(prefix);
        let at = match lengths.binary_search_by(|(length, _)| prefix.bits().cmp(length)) {
            Ok(at) => at,
            Err(at) => {
                lengths.insert(at, (prefix.bits(), HashMap::new()));
                at
            }
        };
        if let Some((_, owners)) = lengths.get_mut(at) {
            owners.insert(bits, owner);
        }
    }

    /// Forgets the prefix.
    pub(super) fn remove(&mut self, prefix: AllowedIp) {
        let (lengths, bits) = self.lengths(prefix);
        if let Ok(at) = lengths.binary_search_by(|(length, _)| prefix.bits().cmp(length))
            && let Some((_, owners)) = lengths.get_mut(at)
        {
            owners.remove(&bits);
            if owners.is_empty() {
                lengths.remove(at);
            }
        }
    }

    fn lengths(&mut self, prefix: AllowedIp) -> (&mut Lengths<T>, u128) {
        match prefix.address() {
            IpAddr::V4(v4) => (&mut self.v4, u128::from(v4.to_bits()) << 96),
            IpAddr::V6(v6) => (&mut self.v6, v6.to_bits()),
        }
    }
}

/// The bits that count, of an address that stands at the left.
fn mask(length: u8) -> u128 {
    !u128::MAX.checked_shr(length.into()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_owns() {
        let mut routes = Routes::default();
        let ip = |text: &str| text.parse::<AllowedIp>().unwrap();
        let all = ["::/0", "fd00::/64", "fd00::1/128", "10.0.0.0/8", "10.1.2.3/32", "0.0.0.0/0"];
        for (owner, prefix) in all.into_iter().enumerate() {
            routes.insert(ip(prefix), owner);
        }
        let find = |routes: &Routes<usize>, text: &str| routes.find(text.parse().unwrap());
        for (address, owner) in [
            ("fd00::1", 2),
            ("fd00::2", 1),
            ("fd00:0:0:1::1", 0),
            ("10.1.2.3", 4),
            ("10.1.2.4", 3),
            ("11.0.0.1", 5),
        ] {
            assert_eq!(find(&routes, address), Some(owner), "{address}");
        }
        assert_eq!(routes.owner(ip("fd00::/64")), Some(1));
        assert_eq!(routes.owner(ip("fd00::/65")), None);
        routes.insert(ip("fd00::/64"), 9);
        assert_eq!(find(&routes, "fd00::2"), Some(9));
        for prefix in ["fd00::/64", "fd00::1/128", "10.0.0.0/8", "0.0.0.0/0"] {
            routes.remove(ip(prefix));
        }
        assert_eq!(find(&routes, "fd00::1"), Some(0));
        assert_eq!(find(&routes, "10.1.2.4"), None);
        assert_eq!(find(&routes, "10.1.2.3"), Some(4));
        assert_eq!((routes.v6.len(), routes.v4.len()), (1, 1));
    }
}
