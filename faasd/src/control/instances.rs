//! The doing behind the owner's decisions: one task for each container, from its start to its last trace, which tells
//! the owner what happened.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use faasd_sdk::status::StatusPage;
use faasd_sdk::wire::{self, Kind};
use jiff::Timestamp;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::sync::watch as orders;

use super::fdstore::{FdStore, FdStoreError};
use super::owner::Message;
use super::records::FunctionRecord;
use crate::core::name::FunctionName;
use crate::dataplane;
use crate::runtime::instance::{Adopted, Request, Running, Runtime, new_id};
use crate::runtime::logs::Logs;
use crate::sys::pidfd::{Exit, Pidfd};
use crate::sys::readiness::watch;
use crate::sys::scm;

/// The send buffer of an instance's socket: room for some thousand connections that it has not yet received.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// Lines of output that are told with a failure.
const OUTPUT_LINES: usize = 10;

/// The prefix of the descriptor store's entries for instances.
const ENTRY: &str = "instance/";

/// What the owner wants of an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    #[default]
    Run,
    Drain,
    Kill,
}

/// An instance, from the owner's side.
#[derive(Debug)]
pub struct Live {
    pub id: String,
    pub revision: u64,
    pub started_at: Timestamp,
    pub adopted: bool,
    pub pid: Option<u32>,
    pub page: Arc<StatusPage>,
    socket: Arc<OwnedFd>,
    receive_end: Arc<OwnedFd>,
    orders: orders::Sender<Order>,
}

impl Live {
    /// Tells the instance's task. An order is never taken back for a lesser one.
    pub fn order(&self, order: Order) {
        self.orders.send_if_modified(|current| {
            let more = order > *current;
            if more {
                *current = order;
            }
            more
        });
    }

    #[must_use]
    pub fn ordered(&self) -> Order {
        *self.orders.borrow()
    }

    /// The instance as its acceptor is to know it.
    ///
    /// # Errors
    /// Those of `dup(2)`.
    pub fn for_acceptor(&self, key: u32) -> io::Result<dataplane::Instance> {
        Ok(dataplane::Instance {
            key,
            socket: self.socket.try_clone()?,
            receive_end: self.receive_end.try_clone()?,
            page: Arc::clone(&self.page),
        })
    }
}

/// Starts, adopts and ends instances.
#[derive(Clone, Debug)]
pub struct Instances {
    runtime: Arc<Runtime>,
    logs: Logs,
    store: Arc<Mutex<FdStore>>,
    owner: mpsc::Sender<Message>,
}

/// What one task works with.
struct Task {
    all: Instances,
    key: u32,
    id: String,
    function: FunctionName,
    socket: Arc<OwnedFd>,
    receive_end: Arc<OwnedFd>,
    page: Arc<StatusPage>,
    orders: orders::Receiver<Order>,
}

impl Instances {
    #[must_use]
    pub fn new(
        runtime: Arc<Runtime>,
        logs: Logs,
        store: Arc<Mutex<FdStore>>,
        owner: mpsc::Sender<Message>,
    ) -> Self {
        Self { runtime, logs, store, owner }
    }

    /// Starts an instance. What becomes of it is told to the owner by its key.
    ///
    /// # Errors
    /// If not even its socket and page could be made.
    pub fn start(
        &self,
        key: u32,
        record: &FunctionRecord,
        image: PathBuf,
        dependencies: Option<PathBuf>,
    ) -> io::Result<Live> {
        let (socket, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        // Past the system's limit for ordinary users, which root may.
        let _ = sockopt::set_socket_send_buffer_size_force(&socket, SOCKET_BUFFER_BYTES);
        let (page, page_fd) = StatusPage::create()?;
        let id = new_id(&record.name, record.revision);
        let request = Request {
            id: id.clone(),
            function: record.name.clone(),
            slot: record.slot,
            revision: record.revision,
            spec: record.spec.clone(),
            image,
            dependencies,
            socket: theirs.try_clone()?,
            status: page_fd.try_clone()?,
        };
        let (live, task) = self.pair(key, id, record, (socket, theirs, page), false);
        tokio::spawn(task.start(request, page_fd));
        Ok(live)
    }

    /// Takes over an instance that an earlier daemon started, with the descriptors that were kept for it. `None` if
    /// they do not make up an instance that is ready.
    #[must_use]
    pub fn adopt(
        &self,
        key: u32,
        record: &FunctionRecord,
        found: Adopted,
        kept: Vec<OwnedFd>,
    ) -> Option<Live> {
        let [socket, theirs, page_fd, log]: [OwnedFd; 4] = kept.try_into().ok()?;
        let page = StatusPage::map(page_fd).ok().filter(StatusPage::ready)?;
        let (mut live, task) = self.pair(key, found.id, record, (socket, theirs, page), true);
        live.pid = Some(found.pid);
        tokio::spawn(task.adopted(found.process, log));
        Some(live)
    }

    /// Ends what was found running and is not wanted.
    pub async fn discard(&self, found: Adopted, kept: &[OwnedFd]) {
        let id = found.id;
        if let Err(error) = self.runtime.stop(&id, &found.process, Duration::ZERO).await {
            tracing::warn!(%error, "an instance that is not wanted stays");
        }
        kept.first().inspect(|socket| scm::discard(socket));
        self.forget(&id);
    }

    /// What runs already, and the descriptors kept for it by its id.
    ///
    /// # Errors
    /// If runc or the descriptor store cannot tell.
    pub async fn found(&self) -> anyhow::Result<Vec<(Adopted, Vec<OwnedFd>)>> {
        let found = self.runtime.adopt().await?;
        let mut kept = self.with_store(|store| store.list())?;
        let pairs: Vec<_> = found
            .into_iter()
            .map(|one| {
                let kept = kept.remove(&format!("{ENTRY}{}", one.id)).unwrap_or_default();
                (one, kept)
            })
            .collect();
        for (name, kept) in kept.into_iter().filter(|(name, _)| name.starts_with(ENTRY)) {
            kept.first().inspect(|socket| scm::discard(socket));
            self.with_store(|store| store.remove(&name))?;
        }
        Ok(pairs)
    }

    fn pair(
        &self,
        key: u32,
        id: String,
        record: &FunctionRecord,
        (socket, receive_end, page): (OwnedFd, OwnedFd, StatusPage),
        adopted: bool,
    ) -> (Live, Task) {
        let (sender, receiver) = orders::channel(Order::Run);
        let (socket, receive_end, page) = (Arc::new(socket), Arc::new(receive_end), Arc::new(page));
        let task = Task {
            all: self.clone(),
            key,
            id: id.clone(),
            function: record.name.clone(),
            socket: Arc::clone(&socket),
            receive_end: Arc::clone(&receive_end),
            page: Arc::clone(&page),
            orders: receiver,
        };
        let live = Live {
            id,
            revision: record.revision,
            started_at: Timestamp::now(),
            adopted,
            pid: None,
            page,
            socket,
            receive_end,
            orders: sender,
        };
        (live, task)
    }

    fn with_store<T>(&self, work: impl FnOnce(&mut FdStore) -> T) -> T {
        work(&mut self.store.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn forget(&self, id: &str) {
        if let Err(error) = self.with_store(|store| store.remove(&format!("{ENTRY}{id}"))) {
            tracing::warn!(%error, "descriptors of an ended instance are kept");
        }
    }

    /// Tells the owner from within the owner: it cannot wait for itself.
    pub fn report(&self, message: Message) {
        let all = self.clone();
        tokio::spawn(async move { all.tell(message).await });
    }

    async fn tell(&self, message: Message) {
        // Closed: the daemon is on its way out, and the next one will find what is there.
        let _ = self.owner.send(message).await;
    }
}

impl Task {
    async fn start(self, request: Request, page_fd: OwnedFd) {
        let (all, key) = (self.all.clone(), self.key);
        let why = match all.runtime.start(request).await {
            Ok(running) => self.run(running, &page_fd).await,
            Err(error) => format!("{:#}", anyhow::Error::from(error)),
        };
        all.tell(Message::Exited { key, why }).await;
    }

    async fn run(self, running: Running, page_fd: &OwnedFd) -> String {
        let Running { pid, process, log, create_time, start_time, .. } = running;
        tracing::info!(id = self.id, pid, ?create_time, ?start_time, "started");
        let kept = [self.socket.as_fd(), self.receive_end.as_fd(), page_fd.as_fd(), log.as_fd()];
        let entry = format!("{ENTRY}{}", self.id);
        if let Err(error) = self.all.with_store(|store| store.put(&entry, &kept)) {
            tracing::warn!(%error, "the next daemon will not find this instance");
        }
        self.all.tell(Message::Started { key: self.key, pid }).await;
        self.attend(process, log).await
    }

    async fn adopted(self, process: Arc<Pidfd>, log: OwnedFd) {
        let (all, key) = (self.all.clone(), self.key);
        tracing::info!(id = self.id, pid = process.pid(), "adopted");
        let why = self.attend(process, log).await;
        all.tell(Message::Exited { key, why }).await;
    }

    /// Stays with a running instance to its end, removes what is left of it, and says how it ended.
    async fn attend(mut self, process: Arc<Pidfd>, log: OwnedFd) -> String {
        let capture = self.all.logs.capture(log, &self.function, &self.id);
        let mut messages = self.messages();
        let (mut ready, mut drained, mut broke) = (false, false, None);
        let exit = loop {
            tokio::select! {
                exit = process.exited() => break exit.unwrap_or(Exit::Unknown),
                said = next(&mut messages) => match said {
                    // Each is said once: an instance's messages are no way to keep the daemon busy.
                    Ok(Some(Kind::Ready)) if !ready => {
                        ready = true;
                        self.all.tell(Message::Ready { key: self.key }).await;
                    }
                    Ok(Some(Kind::Drained)) if !drained => {
                        drained = true;
                        tracing::debug!(id = self.id, "drained");
                    }
                    Ok(None) => messages = None,
                    broken => {
                        let why = match broken {
                            Ok(Some(again @ (Kind::Ready | Kind::Drained))) => format!("it said {again:?} twice"),
                            Ok(_) => "it sent a message that only faasd sends".to_owned(),
                            Err(error) => error.to_string(),
                        };
                        tracing::warn!(id = self.id, why, "an instance broke the hand-off protocol, and is ended");
                        broke = Some(why);
                        messages = None;
                        let _ = process.signal(rustix::process::Signal::KILL);
                    }
                },
                order = wanted(&mut self.orders) => match order {
                    Order::Run => {}
                    // A protocol message: it comes after every connection that the instance was given.
                    Order::Drain => {
                        let drain = wire::header(Kind::Drain, 0);
                        if let Err(error) = scm::send(&*self.socket, &drain, &[]) {
                            tracing::debug!(id = self.id, %error, "an instance cannot be asked to finish");
                        }
                    }
                    Order::Kill => {
                        let _ = process.signal(rustix::process::Signal::KILL);
                    }
                },
            }
        };
        let oom_kills = self.all.runtime.oom_kills(&self.id);
        // It is dead: this only removes what is left.
        if let Err(error) = self.all.runtime.stop(&self.id, &process, Duration::ZERO).await {
            tracing::error!(%error, "an instance left something behind");
        }
        scm::discard(&*self.socket);
        self.all.forget(&self.id);
        // All writers are gone, so that what it printed last is written down by now or very soon.
        if let Ok(capture) = capture {
            let _ = tokio::time::timeout(Duration::from_secs(1), capture).await;
        }
        tracing::info!(id = self.id, %exit, served = self.page.requests(), "ended");
        self.explain(exit, oom_kills, broke).await
    }

    async fn explain(&self, exit: Exit, oom_kills: u64, broke: Option<String>) -> String {
        let mut why = exit.to_string();
        if let Some(how) = broke {
            why = format!("ended by faasd: it broke the hand-off protocol ({how})");
        } else if oom_kills > 0 {
            why.push_str(", for want of memory (raise `limits.memory`)");
        } else if exit == Exit::Code(0) && !self.page.ready() {
            why.push_str(" without saying that it is ready (does it speak the hand-off protocol?)");
        }
        let (logs, function, id) = (self.all.logs.clone(), self.function.clone(), format!(" {}: ", self.id));
        let lines = tokio::task::spawn_blocking(move || logs.tail(&function, 100)).await;
        let lines = lines.ok().and_then(Result::ok).unwrap_or_default();
        let own: Vec<_> =
            lines.iter().filter_map(|line| line.split_once(&id).map(|(_, text)| text)).collect();
        if !own.is_empty() {
            why.push_str("; its last output:");
            for line in own.iter().skip(own.len().saturating_sub(OUTPUT_LINES)) {
                why.push_str("\n  ");
                why.push_str(line);
            }
        }
        why
    }

    fn messages(&self) -> Option<AsyncFd<OwnedFd>> {
        let socket = self.socket.try_clone().ok()?;
        watch(socket).ok()
    }
}

/// The next order. With the owner gone none follows: the instance is to outlive this daemon.
async fn wanted(orders: &mut orders::Receiver<Order>) -> Order {
    if orders.changed().await.is_err() {
        return std::future::pending().await;
    }
    *orders.borrow_and_update()
}

/// The next message of an instance. `None`: it has shut its end, and says no more.
async fn next(messages: &mut Option<AsyncFd<OwnedFd>>) -> io::Result<Option<Kind>> {
    let Some(socket) = messages else { return std::future::pending().await };
    loop {
        let mut guard = socket.readable().await?;
        let mut bytes = [0; wire::HEADER_BYTES];
        match guard.try_io(|socket| scm::recv_plain(socket.get_ref(), &mut bytes)) {
            Err(_would_block) => {}
            Ok(Ok(0)) => return Ok(None),
            Ok(received) => {
                let message = wire::Message::parse(&bytes[..received?]).map_err(io::Error::other)?;
                return Ok(Some(message.kind));
            }
        }
    }
}

/// Keeps a function's listener for the next daemon.
///
/// # Errors
/// [`FdStoreError`].
pub fn keep_listener(
    store: &Mutex<FdStore>,
    function: &FunctionName,
    listener: &OwnedFd,
) -> Result<(), FdStoreError> {
    let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
    store.put(&listener_entry(function), &[listener.as_fd()])
}

/// Lets a function's listener go.
///
/// # Errors
/// [`FdStoreError`].
pub fn drop_listener(store: &Mutex<FdStore>, function: &FunctionName) -> Result<(), FdStoreError> {
    store.lock().unwrap_or_else(PoisonError::into_inner).remove(&listener_entry(function))
}

/// The store's name for a function's listener.
#[must_use]
pub fn listener_entry(function: &FunctionName) -> String {
    format!("listener/{function}")
}
