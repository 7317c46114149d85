//! The owner: the one task that holds the functions' state. Everyone else sends it messages.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv6Addr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use faasd_common::{Route, SLOTS_MAX};
use jiff::Timestamp;
use tokio::sync::{Notify, mpsc, oneshot};

use super::api::ApiError;
use super::config::Config;
use super::fdstore::FdStore;
use super::ingress::Ingress;
use super::instances::{Instances, Live, Order, drop_listener, keep_listener, listener_entry};
use super::metrics::Lives;
use super::records::{FUNCTIONS, FunctionRecord, free_slot};
use super::store::{Expect, Store, list_json, put_json};
use crate::api::types::{Connections, Function, Instance, Phase, State};
use crate::core::lifecycle::{Action, Event, Lifecycle, Outlook, Revision};
use crate::core::name::FunctionName;
use crate::core::spec::FunctionSpec;
use crate::core::zone::{self, Zone};
use crate::dataplane::{self, Acceptors, Command, Stats};
use crate::runtime::image;
use crate::runtime::instance::Adopted;
use crate::runtime::logs::Logs;
use crate::sys::bpf::Kernel;

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
        image: String,
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
    /// The kernel program's decisions, by their index.
    Decisions {
        reply: Reply<[u64; faasd_common::Decision::COUNT as usize]>,
    },
    /// An instance's container runs.
    Started {
        key: u32,
        pid: u32,
    },
    /// An instance can take connections.
    Ready {
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
    /// When each function's clock is to be looked at.
    ticks: BTreeMap<FunctionName, Duration>,
    began: Instant,
    next_key: u32,
}

impl Owner {
    /// An owner with what is on record and what runs already.
    ///
    /// # Errors
    /// Of the store, the descriptor store, runc or the kernel.
    pub async fn restore(parts: Parts) -> anyhow::Result<Self> {
        let mut owner = Self {
            parts,
            functions: BTreeMap::new(),
            by_slot: HashMap::new(),
            by_key: HashMap::new(),
            ticks: BTreeMap::new(),
            began: Instant::now(),
            next_key: 0,
        };
        let records: Vec<FunctionRecord> =
            list_json(&*owner.parts.store, FUNCTIONS)?.into_iter().map(|(_, stored)| stored.record).collect();
        let mut listeners = {
            let store = owner.parts.fdstore.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            store.list()?
        };
        let mut found = owner.parts.instances.found().await?;
        owner.forget_stale_routes(&records)?;
        if let Err(error) = owner.parts.logs.retain(|name| records.iter().any(|r| r.name.as_str() == name)) {
            tracing::warn!(%error, "logs of functions that are not declared stay");
        }
        for record in records {
            let name = record.name.clone();
            let listener = listeners.remove(&listener_entry(&name)).and_then(|mut kept| kept.pop());
            let (own, others): (Vec<_>, Vec<_>) = found
                .into_iter()
                .partition(|(one, _)| one.function == name && one.revision == record.revision);
            found = others;
            if let Err(error) = owner.restore_function(record, listener, own).await {
                tracing::error!(function = %name, error = format!("{error:#}"), "a function could not be restored");
            }
        }
        for (one, kept) in found {
            tracing::info!(id = one.id, "ending an instance that nothing declares");
            owner.parts.instances.discard(one, &kept).await;
        }
        for name in listeners.into_keys().filter_map(|n| n.strip_prefix("listener/")?.parse().ok()) {
            drop_listener(&owner.parts.fdstore, &name)?;
        }
        Ok(owner)
    }

    async fn restore_function(
        &mut self,
        record: FunctionRecord,
        listener: Option<OwnedFd>,
        found: Vec<(Adopted, Vec<OwnedFd>)>,
    ) -> anyhow::Result<()> {
        let name = record.name.clone();
        let mut entry = self.entry(&record);
        let listener = match listener.filter(|l| is_bound_to(l, entry.address, record.spec.port)) {
            Some(listener) => listener,
            None => self.listener(&record, entry.address)?,
        };
        for (one, kept) in found {
            let key = self.fresh_key();
            // A discarded one needs its own process and socket; an adopted one takes them.
            let spare = one.clone();
            let socket: Vec<_> =
                kept.first().and_then(|socket| socket.try_clone().ok()).into_iter().collect();
            match self.parts.instances.adopt(key, &record, one, kept) {
                Some(live) => {
                    self.by_key.insert(key, name.clone());
                    entry.live.insert(key, live);
                }
                None => self.parts.instances.discard(spare, &socket).await,
            }
        }
        entry.lifecycle = Lifecycle::adopted(revision(&record), entry.live.keys().copied());
        entry.record = Some(record);
        self.functions.insert(name.clone(), entry);
        self.install(&name, &listener)?;
        let keys: Vec<_> = self.functions[&name].live.keys().copied().collect();
        for key in keys {
            self.admit(&name, key);
        }
        // What is missing is started.
        self.step(&name, Event::Tick).await;
        Ok(())
    }

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
                            self.step(&name, Event::Waiting).await;
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
            Message::Deploy { name, image, spec, reply } => self.deploy(name, image, *spec, reply).await,
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
            Message::Started { key, pid } => {
                if let Some(live) = self.live(key) {
                    live.pid = Some(pid);
                }
            }
            Message::Ready { key } => self.ready(key).await,
            Message::Exited { key, why } => self.exited(key, why).await,
            Message::Stop { .. } => {}
        }
    }

    async fn deploy(
        &mut self,
        name: FunctionName,
        image: String,
        spec: FunctionSpec,
        reply: Reply<Function>,
    ) {
        match self.prepare(&name, image, spec) {
            Err(error) => drop(reply.send(Err(error))),
            Ok(record) => {
                let event = Event::Deploy(revision(&record));
                if !self.functions.contains_key(&name) {
                    let entry = self.entry(&record);
                    self.functions.insert(name.clone(), entry);
                }
                // One that is overtaken is answered by what the lifecycle says of it.
                let overtaken = self
                    .functions
                    .get_mut(&name)
                    .and_then(|entry| entry.candidate.replace(Candidate { record, reply, error: None }));
                if let Some(overtaken) = overtaken {
                    let title = format!("another deploy of '{name}' overtook this one");
                    drop(overtaken.reply.send(Err(ApiError::conflict(title))));
                }
                self.step(&name, event).await;
            }
        }
    }

    /// Everything that can be refused before anything is started.
    fn prepare(
        &self,
        name: &FunctionName,
        image: String,
        spec: FunctionSpec,
    ) -> Result<FunctionRecord, ApiError> {
        spec.check().map_err(|e| ApiError::invalid(e.to_string()))?;
        let dir = self.parts.images.directory(&image).ok_or_else(|| ApiError::Invalid {
            title: format!("there is no image {image}"),
            detail: Some("upload the code first: `faas deploy` does both".to_owned()),
        })?;
        image::entry_point(&dir, &spec).map_err(|e| ApiError::invalid(e.to_string()))?;
        let existing = self.functions.get(name);
        if existing.is_some_and(|entry| entry.lifecycle.is_removed()) {
            return Err(ApiError::conflict(format!(
                "'{name}' is being removed; deploy it again in a moment"
            )));
        }
        let address = self.parts.config.function_prefix.function(name);
        if let Some((other, _)) = self.functions.iter().find(|(n, e)| *n != name && e.address == address) {
            return Err(ApiError::conflict(format!(
                "'{name}' has the same address as '{other}'; choose another name"
            )));
        }
        let slot = match existing {
            Some(entry) => entry.slot,
            None => free_slot(
                self.functions.values().map(|e| e.slot),
                SLOTS_MAX.min(crate::runtime::bundle::SLOTS_MAX),
            )
            .ok_or_else(|| ApiError::conflict("there is no room for another function"))?,
        };
        let newest = existing.and_then(|e| e.candidate.as_ref().map(|c| &c.record).or(e.record.as_ref()));
        Ok(FunctionRecord {
            name: name.clone(),
            slot,
            revision: newest.map_or(1, |r| r.revision + 1),
            image,
            spec,
            deployed_at: Timestamp::now(),
        })
    }

    async fn remove(&mut self, name: &FunctionName) {
        // The record goes first: whatever happens from here on, it does not come back.
        let (store, key) = (Arc::clone(&self.parts.store), FunctionRecord::key(name));
        let deleted = tokio::task::spawn_blocking(move || store.delete(&key, Expect::Any)).await;
        let failed = match deleted {
            Ok(Ok(_)) => None,
            Ok(Err(e)) => Some(ApiError::failed(&e)),
            Err(e) => Some(ApiError::failed(&e)),
        };
        if let (Some(error), Some(entry)) = (failed, self.functions.get_mut(name)) {
            for reply in entry.removals.drain(..) {
                drop(reply.send(Err(error.clone())));
            }
            return;
        }
        self.uninstall(name);
        self.step(name, Event::Remove).await;
    }

    async fn ready(&mut self, key: u32) {
        let Some(name) = self.by_key.get(&key).cloned() else { return };
        let Some(entry) = self.functions.get_mut(&name) else { return };
        if entry.lifecycle.would_promote(key)
            && let Some(candidate) = &entry.candidate
        {
            // On record before it is in effect: a deploy that was acknowledged is there after any crash.
            let record = candidate.record.clone();
            if let Err(error) = self.establish(&record).await {
                if let Some(entry) = self.functions.get_mut(&name) {
                    if let Some(candidate) = &mut entry.candidate {
                        candidate.error = Some(error);
                    }
                    if let Some(live) = entry.live.get(&key) {
                        live.order(Order::Kill);
                    }
                }
                return;
            }
        }
        self.step(&name, Event::Ready(key)).await;
    }

    /// Stores a record, and makes its listener if there is none for its port.
    async fn establish(&mut self, record: &FunctionRecord) -> Result<(), ApiError> {
        let Some(entry) = self.functions.get(&record.name) else { return Ok(()) };
        let (address, routed) = (entry.address, entry.routed);
        let listener = match routed {
            Some(port) if port == record.spec.port => None,
            _ => Some(self.listener(record, address).map_err(|e| {
                let error: &(dyn std::error::Error + 'static) = e.as_ref();
                ApiError::failed(error)
            })?),
        };
        let (store, stored) = (Arc::clone(&self.parts.store), record.clone());
        let put = tokio::task::spawn_blocking(move || {
            put_json(&*store, &FunctionRecord::key(&stored.name), &stored, Expect::Any)
        });
        match put.await {
            Ok(Ok(_)) => {}
            Ok(Err(e)) => return Err(ApiError::failed(&e)),
            Err(e) => return Err(ApiError::failed(&e)),
        }
        if let Some(entry) = self.functions.get_mut(&record.name) {
            entry.record = Some(record.clone());
        }
        match listener {
            Some(listener) => self.install(&record.name, &listener).map_err(|e| {
                let error: &(dyn std::error::Error + 'static) = e.as_ref();
                ApiError::failed(error)
            }),
            None => Ok(()),
        }
    }

    async fn exited(&mut self, key: u32, why: String) {
        let Some(name) = self.by_key.remove(&key) else { return };
        let Some(entry) = self.functions.get_mut(&name) else { return };
        let slot = entry.slot;
        entry.live.remove(&key);
        if !entry.lifecycle.is_leaving(key) {
            entry.lives.failures += 1;
            tracing::warn!(function = %name, why, "an instance ended");
        }
        self.tell(Command::RemoveInstance { slot, key });
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
                    let slot = self.functions[name].slot;
                    self.tell(Command::DrainInstance { slot, key });
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
        let Some(entry) = self.functions.get_mut(name) else { return };
        let records = entry.candidate.as_ref().map(|c| &c.record).into_iter().chain(&entry.record);
        let record = records.into_iter().find(|r| r.revision == revision).cloned();
        self.by_key.insert(key, name.clone());
        let started = match record {
            None => Err("its record is gone".to_owned()),
            Some(record) => match self.parts.images.directory(&record.image) {
                None => Err(format!("its image {} is gone; deploy it again", record.image)),
                Some(image) => self.parts.instances.start(key, &record, image).map_err(|e| e.to_string()),
            },
        };
        match started {
            Ok(live) => {
                entry.lives.starts += 1;
                entry.live.insert(key, live);
            }
            Err(why) => self.parts.instances.report(Message::Exited { key, why }),
        }
    }

    fn admit(&self, name: &FunctionName, key: u32) {
        let Some(entry) = self.functions.get(name) else { return };
        let Some(live) = entry.live.get(&key) else { return };
        match live.for_acceptor(key) {
            Ok(instance) => self.tell(Command::AddInstance { slot: entry.slot, instance }),
            Err(error) => {
                tracing::error!(function = %name, %error, "an instance cannot be given connections");
                live.order(Order::Kill);
            }
        }
    }

    fn promoted(&mut self, name: &FunctionName) {
        let Some(entry) = self.functions.get_mut(name) else { return };
        let candidate = entry.candidate.take();
        let entry = &self.functions[name];
        if let Some(Candidate { record, reply, .. }) = candidate {
            tracing::info!(function = %name, revision = record.revision, "deployed");
            let view = self.view(name, entry);
            drop(reply.send(view.ok_or_else(|| self.no_function(name))));
        }
        self.collect_images();
    }

    fn abandon(&mut self, name: &FunctionName, revision: u64, why: String) {
        let Some(entry) = self.functions.get_mut(name) else { return };
        // One that was overtaken has been answered, and what stands in its place now is not meant.
        let candidate = entry.candidate.take_if(|candidate| candidate.record.revision == revision);
        let Some(Candidate { reply, error, record }) = candidate else { return };
        tracing::warn!(function = %name, revision = record.revision, why, "a deploy failed");
        let error = error.unwrap_or_else(|| ApiError::Failed {
            title: format!("'{name}' was not deployed: its instance did not become ready"),
            detail: Some(why),
        });
        drop(reply.send(Err(error)));
    }

    fn gone(&mut self, name: &FunctionName) {
        self.uninstall(name);
        let Some(entry) = self.functions.remove(name) else { return };
        self.ticks.remove(name);
        self.by_slot.remove(&entry.slot);
        if let Err(error) = self.parts.logs.remove(name) {
            tracing::warn!(function = %name, %error, "its logs stay");
        }
        for reply in entry.removals {
            drop(reply.send(Ok(())));
        }
        tracing::info!(function = %name, "removed");
        self.collect_images();
    }

    /// Makes connections to a function reach its acceptor: listener, slot, route, name, in this order, so that none
    /// of them leads to something that is not there yet.
    fn install(&mut self, name: &FunctionName, listener: &OwnedFd) -> anyhow::Result<()> {
        let Some(entry) = self.functions.get_mut(name) else { return Ok(()) };
        let Some(record) = &entry.record else { return Ok(()) };
        let (slot, address, port) = (entry.slot, entry.address, record.spec.port);
        keep_listener(&self.parts.fdstore, name, listener)?;
        let stats = Arc::clone(&entry.stats);
        self.parts.acceptors.send(Command::AddFunction { slot, listener: listener.try_clone()?, stats })?;
        self.parts.kernel.set_listener(slot, listener)?;
        self.parts.kernel.set_route(address, port, Route { slot })?;
        if let Some(old) = entry.routed.replace(port)
            && old != port
        {
            self.parts.kernel.clear_route(address, old)?;
        }
        self.by_slot.insert(slot, name.clone());
        self.publish(|zone, serial| zone.with(name, address, serial));
        // Instances that were with the slot's former listener.
        let ready: Vec<_> = {
            let entry = &self.functions[name];
            entry.live.keys().copied().filter(|key| entry.lifecycle.is_ready(*key)).collect()
        };
        for key in ready {
            self.admit(name, key);
        }
        Ok(())
    }

    /// The reverse of [`Self::install`]. Each step is tried.
    fn uninstall(&mut self, name: &FunctionName) {
        let Some(entry) = self.functions.get_mut(name) else { return };
        let (slot, address) = (entry.slot, entry.address);
        let Some(port) = entry.routed.take() else { return };
        self.publish(|zone, serial| zone.without(name, serial));
        let route = self.parts.kernel.clear_route(address, port);
        let listener = self.parts.kernel.clear_listener(slot);
        let count = self.parts.kernel.reset_steered(slot);
        for error in [route, listener, count].into_iter().filter_map(Result::err) {
            tracing::error!(function = %name, %error, "a removed function leaves a trace in the kernel's maps");
        }
        self.tell(Command::RemoveFunction { slot });
        if let Err(error) = drop_listener(&self.parts.fdstore, name) {
            tracing::error!(function = %name, %error, "a removed function's listener stays open");
        }
    }

    fn publish(&self, change: impl FnOnce(&Zone, u32) -> Zone) {
        let serial = self.parts.store.revision().map_or(0, zone::serial);
        let old = self.parts.zone.load_full();
        self.parts.zone.store(Arc::new(change(&old, serial)));
        self.parts.zone_changed.notify_one();
    }

    /// Removes routes of functions that are no longer declared.
    fn forget_stale_routes(&mut self, records: &[FunctionRecord]) -> anyhow::Result<()> {
        let prefix = self.parts.config.function_prefix;
        let declared: HashMap<_, _> =
            records.iter().map(|r| (prefix.function(&r.name), r.spec.port)).collect();
        for (address, port, route) in self.parts.kernel.routes()? {
            if route != Route::SERVICE && declared.get(&address) != Some(&port) {
                self.parts.kernel.clear_route(address, port)?;
                if !declared.contains_key(&address) {
                    self.parts.kernel.clear_listener(route.slot)?;
                }
            }
        }
        Ok(())
    }

    /// Removes images that no function uses, some time after the last one did.
    fn collect_images(&self) {
        let images = self.parts.images.clone();
        let used = self
            .functions
            .values()
            .flat_map(|e| e.record.iter().chain(e.candidate.as_ref().map(|c| &c.record)))
            .map(|r| r.image.clone())
            .collect();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = images.gc(&used, IMAGE_AGE_MIN) {
                tracing::warn!(%error, "an image that is not used stays");
            }
        });
    }

    fn listener(&self, record: &FunctionRecord, address: Ipv6Addr) -> anyhow::Result<OwnedFd> {
        Ok(self.parts.ingress.listen(address, record.spec.port, self.parts.config.backlog)?)
    }

    fn entry(&self, record: &FunctionRecord) -> Entry {
        Entry {
            slot: record.slot,
            address: self.parts.config.function_prefix.function(&record.name),
            lifecycle: Lifecycle::default(),
            record: None,
            candidate: None,
            routed: None,
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
            })
            .collect();
        Some(Function {
            name: name.clone(),
            revision: record.revision,
            address: entry.address,
            image: record.image.clone(),
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
                accepted: entry.stats.accepted(),
                handed_off: entry.stats.handed_off(),
                requeued: entry.stats.requeued(),
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

/// Whether a listener that was kept is the one that the function needs now.
fn is_bound_to(listener: &OwnedFd, address: Ipv6Addr, port: u16) -> bool {
    let bound =
        rustix::net::getsockname(listener).ok().and_then(|a| std::net::SocketAddrV6::try_from(a).ok());
    bound.is_some_and(|bound| *bound.ip() == address && bound.port() == port)
}
