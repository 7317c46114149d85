//! What the store holds, and the numbers that are handed out with it.

use std::collections::BTreeSet;
use std::net::{Ipv6Addr, SocketAddr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::core::address::Prefix;
use crate::core::name::FunctionName;
use crate::core::spec::FunctionSpec;

pub const FUNCTIONS: &str = "functions/";
pub const PEERS: &str = "peers/";

/// The first host number of a peer; 1 is the server's.
pub const PEER_HOST_MIN: u64 = 2;

/// A declared function, under `functions/NAME`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FunctionRecord {
    pub name: FunctionName,
    /// Its place in the kernel program's maps, the same from the first deploy to the removal.
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

impl FunctionRecord {
    #[must_use]
    pub fn key(name: &FunctionName) -> String {
        format!("{FUNCTIONS}{name}")
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
        let record = FunctionRecord {
            name: "hello".parse().unwrap(),
            slot: 3,
            revision: 2,
            image: Some("sha256:00".to_owned()),
            root: None,
            dependencies: Some("sha256:01".to_owned()),
            spec: FunctionSpec::default(),
            deployed_at: "2026-01-02T03:04:05.000000006Z".parse().unwrap(),
        };
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<FunctionRecord>(&text).unwrap(), record);
        assert_eq!(FunctionRecord::key(&record.name), "functions/hello");

        let peer: PeerRecord =
            serde_json::from_str(r#"{"name":"anna","address":"fd00:faa5:0:100::2","public_key":"k"}"#)
                .unwrap();
        assert_eq!((peer.invited_until, peer.endpoint), (None, None));
    }
}
