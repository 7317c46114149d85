//! A model of what is around the policy: containers, a store, connections, and time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use faasd::core::life::{Event, Lifecycle, Machine, Phase, Plan, Revision, Share, Time};

pub type Check = Result<(), String>;

/// The pause between two samples.
pub const SAMPLE: Duration = Duration::from_secs(2);

/// `SplitMix64`.
#[derive(Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n.max(1)
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn ms(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from + 1))
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        from.get(self.below(from.len() as u64) as usize).copied()
    }
}

#[derive(Debug)]
pub struct Keys {
    pub last: u32,
    pub may_prepare: bool,
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

/// What becomes of a revision's instances.
#[derive(Clone, Copy, Debug)]
pub enum Quality {
    Good,
    Flaky,
    Bad,
    Hanging,
    /// Ready, and dead soon after.
    Dying,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Creating,
    Held,
    Booting,
    Ready,
}

#[derive(Clone, Debug)]
pub struct Container {
    pub revision: Revision,
    pub hold: bool,
    pub stage: Stage,
    /// The driver gives it connections.
    pub admitted: bool,
    pub draining: bool,
    pub killed: bool,
    /// Its end is on its way to the daemon.
    pub dead: bool,
    /// When the last of its messages arrives.
    pub told_until: Time,
}

impl Container {
    pub fn takes(&self) -> bool {
        self.admitted && !self.dead
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Connection {
    pub revision: u64,
    /// Who has it; it waits if nobody has.
    pub at: Option<u32>,
}

/// What will happen.
#[derive(Clone, Debug)]
pub enum Due {
    Created(u32),
    Booted(u32),
    Die(u32),
    Write(Plan, bool),
    Report(Event),
}

#[derive(Debug)]
pub struct World {
    pub rng: Rng,
    pub now: Time,
    pub life: Lifecycle,
    pub keys: Keys,
    /// No more faults.
    pub calm: bool,
    pub qualities: BTreeMap<u64, Quality>,
    pub revisions: Vec<Revision>,
    pub containers: BTreeMap<u32, Container>,
    /// Keys that were ever given.
    pub used: BTreeSet<u32>,
    pub connections: BTreeMap<u64, Connection>,
    pub arrived: BTreeMap<u64, u64>,
    /// When the last connection came for each revision.
    pub last_arrival: BTreeMap<u64, Time>,
    pub shed: BTreeSet<u64>,
    /// What the store has.
    pub record: Vec<Share>,
    /// What the kernel routes by.
    pub routed: Vec<Share>,
    /// Plans without an answer.
    pub plans: BTreeMap<u64, Plan>,
    /// The plan that is being recorded.
    pub recording: Option<u64>,
    pub last_plan: u64,
    last_connection: u64,
    /// Until when a failed revision is not started.
    pub paused: BTreeMap<u64, Time>,
    /// Waiting connections of each revision at the last sample.
    pub sampled: BTreeMap<u64, u64>,
    pub gone: u32,
    /// A plan whose one proof of a revision has failed: it has to be given up.
    pub doomed: Option<u64>,
    pub due: BTreeMap<(Time, u64), Due>,
    serial: u64,
    pub next_sample: Time,
    pub steps: u64,
    /// How often each action was done.
    pub done: BTreeMap<&'static str, u64>,
    pub keep_trace: bool,
    pub trace: Vec<String>,
}

impl World {
    pub fn new(seed: u64, keep_trace: bool) -> Self {
        Self {
            rng: Rng(seed.wrapping_mul(0x2545_f491_4f6c_dd1d)),
            now: Time::ZERO,
            life: Lifecycle::new(seed),
            keys: Keys { last: 0, may_prepare: true },
            calm: false,
            qualities: BTreeMap::new(),
            revisions: Vec::new(),
            containers: BTreeMap::new(),
            used: BTreeSet::new(),
            connections: BTreeMap::new(),
            arrived: BTreeMap::new(),
            last_arrival: BTreeMap::new(),
            shed: BTreeSet::new(),
            record: Vec::new(),
            routed: Vec::new(),
            plans: BTreeMap::new(),
            recording: None,
            last_plan: 0,
            last_connection: 0,
            paused: BTreeMap::new(),
            sampled: BTreeMap::new(),
            gone: 0,
            doomed: None,
            due: BTreeMap::new(),
            serial: 0,
            next_sample: Time::ZERO,
            steps: 0,
            done: BTreeMap::new(),
            keep_trace,
            trace: Vec::new(),
        }
    }

    pub fn note(&mut self, text: impl FnOnce() -> String) {
        if self.keep_trace {
            let line = format!("{:>5} {:>12.3}s  {}", self.steps, self.now.as_secs_f64(), text());
            self.trace.push(line);
        }
    }

    pub fn schedule(&mut self, after: Duration, due: Due) {
        self.serial += 1;
        self.due.insert((self.now + after, self.serial), due);
    }

    /// Tells the daemon what a container did, after whatever it told of it before.
    fn report(&mut self, key: u32, after: Duration, event: Event) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let at = container.told_until.max(self.now + after);
        container.told_until = at;
        self.schedule(at - self.now, Due::Report(event));
    }

    pub fn waiting(&self, revision: u64) -> u64 {
        self.connections.values().filter(|c| c.revision == revision && c.at.is_none()).count() as u64
    }

    pub fn open(&self, key: u32) -> u64 {
        self.connections.values().filter(|c| c.at == Some(key)).count() as u64
    }

    pub fn takers(&self, revision: u64) -> Vec<u32> {
        let takes =
            |(key, c): (&u32, &Container)| (c.revision.number == revision && c.takes()).then_some(*key);
        self.containers.iter().filter_map(takes).collect()
    }

    /// A connection arrives: by chance at one of the revisions that are routed, or at one by its own name. `is_short`
    /// closes it at once.
    pub fn connect(&mut self, is_short: bool) -> Check {
        let by_name = self.rng.pick(&self.routed).filter(|_| self.rng.chance(15));
        let mut draw = self.rng.below(100);
        let hit = |share: &&Share| {
            let is_hit = draw < u64::from(share.weight);
            draw = draw.saturating_sub(share.weight.into());
            is_hit
        };
        let Some(share) = by_name.or_else(|| self.routed.iter().find(hit).copied()) else { return Ok(()) };
        let revision = share.revision.number;
        *self.arrived.entry(revision).or_default() += 1;
        self.last_arrival.insert(revision, self.now);
        if self.shed.contains(&revision) {
            return Ok(());
        }
        self.last_connection += 1;
        let (id, takers) = (self.last_connection, self.takers(revision));
        let at = self.rng.pick(&takers);
        self.note(|| format!("connection {id} for v{revision} at {at:?}"));
        if at.is_none() || !is_short {
            self.connections.insert(id, Connection { revision, at });
        }
        if at.is_none() { self.tell(Event::Waiting { revision }) } else { Ok(()) }
    }

    pub fn close(&mut self, id: u64) {
        let Some(Connection { at: Some(key), .. }) = self.connections.remove(&id) else { return };
        self.note(|| format!("connection {id} ends"));
        if self.containers.get(&key).is_some_and(|c| c.draining && !c.dead) && self.open(key) == 0 {
            self.die(key);
        }
    }

    /// A container ends, and its connections with it; the daemon hears of it later.
    pub fn die(&mut self, key: u32) {
        let Some(container) = self.containers.get_mut(&key).filter(|c| !c.dead) else { return };
        container.dead = true;
        self.connections.retain(|_, c| c.at != Some(key));
        self.note(|| format!("{key} dies"));
        let after = self.rng.ms(0, 400);
        self.report(key, after, Event::Exited { key, why: "died".to_owned() });
    }

    /// What becomes of a container that is created or started.
    pub fn proceed(&mut self, key: u32, done: Due) {
        let Some(revision) = self.containers.get(&key).map(|c| c.revision.number) else { return };
        let roll = self.rng.below(100);
        // Percent that work, and that fail; the others hang.
        let (works, fails) = match self.qualities.get(&revision) {
            _ if self.calm => (100, 0),
            Some(Quality::Flaky) => (50, 35),
            Some(Quality::Bad) => (0, 100),
            Some(Quality::Hanging) => (0, 0),
            Some(Quality::Good | Quality::Dying) | None => (92, 4),
        };
        let is_slow = !self.calm && self.rng.chance(3);
        let after = if is_slow { self.rng.ms(3_000, 15_000) } else { self.rng.ms(10, 900) };
        if roll < works {
            self.schedule(after, done);
        } else if roll < works + fails {
            self.schedule(after, Due::Die(key));
        }
    }

    /// Goes on to whatever is next: something that was to happen, a tick, a sample.
    pub fn advance(&mut self) -> Check {
        self.check_wait()?;
        let due = self.due.keys().next().map(|(at, _)| *at);
        let tick = self.life.next_tick();
        let sample = self.life.wants_load().then_some(self.next_sample);
        let Some(next) = [due, tick, sample].into_iter().flatten().min() else {
            self.now += Duration::from_secs(1);
            return Ok(());
        };
        self.now = self.now.max(next);
        if due == Some(next) {
            let Some((_, due)) = self.due.pop_first() else { return Ok(()) };
            self.happen(due)
        } else if tick == Some(next) {
            self.tell(Event::Tick)?;
            match self.life.next_tick() {
                Some(at) if at <= self.now => Err("a tick that is done is due again".to_owned()),
                _ => Ok(()),
            }
        } else {
            self.sample()
        }
    }

    pub fn happen(&mut self, due: Due) -> Check {
        match due {
            Due::Created(key) => {
                let Some(container) = self.containers.get_mut(&key).filter(|c| !c.dead) else {
                    return Ok(());
                };
                if container.hold {
                    container.stage = Stage::Held;
                    let after = self.rng.ms(0, 100);
                    self.report(key, after, Event::Prepared(key));
                } else {
                    container.stage = Stage::Booting;
                    self.proceed(key, Due::Booted(key));
                }
            }
            Due::Booted(key) => {
                let Some(container) = self.containers.get_mut(&key).filter(|c| !c.dead) else {
                    return Ok(());
                };
                container.stage = Stage::Ready;
                let revision = container.revision.number;
                let after = if self.calm { Duration::ZERO } else { self.rng.ms(0, 500) };
                // The message is lost with who sent it, or it dies with the message on its way.
                if self.calm || !self.rng.chance(4) {
                    self.report(key, after, Event::Ready(key));
                } else {
                    self.schedule(Duration::ZERO, Due::Die(key));
                }
                let is_dying = matches!(self.qualities.get(&revision), Some(Quality::Dying));
                if !self.calm && (is_dying || self.rng.chance(3)) {
                    let after = self.rng.ms(0, 2_500);
                    self.schedule(after, Due::Die(key));
                }
            }
            Due::Die(key) => self.die(key),
            Due::Write(plan, written) => {
                if self.recording != Some(plan.id) {
                    return Ok(());
                }
                let after = self.rng.ms(0, 100);
                let answer = if written {
                    self.record.clone_from(&plan.shares);
                    Event::Committed { plan: plan.id }
                } else {
                    Event::NotCommitted { plan: plan.id, why: "no space".to_owned() }
                };
                self.schedule(after, Due::Report(answer));
            }
            Due::Report(event) => {
                match &event {
                    Event::Exited { key, .. } => drop(self.failed(*key)),
                    Event::Committed { plan } | Event::NotCommitted { plan, .. } => {
                        self.recording.take_if(|recording| recording == plan);
                    }
                    _ => {}
                }
                return self.tell(event);
            }
        }
        Ok(())
    }

    /// The daemon hears of a container's end: if nobody asked for it, a pause follows.
    fn failed(&mut self, key: u32) -> Option<()> {
        let container = self.containers.remove(&key)?;
        let revision = container.revision;
        let concerns = |plan: &&Plan| {
            let weighed = plan.shares.iter().filter(|share| share.weight > 0);
            weighed.map(|share| share.revision).chain(plan.prove).any(|one| one == revision)
        };
        let is_proof =
            matches!(self.life.phase(key), Some(Phase::Starting { .. })) && self.recording.is_none();
        if is_proof
            && !self.has_phase(revision.number, |phase| matches!(phase, Phase::Ready | Phase::Withdrawn))
        {
            self.doomed = self.plans.values().find(concerns).map(|plan| plan.id);
        }
        let is_plain = !container.draining && !container.killed;
        if is_plain && self.routed.iter().any(|share| share.revision == container.revision) {
            // What fails during a pause does not make it longer.
            if self.life.retry_at().is_none() {
                self.paused.insert(container.revision.number, self.now + Duration::from_millis(150));
            }
        }
        Some(())
    }
}
