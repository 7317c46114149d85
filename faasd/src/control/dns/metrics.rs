//! Counters of queries, by what became of them.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters, read at any time by [`DnsMetrics::counts`].
#[derive(Debug, Default)]
pub struct DnsMetrics {
    answered: AtomicU64,
    nxdomain: AtomicU64,
    forwarded: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
}

/// Queries since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DnsCounts {
    /// From the zone, with or without a record.
    pub answered: u64,
    /// From the zone: no such name.
    pub nxdomain: u64,
    /// With an upstream's answer, whatever it says.
    pub forwarded: u64,
    /// By policy: zone transfers, other classes, names outside the zone while there are no upstreams.
    pub refused: u64,
    /// Malformed, not implemented, no upstream answered, or too many waiting for one.
    pub failed: u64,
}

/// What became of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Answered,
    NxDomain,
    Forwarded,
    Refused,
    Failed,
}

impl DnsMetrics {
    pub(super) fn count(&self, outcome: Outcome) {
        let counter = match outcome {
            Outcome::Answered => &self.answered,
            Outcome::NxDomain => &self.nxdomain,
            Outcome::Forwarded => &self.forwarded,
            Outcome::Refused => &self.refused,
            Outcome::Failed => &self.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    #[must_use]
    pub fn counts(&self) -> DnsCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DnsCounts {
            answered: read(&self.answered),
            nxdomain: read(&self.nxdomain),
            forwarded: read(&self.forwarded),
            refused: read(&self.refused),
            failed: read(&self.failed),
        }
    }
}
