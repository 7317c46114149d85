//! How long the steps of an instance's start took. The task writes, the owner reads for whoever asks.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::api::types::StartTimes;

/// The steps, as far as they are done.
#[derive(Debug, Default)]
pub struct Timings {
    created: OnceLock<Duration>,
    released: OnceLock<(Duration, Instant)>,
    ready: OnceLock<Duration>,
}

impl Timings {
    /// The container is complete, which took so long.
    pub(super) fn created(&self, took: Duration) {
        let _ = self.created.set(took);
    }

    /// Its program was let run, `since` the order to do so.
    pub(super) fn released(&self, since: Instant) {
        let now = Instant::now();
        let _ = self.released.set((now - since, now));
    }

    /// It can take connections.
    pub(super) fn ready(&self) {
        if let Some((_, released)) = self.released.get() {
            let _ = self.ready.set(released.elapsed());
        }
    }

    /// For the API. `None` of an instance that this daemon has not made.
    #[must_use]
    pub fn view(&self) -> Option<StartTimes> {
        let us = |took: &Duration| u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        Some(StartTimes {
            create_us: us(self.created.get()?),
            release_us: self.released.get().map(|(took, _)| us(took)),
            ready_us: self.ready.get().map(us),
        })
    }
}

/// Upper bounds of a start's parts in microseconds, doubling: 250 µs to 16.4 s. One more bucket holds the rest.
pub const START_BOUNDS_US: [u64; 17] = {
    let mut bounds = [0; 17];
    let mut i = 0;
    while i < 17 {
        bounds[i] = 250 << i;
        i += 1;
    }
    bounds
};

/// How long one part took, in all starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StartTimesSeen {
    pub sum_us: u64,
    pub buckets: [u64; START_BOUNDS_US.len() + 1],
}

impl StartTimesSeen {
    pub fn add(&mut self, us: u64) {
        self.sum_us = self.sum_us.saturating_add(us);
        self.buckets[START_BOUNDS_US.partition_point(|&bound| bound < us)] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_fall_into_their_buckets() {
        let mut seen = StartTimesSeen::default();
        [0, 250, 251, 16_384_001].into_iter().for_each(|us| seen.add(us));
        assert_eq!((seen.buckets[0], seen.buckets[1], seen.buckets[17]), (2, 1, 1));
        assert_eq!(seen.sum_us, 16_384_502);
    }

    #[test]
    fn steps_are_told_once_they_are_done() {
        let timings = Timings::default();
        timings.ready();
        assert_eq!(timings.view(), None);
        timings.created(Duration::from_millis(20));
        assert_eq!(timings.view(), Some(StartTimes { create_us: 20_000, ..StartTimes::default() }));
        timings.released(Instant::now());
        timings.ready();
        let view = timings.view().unwrap();
        assert!(view.release_us.is_some() && view.ready_us.is_some(), "{view:?}");
        timings.ready();
        assert_eq!(timings.view(), Some(view));
    }
}
