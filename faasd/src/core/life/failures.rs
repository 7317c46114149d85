//! What a revision's failures lead to: a pause before the next start, which grows with each further one.

use std::time::Duration;

use super::Time;

/// The first pause after a failure; it doubles with each further one.
pub(super) const BACKOFF_FIRST: Duration = Duration::from_millis(200);

/// The longest pause, before its jitter.
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// After this many failures in a row, connections that wait are refused rather than held, and one instance is tried at a
/// time.
pub(super) const FAILURES_BEFORE_REFUSAL: u32 = 3;

/// An instance that was ready for so long shows that its revision works.
pub(super) const STABLE_AFTER: Duration = Duration::from_secs(10);

/// How far a pause may be from its middle, in percent, so that what failed together is not tried again together.
const JITTER_PERCENT: u64 = 25;

/// A source of jitter: `SplitMix64`, which is enough to spread things.
#[derive(Clone, Debug)]
pub(super) struct Jitter(pub(super) u64);

impl Jitter {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn spread(&mut self, pause: Duration) -> Duration {
        let percent = 100 - JITTER_PERCENT + self.next() % (2 * JITTER_PERCENT + 1);
        pause.mul_f64(percent as f64 / 100.0)
    }
}

/// The failures of one revision.
///
/// Instances that were started together and fail together have failed once: each is of a generation, a failure begins
/// the next one, and the end of an instance of an earlier generation says nothing new.
#[derive(Clone, Debug, Default)]
pub(super) struct Failures {
    /// In a row.
    pub(super) count: u32,
    pub(super) generation: u64,
    pub(super) retry_at: Option<Time>,
    /// Why the last one was, until an instance is ready, and when.
    pub(super) reason: Option<(Time, String)>,
}

impl Failures {
    pub(super) fn add(&mut self, generation: u64, why: String, now: Time, jitter: &mut Jitter) {
        let is_new = generation == self.generation;
        if is_new {
            self.count = self.count.saturating_add(1);
            self.generation += 1;
        }
        if is_new || self.retry_at.is_none() {
            let pause =
                BACKOFF_FIRST.saturating_mul(1 << self.count.saturating_sub(1).min(16)).min(BACKOFF_MAX);
            self.retry_at = Some(now.saturating_add(jitter.spread(pause)));
        }
        self.reason = Some((now, why));
    }

    /// The revision works, or is given another chance.
    pub(super) fn forgive(&mut self) {
        self.count = 0;
        self.retry_at = None;
    }

    pub(super) fn pass(&mut self, now: Time) {
        self.retry_at.take_if(|at| *at <= now);
    }

    pub(super) fn is_pausing(&self) -> bool {
        self.retry_at.is_some()
    }

    pub(super) fn is_crash_loop(&self) -> bool {
        self.count >= FAILURES_BEFORE_REFUSAL
    }
}
