//! The peers on record, in memory: whatever is asked of one of them costs the same among ten thousand.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv6Addr;

use jiff::Timestamp;

use super::records::PeerRecord;
use super::store::Stored;
use crate::core::address::Prefix;
use crate::core::name::FunctionName;

/// The first host number of a peer; 1 is the server's.
const HOST_MIN: u64 = 2;

/// All peers.
#[derive(Clone, Debug)]
pub struct Peers {
    prefix: Prefix,
    by_name: BTreeMap<FunctionName, Stored<PeerRecord>>,
    by_address: HashMap<Ipv6Addr, FunctionName>,
    /// Whose invitations are open, or have not been settled, by when they end.
    invited: BTreeSet<(Timestamp, FunctionName)>,
    /// The next peer's. It rises: who is told of an address, or remembers its name, is not to take the next one for the
    /// last.
    next_host: u64,
}

impl Peers {
    /// Those on record, whose addresses are in `prefix`, as new ones will be.
    #[must_use]
    pub fn new(prefix: Prefix, records: impl IntoIterator<Item = Stored<PeerRecord>>) -> Self {
        let mut peers = Self {
            prefix,
            by_name: BTreeMap::new(),
            by_address: HashMap::new(),
            invited: BTreeSet::new(),
            next_host: HOST_MIN,
        };
        records.into_iter().for_each(|record| peers.insert(record));
        peers
    }

    /// Puts a peer there, in place of what was.
    pub fn insert(&mut self, new: Stored<PeerRecord>) {
        let PeerRecord { name, address, invited_until, .. } = new.record.clone();
        self.remove(&name);
        if self.prefix.contains(address) {
            self.next_host = self.next_host.max((address.to_bits() as u64).saturating_add(1));
        }
        self.invited.extend(invited_until.map(|until| (until, name.clone())));
        self.by_address.insert(address, name.clone());
        self.by_name.insert(name, new);
    }

    pub fn remove(&mut self, name: &FunctionName) -> Option<PeerRecord> {
        let old = self.by_name.remove(name)?.record;
        self.by_address.remove(&old.address);
        if let Some(until) = old.invited_until {
            self.invited.remove(&(until, name.clone()));
        }
        Some(old)
    }

    #[must_use]
    pub fn get(&self, name: &FunctionName) -> Option<&Stored<PeerRecord>> {
        self.by_name.get(name)
    }

    /// Whose address it is.
    #[must_use]
    pub fn at(&self, address: Ipv6Addr) -> Option<&Stored<PeerRecord>> {
        self.by_name.get(self.by_address.get(&address)?)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &PeerRecord> {
        self.by_name.values().map(|stored| &stored.record)
    }

    /// Whose invitations ended before `now`, and were not settled.
    pub fn expired(&self, now: Timestamp) -> impl Iterator<Item = &PeerRecord> {
        let ended = self.invited.iter().take_while(move |(until, _)| *until < now);
        ended.filter_map(|(_, name)| Some(&self.get(name)?.record))
    }

    /// They are shut out: nobody needs to look at them again.
    pub fn settle_expired(&mut self, now: Timestamp) {
        while self.invited.first().is_some_and(|(until, _)| *until < now) {
            self.invited.pop_first();
        }
    }

    /// An address that no peer has, nor had while this daemon ran, as long as there is one.
    #[must_use]
    pub fn free_address(&self) -> Option<Ipv6Addr> {
        let hosts = (self.next_host..=u64::MAX).chain(HOST_MIN..self.next_host);
        hosts.map(|host| self.prefix.host(host)).find(|address| !self.by_address.contains_key(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::access::Role;
    use crate::core::address::{FUNCTION_PREFIX, VPN_PREFIX};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn peer(name: &str, address: Ipv6Addr, until: Option<i64>) -> Stored<PeerRecord> {
        let record = PeerRecord {
            name: name.parse().unwrap(),
            number: 1,
            address,
            role: Role::User,
            public_key: String::new(),
            invited_until: until.map(at),
            endpoint: None,
        };
        Stored { record, version: 1 }
    }

    #[test]
    fn addresses_rise_and_are_not_given_again() {
        let vpn = |host| VPN_PREFIX.host(host);
        let mut peers = Peers::new(VPN_PREFIX, []);
        assert_eq!(peers.free_address(), Some(vpn(2)));
        peers.insert(peer("anna", vpn(2), None));
        peers.insert(peer("bert", FUNCTION_PREFIX.host(77), None));
        assert_eq!(peers.free_address(), Some(vpn(3)), "other prefixes are no hindrance");
        peers.insert(peer("carl", vpn(9), None));
        peers.remove(&"carl".parse().unwrap());
        assert_eq!(peers.free_address(), Some(vpn(10)));
        assert!(peers.at(vpn(9)).is_none());
        assert_eq!(peers.at(vpn(2)).unwrap().record.name.as_str(), "anna");
        // At the end of the prefix it starts over.
        peers.insert(peer("last", vpn(u64::MAX), None));
        assert_eq!(peers.free_address(), Some(vpn(3)));
    }

    #[test]
    fn who_has_expired_is_told_until_it_is_settled() {
        let vpn = |host| VPN_PREFIX.host(host);
        let invited = [("a", 10), ("b", 20), ("c", 30)];
        let records =
            invited.iter().zip(2..).map(|(&(name, until), host)| peer(name, vpn(host), Some(until)));
        let mut peers = Peers::new(VPN_PREFIX, records);
        let names = |peers: &Peers, now| -> Vec<String> {
            peers.expired(at(now)).map(|record| record.name.to_string()).collect()
        };
        assert_eq!(names(&peers, 10), Vec::<String>::new());
        assert_eq!(names(&peers, 21), ["a", "b"]);
        peers.settle_expired(at(11));
        assert_eq!(names(&peers, 21), ["b"]);
        peers.insert(peer("b", vpn(3), None));
        assert_eq!(names(&peers, 100), ["c"], "who has joined does not");
        peers.remove(&"c".parse().unwrap());
        assert_eq!(names(&peers, 100), Vec::<String>::new());
    }
}
