//! What a revision's connections ask for.

use std::collections::VecDeque;
use std::time::Duration;

use super::failures::Failures;
use super::{Revision, Time};

impl Revision {
    pub(super) fn most(&self) -> u32 {
        self.max.max(1)
    }

    pub(super) fn least(&self) -> u32 {
        self.min.min(self.most())
    }

    /// Instances for so many connections, as far as `max` allows.
    pub(super) fn instances_for(&self, connections: u64) -> u32 {
        let instances = connections.div_ceil(u64::from(self.concurrency.max(1)));
        u32::try_from(instances).unwrap_or(u32::MAX).min(self.most())
    }
}

/// What is known of a revision that serves or is to, beside its instances.
#[derive(Clone, Debug, Default)]
pub(super) struct Pool {
    pub(super) failures: Failures,
    pub(super) needs: Needs,
    /// A connection was said to wait. True until a sample says that none does and there is a taker.
    pub(super) waits: bool,
    /// Connections that wait, at the last sample.
    pub(super) waiting: u64,
    /// The count of arrivals at the last sample.
    pub(super) arrived: Option<u64>,
    /// New connections are refused.
    pub(super) sheds: bool,
}

impl Pool {
    pub(super) fn is_waited_for(&self) -> bool {
        self.waits || self.waiting > 0
    }
}

/// How many instances were needed over time, as far as that matters for the most within a window: strictly falling
/// numbers, each with the last moment it was needed. So there are at most as many as there may be instances.
#[derive(Clone, Debug, Default)]
pub(super) struct Needs(VecDeque<(Time, u32)>);

impl Needs {
    /// So many are needed from now on. What was needed before was so until now.
    pub(super) fn note(&mut self, need: u32, now: Time) {
        if let Some((last, _)) = self.0.back_mut() {
            *last = now;
        }
        while self.0.pop_back_if(|(_, earlier)| *earlier <= need).is_some() {}
        self.0.push_back((now, need));
    }

    /// The most that were needed within the window that ends now.
    pub(super) fn peak(&mut self, window: Duration, now: Time) -> u32 {
        while self.0.len() > 1
            && self.0.pop_front_if(|(last, _)| last.saturating_add(window) <= now).is_some()
        {}
        self.0.front().map_or(0, |(_, need)| *need)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
