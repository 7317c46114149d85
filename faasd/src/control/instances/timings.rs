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

#[cfg(test)]
mod tests {
    use super::*;

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
