//! What others may ask of a function's state.

use super::failures::STABLE_AFTER;
use super::{Lifecycle, Outlook, Phase, Share, Time};

impl Lifecycle {
    /// When [`super::Event::Tick`] is due at the latest.
    #[must_use]
    pub fn next_tick(&self) -> Option<Time> {
        let deadlines = self.instances.0.values().filter_map(|instance| match instance.phase {
            Phase::Preparing => Some(instance.created_by),
            Phase::Starting { until } | Phase::Draining { until } => Some(until),
            Phase::Ready | Phase::Withdrawn => {
                let failures = &self.pools.get(&instance.revision.number)?.failures;
                let may_forgive = failures.count > 0 && failures.generation == instance.generation;
                may_forgive.then(|| instance.ready_since.saturating_add(STABLE_AFTER))
            }
            Phase::Prepared | Phase::Killed => None,
        });
        let retries = self.pools.values().filter_map(|pool| pool.failures.retry_at);
        deadlines.chain(retries).chain(self.change.as_ref().and_then(|change| change.due())).min()
    }

    /// What a caller of the function would meet; with several revisions, what is worth knowing first.
    #[must_use]
    pub fn outlook(&self) -> Outlook {
        let weighed = self.shares.iter().filter(|share| share.weight > 0);
        let of_each: Vec<Outlook> = weighed.map(|share| self.outlook_of(share)).collect();
        let first = [Outlook::Overloaded, Outlook::Failing, Outlook::Warm, Outlook::Starting];
        let is_starting = || self.instances.0.values().any(|i| matches!(i.phase, Phase::Starting { .. }));
        match first.into_iter().find(|outlook| of_each.contains(outlook)) {
            Some(outlook) => outlook,
            // For a plan.
            None if is_starting() => Outlook::Starting,
            None => Outlook::Cold,
        }
    }

    fn outlook_of(&self, share: &Share) -> Outlook {
        let count = self.instances.count(share.revision.number);
        let Some(pool) = self.pools.get(&share.revision.number) else { return Outlook::Cold };
        if pool.sheds {
            Outlook::Overloaded
        } else if count.proven() > 0 {
            Outlook::Warm
        } else if count.starting > 0 || (count.preparing > 0 && self.target(share.revision) > 0) {
            Outlook::Starting
        } else if pool.failures.is_pausing() {
            Outlook::Failing
        } else {
            Outlook::Cold
        }
    }

    /// Why the last instance failed, while there is no better news.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        let serving = self.pools.iter().filter(|(number, _)| self.has_share(**number));
        let reasons = serving.filter_map(|(_, pool)| pool.failures.reason.as_ref());
        reasons.max_by_key(|(at, _)| *at).map(|(_, why)| why.as_str())
    }

    /// When the next start is tried after a failure.
    #[must_use]
    pub fn retry_at(&self) -> Option<Time> {
        let serving = self.pools.iter().filter(|(number, _)| self.has_share(**number));
        serving.filter_map(|(_, pool)| pool.failures.retry_at).min()
    }

    /// Failures in a row, of the revision that has the most.
    #[must_use]
    pub fn failures(&self) -> u32 {
        let serving = self.pools.iter().filter(|(number, _)| self.has_share(**number));
        serving.map(|(_, pool)| pool.failures.count).max().unwrap_or(0)
    }

    #[must_use]
    pub fn phase(&self, key: u32) -> Option<Phase> {
        self.instances.0.get(&key).map(|instance| instance.phase)
    }

    /// Whether an instance was admitted, and is to take connections still.
    #[must_use]
    pub fn takes_connections(&self, key: u32) -> bool {
        self.instances.0.get(&key).is_some_and(|i| i.phase == Phase::Ready && i.admitted)
    }

    /// Who serves.
    #[must_use]
    pub fn shares(&self) -> &[Share] {
        &self.shares
    }

    /// Whether a change is under way.
    #[must_use]
    pub fn is_planning(&self) -> bool {
        self.change.is_some()
    }

    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.removed
    }
}
