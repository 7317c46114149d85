//! The owner: the one task that holds the functions' state. Everyone else sends it messages.

mod branches;
mod change;
mod forward;
pub(super) mod images;
mod lives;
mod load;
mod records;
mod remove;
mod restore;
mod seats;
mod view;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::Ipv6Addr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use faasd_common::SLOTS_MAX;
use faasd_sdk::wire::{Arrival, Record};
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};

use self::branches::{Branch, Given};
use self::change::Change;
pub use self::change::Wanted;
pub use self::lives::Lives;
use self::seats::Seats;
use super::access::Access;
use super::api::ApiError;
use super::config::Config;
use super::dns::Names;
use super::events::{Events, NewEvent};
use super::fdstore::FdStore;
use super::ingress::Ingress;
use super::instances::{Instances, LISTENER, Live, Order, drop_listener, keep_listener};
use super::records::{FunctionRecord, RevisionRecord, ShareRecord, free_slot};
use super::steering::Steering;
use super::store::{Store, Write, json_write, list_json};
use crate::api::condition::{Condition, etag};
use crate::api::types::{Connections, EventKind, Function, NamedImage, Pruned, Queues, Revisions};
use crate::core::image::ImageName;
use crate::core::life::{Action, Event, Lifecycle, Machine, Phase, Plan};
use crate::core::name::FunctionName;
use crate::core::revision::Alias;
use crate::dataplane::{self, Acceptors, Command, Stats};
use crate::runtime::image;
use crate::runtime::instance::Adopted;
use crate::runtime::logs::Logs;
use crate::sys::bpf::{BpfError, Kernel};

/// Messages that may wait for the owner.
pub const MESSAGES_MAX: usize = 1024;

/// How long an image that no function uses is kept: somebody may be about to deploy it.
const IMAGE_AGE_MIN: Duration = Duration::from_secs(3600);

/// An answer to who asked.
pub type Reply<T> = oneshot::Sender<Result<T, ApiError>>;

/// A function, with what is not for everybody.
#[derive(Clone, Debug)]
pub struct Listed {
    pub function: Function,
    /// The counters of those who serve: one for each revision.
    pub stats: Vec<Arc<Stats>>,
    /// What became of its instances.
    pub lives: Lives,
    pub queues: Queues,
}

/// What the owner is told.
#[derive(Debug)]
pub enum Message {
    /// Answered when it is in effect, or when it failed.
    Change {
        name: FunctionName,
        wanted: Wanted,
        reply: Reply<Function>,
    },
    Revisions {
        name: FunctionName,
        reply: Reply<Revisions>,
    },
    Remove {
        name: FunctionName,
        condition: Condition,
        reply: Reply<()>,
    },
    Get {
        name: FunctionName,
        reply: Reply<Function>,
    },
    /// Functions whose names begin so: to look at each costs some system calls.
    List {
        prefix: String,
        reply: oneshot::Sender<Vec<Listed>>,
    },
    /// Every root image that has a name, with the functions that run from it.
    Images {
        reply: Reply<Vec<NamedImage>>,
    },
    RemoveImage {
        name: ImageName,
        reply: Reply<()>,
    },
    /// Removes what nothing names or runs; with `names` also the names of images that no function runs.
    PruneImages {
        names: bool,
        reply: Reply<Pruned>,
    },
    /// The policy of these functions has changed: their routes' flags are to follow. Answered when they do, with those
    /// whose routes the kernel has not taken.
    Guard {
        functions: Vec<FunctionName>,
        reply: oneshot::Sender<Vec<FunctionName>>,
    },
    /// The kernel program's decisions, by their index.
    Decisions {
        reply: Reply<[u64; faasd_common::Decision::COUNT as usize]>,
    },
    /// An instance's container is created, and held.
    Prepared {
        key: u32,
        pid: u32,
    },
    /// An instance's container runs.
    Started {
        key: u32,
        pid: u32,
    },
    /// An instance can take connections. `acted` is dropped once it is given them.
    Ready {
        key: u32,
        acted: Option<oneshot::Sender<()>>,
    },
    /// An instance that was at its limit of connections has room again.
    Room {
        key: u32,
    },
    /// An instance passes a connection on to another function.
    Forward {
        key: u32,
        to: FunctionName,
        record: Record,
        connection: OwnedFd,
    },
    /// An instance's server binds IPv4 alone: its connections are copied.
    Relayed {
        key: u32,
    },
    /// An instance and all its traces are gone.
    Exited {
        key: u32,
        why: String,
    },
    /// The daemon ends: instances stay.
    Stop {
        reply: oneshot::Sender<()>,
    },
}

/// What the owner works with.
#[derive(Debug)]
pub struct Parts {
    pub config: Config,
    pub store: Arc<dyn Store>,
    pub access: Arc<Access>,
    pub fdstore: Arc<Mutex<FdStore>>,
    pub ingress: Arc<Ingress>,
    pub kernel: Kernel,
    pub steering: Arc<Steering>,
    pub acceptors: Acceptors,
    pub instances: Instances,
    pub images: image::Store,
    pub logs: Logs,
    pub events: Events,
    pub callers: Arc<dataplane::Callers>,
    pub names: Arc<Names>,
}

/// One function.
struct Entry {
    /// Its number among the functions.
    slot: u32,
    address: Ipv6Addr,
    lifecycle: Lifecycle,
    /// As stored. `None` until the first deploy is on record.
    record: Option<FunctionRecord>,
    /// Those that are kept, and those of changes under way.
    revisions: BTreeMap<u64, RevisionRecord>,
    /// Of the newest revision that was ever tried.
    newest: u64,
    /// Under way, by their plans.
    changes: BTreeMap<u64, Change>,
    /// Who serves, by revision.
    branches: BTreeMap<u64, Branch>,
    /// Those that served, as long as their instances finish.
    leaving: Vec<Branch>,
    /// The port that is routed, once it is.
    routed: Option<u16>,
    /// The addresses and ports of revisions that are routed.
    routed_revisions: BTreeMap<u64, (Ipv6Addr, u16)>,
    live: BTreeMap<u32, Live>,
    /// The slots whose connections instances are given.
    placed: BTreeMap<u32, u32>,
    /// The counts of branches that are gone.
    past: Connections,
    removals: Vec<Reply<()>>,
    lives: Lives,
}

/// The owner's state.
pub struct Owner {
    parts: Parts,
    functions: BTreeMap<FunctionName, Entry>,
    by_slot: HashMap<u32, FunctionName>,
    by_key: HashMap<u32, FunctionName>,
    seats: Seats,
    /// Instances whose containers are prepared, of all functions.
    prepared: HashSet<u32>,
    /// Some function was refused a prepared container for want of room.
    is_crowded: bool,
    /// When each function's clock is to be looked at.
    ticks: BTreeMap<FunctionName, Duration>,
    began: Instant,
    next_key: u32,
    next_plan: u64,
}

/// What one function's policy may ask for.
struct Supply<'a> {
    next_key: &'a mut u32,
    /// Containers that may still be prepared.
    room: usize,
    /// There was no room when it was asked for.
    refused: bool,
}

impl Machine for Supply<'_> {
    fn fresh_key(&mut self) -> u32 {
        // Even numbers: an acceptor's own keys are odd.
        *self.next_key = self.next_key.wrapping_add(2);
        *self.next_key
    }

    fn may_prepare(&mut self) -> bool {
        let may = self.room > 0;
        self.refused |= !may;
        self.room = self.room.saturating_sub(1);
        may
    }
}

impl Owner {
    /// Serves until told to stop.
    pub async fn run(
        mut self,
        mut messages: mpsc::Receiver<Message>,
        mut events: mpsc::Receiver<dataplane::Event>,
    ) {
        let mut sampling = tokio::time::interval(load::INTERVAL);
        sampling.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let tick = self.ticks.values().min().copied();
            let due = tick.map(|at| tokio::time::Instant::from_std(self.began + at));
            tokio::select! {
                message = messages.recv() => match message {
                    Some(Message::Stop { reply }) => {
                        let acceptors = self.parts.acceptors;
                        let _ = tokio::task::spawn_blocking(move || acceptors.stop()).await;
                        let _ = reply.send(());
                        return;
                    }
                    Some(message) => self.handle(message).await,
                    None => return,
                },
                Some(event) = events.recv() => match event {
                    dataplane::Event::Waiting { slot } => self.waiting(slot).await,
                    dataplane::Event::Deaf { key } => self.order(key, Order::Kill),
                    dataplane::Event::Left { key } => self.left(key),
                    dataplane::Event::Yielded { slot, connections } => self.yielded(slot, connections),
                },
                _ = sampling.tick() => self.sample().await,
                () = async { tokio::time::sleep_until(due.unwrap_or_else(tokio::time::Instant::now)).await },
                    if due.is_some() =>
                {
                    let now = self.began.elapsed();
                    let names: Vec<_> =
                        self.ticks.iter().filter(|(_, at)| **at <= now).map(|(name, _)| name.clone()).collect();
                    for name in names {
                        self.step(&name, Event::Tick).await;
                    }
                }
            }
        }
    }

    async fn handle(&mut self, message: Message) {
        match message {
            Message::Change { name, wanted, reply } => self.change(name, wanted, reply).await,
            Message::Revisions { name, reply } => drop(reply.send(self.revisions(&name))),
            Message::Remove { name, condition, reply } => {
                let met = self.meets(&name, &condition);
                match (self.functions.get_mut(&name), met) {
                    (None, _) => drop(reply.send(Err(self.no_function(&name)))),
                    (_, Err(error)) => drop(reply.send(Err(error))),
                    (Some(entry), Ok(())) => {
                        entry.removals.push(reply);
                        self.remove(&name).await;
                    }
                }
            }
            Message::Get { name, reply } => {
                let view = self.functions.get(&name).and_then(|entry| self.view(&name, entry));
                drop(reply.send(view.ok_or_else(|| self.no_function(&name))));
            }
            Message::List { prefix, reply } => {
                let named = self.functions.iter().filter(|(name, _)| name.as_str().starts_with(&prefix));
                drop(reply.send(named.filter_map(|(name, entry)| self.listed(name, entry)).collect()));
            }
            Message::Guard { functions, reply } => {
                // Each of them, whatever becomes of the others.
                let late: Vec<_> =
                    functions.into_iter().filter(|name| self.set_routes(name).is_err()).collect();
                drop(reply.send(late));
            }
            Message::Decisions { reply } => {
                drop(reply.send(self.parts.kernel.decisions().map_err(|e| ApiError::failed(&e))));
            }
            Message::Images { reply } => self.images(reply),
            Message::RemoveImage { name, reply } => self.remove_image(&name, reply),
            Message::PruneImages { names, reply } => self.prune_images(names, reply),
            Message::Started { key, pid } => {
                if let Some(live) = self.live(key) {
                    live.pid = Some(pid);
                }
            }
            Message::Room { key } => {
                let entry = self.by_key.get(&key).and_then(|name| self.functions.get(name));
                if let Some(&slot) = entry.and_then(|entry| entry.placed.get(&key)) {
                    self.tell(Command::Room { slot });
                }
            }
            Message::Forward { key, to, record, connection } => self.forward(key, &to, record, connection),
            Message::Relayed { key } => {
                if let Some(live) = self.live(key) {
                    live.relayed = true;
                }
            }
            Message::Prepared { key, pid } => {
                if let Some(live) = self.live(key) {
                    live.pid = Some(pid);
                }
                if let Some(name) = self.by_key.get(&key).cloned() {
                    self.step(&name, Event::Prepared(key)).await;
                }
            }
            Message::Ready { key, acted } => {
                if let Some(name) = self.by_key.get(&key).cloned() {
                    if let Some(entry) = self.functions.get_mut(&name) {
                        let start = entry.live.get(&key).and_then(|live| live.timings.view());
                        start.inspect(|start| entry.lives.started(start));
                    }
                    self.note(&name, key, EventKind::InstanceReady, "it takes connections");
                    self.step(&name, Event::Ready(key)).await;
                }
                drop(acted);
            }
            Message::Exited { key, why } => self.exited(key, why).await,
            Message::Stop { .. } => {}
        }
    }

    async fn exited(&mut self, key: u32, why: String) {
        let Some(name) = self.by_key.remove(&key) else { return };
        self.prepared.remove(&key);
        let Some(entry) = self.functions.get_mut(&name) else { return };
        let is_leaving = matches!(entry.lifecycle.phase(key), Some(Phase::Draining { .. } | Phase::Killed));
        if !is_leaving {
            entry.lives.failures += 1;
            tracing::warn!(function = %name, why, "an instance ended");
        }
        if let Some(live) = entry.live.get(&key) {
            let kind = if is_leaving { EventKind::InstanceEnded } else { EventKind::InstanceFailed };
            let event = NewEvent::new(kind, &*why).revision(live.revision).instance(&*live.id);
            self.parts.events.record(&name, event);
        }
        let slot = entry.placed.remove(&key);
        let gone = entry.live.remove(&key);
        gone.iter().for_each(|live| entry.lives.ended(&live.page));
        let seat = gone.and_then(|live| live.seat);
        if let Some(seat) = seat {
            self.leave_seat(&name, slot, seat);
        } else if let Some(slot) = slot {
            self.tell(Command::RemoveInstance { slot, key });
        }
        self.sweep_branches(&name);
        self.step(&name, Event::Exited { key, why }).await;
        let Some(entry) = self.functions.get(&name).filter(|_| !is_leaving) else { return };
        let pause = entry.lifecycle.retry_at().and_then(|at| at.checked_sub(self.began.elapsed()));
        if let Some(pause) = pause {
            let failures = entry.lifecycle.failures();
            let text =
                format!("{failures} failed in a row; the next one is started in {} ms", pause.as_millis());
            self.parts.events.record(&name, NewEvent::new(EventKind::BackingOff, text));
        }
    }

    /// Lets the policy decide, and does what it says.
    async fn step(&mut self, name: &FunctionName, event: Event) {
        let mut events = VecDeque::from([event]);
        let mut applied = Vec::new();
        while let Some(event) = events.pop_front() {
            for action in self.decide(name, event) {
                match action {
                    Action::Start { key, revision, hold } => self.start(name, key, revision, hold),
                    Action::Release { key } => {
                        self.note(name, key, EventKind::InstanceStarting, "from a prepared container");
                        self.prepared.remove(&key);
                        self.order(key, Order::Run);
                    }
                    Action::Admit { key } => self.admit(name, key),
                    Action::Withdraw { key } => drop(self.withdraw(name, key)),
                    Action::Drain { key } => {
                        let given = self.withdraw(name, key);
                        self.let_go(name, key);
                        if given == Given::Nothing {
                            self.order(key, Order::Drain);
                        }
                    }
                    Action::Kill { key } => self.order(key, Order::Kill),
                    Action::Commit { plan } => events.push_back(self.commit(name, plan).await),
                    Action::Apply { plan } => {
                        self.apply(name, plan);
                        applied.push(plan);
                    }
                    Action::Abandon { plan, why } => self.abandon(name, plan, why),
                    Action::Refuse { revision } => self.refuse(name, revision),
                    Action::Shed { revision, on } => self.shed(name, revision, on),
                    Action::Gone => self.gone(name).await,
                }
            }
        }
        for plan in applied {
            self.applied(name, plan).await;
        }
    }

    /// Records an event of an instance.
    fn note(&self, name: &FunctionName, key: u32, kind: EventKind, text: &str) {
        if let Some(live) = self.functions.get(name).and_then(|entry| entry.live.get(&key)) {
            let event = NewEvent::new(kind, text).revision(live.revision).instance(&*live.id);
            self.parts.events.record(name, event);
        }
    }

    fn decide(&mut self, name: &FunctionName, event: Event) -> Vec<Action> {
        let now = self.began.elapsed();
        let room = self.parts.config.prepared_max.saturating_sub(self.prepared.len());
        let Some(entry) = self.functions.get_mut(name) else { return Vec::new() };
        let mut supply = Supply { next_key: &mut self.next_key, room, refused: false };
        let actions = entry.lifecycle.step(event, now, &mut supply);
        self.is_crowded |= supply.refused;
        match entry.lifecycle.next_tick() {
            Some(at) => drop(self.ticks.insert(name.clone(), at)),
            None => drop(self.ticks.remove(name)),
        }
        actions
    }

    fn start(&mut self, name: &FunctionName, key: u32, revision: u64, hold: bool) {
        let Some(entry) = self.functions.get(name) else { return };
        let record = entry.revisions.get(&revision).cloned();
        self.by_key.insert(key, name.clone());
        let started = match record {
            None => Err("its record is gone".to_owned()),
            Some(record) => self.launch(key, &record, hold).map_err(|e| format!("{e:#}")),
        };
        let Some(entry) = self.functions.get_mut(name) else { return };
        match started {
            Ok(live) => {
                entry.lives.starts += 1;
                entry.live.insert(key, live);
                if hold {
                    self.prepared.insert(key);
                } else {
                    self.note(name, key, EventKind::InstanceStarting, "from nothing");
                }
            }
            Err(why) => self.parts.instances.report(Message::Exited { key, why }),
        }
    }

    fn launch(&mut self, key: u32, record: &RevisionRecord, hold: bool) -> anyhow::Result<Live> {
        let files = images::files(&self.parts.images, record).map_err(anyhow::Error::msg)?;
        let listener = self.instance_listener(record)?;
        Ok(self.parts.instances.start(key, record, files, listener, hold)?)
    }

    fn entry(&self, name: &FunctionName, slot: u32) -> Entry {
        Entry {
            slot,
            address: self.parts.config.function_prefix.function(name),
            // Any number that differs from one function to the next will do.
            lifecycle: Lifecycle::new(u64::from(slot)),
            record: None,
            revisions: BTreeMap::new(),
            newest: 0,
            changes: BTreeMap::new(),
            branches: BTreeMap::new(),
            leaving: Vec::new(),
            routed: None,
            routed_revisions: BTreeMap::new(),
            live: BTreeMap::new(),
            placed: BTreeMap::new(),
            past: Connections::default(),
            removals: Vec::new(),
            lives: Lives::default(),
        }
    }

    fn fresh_key(&mut self) -> u32 {
        Supply { next_key: &mut self.next_key, room: 0, refused: false }.fresh_key()
    }

    fn live(&mut self, key: u32) -> Option<&mut Live> {
        self.functions.get_mut(self.by_key.get(&key)?)?.live.get_mut(&key)
    }

    fn order(&mut self, key: u32, order: Order) {
        if let Some(live) = self.live(key) {
            live.order(order);
        }
    }

    /// An acceptor that has ended takes the daemon with it, so that nobody is left to be told.
    fn tell(&self, command: Command) {
        if let Err(error) = self.parts.acceptors.send(command) {
            tracing::error!(%error, "an acceptor has ended");
        }
    }

    fn no_function(&self, name: &FunctionName) -> ApiError {
        let deployed = self.functions.iter().filter(|(_, entry)| entry.record.is_some());
        ApiError::no_function(name, deployed.map(|(name, _)| name.as_str()))
    }
}

impl std::fmt::Debug for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Owner({} functions)", self.functions.len())
    }
}

/// An error with its causes, for the API.
fn failure(error: &anyhow::Error) -> ApiError {
    let error: &(dyn std::error::Error + 'static) = error.as_ref();
    ApiError::failed(error)
}
