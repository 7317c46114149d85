//! Who has which address, for the acceptors: read for each connection, without a lock and without allocating, and
//! changed by the control plane at any time.

use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;

use arc_swap::ArcSwap;
use faasd_sdk::wire::{Caller, CallerName};

/// The table is made of this many, each replaced as a whole: a change copies a few dozen entries of ten thousand.
const SHARDS: usize = 256;

/// In the order of the addresses.
type Shard = Vec<(Ipv6Addr, CallerName)>;

/// The names of all who may dial, by address.
#[derive(Debug)]
pub struct Callers {
    shards: Box<[ArcSwap<Shard>]>,
}

impl Default for Callers {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| ArcSwap::default()).collect() }
    }
}

/// Addresses that are given one after another lie in different shards, and so do hashes.
fn shard_of(address: Ipv6Addr) -> usize {
    usize::from(address.octets()[15]) % SHARDS
}

impl Callers {
    /// Who is at the other end of a connection: its address is the kernel's word, its name ours.
    pub fn of(&self, connection: impl AsFd) -> Caller {
        // One that was reset has no peer any more; whoever gets it finds out by itself.
        let peer = rustix::net::getpeername(connection).ok().flatten();
        let (address, port) = match peer.and_then(|peer| SocketAddr::try_from(peer).ok()) {
            Some(SocketAddr::V6(peer)) => (*peer.ip(), peer.port()),
            Some(SocketAddr::V4(peer)) => (peer.ip().to_ipv6_mapped(), peer.port()),
            None => return Caller::default(),
        };
        Caller { address, port, name: self.name(address) }
    }

    /// Who has an address.
    #[must_use]
    pub fn name(&self, address: Ipv6Addr) -> CallerName {
        let shard = self.shards[shard_of(address)].load();
        let found = shard.binary_search_by_key(&address, |entry| entry.0);
        found.map_or(CallerName::UNKNOWN, |at| shard[at].1)
    }

    /// Gives an address to somebody. What is too long to be a name is nobody.
    pub fn set(&self, address: Ipv6Addr, name: &str) {
        let name = CallerName::new(name).unwrap_or_default();
        self.change(address, |shard, found| match found {
            Ok(at) => shard[at].1 = name,
            Err(at) => shard.insert(at, (address, name)),
        });
    }

    /// Takes an address from whoever has it.
    pub fn clear(&self, address: Ipv6Addr) {
        self.change(address, |shard, found| {
            if let Ok(at) = found {
                shard.remove(at);
            }
        });
    }

    /// Replaces everything. Who is in both the old and the new is known all the time.
    pub fn replace(&self, all: impl IntoIterator<Item = (Ipv6Addr, impl AsRef<str>)>) {
        let mut shards = vec![Shard::new(); SHARDS];
        for (address, name) in all {
            let name = CallerName::new(name.as_ref()).unwrap_or_default();
            shards[shard_of(address)].push((address, name));
        }
        for (mut new, shard) in shards.into_iter().zip(&self.shards) {
            new.sort_unstable_by_key(|entry| entry.0);
            shard.store(Arc::new(new));
        }
    }

    fn change(&self, address: Ipv6Addr, change: impl Fn(&mut Shard, Result<usize, usize>)) {
        self.shards[shard_of(address)].rcu(|shard| {
            let mut new = Shard::with_capacity(shard.len() + 1);
            new.extend_from_slice(shard);
            let found = new.binary_search_by_key(&address, |entry| entry.0);
            change(&mut new, found);
            new
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u128) -> Ipv6Addr {
        Ipv6Addr::from((0xfd00 << 112) | n)
    }

    #[test]
    fn each_change_is_of_one_address() {
        let callers = Callers::default();
        callers.replace((0..10_000).map(|n| (address(n), format!("peer-{n}"))));
        callers.set(address(10_000), "fn:hello");
        callers.set(address(7), "other");
        callers.clear(address(8));
        callers.clear(address(20_000));
        let named = |n| callers.name(address(n)).as_str().to_owned();
        assert_eq!([named(6), named(7), named(8), named(9)], ["peer-6", "other", "", "peer-9"]);
        assert_eq!([named(9_999), named(10_000), named(20_000)], ["peer-9999", "fn:hello", ""]);
        callers.replace([(address(1), "alone")]);
        assert_eq!([named(1), named(7), named(10_000)], ["alone", "", ""]);
    }

    #[test]
    fn what_is_no_name_is_nobody() {
        let callers = Callers::default();
        callers.set(address(1), &"x".repeat(100));
        assert!(!callers.name(address(1)).is_known());
    }
}
