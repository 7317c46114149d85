//! A limit on the queries of each source, in constant memory.

use std::hash::{BuildHasher, RandomState};
use std::net::Ipv6Addr;
use std::sync::atomic::{AtomicU64, Ordering};

/// Places in a row.
const PLACES: usize = 4096;

/// Counts sources in two rows of places, which each source finds by two hashes that nobody can foretell. Who sends too
/// much fills both of its places; somebody else is taken for it if both are the same, of which the chance is one in
/// sixteen million for each pair of sources.
///
/// A place holds the time at which what was let through would have been used up at the rate that is allowed (the
/// generic cell rate algorithm), in nanoseconds.
pub(super) struct Limit {
    /// Between two queries. 0 for no limit.
    interval_ns: AtomicU64,
    burst_ns: u64,
    hashes: [RandomState; 2],
    rows: [Box<[AtomicU64]>; 2],
}

impl Limit {
    /// As many queries a second, and as many at once. 0 for no limit.
    pub(super) fn new(per_second: u32) -> Self {
        let row = || (0..PLACES).map(|_| AtomicU64::new(0)).collect();
        Self {
            interval_ns: interval_ns(per_second).into(),
            burst_ns: 1_000_000_000,
            hashes: [RandomState::new(), RandomState::new()],
            rows: [row(), row()],
        }
    }

    /// Another limit, from the next query on.
    pub(super) fn set(&self, per_second: u32) {
        self.interval_ns.store(interval_ns(per_second), Ordering::Relaxed);
    }

    /// Counts a query, and returns whether it is within the limit. `now_ns` does not go back.
    pub(super) fn admits(&self, source: Ipv6Addr, now_ns: u64) -> bool {
        let interval_ns = self.interval_ns.load(Ordering::Relaxed);
        if interval_ns == 0 {
            return true;
        }
        let places = [0, 1].map(|i| &self.rows[i][self.hashes[i].hash_one(source) as usize % PLACES]);
        // Two threads at once may let one query too many through; no lock is worth that one.
        let times = places.map(|place| place.load(Ordering::Relaxed).max(now_ns));
        let admits = times.iter().any(|time| time - now_ns <= self.burst_ns);
        if admits {
            for (place, time) in places.into_iter().zip(times) {
                // A place that is full of somebody else's queries does not get fuller by ours.
                place.store((time + interval_ns).min(now_ns + 2 * self.burst_ns), Ordering::Relaxed);
            }
        }
        admits
    }
}

fn interval_ns(per_second: u32) -> u64 {
    1_000_000_000_u64.checked_div(per_second.into()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn source(n: u128) -> Ipv6Addr {
        Ipv6Addr::from_bits(n)
    }

    fn admitted(limit: &Limit, from: u128, queries: u32, now_ns: u64) -> u32 {
        (0..queries).map(|_| u32::from(limit.admits(source(from), now_ns))).sum()
    }

    #[test]
    fn a_source_has_its_rate_and_a_second_of_it_at_once() {
        let limit = Limit::new(100);
        assert_eq!(admitted(&limit, 1, 500, SECOND), 101);
        assert_eq!(admitted(&limit, 1, 500, SECOND), 0);
        assert_eq!(admitted(&limit, 1, 500, SECOND + SECOND / 2), 50);
        assert_eq!(admitted(&limit, 1, 500, 10 * SECOND), 101);
        assert_eq!(admitted(&Limit::new(0), 1, 500, 0), 500);
    }

    #[test]
    fn others_are_not_hit() {
        let limit = Limit::new(100);
        assert_eq!(admitted(&limit, 0, 100_000, SECOND), 101);
        let hit = (1..=10_000).filter(|n| admitted(&limit, *n, 1, SECOND) == 0).count();
        assert!(hit <= 1, "{hit}");
    }
}
