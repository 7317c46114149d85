//! Counters of queries, by what became of them.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::core::zone;

macro_rules! outcomes {
    ($($(#[$doc:meta])* $variant:ident $label:literal $field:ident,)*) => {
        /// What became of a query, or of a transfer.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Outcome {
            $($(#[$doc])* $variant,)*
        }

        /// Since the start.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct DnsCounts {
            $($(#[$doc])* pub $field: u64,)*
            /// Queries whose upstream's answer pointed into our own network, and was stripped of that.
            pub rebinds: u64,
            /// Notifications that a secondary did not confirm.
            pub unconfirmed: u64,
        }

        impl DnsCounts {
            /// Queries by outcome.
            #[must_use]
            pub fn outcomes(&self) -> Vec<(&'static str, u64)> {
                vec![$(($label, self.$field)),*]
            }
        }

        impl DnsMetrics {
            #[must_use]
            pub fn counts(&self) -> DnsCounts {
                DnsCounts {
                    $($field: self.outcomes[Outcome::$variant as usize].load(Ordering::Relaxed),)*
                    rebinds: self.rebinds.load(Ordering::Relaxed),
                    unconfirmed: self.unconfirmed.load(Ordering::Relaxed),
                }
            }
        }

        const OUTCOMES: usize = [$($label),*].len();
    };
}

outcomes! {
    /// From our zones, with or without a record.
    Answered "answered" answered,
    /// From our zones: no such name.
    NxDomain "nxdomain" nxdomain,
    /// With an upstream's answer, whatever it says.
    Forwarded "forwarded" forwarded,
    /// With an upstream's answer that was kept.
    Cached "cached" cached,
    /// All of a zone, to a secondary.
    Transferred "transferred" transferred,
    /// By policy: transfers, other classes, names outside our zones while there are no upstreams.
    Refused "refused" refused,
    /// Malformed, not implemented, no upstream answered, or too many waiting for one.
    Failed "failed" failed,
    /// Its source sent more than it may: told to use TCP, or not answered.
    Limited "limited" limited,
}

impl From<zone::Outcome> for Outcome {
    fn from(outcome: zone::Outcome) -> Self {
        match outcome {
            zone::Outcome::Answered => Self::Answered,
            zone::Outcome::NxDomain => Self::NxDomain,
            zone::Outcome::Refused => Self::Refused,
            zone::Outcome::Failed => Self::Failed,
        }
    }
}

/// Counters, read at any time by [`DnsMetrics::counts`].
#[derive(Debug, Default)]
pub struct DnsMetrics {
    outcomes: [AtomicU64; OUTCOMES],
    rebinds: AtomicU64,
    unconfirmed: AtomicU64,
}

impl DnsMetrics {
    pub(super) fn count(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_all(&self, tally: &Tally) {
        for (counter, count) in self.outcomes.iter().zip(tally.0).filter(|(_, count)| *count > 0) {
            counter.fetch_add(count, Ordering::Relaxed);
        }
    }

    pub(super) fn count_rebind(&self) {
        self.rebinds.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_unconfirmed(&self) {
        self.unconfirmed.fetch_add(1, Ordering::Relaxed);
    }
}

/// Counts of one batch, so that threads do not contend for a counter at every query.
#[derive(Debug, Default)]
pub(super) struct Tally([u64; OUTCOMES]);

impl Tally {
    pub(super) fn count(&mut self, outcome: Outcome) {
        self.0[outcome as usize] += 1;
    }
}
