//! What the store holds, and the numbers that are handed out with it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv6Addr, SocketAddr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::core::access::{Access, Action, GroupName, Role, Subject};
use crate::core::name::FunctionName;
use crate::core::revision::Alias;
use crate::core::spec::FunctionSpec;

pub const FUNCTIONS: &str = "functions/";
pub const REVISIONS: &str = "revisions/";
pub const PEERS: &str = "peers/";
pub const GROUPS: &str = "groups/";
pub const MEMBERS: &str = "members/";
pub const RULES: &str = "policy/";
pub const DEFAULTS: &str = "access/";

/// The revisions of a function that are kept for a rollback, beside those that are in use.
pub const REVISIONS_MAX: usize = 10;

/// A declared function, under `functions/NAME`: who serves it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FunctionRecord {
    pub name: FunctionName,
    /// Its number among the functions, the same from the first deploy to the removal: its range of user ids, the mark on
    /// its sockets, its key in the kernel program's map of splits.
    pub slot: u32,
    /// Its number among those who call. 0 in a record of before there were any.
    #[serde(default)]
    pub subject: u32,
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
    /// Its number among those who call. 0 in a record of before there were any.
    #[serde(default)]
    pub number: u32,
    pub address: Ipv6Addr,
    #[serde(default)]
    pub role: Role,
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

/// What was taken over from wg-quick, and that it was: it is done once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptionRecord {
    /// The server's, base64.
    pub public_key: String,
    pub at: Timestamp,
}

impl AdoptionRecord {
    pub const KEY: &'static str = "adopted/wg-quick";
}

/// A group, under `groups/NAME`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRecord {
    pub number: u32,
}

/// Somebody's being in a group, under `members/GROUP/SUBJECT`: one key each, so that joining one of thousands is a small
/// write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRecord {}

/// A rule, under `policy/FUNCTION/SUBJECT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleRecord {
    pub action: Action,
}

/// A default, under `access/FUNCTION`, or `access/*` for all functions that have none of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefaultRecord {
    pub access: Access,
}

impl GroupRecord {
    #[must_use]
    pub fn key(name: &GroupName) -> String {
        format!("{GROUPS}{name}")
    }
}

impl MemberRecord {
    #[must_use]
    pub fn key(group: &GroupName, subject: &Subject) -> String {
        format!("{MEMBERS}{group}/{subject}")
    }

    /// The group and who is in it, from such a key.
    #[must_use]
    pub fn parse(key: &str) -> Option<(GroupName, Subject)> {
        let (group, subject) = key.strip_prefix(MEMBERS)?.split_once('/')?;
        Some((group.parse().ok()?, subject.parse().ok()?))
    }
}

impl RuleRecord {
    #[must_use]
    pub fn key(function: &FunctionName, subject: &Subject) -> String {
        format!("{RULES}{function}/{subject}")
    }

    /// The function and the subject, from such a key.
    #[must_use]
    pub fn parse(key: &str) -> Option<(FunctionName, Subject)> {
        let (function, subject) = key.strip_prefix(RULES)?.split_once('/')?;
        Some((function.parse().ok()?, subject.parse().ok()?))
    }
}

impl DefaultRecord {
    const ALL: &str = "*";

    #[must_use]
    pub fn key(function: Option<&FunctionName>) -> String {
        format!("{DEFAULTS}{}", function.map_or(Self::ALL, FunctionName::as_str))
    }

    /// Whose default it is, from such a key: a function's, or everyone's.
    #[must_use]
    pub fn parse(key: &str) -> Option<Option<FunctionName>> {
        match key.strip_prefix(DEFAULTS)? {
            Self::ALL => Some(None),
            name => name.parse().ok().map(Some),
        }
    }
}

/// The smallest slot below `max` that is not taken.
#[must_use]
pub fn free_slot(taken: impl IntoIterator<Item = u32>, max: u32) -> Option<u32> {
    let taken: BTreeSet<u32> = taken.into_iter().collect();
    (0..max).find(|slot| !taken.contains(slot))
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn keys_say_what_they_are_about() {
        let (hello, ops) = ("hello".parse().unwrap(), "ops".parse().unwrap());
        for subject in ["anna", "@ops", "fn:orders"] {
            let subject: Subject = subject.parse().unwrap();
            let (rule, member) = (RuleRecord::key(&hello, &subject), MemberRecord::key(&ops, &subject));
            assert_eq!(RuleRecord::parse(&rule), Some((hello.clone(), subject.clone())));
            assert_eq!(MemberRecord::parse(&member), Some((ops.clone(), subject)));
        }
        assert_eq!(RuleRecord::key(&hello, &Subject::Group(ops)), "policy/hello/@ops");
        for function in [Some(hello), None] {
            assert_eq!(DefaultRecord::parse(&DefaultRecord::key(function.as_ref())), Some(function));
        }
        assert_eq!(DefaultRecord::parse("access/A"), None);
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
            subject: 9,
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
        assert_eq!((peer.number, peer.role), (0, Role::User), "of before there were any");
    }
}
