mod changes;
mod failing;
mod properties;
mod scale;

use super::failures::{BACKOFF_FIRST, BACKOFF_MAX, FAILURES_BEFORE_REFUSAL, STABLE_AFTER};
use std::time::Duration;

use super::*;

const START_DEADLINE: Duration = Duration::from_secs(10);
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);
const IDLE: Duration = Duration::from_secs(60);

fn revision(number: u64, min: u32) -> Revision {
    Revision {
        number,
        min,
        max: min.max(1),
        concurrency: 10,
        idle: IDLE,
        prepared: 0,
        queue: 100,
        start_deadline: START_DEADLINE,
        drain_deadline: DRAIN_DEADLINE,
    }
}

fn plan(id: u64, shares: &[(Revision, u32)]) -> Plan {
    let share = |&(revision, weight)| Share { revision, weight };
    Plan { id, shares: shares.iter().map(share).collect(), prove: None }
}

fn starts(actions: &[Action]) -> Vec<u32> {
    let started = |action: &Action| match action {
        Action::Start { key, .. } => Some(*key),
        _ => None,
    };
    actions.iter().filter_map(started).collect()
}

struct Keys {
    last: u32,
    may_prepare: bool,
}

impl Machine for Keys {
    fn fresh_key(&mut self) -> u32 {
        self.last += 1;
        self.last
    }

    fn may_prepare(&mut self) -> bool {
        self.may_prepare
    }
}

/// A function with a clock and a source of keys.
struct World {
    life: Lifecycle,
    now: Time,
    keys: Keys,
    /// Open connections of each key, and what waits, for the next sample.
    open: Vec<(u32, u64)>,
    demand: Vec<Demand>,
}

impl World {
    fn new() -> Self {
        Self {
            life: Lifecycle::new(1),
            now: Time::ZERO,
            keys: Keys { last: 0, may_prepare: true },
            open: Vec::new(),
            demand: Vec::new(),
        }
    }

    /// A first deploy of this revision, whose one instance is of key 1.
    fn deployed(revision: Revision) -> Self {
        let mut world = Self::new();
        let first = Action::Start { key: 1, revision: revision.number, hold: false };
        assert_eq!(world.step(Event::Plan(plan(1, &[(revision, 100)]))), [first]);
        assert_eq!(world.step(Event::Ready(1)), [Action::Commit { plan: 1 }]);
        let actions = world.step(Event::Committed { plan: 1 });
        assert_eq!(actions[..2], [Action::Apply { plan: 1 }, Action::Admit { key: 1 }]);
        world
    }

    /// One with so many instances that are ready: keys from 1.
    fn warm(revision: Revision, instances: u32) -> Self {
        let running = (1..=instances).map(|key| Running { key, revision, draining: false });
        let mut world = Self::new();
        world.life = Lifecycle::adopted(1, vec![Share { revision, weight: 100 }], running, Time::ZERO);
        world.keys.last = instances;
        world.open = (1..=instances).map(|key| (key, 0)).collect();
        world
    }

    fn step(&mut self, event: Event) -> Vec<Action> {
        self.life.step(event, self.now, &mut self.keys)
    }

    fn tick(&mut self) -> Vec<Action> {
        self.step(Event::Tick)
    }

    fn exited(&mut self, key: u32) -> Vec<Action> {
        self.step(Event::Exited { key, why: "exit 1".to_owned() })
    }

    fn ready(&mut self, key: u32) -> Vec<Action> {
        self.step(Event::Ready(key))
    }

    fn wait(&mut self, time: Duration) -> Vec<Action> {
        self.now += time;
        self.tick()
    }

    /// To the end of the pause after a failure.
    fn pause(&mut self) -> Vec<Action> {
        self.now = self.life.retry_at().unwrap();
        self.tick()
    }

    fn busy(&mut self, key: u32, open: u64) {
        self.open.retain(|(one, _)| *one != key);
        self.open.push((key, open));
    }

    fn load(&mut self) -> Vec<Action> {
        self.step(Event::Load { instances: self.open.clone(), demand: self.demand.clone() })
    }

    /// Samples once a second.
    fn load_for(&mut self, time: Duration) -> Vec<Action> {
        let end = self.now + time;
        let mut actions = Vec::new();
        while self.now < end {
            self.now += Duration::from_secs(1);
            actions.extend(self.load());
        }
        actions
    }

    fn demand(&mut self, revision: u64, waiting: u64, arrived: u64) {
        self.demand.retain(|d| d.revision != revision);
        self.demand.push(Demand { revision, waiting, arrived });
    }
}
