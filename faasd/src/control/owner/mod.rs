//! The owner: the one task that holds the functions' state. Everyone else sends it messages.

mod deploy;
mod forward;
pub(super) mod images;
mod restore;
mod routes;
mod seats;

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv6Addr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use arc_swap::ArcSwap;
use faasd_common::{Route, SLOTS_MAX};
use faasd_sdk::wire::Record;
use jiff::Timestamp;
use tokio::sync::{Notify, mpsc, oneshot};

use self::seats::Seats;
use super::api::ApiError;
use super::config::Config;
use super::fdstore::FdStore;
use super::ingress::Ingress;
use super::instances::{Instances, Live, Order, drop_listener, keep_listener, listener_entry};
use super::metrics::Lives;
use super::records::{FUNCTIONS, FunctionRecord, free_slot};
use super::store::{Expect, Store, list_json, put_json};
use crate::api::types::{Connections, Function, Instance, NamedImage, Phase, Pruned, State};
use crate::core::image::ImageName;
use crate::core::lifecycle::{Action, Event, Lifecycle, Outlook, Revision};
use crate::core::name::FunctionName;
use crate::core::spec::FunctionSpec;
use crate::core::zone::{self, Zone};
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

/// What the owner is told.
#[derive(Debug)]
pub enum Message {
    Deploy {
        name: FunctionName,
        image: Option<String>,
        dependencies: Option<String>,
        spec: Box<FunctionSpec>,
        reply: Reply<Function>,
    },
    Remove {
        name: FunctionName,
        reply: Reply<()>,
    },
    Get {
        name: FunctionName,
        reply: Reply<Function>,
    },
    List {
        reply: oneshot::Sender<Vec<(Function, Arc<Stats>, Lives)>>,
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
    /// The kernel program's decisions, by their index.
    Decisions {
        reply: Reply<[u64; faasd_common::Decision::COUNT as usize]>,
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
    pub fdstore: Arc<Mutex<FdStore>>,
    pub ingress: Arc<Ingress>,
    pub kernel: Kernel,
    pub acceptors: Acceptors,
    pub instances: Instances,
    pub images: image::Store,
    pub logs: Logs,
    pub zone: Arc<ArcSwap<Zone>>,
    /// Told whenever the zone has changed.
    pub zone_changed: Arc<Notify>,
}

/// One function.
struct Entry {
    slot: u32,
    address: Ipv6Addr,
    lifecycle: Lifecycle,
    /// As stored. `None` until the first deploy is promoted.
    record: Option<FunctionRecord>,
    candidate: Option<Candidate>,
    /// The port that is routed, once it is.
    routed: Option<u16>,
    /// The listener in the function's slot.
    listener: Option<Arc<OwnedFd>>,
    stats: Arc<Stats>,
    live: BTreeMap<u32, Live>,
    removals: Vec<Reply<()>>,
    lives: Lives,
}

struct Candidate {
    record: FunctionRecord,
    reply: Reply<Function>,
    /// Why it cannot be promoted though it is ready.
    error: Option<ApiError>,
}

/// The owner's state.
pub struct Owner {
    parts: Parts,
    functions: BTreeMap<FunctionName, Entry>,
    by_slot: HashMap<u32, FunctionName>,
    by_key: HashMap<u32, FunctionName>,
    seats: Seats,
    /// When each function's clock is to be looked at.
    ticks: BTreeMap<FunctionName, Duration>,
    began: Instant,
    next_key: u32,
}

impl Owner {
    /// Serves until told to stop.
    pub async fn run(
        mut self,
        mut messages: mpsc::Receiver<Message>,
        mut events: mpsc::Receiver<dataplane::Event>,
    ) {
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
                    dataplane::Event::Waiting { slot } => {
                        if let Some(name) = self.by_slot.get(&slot).cloned() {
                            // With a seat taken, these only missed it: an instance ended just then.
                            if !self.move_to_seats(&name) {
                                self.step(&name, Event::Waiting).await;
                            }
                        }
                    }
                    dataplane::Event::Deaf { key } => self.order(key, Order::Kill),
                },
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
            Message::Deploy { name, image, dependencies, spec, reply } => {
                self.deploy(name, (image, dependencies), *spec, reply).await;
            }
            Message::Remove { name, reply } => match self.functions.get_mut(&name) {
                None => drop(reply.send(Err(self.no_function(&name)))),
                Some(entry) => {
                    entry.removals.push(reply);
                    self.remove(&name).await;
                }
            },
            Message::Get { name, reply } => {
                let view = self.functions.get(&name).and_then(|entry| self.view(&name, entry));
                drop(reply.send(view.ok_or_else(|| self.no_function(&name))));
            }
            Message::List { reply } => {
                let view =
                    |(name, entry)| Some((self.view(name, entry)?, Arc::clone(&entry.stats), entry.lives));
                drop(reply.send(self.functions.iter().filter_map(view).collect()));
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
                if let Some(slot) = entry.map(|entry| entry.slot) {
                    self.tell(Command::Room { slot });
                }
            }
            Message::Forward { key, to, record, connection } => self.forward(key, &to, record, connection),
            Message::Relayed { key } => {
                if let Some(live) = self.live(key) {
                    live.relayed = true;
                }
            }
            Message::Ready { key, acted } => {
                self.ready(key).await;
                drop(acted);
            }
            Message::Exited { key, why } => self.exited(key, why).await,
            Message::Stop { .. } => {}
        }
    }

    async fn exited(&mut self, key: u32, why: String) {
        let Some(name) = self.by_key.remove(&key) else { return };
        let Some(entry) = self.functions.get_mut(&name) else { return };
        let slot = entry.slot;
        let seat = entry.live.get(&key).and_then(|live| live.seat);
        if !entry.lifecycle.is_leaving(key) {
            entry.lives.failures += 1;
            tracing::warn!(function = %name, why, "an instance ended");
        }
        match seat {
            Some(seat) => self.leave_seat(&name, key, seat),
            None => self.tell(Command::RemoveInstance { slot, key }),
        }
        if let Some(entry) = self.functions.get_mut(&name) {
            entry.live.remove(&key);
        }
        self.step(&name, Event::Exited { key, why }).await;
    }

    /// Lets the policy decide, and does what it says.
    async fn step(&mut self, name: &FunctionName, event: Event) {
        let now = self.began.elapsed();
        let Some(entry) = self.functions.get_mut(name) else { return };
        let next_key = &mut self.next_key;
        let actions = entry.lifecycle.step(event, now, &mut || {
            // Even numbers: an acceptor's own keys are odd.
            *next_key = next_key.wrapping_add(2);
            *next_key
        });
        match entry.lifecycle.next_tick() {
            Some(at) => drop(self.ticks.insert(name.clone(), at)),
            None => drop(self.ticks.remove(name)),
        }
        let mut promoted = false;
        for action in actions {
            match action {
                Action::Start { key, revision } => self.start(name, key, revision),
                Action::Admit { key } => self.admit(name, key),
                Action::Drain { key } => {
                    self.withdraw(name, key);
                    self.order(key, Order::Drain);
                }
                Action::Kill { key } => self.order(key, Order::Kill),
                Action::Promote { .. } => promoted = true,
                Action::Abandon { revision, why } => self.abandon(name, revision, why),
                Action::Refuse => {
                    let slot = self.functions[name].slot;
                    self.tell(Command::Refuse { slot });
                }
                Action::Gone => self.gone(name),
            }
        }
        if promoted {
            self.promoted(name);
        }
    }

    fn start(&mut self, name: &FunctionName, key: u32, revision: u64) {
        let Some(entry) = self.functions.get(name) else { return };
        let records = entry.candidate.as_ref().map(|c| &c.record).into_iter().chain(&entry.record);
        let record = records.into_iter().find(|r| r.revision == revision).cloned();
        self.by_key.insert(key, name.clone());
        let started = match record {
            None => Err("its record is gone".to_owned()),
            Some(record) => self.launch(key, &record).map_err(|e| format!("{e:#}")),
        };
        let Some(entry) = self.functions.get_mut(name) else { return };
        match started {
            Ok(live) => {
                entry.lives.starts += 1;
                entry.live.insert(key, live);
            }
            Err(why) => self.parts.instances.report(Message::Exited { key, why }),
        }
    }

    fn launch(&mut self, key: u32, record: &FunctionRecord) -> anyhow::Result<Live> {
        let files = images::files(&self.parts.images, record).map_err(anyhow::Error::msg)?;
        let listener = self.instance_listener(record)?;
        Ok(self.parts.instances.start(key, record, files, listener)?)
    }

    fn entry(&self, record: &FunctionRecord) -> Entry {
        Entry {
            slot: record.slot,
            address: self.parts.config.function_prefix.function(&record.name),
            lifecycle: Lifecycle::default(),
            record: None,
            candidate: None,
            routed: None,
            listener: None,
            stats: Arc::default(),
            live: BTreeMap::new(),
            removals: Vec::new(),
            lives: Lives::default(),
        }
    }

    fn fresh_key(&mut self) -> u32 {
        self.next_key = self.next_key.wrapping_add(2);
        self.next_key
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

    /// The function as callers see it. One that was never deployed with success is none.
    fn view(&self, name: &FunctionName, entry: &Entry) -> Option<Function> {
        let record = entry.record.as_ref()?;
        let instances = entry
            .live
            .iter()
            .map(|(key, live)| Instance {
                id: live.id.clone(),
                revision: live.revision,
                pid: live.pid,
                phase: if entry.lifecycle.is_ready(*key) {
                    Phase::Ready
                } else if entry.lifecycle.is_leaving(*key) {
                    Phase::Draining
                } else {
                    Phase::Starting
                },
                started_at: live.started_at,
                in_flight: live.page.in_flight(),
                adopted: live.adopted,
                relayed: live.relayed,
            })
            .collect();
        Some(Function {
            name: name.clone(),
            revision: record.revision,
            address: entry.address,
            image: record.image.clone(),
            root: record.root.clone(),
            dependencies: record.dependencies.clone(),
            spec: record.spec.clone(),
            deployed_at: record.deployed_at,
            state: match entry.lifecycle.outlook() {
                Outlook::Warm => State::Warm,
                Outlook::Cold => State::Cold,
                Outlook::Starting => State::Starting,
                Outlook::Failing => State::Failing,
            },
            reason: entry.lifecycle.reason().map(str::to_owned),
            instances,
            connections: Connections {
                steered: self.parts.kernel.steered(entry.slot).unwrap_or_default(),
                warm: self.parts.kernel.warm(entry.slot).unwrap_or_default(),
                accepted: entry.stats.accepted(),
                handed_off: entry.stats.handed_off(),
                requeued: entry.stats.requeued(),
                forwarded: entry.stats.forwarded(),
                refused: entry.stats.refused(),
            },
        })
    }
}

impl std::fmt::Debug for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Owner({} functions)", self.functions.len())
    }
}

fn revision(record: &FunctionRecord) -> Revision {
    Revision {
        number: record.revision,
        min: record.spec.scale.min,
        start_deadline: record.spec.deadlines.start(),
        drain_deadline: record.spec.deadlines.drain(),
    }
}
