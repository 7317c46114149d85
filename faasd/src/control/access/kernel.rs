//! The policy's side of the kernel: its maps, and the connections of the ingress namespace.

use std::collections::HashSet;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::sync::{Mutex, MutexGuard, PoisonError};

use faasd_common::GROUPS_MAX;

use super::{Counts, Enforcer};
use crate::core::access::{Action, Effect, Entry, GROUPS_PER_SUBJECT_MAX, Image};
use crate::sys::bpf::{AccessMaps, BpfError, Subject};
use crate::sys::netns::NetNs;
use crate::sys::sock_diag;

const _: () = assert!(GROUPS_MAX == GROUPS_PER_SUBJECT_MAX);

/// The maps that the kernel program reads, and the sockets that it has let in.
#[derive(Debug)]
pub struct KernelEnforcer {
    maps: Mutex<AccessMaps>,
    ingress: NetNs,
}

impl KernelEnforcer {
    #[must_use]
    pub fn new(maps: AccessMaps, ingress: NetNs) -> Self {
        Self { maps: Mutex::new(maps), ingress }
    }

    fn maps(&self) -> MutexGuard<'_, AccessMaps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Enforcer for KernelEnforcer {
    fn image(&self) -> anyhow::Result<Image> {
        let maps = self.maps();
        let entry = |Subject { number, groups }| Entry { number, groups };
        let subjects = maps.subjects()?.into_iter().map(|(address, subject)| (address, entry(subject)));
        let action = |allow| if allow { Action::Allow } else { Action::Deny };
        let rules = maps.rules()?.into_iter().map(|rule| ((rule.subject, rule.function), action(rule.allow)));
        Ok(Image { subjects: subjects.collect(), rules: rules.collect() })
    }

    fn take(&self, step: &Effect) -> anyhow::Result<()> {
        let mut maps = self.maps();
        let taken: Result<(), BpfError> = match *step {
            Effect::SetSubject { address, entry: Entry { number, groups } } => {
                maps.set_subject(address, Subject { number, groups })
            }
            Effect::ClearSubject { address } => maps.clear_subject(address),
            Effect::SetRule { subject, function, action } => {
                maps.set_rule(subject, function, action == Action::Allow)
            }
            Effect::ClearRule { subject, function } => maps.clear_rule(subject, function),
            Effect::Guard { .. } => Ok(()),
        };
        Ok(taken?)
    }

    fn cut(&self, is_refused: &dyn Fn(Ipv6Addr, SocketAddrV6) -> bool) -> anyhow::Result<u64> {
        Ok(sock_diag::destroy_if(&self.ingress, |local, remote| is_refused(*remote.ip(), local))?)
    }

    fn forget_counts(&self, known: &HashSet<u32>) -> anyhow::Result<()> {
        Ok(self.maps().forget_counts(|number| !known.contains(&number))?)
    }

    fn counts(&self) -> anyhow::Result<Counts> {
        let maps = self.maps();
        let mut subjects = Vec::new();
        for (_, Subject { number, .. }) in maps.subjects()? {
            let counts = maps.subject_counts(number)?;
            subjects.extend(counts.map(|counts| (number, counts.admitted, counts.refused)));
        }
        let refusals = maps.refusals()?.into_iter().map(|one| (one.subject, one.function, one.count));
        Ok(Counts { subjects, refusals: refusals.collect() })
    }
}
