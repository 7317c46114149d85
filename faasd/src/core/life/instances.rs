//! A function's instances, and how many of them stand where.

use std::collections::BTreeMap;

use super::{Phase, Revision, Time};

/// One instance, from the order to start it to its end.
#[derive(Clone, Debug)]
pub(super) struct Instance {
    pub(super) revision: Revision,
    pub(super) phase: Phase,
    /// When a container that is being created is given up.
    pub(super) created_by: Time,
    /// It was given connections at some time.
    pub(super) admitted: bool,
    pub(super) ready_since: Time,
    /// The generation of its revision's failures that it was started in.
    pub(super) generation: u64,
    /// Open connections at the last sample.
    pub(super) open: u64,
    /// The last sample knew it, and no connection of it was open.
    pub(super) is_idle: bool,
    /// Why it is killed, if that is its own fault.
    pub(super) slow: Option<String>,
}

impl Instance {
    pub(super) fn new(revision: Revision, phase: Phase, generation: u64) -> Self {
        Self {
            revision,
            phase,
            created_by: Time::ZERO,
            admitted: false,
            ready_since: Time::ZERO,
            generation,
            open: 0,
            is_idle: false,
            slow: None,
        }
    }

    /// Whether its end, were it now, would be a failure.
    pub(super) fn would_fail(&self) -> bool {
        match self.phase {
            Phase::Draining { .. } => false,
            Phase::Killed => self.slow.is_some(),
            Phase::Preparing | Phase::Prepared | Phase::Starting { .. } | Phase::Ready | Phase::Withdrawn => {
                true
            }
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Ready | Phase::Withdrawn)
    }
}

/// How many instances of a revision stand where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) preparing: u32,
    pub(super) prepared: u32,
    /// With those that are killed since they were too slow: what becomes of them is not known before their end.
    pub(super) starting: u32,
    pub(super) ready: u32,
    pub(super) withdrawn: u32,
    /// Open connections of the ready ones.
    pub(super) open: u64,
}

impl Count {
    /// Those that can take connections, or could at once.
    pub(super) fn proven(&self) -> u32 {
        self.ready + self.withdrawn
    }

    pub(super) fn held(&self) -> u32 {
        self.preparing + self.prepared
    }

    /// All but those that are on their way out.
    pub(super) fn alive(&self) -> u32 {
        self.held() + self.starting + self.proven()
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Instances(pub(super) BTreeMap<u32, Instance>);

impl Instances {
    pub(super) fn count(&self, revision: u64) -> Count {
        let mut count = Count::default();
        for instance in self.0.values().filter(|i| i.revision.number == revision) {
            match instance.phase {
                Phase::Preparing => count.preparing += 1,
                Phase::Prepared => count.prepared += 1,
                Phase::Starting { .. } => count.starting += 1,
                Phase::Killed if instance.slow.is_some() => count.starting += 1,
                Phase::Ready => {
                    count.ready += 1;
                    count.open = count.open.saturating_add(instance.open);
                }
                Phase::Withdrawn => count.withdrawn += 1,
                Phase::Draining { .. } | Phase::Killed => {}
            }
        }
        count
    }

    /// The keys of those that are wanted, in their order.
    pub(super) fn keys(&self, wanted: impl Fn(&Instance) -> bool) -> Vec<u32> {
        self.0.iter().filter(|(_, instance)| wanted(instance)).map(|(key, _)| *key).collect()
    }

    /// The keys of a revision's instances in a phase, those with the fewest open connections first.
    pub(super) fn by_load(&self, revision: u64, phase: Phase) -> Vec<u32> {
        let mut keys = self.keys(|i| i.revision.number == revision && i.phase == phase);
        keys.sort_by_key(|key| self.0.get(key).map_or(0, |instance| instance.open));
        keys
    }
}
