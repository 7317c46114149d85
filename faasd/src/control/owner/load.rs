//! How busy instances are, told to the policy at intervals.

use super::*;
use crate::core::life::Demand;
use crate::sys::readiness::queued;

/// How often. Scaling out is late by this much at most.
pub(super) const INTERVAL: Duration = Duration::from_millis(200);

impl Owner {
    /// Tells each function's policy that goes by it.
    pub(super) async fn sample(&mut self) {
        let wants = |entry: &Entry| {
            entry.lifecycle.wants_load() || entry.branches.values().any(|branch| branch.stats.waiting() > 0)
        };
        let names: Vec<_> =
            self.functions.iter().filter(|(_, e)| wants(e)).map(|(name, _)| name.clone()).collect();
        for name in names {
            let event = self.load(&self.functions[&name]);
            self.step(&name, event).await;
        }
    }

    fn load(&self, entry: &Entry) -> Event {
        let instances = entry.live.iter().map(|(key, live)| (*key, self.in_flight(live))).collect();
        let demand = entry.branches.iter().map(|(revision, branch)| Demand {
            revision: *revision,
            waiting: branch.stats.waiting() + queued(&branch.listener),
            arrived: self.parts.kernel.steered(branch.slot).unwrap_or_default()
                + branch.stats.forwarded(),
        });
        Event::Load { instances, demand: demand.collect() }
    }

    /// Open connections of an instance: by its seat, where it accepts them itself; by its page else.
    pub(super) fn in_flight(&self, live: &Live) -> u64 {
        match live.seat {
            Some(seat) => self.parts.kernel.live(seat).unwrap_or_default(),
            None => live.page.in_flight(),
        }
    }
}
