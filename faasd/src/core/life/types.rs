//! What the policy is told, and what it answers.

use std::time::Duration;

/// Time since an arbitrary moment; the same one for all events of a function. It never goes back.
pub type Time = Duration;

/// What the policy needs to know of a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revision {
    pub number: u64,
    /// Instances that are always there.
    pub min: u32,
    /// The most that there are. At least 1, and at least `min`.
    pub max: u32,
    /// Open connections for each instance. At least 1.
    pub concurrency: u32,
    /// How long an instance is kept that is not needed.
    pub idle: Duration,
    /// Containers kept created and not started, while fewer than `max` instances are there.
    pub prepared: u32,
    /// Connections that may wait for an instance.
    pub queue: u32,
    pub start_deadline: Duration,
    pub drain_deadline: Duration,
}

/// A revision's part of a function's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    pub revision: Revision,
    /// In percent.
    pub weight: u32,
}

impl Share {
    /// The revision as it is scaled: nothing is kept ready for one that is reached by its own name alone.
    #[must_use]
    pub fn scaled(&self) -> Revision {
        match self.weight {
            0 => Revision { min: 0, prepared: 0, ..self.revision },
            _ => self.revision,
        }
    }
}

/// A change of who serves: a deploy, a rollback, other weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Never used before for this function.
    pub id: u64,
    /// Who is to serve. Weights add up to 100, no revision is named twice. One with a weight of 0 is reached by its own
    /// name alone: it has nothing to prove, and is started when somebody dials it.
    pub shares: Vec<Share>,
    /// A revision without a share that has to show that it becomes ready all the same.
    pub prove: Option<Revision>,
}

/// What a revision met since the last time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    pub revision: u64,
    /// Connections that wait for an instance now.
    pub waiting: u64,
    /// Connections that ever arrived, from any beginning.
    pub arrived: u64,
}

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A change is wanted.
    Plan(Plan),
    /// The plan whose [`Action::Commit`] was asked for is on record.
    Committed { plan: u64 },
    /// It could not be recorded, and is not.
    NotCommitted { plan: u64, why: String },
    /// The function is to go.
    Remove,
    /// A connection waits for this revision, and no instance can take it.
    Waiting { revision: u64 },
    /// The container of an instance that was started with `hold` is created, and waits for its release.
    Prepared(u32),
    /// An instance said that it can take connections.
    Ready(u32),
    /// An instance has ended, or could not be started.
    Exited { key: u32, why: String },
    /// How busy the instances are (key, open connections), and what the revisions with a share met.
    Load { instances: Vec<(u32, u64)>, demand: Vec<Demand> },
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start an instance of a revision; it has this key from now on. With `hold`, create its container only.
    Start { key: u32, revision: u64, hold: bool },
    /// Start what was held.
    Release { key: u32 },
    /// Give it connections.
    Admit { key: u32 },
    /// Give it no more. It keeps those that it has, and may be admitted again.
    Withdraw { key: u32 },
    /// Give it no more, and ask it to finish.
    Drain { key: u32 },
    /// End it now.
    Kill { key: u32 },
    /// Put the plan on record, and say whether that went well.
    Commit { plan: u64 },
    /// The plan is in effect from now on: route by it.
    Apply { plan: u64 },
    /// The plan will not be: forget it.
    Abandon { plan: u64, why: String },
    /// Refuse the connections that wait for this revision.
    Refuse { revision: u64 },
    /// Refuse new connections to this revision at once, or no longer.
    Shed { revision: u64, on: bool },
    /// The function and its instances are gone.
    Gone,
}

/// An instance that an earlier daemon left, and that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    pub key: u32,
    pub revision: Revision,
    /// It was asked to finish, whoever serves now.
    pub draining: bool,
}

/// Where an instance stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its container is being created, to be held.
    Preparing,
    /// Its container is created, and held.
    Prepared,
    /// On its way to readiness, until when at most.
    Starting {
        until: Time,
    },
    Ready,
    /// Ready, and given no connections, since it is not needed; it keeps those that it has.
    Withdrawn,
    /// Asked to finish, until when at most.
    Draining {
        until: Time,
    },
    /// A kill is under way.
    Killed,
}

/// What a caller would meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlook {
    Warm,
    Cold,
    Starting,
    Failing,
    /// More connections wait than may: new ones are refused.
    Overloaded,
}

/// What the policy asks of the machine while it decides.
pub trait Machine {
    /// A key that no instance has or had.
    fn fresh_key(&mut self) -> u32;

    /// Whether one more container may be kept prepared on this machine.
    fn may_prepare(&mut self) -> bool;
}
