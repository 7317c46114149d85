//! What the store holds, and the numbers that are handed out with it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv6Addr, SocketAddr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::core::address::Prefix;
use crate::core::name::FunctionName;
use crate::core::revision::Alias;
use crate::core::spec::FunctionSpec;

pub const FUNCTIONS: &str = "functions/";
pub const REVISIONS: &str = "revisions/";
pub const PEERS: &str = "peers/";

/// The first host number of a peer; 1 is the server's.
pub const PEER_HOST_MIN: u64 = 2;

/// The revisions of a function that are kept for a rollback, beside those that are in use.
pub const REVISIONS_MAX: usize = 10;

/// A declared function, under `functions/NAME`: who serves it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FunctionRecord {
    pub name: FunctionName,
    /// Its number among the functions, the same from the first deploy to the removal: its range of user ids, the mark on
    /// its sockets, its key in the kernel program's map of splits.
    pub slot: u32,
    /// Of the newest revision. Numbers are not used again.
    pub newest: u64,
    /// Who serves. The weights add up to 100; of 0 for whoever is reached by its own name alone.
    pub shares: Vec<ShareRecord>,
    /// Who served before that, for a rollback: revisions and weights.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub previous: Vec<(u64, u32)>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub aliases: BTreeMap<Alias, u64>,
}

/// A revision's part of a function's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareRecord {
    pub revision: u64,
    /// In percent.
    pub weight: u32,
    /// Its place in the kernel program's maps of listeners and pools, as long as it serves.
    pub slot: u32,
}

impl FunctionRecord {
    #[must_use]
    pub fn key(name: &FunctionName) -> String {
        format!("{FUNCTIONS}{name}")
    }

    /// The revision with the largest share, and of several the newest.
    #[must_use]
    pub fn primary(&self) -> Option<u64> {
        self.shares.iter().max_by_key(|share| (share.weight, share.revision)).map(|share| share.revision)
    }

    /// The revisions that the function's connections are shared out to, with their weights.
    pub fn weighed(&self) -> impl Iterator<Item = (u64, u32)> + '_ {
        self.shares.iter().map(|share| (share.revision, share.weight)).filter(|(_, weight)| *weight > 0)
    }

    /// Whether a revision is named by anything that a user may go by.
    #[must_use]
    pub fn names(&self, revision: u64) -> bool {
        self.shares.iter().any(|share| share.revision == revision)
            || self.previous.iter().any(|(previous, _)| *previous == revision)
            || self.aliases.values().any(|aliased| *aliased == revision)
    }
}

/// What was deployed once, under `revisions/NAME/NUMBER`. It is never changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RevisionRecord {
    pub name: FunctionName,
    /// The function's.
    pub slot: u32,
    /// Counts deploys, from 1.
    pub revision: u64,
    /// The digest of its code, if it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The digest of the root image that `spec.image` stood for when it was deployed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// The digest of what it depends on, if that is kept apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dependencies: Option<String>,
    pub spec: FunctionSpec,
    pub deployed_at: Timestamp,
}

impl RevisionRecord {
    #[must_use]
    pub fn key(&self) -> String {
        Self::key_of(&self.name, self.revision)
    }

    /// Keys of one function are in the order of their numbers.
    #[must_use]
    pub fn key_of(name: &FunctionName, revision: u64) -> String {
        format!("{REVISIONS}{name}/{revision:020}")
    }
}

/// A peer of the tunnel, under `peers/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerRecord {
    pub name: FunctionName,
    pub address: Ipv6Addr,
    /// Base64. While the invitation is open, that of the invitation's own key.
    pub public_key: String,
    /// Not joined yet; until when the invitation is good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invited_until: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<SocketAddr>,
}

impl PeerRecord {
    #[must_use]
    pub fn key(name: &FunctionName) -> String {
        format!("{PEERS}{name}")
    }
}

/// The smallest slot below `max` that is not taken.
#[must_use]
pub fn free_slot(taken: impl IntoIterator<Item = u32>, max: u32) -> Option<u32> {
    let taken: BTreeSet<u32> = taken.into_iter().collect();
    (0..max).find(|slot| !taken.contains(slot))
}

/// The smallest address for a peer that is not taken. Addresses of other prefixes are no hindrance.
#[must_use]
pub fn free_peer_address(prefix: Prefix, taken: impl IntoIterator<Item = Ipv6Addr>) -> Option<Ipv6Addr> {
    let taken: BTreeSet<Ipv6Addr> = taken.into_iter().collect();
    (PEER_HOST_MIN..=u64::MAX).map(|host| prefix.host(host)).find(|address| !taken.contains(address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::address::{FUNCTION_PREFIX, VPN_PREFIX};

    #[test]
    fn the_smallest_free_slot_is_taken_until_none_is_left() {
        assert_eq!(free_slot([], 4), Some(0));
        assert_eq!(free_slot([0, 1, 3], 4), Some(2));
        assert_eq!(free_slot([3, 2, 1, 1], 4), Some(0));
        assert_eq!(free_slot([0, 1, 2, 3], 4), None);
        // Slots past a limit that was lowered do not count.
        assert_eq!(free_slot([0, 9], 2), Some(1));
        assert_eq!(free_slot([], 0), None);
    }

    #[test]
    fn peers_are_numbered_from_two() {
        let vpn = |host| VPN_PREFIX.host(host);
        assert_eq!(free_peer_address(VPN_PREFIX, []), Some(vpn(2)));
        assert_eq!(free_peer_address(VPN_PREFIX, [vpn(1), vpn(3), vpn(2)]), Some(vpn(4)));
        assert_eq!(free_peer_address(VPN_PREFIX, [FUNCTION_PREFIX.host(2)]), Some(vpn(2)));
    }

    #[test]
    fn records_are_read_as_they_were_written() {
        let revision = RevisionRecord {
            name: "hello".parse().unwrap(),
            slot: 3,
            revision: 2,
            image: Some("sha256:00".to_owned()),
            root: None,
            dependencies: Some("sha256:01".to_owned()),
            spec: FunctionSpec::default(),
            deployed_at: "2026-01-02T03:04:05.000000006Z".parse().unwrap(),
        };
        let text = serde_json::to_string(&revision).unwrap();
        assert_eq!(serde_json::from_str::<RevisionRecord>(&text).unwrap(), revision);
        assert_eq!(revision.key(), "revisions/hello/00000000000000000002");

        let share = |revision, weight| ShareRecord { revision, weight, slot: 1 };
        let function = FunctionRecord {
            name: revision.name,
            slot: 3,
            newest: 4,
            shares: vec![share(2, 50), share(3, 50)],
            previous: vec![(1, 100)],
            aliases: [("canary".parse().unwrap(), 4)].into(),
        };
        let text = serde_json::to_string(&function).unwrap();
        assert_eq!(serde_json::from_str::<FunctionRecord>(&text).unwrap(), function);
        assert_eq!(FunctionRecord::key(&function.name), "functions/hello");
        assert_eq!(function.primary(), Some(3));
        assert_eq!([1, 2, 3, 4, 5].map(|n| function.names(n)), [true, true, true, true, false]);

        let peer: PeerRecord =
            serde_json::from_str(r#"{"name":"anna","address":"fd00:faa5:0:100::2","public_key":"k"}"#)
                .unwrap();
        assert_eq!((peer.invited_until, peer.endpoint), (None, None));
    }
}
