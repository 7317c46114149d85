//! One function's life, as policy: what to do when something happens to it. Pure: events and the time go in, actions
//! come out; who carries them out reports back by further events.
//!
//! ```text
//!             Deploy                    Ready                 Drain/Remove             Exited
//!   (nothing) ──────► Starting{deadline} ─────► Ready ──────────────────► Draining ──────────► (gone)
//!                        │ Exited, deadline                                  │ deadline
//!                        ▼                                                   ▼
//!                     (failure: back-off, then again)                      Kill
//! ```
//!
//! A deploy is a candidate first: one instance of the new revision starts beside those of the old one. Ready, it is
//! promoted and the old ones drain. Failed, the candidate is abandoned and nothing has changed.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

/// Time since an arbitrary moment; the same one for all events of a function.
pub type Time = Duration;

/// The first pause after a failure; it doubles with each further one.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);

/// The longest pause.
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// After this many failures in a row, connections that wait are refused rather than held.
const FAILURES_BEFORE_REFUSAL: u32 = 3;

/// What the policy needs to know of a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revision {
    pub number: u64,
    /// Instances that are always there.
    pub min: u32,
    pub start_deadline: Duration,
    pub drain_deadline: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Starting {
        until: Time,
    },
    Ready,
    Draining {
        until: Time,
    },
    /// A kill is under way.
    Killed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instance {
    revision: u64,
    phase: Phase,
}

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A new revision is to replace the current one.
    Deploy(Revision),
    /// The function is to go.
    Remove,
    /// A connection waits, and no instance can take it.
    Waiting,
    /// An instance said that it can take connections.
    Ready(u32),
    /// An instance has ended, or could not be started.
    Exited { key: u32, why: String },
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start an instance of a revision; it has this key from now on.
    Start { key: u32, revision: u64 },
    /// Give it connections.
    Admit { key: u32 },
    /// Give it no more, and ask it to finish.
    Drain { key: u32 },
    /// End it now.
    Kill { key: u32 },
    /// The candidate is the current revision from now on: record it, route to it.
    Promote { revision: u64 },
    /// The candidate failed: forget it.
    Abandon { revision: u64, why: String },
    /// Refuse the connections that wait.
    Refuse,
    /// The function and its instances are gone.
    Gone,
}

/// A function's state.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle {
    current: Option<Revision>,
    candidate: Option<Revision>,
    instances: BTreeMap<u32, Instance>,
    failures: u32,
    retry_at: Option<Time>,
    waiting: bool,
    removed: bool,
    /// Why the last instance failed, until one is ready.
    reason: Option<String>,
}

/// What a caller would meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlook {
    Warm,
    Cold,
    Starting,
    Failing,
}

impl Lifecycle {
    /// A function that an earlier daemon left: declared, with instances that run already.
    #[must_use]
    pub fn adopted(current: Revision, running: impl IntoIterator<Item = u32>) -> Self {
        let instance = Instance { revision: current.number, phase: Phase::Ready };
        let instances = running.into_iter().map(|key| (key, instance)).collect();
        Self { current: Some(current), instances, ..Self::default() }
    }

    /// What follows from an event. `fresh` gives keys that no instance has or had.
    pub fn step(&mut self, event: Event, now: Time, fresh: &mut dyn FnMut() -> u32) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Deploy(revision) => self.deploy(revision, &mut actions),
            Event::Remove => self.remove(&mut actions),
            Event::Waiting => self.waiting = true,
            Event::Ready(key) => self.ready(key, now, &mut actions),
            Event::Exited { key, why } => self.exited(key, why, now, &mut actions),
            Event::Tick => {}
        }
        self.enforce_deadlines(now, &mut actions);
        self.start_what_is_missing(now, fresh, &mut actions);
        if self.removed && self.instances.is_empty() {
            actions.push(Action::Gone);
        }
        actions
    }

    /// When [`Event::Tick`] is due at the latest.
    #[must_use]
    pub fn next_tick(&self) -> Option<Time> {
        let deadlines = self.instances.values().filter_map(|i| match i.phase {
            Phase::Starting { until } | Phase::Draining { until } => Some(until),
            Phase::Ready | Phase::Killed => None,
        });
        deadlines.chain(self.retry_at).min()
    }

    #[must_use]
    pub fn outlook(&self) -> Outlook {
        let any = |wanted: fn(&Phase) -> bool| self.instances.values().any(|i| wanted(&i.phase));
        if any(|p| matches!(p, Phase::Ready)) {
            Outlook::Warm
        } else if any(|p| matches!(p, Phase::Starting { .. })) {
            Outlook::Starting
        } else if self.failures > 0 {
            Outlook::Failing
        } else {
            Outlook::Cold
        }
    }

    /// Why the last instance failed, while there is no better news.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// Whether an instance of the candidate would be promoted by its readiness.
    #[must_use]
    pub fn would_promote(&self, key: u32) -> bool {
        self.instances.get(&key).is_some_and(|i| {
            matches!(i.phase, Phase::Starting { .. })
                && self.candidate.is_some_and(|c| c.number == i.revision)
        })
    }

    /// Whether an instance is ready and not on its way out.
    #[must_use]
    pub fn is_ready(&self, key: u32) -> bool {
        self.instances.get(&key).is_some_and(|i| i.phase == Phase::Ready)
    }

    /// Whether an instance is on its way out.
    #[must_use]
    pub fn is_leaving(&self, key: u32) -> bool {
        self.instances.get(&key).is_some_and(|i| matches!(i.phase, Phase::Draining { .. } | Phase::Killed))
    }

    /// Whether a deploy is under way.
    #[must_use]
    pub fn is_deploying(&self) -> bool {
        self.candidate.is_some()
    }

    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.removed
    }

    fn deploy(&mut self, revision: Revision, actions: &mut Vec<Action>) {
        if self.removed {
            return;
        }
        if let Some(overtaken) = self.candidate.replace(revision) {
            self.kill_revision(overtaken.number, actions);
            actions.push(Action::Abandon {
                revision: overtaken.number,
                why: "another deploy of the function overtook this one".to_owned(),
            });
        }
        self.forgive();
    }

    fn remove(&mut self, actions: &mut Vec<Action>) {
        if let Some(candidate) = self.candidate.take() {
            actions.push(Action::Abandon {
                revision: candidate.number,
                why: "the function was removed while it was deployed".to_owned(),
            });
        }
        self.removed = true;
        self.current = None;
        self.forgive();
        actions.push(Action::Refuse);
        // Whoever removes a function wants it gone: its connections end with it.
        for key in self.instances.keys().copied().collect::<Vec<_>>() {
            self.kill(key, actions);
        }
    }

    fn ready(&mut self, key: u32, now: Time, actions: &mut Vec<Action>) {
        let Some(instance) = self.instances.get_mut(&key) else { return };
        if !matches!(instance.phase, Phase::Starting { .. }) {
            return;
        }
        instance.phase = Phase::Ready;
        let revision = instance.revision;
        if let Some(candidate) = self.candidate.take_if(|c| c.number == revision) {
            let old = self.current.replace(candidate);
            actions.push(Action::Promote { revision });
            actions.push(Action::Admit { key });
            if let Some(old) = old {
                self.retire(old, now, actions);
            }
        } else {
            actions.push(Action::Admit { key });
        }
        self.waiting = false;
        self.forgive();
        self.reason = None;
    }

    /// Lets a revision's instances finish; those that are not ready have nothing to finish.
    fn retire(&mut self, old: Revision, now: Time, actions: &mut Vec<Action>) {
        let until = now + old.drain_deadline;
        let of_old = |i: &Instance| i.revision == old.number;
        for key in self.keys(of_old) {
            match self.instances[&key].phase {
                Phase::Ready => {
                    self.set(key, Phase::Draining { until });
                    actions.push(Action::Drain { key });
                }
                Phase::Starting { .. } => self.kill(key, actions),
                Phase::Draining { .. } | Phase::Killed => {}
            }
        }
    }

    fn exited(&mut self, key: u32, why: String, now: Time, actions: &mut Vec<Action>) {
        let Some(instance) = self.instances.remove(&key) else { return };
        if self.candidate.is_some_and(|c| c.number == instance.revision) {
            self.candidate = None;
            // With nothing before it there is nothing to go back to.
            let why = match self.reason.take() {
                Some(slow) if matches!(instance.phase, Phase::Killed) => join(slow, &why),
                _ => why,
            };
            actions.push(Action::Abandon { revision: instance.revision, why });
            if self.current.is_none() {
                self.removed = true;
                actions.push(Action::Refuse);
            }
            return;
        }
        let expected = matches!(instance.phase, Phase::Draining { .. } | Phase::Killed);
        let too_slow = matches!(instance.phase, Phase::Killed) && self.reason.is_some();
        if self.removed
            || (expected && !too_slow)
            || self.current.is_none_or(|c| c.number != instance.revision)
        {
            return;
        }
        self.reason = Some(match self.reason.take() {
            Some(slow) if too_slow => join(slow, &why),
            _ => why,
        });
        let pause = BACKOFF_FIRST.saturating_mul(1 << self.failures.min(16)).min(BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(now + pause);
        if self.waiting && self.failures >= FAILURES_BEFORE_REFUSAL {
            self.waiting = false;
            actions.push(Action::Refuse);
        }
    }

    fn enforce_deadlines(&mut self, now: Time, actions: &mut Vec<Action>) {
        for key in self.keys(|_| true) {
            match self.instances[&key].phase {
                Phase::Starting { until } if until <= now => {
                    self.reason = Some(self.too_slow(self.instances[&key].revision));
                    self.kill(key, actions);
                }
                Phase::Draining { until } if until <= now => self.kill(key, actions),
                _ => {}
            }
        }
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
        }
    }

    fn too_slow(&self, revision: u64) -> String {
        let limit = [self.candidate, self.current]
            .into_iter()
            .flatten()
            .find(|r| r.number == revision)
            .map_or(Duration::ZERO, |r| r.start_deadline);
        format!("it was not ready within {limit:?}; raise `deadlines.start` if it needs longer")
    }

    fn start_what_is_missing(
        &mut self,
        now: Time,
        fresh: &mut dyn FnMut() -> u32,
        actions: &mut Vec<Action>,
    ) {
        let mut start = |instances: &mut BTreeMap<u32, Instance>, revision: Revision| {
            let key = fresh();
            let phase = Phase::Starting { until: now + revision.start_deadline };
            instances.insert(key, Instance { revision: revision.number, phase });
            actions.push(Action::Start { key, revision: revision.number });
        };
        let alive = |instances: &BTreeMap<u32, Instance>, revision: Revision| {
            let alive = |i: &&Instance| {
                i.revision == revision.number && matches!(i.phase, Phase::Starting { .. } | Phase::Ready)
            };
            instances.values().filter(alive).count() as u32
        };
        // A candidate proves itself with one instance, also where none is to be kept.
        if let Some(candidate) = self.candidate
            && !self.instances.values().any(|i| i.revision == candidate.number)
        {
            start(&mut self.instances, candidate);
        }
        let Some(current) = self.current else { return };
        if self.retry_at.is_some() {
            return;
        }
        let wanted = current.min.max(u32::from(self.waiting));
        for _ in alive(&self.instances, current)..wanted {
            start(&mut self.instances, current);
        }
    }

    fn kill_revision(&mut self, revision: u64, actions: &mut Vec<Action>) {
        for key in self.keys(|i| i.revision == revision) {
            self.kill(key, actions);
        }
    }

    fn kill(&mut self, key: u32, actions: &mut Vec<Action>) {
        if self.instances[&key].phase != Phase::Killed {
            self.set(key, Phase::Killed);
            actions.push(Action::Kill { key });
        }
    }

    fn set(&mut self, key: u32, phase: Phase) {
        if let Some(instance) = self.instances.get_mut(&key) {
            instance.phase = phase;
        }
    }

    fn keys(&self, wanted: impl Fn(&Instance) -> bool) -> Vec<u32> {
        self.instances.iter().filter(|(_, i)| wanted(i)).map(|(key, _)| *key).collect()
    }

    fn forgive(&mut self) {
        self.failures = 0;
        self.retry_at = None;
    }
}

/// What the policy knows of a failure, and what the instance's end told besides.
fn join(reason: String, more: &str) -> String {
    if more.is_empty() { reason } else { format!("{reason}; {more}") }
}
