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
        if self.is_crowded && self.prepared.len() < self.parts.config.prepared_max {
            self.is_crowded = false;
            for name in self.functions.keys().cloned().collect::<Vec<_>>() {
                self.step(&name, Event::Tick).await;
            }
        }
        for name in names {
            let before = self.taking(&name);
            let event = self.load(&self.functions[&name]);
            self.step(&name, event).await;
            let now = self.taking(&name);
            let kind = match now.cmp(&before) {
                std::cmp::Ordering::Greater => EventKind::ScaledOut,
                std::cmp::Ordering::Less => EventKind::ScaledIn,
                std::cmp::Ordering::Equal => continue,
            };
            let text = format!("from {before} to {now} instances");
            self.parts.events.record(&name, NewEvent::new(kind, text));
        }
    }

    /// The instances that are given connections, or about to be.
    fn taking(&self, name: &FunctionName) -> usize {
        let Some(entry) = self.functions.get(name) else { return 0 };
        let counts =
            |key: &&u32| matches!(entry.lifecycle.phase(**key), Some(Phase::Starting { .. } | Phase::Ready));
        entry.live.keys().filter(counts).count()
    }

    fn load(&self, entry: &Entry) -> Event {
        // What was only counted in the lobby is with one of them; nobody knows with whom, so each keeps it.
        let count = |branch: &Branch| self.parts.kernel.live(branch.lobby?).ok();
        let lobbies: BTreeMap<u64, u64> = entry
            .branches
            .iter()
            .filter_map(|(revision, branch)| Some((*revision, count(branch)?)))
            .collect();
        let open = |live: &Live| {
            let lobby = live.seat.and_then(|_| lobbies.get(&live.revision));
            self.in_flight(live) + lobby.copied().unwrap_or_default()
        };
        let instances = entry.live.iter().map(|(key, live)| (*key, open(live))).collect();
        let demand = entry.branches.iter().map(|(revision, branch)| Demand {
            revision: *revision,
            waiting: branch.stats.waiting() + queued(&branch.listener),
            arrived: self.parts.kernel.steered(branch.slot).unwrap_or_default() + branch.stats.forwarded(),
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
