//! When the requests of an open loop are due. They are due whether or not the ones before them have been answered, and
//! a request's latency counts from there: a server that stops for a second is seen by all who would have come meanwhile.

use std::time::Duration;

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// Requests at even distances, of which every n-th is a worker's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Of all workers together, in thousandths of a request a second.
    per_second_milli: u64,
    worker: u64,
    workers: u64,
}

impl Schedule {
    /// The fastest.
    pub const PER_SECOND_MAX: f64 = 10_000_000.0;
    /// The slowest: one in a quarter of an hour.
    pub const PER_SECOND_MIN: f64 = 0.001;

    /// The part of `worker` (from 0) of `workers` in `per_second` requests a second, if that is a rate.
    #[must_use]
    pub fn new(per_second: f64, worker: u64, workers: u64) -> Option<Self> {
        let in_range = (Self::PER_SECOND_MIN..=Self::PER_SECOND_MAX).contains(&per_second);
        (in_range && worker < workers).then(|| Self {
            per_second_milli: (per_second * 1e3).round() as u64,
            worker,
            workers,
        })
    }

    /// When the worker's request number `number` (from 0) is due, since the beginning.
    #[must_use]
    pub fn at(&self, number: u64) -> Duration {
        let overall = u128::from(number) * u128::from(self.workers) + u128::from(self.worker);
        let nanos = (overall * NANOS_PER_SECOND * 1000).div_ceil(u128::from(self.per_second_milli));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// How many of the worker's requests are due once so much time has passed.
    #[must_use]
    pub fn due(&self, elapsed: Duration) -> u64 {
        let overall = elapsed.as_nanos() * u128::from(self.per_second_milli) / (NANOS_PER_SECOND * 1000);
        // Request 0 is due at once.
        let Some(past) = overall.checked_sub(u128::from(self.worker)) else { return 0 };
        u64::try_from(past / u128::from(self.workers) + 1).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn workers_take_turns() {
        let at = |worker, number| Schedule::new(1000.0, worker, 2).unwrap().at(number).as_micros();
        assert_eq!([at(0, 0), at(1, 0), at(0, 1), at(1, 1)], [0, 1000, 2000, 3000]);
        let first = Schedule::new(1000.0, 1, 2).unwrap();
        assert_eq!(first.due(Duration::from_micros(999)), 0);
        assert_eq!(first.due(Duration::from_micros(1000)), 1);
    }

    #[test]
    fn what_is_no_rate_has_no_schedule() {
        for rate in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e12] {
            assert_eq!(Schedule::new(rate, 0, 1), None, "{rate}");
        }
        assert_eq!(Schedule::new(1.0, 2, 2), None);
    }

    proptest! {
        #[test]
        fn all_that_are_due_have_come_and_no_other(
            rate in 0.001f64..1e7, workers in 1u64..64, worker in 0u64..64, millis in 0u64..86_400_000,
        ) {
            let schedule = Schedule::new(rate, worker % workers, workers).unwrap();
            let elapsed = Duration::from_millis(millis);
            let due = schedule.due(elapsed);
            prop_assert!(due == 0 || schedule.at(due - 1) <= elapsed);
            prop_assert!(schedule.at(due) > elapsed);
        }

        #[test]
        fn the_workers_together_keep_the_rate(rate in 1.0f64..1e6, workers in 1u64..16) {
            let second = Duration::from_secs(100);
            let due: u64 =
                (0..workers).map(|worker| Schedule::new(rate, worker, workers).unwrap().due(second)).sum();
            let wanted = rate * 100.0;
            prop_assert!((due as f64 - wanted).abs() <= 1.0 + wanted * 1e-3, "{due} for {wanted}");
        }
    }
}
