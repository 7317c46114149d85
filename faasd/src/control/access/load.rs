//! What is on record, read at the start.

use std::collections::HashSet;

use super::*;
use crate::control::records::{DEFAULTS, FUNCTIONS, FunctionRecord, GROUPS, MEMBERS, PEERS, RULES};
use crate::control::store::list_json;
use crate::core::access::Access as Default;

impl Access {
    /// Reads the policy. Functions and peers from before there were numbers are given some, and what speaks of nobody is
    /// removed. Blocks.
    ///
    /// # Errors
    /// Those of the store.
    pub fn open(store: Arc<dyn Store>, configured: Default, functions: Prefix) -> Result<Self, StoreError> {
        let mut policy = Policy::new(configured);
        let mut writes = Vec::new();
        let mut peers: Vec<PeerRecord> = records(&*store, PEERS)?;
        let mut declared: Vec<FunctionRecord> = records(&*store, FUNCTIONS)?;
        for (key, stored) in list_json::<GroupRecord>(&*store, GROUPS)? {
            if let Some(name) = key.strip_prefix(GROUPS).and_then(|name| name.parse().ok()) {
                policy.apply(&Edit::Group { name, number: stored.record.number });
            }
        }
        // Those that have a number come first, so that nobody is given it.
        peers.sort_by_key(|record| record.number == 0);
        declared.sort_by_key(|record| record.subject == 0);
        let at = peers.partition_point(|record| record.number != 0);
        let (old_peers, new_peers) = peers.split_at_mut(at);
        let at = declared.partition_point(|record| record.subject != 0);
        let (old_functions, new_functions) = declared.split_at_mut(at);
        old_peers.iter().for_each(|record| drop(policy.apply(&peer_edit(record))));
        old_functions.iter().for_each(|record| drop(policy.apply(&function_edit(record, functions))));
        for record in new_peers {
            record.number = policy.fresh_number();
            policy.apply(&peer_edit(record));
            writes.push(json_write(PeerRecord::key(&record.name), record)?);
        }
        for record in new_functions {
            record.subject = policy.fresh_number();
            policy.apply(&function_edit(record, functions));
            writes.push(json_write(FunctionRecord::key(&record.name), record)?);
        }
        let stale = facts(&*store, &mut policy)?;
        writes.extend(stale.into_iter().map(|key| Write::Delete { key }));
        if !writes.is_empty() {
            store.write_all(&writes)?;
        }
        Ok(Self {
            store,
            prefix: functions,
            writer: Mutex::new(()),
            policy: RwLock::new(policy),
            ports: Mutex::default(),
            behind: Mutex::default(),
            late: Arc::default(),
            leaving: Arc::default(),
            attached: OnceLock::new(),
        })
    }
}

fn records<T: serde::de::DeserializeOwned>(store: &dyn Store, prefix: &str) -> Result<Vec<T>, StoreError> {
    Ok(list_json(store, prefix)?.into_iter().map(|(_, stored)| stored.record).collect())
}

fn function_edit(record: &FunctionRecord, prefix: Prefix) -> Edit {
    Edit::Caller {
        subject: Subject::Function(record.name.clone()),
        number: record.subject,
        address: prefix.function(&record.name),
        active: true,
    }
}

/// Reads memberships, rules and defaults. Returns the keys of those that speak of nobody.
fn facts(store: &dyn Store, policy: &mut Policy) -> Result<Vec<String>, StoreError> {
    let mut stale = Vec::new();
    let known: HashSet<FunctionName> = policy.functions().cloned().collect();
    for (key, _) in list_json::<MemberRecord>(store, MEMBERS)? {
        match MemberRecord::parse(&key) {
            Some((group, subject))
                if policy.members(&group).is_some() && policy.number(&subject).is_some() =>
            {
                policy.apply(&Edit::Member { group, subject, is_in: true });
            }
            _ => stale.push(key),
        }
    }
    for (key, stored) in list_json::<RuleRecord>(store, RULES)? {
        match RuleRecord::parse(&key) {
            Some((function, subject)) if known.contains(&function) && policy.number(&subject).is_some() => {
                policy.apply(&Edit::Rule { function, subject, action: Some(stored.record.action) });
            }
            _ => stale.push(key),
        }
    }
    for (key, stored) in list_json::<DefaultRecord>(store, DEFAULTS)? {
        match DefaultRecord::parse(&key) {
            Some(function) if function.as_ref().is_none_or(|name| known.contains(name)) => {
                policy.apply(&Edit::Default { function, access: Some(stored.record.access) });
            }
            _ => stale.push(key),
        }
    }
    Ok(stale)
}
