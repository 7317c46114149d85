//! A function's counters, written by its acceptor and read by whoever asks.

use std::sync::atomic::{AtomicU64, Ordering};

/// Upper bounds of the hand-off latency's buckets, in nanoseconds: 2 µs to 65 ms, doubling. One more bucket holds the
/// rest.
pub const LATENCY_BOUNDS_NS: [u64; 16] = {
    let mut bounds = [0; 16];
    let mut i = 0;
    while i < 16 {
        bounds[i] = 2_000 << i;
        i += 1;
    }
    bounds
};

/// Counters since the daemon started, or since the function was deployed if that is later.
#[derive(Debug, Default)]
pub struct Stats {
    accepted: AtomicU64,
    handed_off: AtomicU64,
    requeued: AtomicU64,
    refused: AtomicU64,
    forwarded: AtomicU64,
    waiting: AtomicU64,
    latency_sum_ns: AtomicU64,
    latency: [AtomicU64; LATENCY_BOUNDS_NS.len() + 1],
}

/// There is one writer, so that a load and a store serve for an addition: no locked instruction on the path.
fn add(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
}

impl Stats {
    pub(super) fn accept(&self) {
        add(&self.accepted, 1);
    }

    pub(super) fn requeue(&self, count: u64) {
        add(&self.requeued, count);
    }

    pub(super) fn forward(&self) {
        add(&self.forwarded, 1);
    }

    pub(super) fn refuse(&self) {
        add(&self.refused, 1);
    }

    pub(super) fn set_waiting(&self, count: usize) {
        self.waiting.store(count as u64, Ordering::Relaxed);
    }

    /// `ns`: from the accept's completion to the message's arrival.
    pub(super) fn hand_off(&self, ns: u64) {
        add(&self.handed_off, 1);
        add(&self.latency_sum_ns, ns);
        let bucket = LATENCY_BOUNDS_NS.partition_point(|&bound| bound < ns);
        add(&self.latency[bucket], 1);
    }

    /// Connections accepted by io_uring.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Connections handed to an instance. One that was handed over twice counts twice.
    #[must_use]
    pub fn handed_off(&self) -> u64 {
        self.handed_off.load(Ordering::Relaxed)
    }

    /// Connections read back from an instance that died.
    #[must_use]
    pub fn requeued(&self) -> u64 {
        self.requeued.load(Ordering::Relaxed)
    }

    /// Connections that another function passed on to this one.
    #[must_use]
    pub fn forwarded(&self) -> u64 {
        self.forwarded.load(Ordering::Relaxed)
    }

    /// Connections closed for want of an instance or of room.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Connections that are accepted and not handed over, now.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// The latency's sum in nanoseconds, and the counts of its buckets.
    #[must_use]
    pub fn latency(&self) -> (u64, [u64; LATENCY_BOUNDS_NS.len() + 1]) {
        let counts = std::array::from_fn(|i| self.latency[i].load(Ordering::Relaxed));
        (self.latency_sum_ns.load(Ordering::Relaxed), counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_fall_into_their_buckets() {
        let stats = Stats::default();
        [0, 2_000, 2_001, u64::MAX >> 8].into_iter().for_each(|ns| stats.hand_off(ns));
        let (_, counts) = stats.latency();
        assert_eq!((counts[0], counts[1], counts[16]), (2, 1, 1));
        assert_eq!(stats.handed_off(), 4);
    }
}
