//! What happened when: a bounded number of slots, which become longer as the run does.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::record::{LONGEST, histogram};

/// The most slots. Twice as many points as half of them is what a plot shows well.
const SLOTS_MAX: usize = 64;

/// The length of a slot at the beginning.
const SLOT: Duration = Duration::from_millis(100);

/// What ended in a slot of time.
#[derive(Clone, Debug)]
pub struct Slot {
    pub answered: u64,
    pub failed: u64,
    pub latency: Histogram<u64>,
}

impl Default for Slot {
    fn default() -> Self {
        Self { answered: 0, failed: 0, latency: histogram(2) }
    }
}

impl Slot {
    fn add(&mut self, other: &Self) {
        self.answered += other.answered;
        self.failed += other.failed;
        // All have the same bounds.
        let added = self.latency.add(&other.latency);
        debug_assert!(added.is_ok());
    }
}

#[derive(Clone, Debug)]
pub struct Series {
    slot: Duration,
    slots: Vec<Slot>,
}

impl Default for Series {
    fn default() -> Self {
        Self::new(SLOT)
    }
}

impl Series {
    /// With slots of that length at the beginning.
    #[must_use]
    pub fn new(slot: Duration) -> Self {
        Self { slot: slot.max(Duration::from_millis(1)), slots: Vec::new() }
    }

    /// Counts what ended `at` so long after the beginning: with its latency, or as failed.
    pub fn record(&mut self, at: Duration, latency: Option<u64>) {
        let slot = self.slot_at(at);
        match latency {
            Some(nanos) => {
                slot.answered += 1;
                slot.latency.saturating_record(nanos.min(LONGEST));
            }
            None => slot.failed += 1,
        }
    }

    fn slot_at(&mut self, at: Duration) -> &mut Slot {
        while self.index(at) >= SLOTS_MAX {
            self.coarsen();
        }
        let index = self.index(at);
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, Slot::default);
        }
        &mut self.slots[index]
    }

    fn index(&self, at: Duration) -> usize {
        usize::try_from(at.as_nanos() / self.slot.as_nanos()).unwrap_or(usize::MAX)
    }

    fn coarsen(&mut self) {
        self.slot *= 2;
        let mut slots = std::mem::take(&mut self.slots).into_iter();
        while let Some(mut first) = slots.next() {
            if let Some(second) = slots.next() {
                first.add(&second);
            }
            self.slots.push(first);
        }
    }

    /// Adds what another worker saw of the same time.
    pub fn add(&mut self, mut other: Self) {
        while self.slot < other.slot {
            self.coarsen();
        }
        while other.slot < self.slot {
            other.coarsen();
        }
        if self.slots.len() < other.slots.len() {
            self.slots.resize_with(other.slots.len(), Slot::default);
        }
        for (slot, theirs) in self.slots.iter_mut().zip(&other.slots) {
            slot.add(theirs);
        }
    }

    /// Adds a chunk that came after: it is one moment of this, however long it took.
    pub fn append(&mut self, chunk: &Self, after: Duration) {
        for slot in &chunk.slots {
            self.slot_at(after).add(slot);
        }
    }

    /// The length of each slot.
    #[must_use]
    pub const fn slot(&self) -> Duration {
        self.slot
    }

    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_long_run_has_longer_slots_and_loses_nothing() {
        let mut series = Series::default();
        for second in 0..1000 {
            series.record(Duration::from_secs(second), Some(1_000_000));
        }
        assert!(series.slots().len() <= SLOTS_MAX && series.slots().len() > SLOTS_MAX / 2);
        assert!(series.slot() * SLOTS_MAX as u32 >= Duration::from_secs(1000));
        assert_eq!(series.slots().iter().map(|slot| slot.answered).sum::<u64>(), 1000);
    }

    #[test]
    fn chunks_are_points() {
        let chunk = Duration::from_millis(250);
        let mut series = Series::new(chunk);
        for turn in 0..10 {
            let mut seen = Series::default();
            (0..=turn).for_each(|answer| seen.record(Duration::from_millis(25 * answer), Some(1)));
            series.append(&seen, chunk * turn as u32);
        }
        let answered: Vec<u64> = series.slots().iter().map(|slot| slot.answered).collect();
        assert_eq!(answered, (1..=10).collect::<Vec<u64>>());
    }

    proptest! {
        #[test]
        fn sums_keep_everything(mine in prop::collection::vec(0u64..500_000, 0..40),
                                theirs in prop::collection::vec(0u64..500_000, 0..40)) {
            let of = |ends: &[u64]| {
                let mut series = Series::default();
                ends.iter().for_each(|ms| series.record(Duration::from_millis(*ms), None));
                series
            };
            let failed = |series: &Series| series.slots().iter().map(|slot| slot.failed).sum::<u64>();
            let (mut beside, mut after) = (of(&mine), of(&mine));
            beside.add(of(&theirs));
            after.append(&of(&theirs), Duration::from_secs(500));
            let all = (mine.len() + theirs.len()) as u64;
            prop_assert_eq!(failed(&beside), all);
            prop_assert_eq!(failed(&after), all);
            prop_assert!(beside.slots().len() <= SLOTS_MAX && after.slots().len() <= SLOTS_MAX);
        }
    }
}
