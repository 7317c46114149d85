//! One function's life, as policy: what to do when something happens to it. Pure: events and the time go in, actions
//! come out; who carries them out reports back by further events.
//!
//! ```text
//!              Start{hold}       Prepared        Release
//!   (nothing) ────────────► Preparing ──► Prepared ──────┐
//!        │      Start                                    ▼         Ready
//!        └──────────────────────────────────────────► Starting ──────────► Ready ◄─────────┐
//!                                                        │               │   │ Withdraw   │ Admit
//!                                   Exited, too slow     │         Drain │   ▼            │
//!                     (failure: back-off, then again) ◄──┘               │  Withdrawn ────┘
//!                                                                        ▼   │ Drain, with no connection open
//!                                              (gone) ◄───────────── Draining ◄
//!                                                        Exited          │ deadline
//!                                                                        ▼
//!                                                                      Kill
//! ```
//!
//! - **Changes** (`plan.rs`). The revisions of a plan show that they become ready, beside those that serve. Then the plan
//!   is recorded, then it is in effect, then what has no share any more drains. Until it is recorded nothing has changed
//!   for those that serve, and a plan that fails changes nothing at all.
//! - **Scale** (`scaling.rs`). More instances at once when connections ask for more. Fewer when fewer were needed for as
//!   long as `idle` says: an instance is withdrawn first, and asked to finish once a later sample finds no connection open.
//!   An open connection always keeps its instance, however long it is idle: what it is for is the client's business.
//! - **Failures** (`failures.rs`). A pause that grows before each further start of a revision; from the third in a row,
//!   connections that wait are refused when a start fails.

mod demand;
mod failures;
mod instances;
mod outlook;
mod plan;
mod scaling;
#[cfg(test)]
mod tests;
mod types;

use std::collections::BTreeMap;

use self::demand::Pool;
use self::failures::{Jitter, STABLE_AFTER};
use self::instances::{Instance, Instances};
use self::plan::Change;
pub use self::types::{Action, Demand, Event, Machine, Outlook, Phase, Plan, Revision, Running, Share, Time};

/// A function's state.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    /// Who serves.
    shares: Vec<Share>,
    change: Option<Change>,
    instances: Instances,
    /// Of each revision that serves, or that a plan wants to.
    pools: BTreeMap<u64, Pool>,
    jitter: Jitter,
    removed: bool,
    gone: bool,
}

/// One step: what it works with and what it has decided.
struct Turn<'a> {
    now: Time,
    machine: &'a mut dyn Machine,
    actions: Vec<Action>,
}

impl Lifecycle {
    /// A function that nobody has heard of. The seed is for what is left to chance.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self::adopted(seed, Vec::new(), [], Time::ZERO)
    }

    /// A function that an earlier daemon left: who serves, and the instances that are ready. Those of revisions that serve
    /// take connections, and are to be given them; those that were asked to finish go on finishing; others are asked to at
    /// the first step. Nothing is shed.
    #[must_use]
    pub fn adopted(
        seed: u64,
        shares: Vec<Share>,
        running: impl IntoIterator<Item = Running>,
        now: Time,
    ) -> Self {
        let adopt = |Running { key, revision, draining }| {
            let phase = match draining {
                true => Phase::Draining { until: now.saturating_add(revision.drain_deadline) },
                false => Phase::Ready,
            };
            let has_share = shares.iter().any(|share| share.revision.number == revision.number);
            (key, Instance { admitted: has_share && !draining, ..Instance::new(revision, phase, 0) })
        };
        Self {
            instances: Instances(running.into_iter().map(adopt).collect()),
            pools: shares.iter().map(|share| (share.revision.number, Pool::default())).collect(),
            shares,
            change: None,
            jitter: Jitter(seed),
            removed: false,
            gone: false,
        }
    }

    /// What follows from an event, in the order in which it is to be done.
    pub fn step(&mut self, event: Event, now: Time, machine: &mut dyn Machine) -> Vec<Action> {
        let mut turn = Turn { now, machine, actions: Vec::new() };
        let is_sample = matches!(event, Event::Load { .. });
        self.forget_failures(now);
        match event {
            Event::Plan(plan) => self.plan(plan, &mut turn),
            Event::Committed { plan } => self.committed(plan, &mut turn),
            Event::NotCommitted { plan, why } => self.not_committed(plan, why, &mut turn),
            Event::Remove => self.remove(&mut turn),
            Event::Waiting { revision } => self.waiting(revision, &mut turn),
            Event::Prepared(key) => {
                if self.phase(key) == Some(Phase::Preparing) {
                    self.set(key, Phase::Prepared);
                }
            }
            Event::Ready(key) => self.ready(key, &mut turn),
            Event::Exited { key, why } => self.exited(key, &why, &mut turn),
            Event::Load { instances, demand } => self.sample(&instances, &demand, now),
            Event::Tick => {}
        }
        self.pass_time(&mut turn);
        if !self.removed {
            self.settle(is_sample, &mut turn);
        }
        if self.removed && !self.gone && self.instances.0.is_empty() {
            self.gone = true;
            turn.actions.push(Action::Gone);
        }
        turn.actions
    }

    /// Brings about what should be: first what gives connections a taker, then what takes one away.
    fn settle(&mut self, is_sample: bool, turn: &mut Turn<'_>) {
        self.prove(turn);
        let serving: Vec<Revision> = self.shares.iter().map(Share::scaled).collect();
        for revision in &serving {
            self.readmit(*revision, turn);
            self.grow(*revision, self.target(*revision), turn);
        }
        self.retire(turn);
        for revision in &serving {
            if is_sample && self.change.is_none() {
                self.shrink(*revision, turn);
            }
            self.shed(*revision, turn);
            self.prepare(*revision, turn);
        }
    }

    fn waiting(&mut self, revision: u64, turn: &mut Turn<'_>) {
        if !self.has_share(revision) {
            // It came by a way that is closed by now: nobody is to come for it.
            turn.actions.push(Action::Refuse { revision });
        } else if let Some(pool) = self.pools.get_mut(&revision) {
            pool.waits = true;
        }
    }

    fn ready(&mut self, key: u32, turn: &mut Turn<'_>) {
        let Some(instance) = self.instances.0.get_mut(&key) else { return };
        if !matches!(instance.phase, Phase::Starting { .. }) {
            return;
        }
        instance.phase = Phase::Ready;
        instance.ready_since = turn.now;
        let revision = instance.revision.number;
        if let Some(pool) = self.pools.get_mut(&revision) {
            pool.failures.reason = None;
        }
        if self.has_share(revision) {
            self.admit(key, turn);
        }
    }

    fn exited(&mut self, key: u32, why: &str, turn: &mut Turn<'_>) {
        let Some(instance) = self.instances.0.remove(&key) else { return };
        if self.removed || !instance.would_fail() {
            return;
        }
        let revision = instance.revision.number;
        let why = match &instance.slow {
            Some(slow) if why.is_empty() => slow.clone(),
            Some(slow) => format!("{slow}; {why}"),
            None => why.to_owned(),
        };
        if !instance.admitted {
            self.proof_failed(revision, &why, turn);
        }
        let no_taker = self.instances.count(revision).proven() == 0;
        let has_share = self.has_share(revision);
        let Some(pool) = self.pools.get_mut(&revision) else { return };
        pool.failures.add(instance.generation, why, turn.now, &mut self.jitter);
        if has_share && no_taker && pool.failures.is_crash_loop() && pool.is_waited_for() {
            pool.waits = false;
            pool.waiting = 0;
            turn.actions.push(Action::Refuse { revision });
        }
    }

    /// Forgets the failures of revisions that have shown since that they work.
    fn forget_failures(&mut self, now: Time) {
        for instance in self.instances.0.values() {
            if let Some(pool) = self.pools.get_mut(&instance.revision.number)
                && shows_stability(instance, pool, now)
            {
                pool.failures.forget();
            }
        }
    }

    /// Deadlines, and pauses that are over.
    fn pass_time(&mut self, turn: &mut Turn<'_>) {
        let now = turn.now;
        let mut late = Vec::new();
        for (key, instance) in &mut self.instances.0 {
            let limit = instance.revision.start_deadline;
            match instance.phase {
                Phase::Preparing if instance.created_by <= now => {
                    instance.slow = Some(format!("its container was not created within {limit:?}"));
                }
                Phase::Starting { until } if until <= now => {
                    instance.slow = Some(format!(
                        "it was not ready within {limit:?}; raise `deadlines.start` if it needs longer"
                    ));
                }
                Phase::Draining { until } if until <= now => {}
                _ => continue,
            }
            late.push(*key);
        }
        for key in late {
            self.kill(key, turn);
        }
        for pool in self.pools.values_mut() {
            pool.failures.pass(now);
        }
    }

    fn start(&mut self, revision: Revision, hold: bool, turn: &mut Turn<'_>) {
        let key = turn.machine.fresh_key();
        let until = turn.now.saturating_add(revision.start_deadline);
        let phase = if hold { Phase::Preparing } else { Phase::Starting { until } };
        let generation = self.pools.get(&revision.number).map_or(0, |pool| pool.failures.generation);
        let instance = Instance { created_by: until, ..Instance::new(revision, phase, generation) };
        self.instances.0.insert(key, instance);
        turn.actions.push(Action::Start { key, revision: revision.number, hold });
    }

    fn admit(&mut self, key: u32, turn: &mut Turn<'_>) {
        let Some(instance) = self.instances.0.get_mut(&key) else { return };
        instance.phase = Phase::Ready;
        instance.admitted = true;
        let revision = instance.revision.number;
        turn.actions.push(Action::Admit { key });
        // It was given connections since it is needed, and counts as needed for a while.
        let ready = self.instances.count(revision).ready;
        if let Some(pool) = self.pools.get_mut(&revision) {
            pool.needs.note(ready, turn.now);
        }
    }

    fn drain(&mut self, key: u32, turn: &mut Turn<'_>) {
        let Some(instance) = self.instances.0.get_mut(&key) else { return };
        instance.phase = Phase::Draining { until: turn.now.saturating_add(instance.revision.drain_deadline) };
        turn.actions.push(Action::Drain { key });
    }

    fn kill(&mut self, key: u32, turn: &mut Turn<'_>) {
        self.set(key, Phase::Killed);
        turn.actions.push(Action::Kill { key });
    }

    fn set(&mut self, key: u32, phase: Phase) {
        if let Some(instance) = self.instances.0.get_mut(&key) {
            instance.phase = phase;
        }
    }
}

/// Whether an instance shows that its revision works after all: started after the last failure, and ready for a while.
/// One that was ready before says nothing of those that fail beside it.
fn shows_stability(instance: &Instance, pool: &Pool, now: Time) -> bool {
    pool.failures.count > 0
        && instance.is_ready()
        && instance.generation == pool.failures.generation
        && instance.ready_since.saturating_add(STABLE_AFTER) <= now
}
