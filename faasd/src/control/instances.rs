//! The doing behind the owner's decisions: one task for each container, from its start to its last trace, which tells
//! the owner what happened.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use faasd_sdk::status::StatusPage;
use faasd_sdk::wire::{self, Kind, Record};
use jiff::Timestamp;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};
use rustix::process::Signal;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch as orders;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::fdstore::{FdStore, FdStoreError};
use super::owner::Message;
use super::records::FunctionRecord;
use crate::core::name::FunctionName;
use crate::core::spec::{Contract, FunctionSpec, Lane, StopSignal};
use crate::dataplane;
use crate::runtime::agent::{Agent, Asked, Listen, find_listener};
use crate::runtime::image::RootImage;
use crate::runtime::instance::{Adopted, Request, Running, Runtime, new_id};
use crate::runtime::logs::Logs;
use crate::runtime::mounts::Mounts;
use crate::runtime::relay::is_relay;
use crate::sys::pidfd::{Exit, Pidfd};
use crate::sys::readiness::watch;
use crate::sys::scm;

/// The send buffer of an instance's socket: room for some thousand connections that it has not yet received.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// Connections that may wait at an instance's own listener; the system's limit for the namespace is below it.
const BACKLOG: i32 = i32::MAX;

/// Descriptors kept for each instance: its socket's two ends, its page, its log. A fifth is the seccomp filter's.
const KEPT: usize = 4;

/// How long a server that listens over IPv4 has to listen over IPv6 as well, before it is taken for one that will not.
const IPV6_AFTER_IPV4: Duration = Duration::from_millis(300);

/// The longest message of an instance: one record and a name.
const MESSAGE_BYTES_MAX: usize = wire::HEADER_BYTES + wire::RECORD_BYTES + wire::NAME_BYTES_MAX;

/// Messages that are heard of one instance in each [`WINDOW`]: an instance's messages are no way to keep the daemon busy.
const MESSAGES_PER_WINDOW: u32 = 1_000;
const WINDOW: Duration = Duration::from_millis(100);

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
    /// Its connections are copied ([`crate::runtime::relay`]).
    pub relayed: bool,
    /// The seat of its listener, once it has one.
    pub seat: Option<u32>,
    socket: Arc<OwnedFd>,
    receive_end: Arc<OwnedFd>,
    /// The listener that it accepts from itself.
    listener: Option<Arc<OwnedFd>>,
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

    /// The listener that the instance accepts from itself, if its lane is the warm one.
    #[must_use]
    pub fn listener(&self) -> Option<&OwnedFd> {
        self.listener.as_deref()
    }

    /// Lets go of the listener: from now on it is the instance's alone, and closing it is heard.
    pub fn release_listener(&mut self) {
        self.listener = None;
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
    listener: Option<Arc<OwnedFd>>,
    spec: FunctionSpec,
    slot: u32,
    orders: orders::Receiver<Order>,
}

/// What a function's instances are made from, on disk.
#[derive(Debug)]
pub struct Files {
    pub code: Option<PathBuf>,
    pub root: Option<RootImage>,
    /// What the code depends on, for handlers.
    pub dependencies: Option<PathBuf>,
}

/// The parts that an instance is made of besides its container.
struct Parts {
    /// Our end of its socket pair, and a duplicate of its own.
    socket: OwnedFd,
    receive_end: OwnedFd,
    page: StatusPage,
    listener: Option<OwnedFd>,
}

impl Instances {
    /// The root images that instances run from.
    #[must_use]
    pub fn mounts(&self) -> Arc<Mounts> {
        self.runtime.mounts()
    }

    #[must_use]
    pub fn new(
        runtime: Arc<Runtime>,
        logs: Logs,
        store: Arc<Mutex<FdStore>>,
        owner: mpsc::Sender<Message>,
    ) -> Self {
        Self { runtime, logs, store, owner }
    }

    /// Starts an instance. What becomes of it is told to the owner by its key. `listener` is for the warm lane: the
    /// function's address and port, bound, and listening already for an instance that inherits it.
    ///
    /// # Errors
    /// If not even its socket and page could be made.
    pub fn start(
        &self,
        key: u32,
        record: &FunctionRecord,
        files: Files,
        listener: Option<OwnedFd>,
    ) -> io::Result<Live> {
        let (socket, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        // Past the system's limit for ordinary users, which root may.
        let _ = sockopt::set_socket_send_buffer_size_force(&socket, SOCKET_BUFFER_BYTES);
        let (page, page_fd) = StatusPage::create()?;
        let id = new_id(&record.name, record.revision);
        let descriptors = match (record.spec.contract, &listener) {
            // A runner that accepts by itself; it says when it is ready.
            (Contract::Handler, Some(listener)) => vec![listener.try_clone()?, theirs.try_clone()?],
            (Contract::Handler | Contract::Fd, _) => vec![theirs.try_clone()?, page_fd.try_clone()?],
            (Contract::ListenFds, Some(listener)) => vec![listener.try_clone()?],
            (Contract::Port | Contract::ListenFds, _) => Vec::new(),
        };
        let request = Request {
            id: id.clone(),
            function: record.name.clone(),
            slot: record.slot,
            revision: record.revision,
            spec: record.spec.clone(),
            image: files.code,
            root: files.root,
            dependencies: files.dependencies,
            descriptors,
        };
        let parts = Parts { socket, receive_end: theirs, page, listener };
        let (live, task) = self.pair(key, id, record, parts, false);
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
        address: SocketAddr,
        found: Adopted,
        mut kept: Vec<OwnedFd>,
    ) -> Option<Live> {
        let notify = (kept.len() > KEPT).then(|| kept.pop()).flatten();
        let [socket, receive_end, page_fd, log]: [OwnedFd; KEPT] = kept.try_into().ok()?;
        let page = StatusPage::map(page_fd).ok().filter(StatusPage::ready)?;
        let listener = match record.spec.lane() {
            Lane::HandOff => None,
            // Nobody keeps it but the instance: were it kept elsewhere, it would go on taking connections after the
            // instance's death, for as long as no daemon is there to hear of it.
            Lane::Warm => Some(find_listener(&self.runtime.processes(&found.id), address)?),
        };
        let relayed = listener.as_ref().is_some_and(|(process, _)| is_relay(*process));
        let listener = listener.map(|(_, listener)| listener);
        let parts = Parts { socket, receive_end, page, listener };
        let (mut live, task) = self.pair(key, found.id, record, parts, true);
        live.pid = Some(found.pid);
        live.relayed = relayed;
        tokio::spawn(task.adopted(found.process, log, notify));
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
        parts: Parts,
        adopted: bool,
    ) -> (Live, Task) {
        let (sender, receiver) = orders::channel(Order::Run);
        let (socket, receive_end) = (Arc::new(parts.socket), Arc::new(parts.receive_end));
        let (page, listener) = (Arc::new(parts.page), parts.listener.map(Arc::new));
        let task = Task {
            all: self.clone(),
            key,
            id: id.clone(),
            function: record.name.clone(),
            socket: Arc::clone(&socket),
            receive_end: Arc::clone(&receive_end),
            page: Arc::clone(&page),
            listener: listener.clone(),
            spec: record.spec.clone(),
            slot: record.slot,
            orders: receiver,
        };
        let live = Live {
            id,
            revision: record.revision,
            started_at: Timestamp::now(),
            adopted,
            pid: None,
            page,
            relayed: false,
            seat: None,
            socket,
            receive_end,
            listener,
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
        let Running { pid, process, log, notify, create_time, start_time, .. } = running;
        tracing::info!(id = self.id, pid, ?create_time, ?start_time, "started");
        let mut kept = vec![self.socket.as_fd(), self.receive_end.as_fd(), page_fd.as_fd(), log.as_fd()];
        // While no daemon is there, a server that binds waits for the next one.
        kept.extend(notify.as_ref().map(AsFd::as_fd));
        let entry = format!("{ENTRY}{}", self.id);
        if let Err(error) = self.all.with_store(|store| store.put(&entry, &kept)) {
            tracing::warn!(%error, "the next daemon will not find this instance");
        }
        self.all.tell(Message::Started { key: self.key, pid }).await;
        if self.spec.contract == Contract::ListenFds {
            // Its listener listens already: whoever connects now waits for nothing but the server's own start.
            self.page.set_ready();
            self.tell_ready().await;
        }
        self.attend(process, log, notify).await
    }

    async fn adopted(self, process: Arc<Pidfd>, log: OwnedFd, notify: Option<OwnedFd>) {
        let (all, key) = (self.all.clone(), self.key);
        tracing::info!(id = self.id, pid = process.pid(), "adopted");
        let why = self.attend(process, log, notify).await;
        all.tell(Message::Exited { key, why }).await;
    }

    /// Tells the owner that the instance can take connections, and waits until it has acted on that.
    async fn tell_ready(&self) {
        let (acted, has_acted) = oneshot::channel::<()>();
        self.all.tell(Message::Ready { key: self.key, acted: Some(acted) }).await;
        // It is dropped, not sent.
        let _ = has_acted.await;
    }

    /// The server is in `listen`: makes the listener listen, has the owner send it connections, those that wait first,
    /// and lets the server go on. So it finds them when it looks for the first time.
    async fn listens(&self, agent: &Agent, listen: &Listen) {
        self.listen();
        self.tell_ready().await;
        match agent.listening(listen) {
            // For a later daemon: one that the server was not told of by this one, it will not be told of by any.
            Ok(()) => self.page.set_ready(),
            Err(error) => tracing::warn!(id = self.id, %error, "a server was not told that it listens"),
        }
    }

    /// The server listens over IPv4 alone: somebody else has to accept for it.
    async fn relay(&self, container: u32) {
        let Some(listener) = &self.listener else { return };
        let (runtime, port) = (&self.all.runtime, self.spec.listen_port());
        if let Err(error) = runtime.relay(&self.id, container, self.slot, port, listener) {
            tracing::error!(id = self.id, %error, "a server that binds IPv4 alone has no relay");
            return;
        }
        tracing::warn!(
            id = self.id,
            "a server binds IPv4 alone, and is reached by a relay; it should bind [::]"
        );
        self.listen();
        self.page.set_ready();
        self.all.tell(Message::Relayed { key: self.key }).await;
        self.tell_ready().await;
    }

    fn listen(&self) {
        let Some(listener) = &self.listener else { return };
        if let Err(error) = rustix::net::listen(&**listener, BACKLOG) {
            tracing::error!(id = self.id, %error, "a listener does not listen");
        }
    }

    fn agent(&self, notify: Option<OwnedFd>) -> Option<Agent> {
        let listener = Arc::clone(self.listener.as_ref()?);
        Agent::new(notify?, listener, self.spec.listen_port())
            .inspect_err(|error| tracing::error!(id = self.id, %error, "a server's calls are not served"))
            .ok()
    }

    /// Stays with a running instance to its end, removes what is left of it, and says how it ended.
    async fn attend(mut self, process: Arc<Pidfd>, log: OwnedFd, notify: Option<OwnedFd>) -> String {
        let capture = self.all.logs.capture(log, &self.function, &self.id);
        let mut agent = self.agent(notify);
        let mut asks = agent.is_some();
        let mut ipv4 = None;
        let mut messages = self.messages();
        let (mut ready, mut drained, mut broke) = (false, false, None);
        let exit = loop {
            tokio::select! {
                exit = process.exited() => break exit.unwrap_or(Exit::Unknown),
                said = next(&mut messages) => match said {
                    Ok(Said::Room) => self.all.tell(Message::Room { key: self.key }).await,
                    Ok(Said::Forward { to, record, connection }) => {
                        self.all.tell(Message::Forward { key: self.key, to, record, connection }).await;
                    }
                    // Each is said once: an instance's messages are no way to keep the daemon busy.
                    Ok(Said::Ready) if !ready => {
                        ready = true;
                        if self.spec.lane() == Lane::Warm {
                            // It has no page to write that on.
                            self.page.set_ready();
                        }
                        self.all.tell(Message::Ready { key: self.key, acted: None }).await;
                    }
                    Ok(Said::Drained) if !drained => {
                        drained = true;
                        tracing::debug!(id = self.id, "drained");
                    }
                    Ok(Said::Nothing) => messages = None,
                    broken => {
                        let why = match broken {
                            Ok(again) => format!("it said `{again:?}` twice"),
                            Err(error) => error.to_string(),
                        };
                        tracing::warn!(id = self.id, why, "an instance broke the hand-off protocol, and is ended");
                        broke = Some(why);
                        messages = None;
                        let _ = process.signal(Signal::KILL);
                    }
                },
                asked = asked(agent.as_ref().filter(|_| asks)) => match (asked, &agent) {
                    (Ok(Some(Asked::Listen(listen))), Some(agent)) => {
                        ipv4 = None;
                        self.listens(agent, &listen).await;
                    }
                    // Many bind both, one after the other.
                    (Ok(Some(Asked::Ipv4)), _) if !self.page.ready() => {
                        ipv4 = Some(Instant::now() + IPV6_AFTER_IPV4);
                    }
                    (Ok(Some(Asked::Ipv4)), _) => {}
                    (ended, _) => {
                        if let Err(error) = ended {
                            tracing::error!(id = self.id, %error, "a server's calls are no longer served");
                        }
                        asks = false;
                    }
                },
                () = at(ipv4) => {
                    ipv4 = None;
                    self.relay(process.pid()).await;
                }
                order = wanted(&mut self.orders) => match order {
                    Order::Run => {}
                    Order::Drain if self.spec.lane() == Lane::Warm => {
                        // Whoever still waits at the listener when the server closes it goes to another instance,
                        // unless somebody else holds it open.
                        (agent, self.listener) = (None, None);
                        let _ = process.signal(signal(self.spec.stop_signal.unwrap_or_default()));
                    }
                    // A protocol message: it comes after every connection that the instance was given.
                    Order::Drain => {
                        let drain = wire::header(Kind::Drain, 0);
                        if let Err(error) = scm::send(&*self.socket, &drain, &[]) {
                            tracing::debug!(id = self.id, %error, "an instance cannot be asked to finish");
                        }
                    }
                    Order::Kill => {
                        let _ = process.signal(Signal::KILL);
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
        // Only an agent that still is there has a server that does not listen yet.
        let unheard = agent.filter(|_| !self.page.ready()).map(|agent| agent.complaint());
        self.explain(exit, oom_kills, broke, unheard).await
    }

    async fn explain(
        &self,
        exit: Exit,
        oom_kills: u64,
        broke: Option<String>,
        unheard: Option<String>,
    ) -> String {
        let too_slow = !self.page.ready() && *self.orders.borrow() == Order::Kill;
        let mut why = exit.to_string();
        if too_slow {
            // Who gave the order knows why.
            why = unheard.unwrap_or_default();
        } else if let Some(how) = broke {
            why = format!("ended by faasd: it broke the hand-off protocol ({how})");
        } else if oom_kills > 0 {
            why.push_str(", for want of memory (raise `limits.memory`)");
        } else if exit == Exit::Code(0) && self.spec.lane() == Lane::HandOff && !self.page.ready() {
            why.push_str(" without saying that it is ready (does it speak the hand-off protocol?)");
        }
        let (logs, function, id) = (self.all.logs.clone(), self.function.clone(), format!(" {}: ", self.id));
        let lines = tokio::task::spawn_blocking(move || logs.tail(&function, 100)).await;
        let lines = lines.ok().and_then(Result::ok).unwrap_or_default();
        let own: Vec<_> =
            lines.iter().filter_map(|line| line.split_once(&id).map(|(_, text)| text)).collect();
        if !own.is_empty() {
            why.push_str(if why.is_empty() { "its last output:" } else { "; its last output:" });
            for line in own.iter().skip(own.len().saturating_sub(OUTPUT_LINES)) {
                why.push_str("\n  ");
                why.push_str(line);
            }
        }
        if own.iter().any(|line| line.contains("Read-only file system")) {
            why.push_str("\nof an image, only /tmp, /run and what `writable` names can be written to");
        }
        why
    }

    fn messages(&self) -> Option<Messages> {
        let socket = watch(self.socket.try_clone().ok()?).ok()?;
        Some(Messages { socket, window: Instant::now(), heard: 0 })
    }
}

/// The next thing that a server comes to.
async fn asked(agent: Option<&Agent>) -> io::Result<Option<Asked>> {
    match agent {
        Some(agent) => agent.next().await,
        None => std::future::pending().await,
    }
}

/// A moment, or never.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

const fn signal(signal: StopSignal) -> Signal {
    match signal {
        StopSignal::Term => Signal::TERM,
        StopSignal::Quit => Signal::QUIT,
        StopSignal::Int => Signal::INT,
        StopSignal::Hup => Signal::HUP,
        StopSignal::Usr1 => Signal::USR1,
        StopSignal::Usr2 => Signal::USR2,
        StopSignal::Winch => Signal::WINCH,
    }
}

/// The next order. With the owner gone none follows: the instance is to outlive this daemon.
async fn wanted(orders: &mut orders::Receiver<Order>) -> Order {
    if orders.changed().await.is_err() {
        return std::future::pending().await;
    }
    *orders.borrow_and_update()
}

/// What an instance says.
#[derive(Debug)]
enum Said {
    Ready,
    Drained,
    Room,
    Forward {
        to: FunctionName,
        record: Record,
        connection: OwnedFd,
    },
    /// It has shut its end, and says no more.
    Nothing,
}

/// The next message of an instance.
async fn next(messages: &mut Option<Messages>) -> io::Result<Said> {
    let Some(messages) = messages else { return std::future::pending().await };
    messages.next().await
}

/// An instance's messages, no more of them at a time than the daemon has time for.
struct Messages {
    socket: AsyncFd<OwnedFd>,
    window: Instant,
    heard: u32,
}

impl Messages {
    async fn next(&mut self) -> io::Result<Said> {
        if self.heard >= MESSAGES_PER_WINDOW {
            // The rest stays in the socket, whose room ends: whoever says more waits for himself.
            tokio::time::sleep_until(self.window + WINDOW).await;
        }
        if self.window.elapsed() >= WINDOW {
            (self.window, self.heard) = (Instant::now(), 0);
        }
        let mut bytes = [0; MESSAGE_BYTES_MAX];
        loop {
            let mut guard = self.socket.readable().await?;
            match guard.try_io(|socket| scm::recv_untrusted(socket.get_ref(), &mut bytes)) {
                Err(_would_block) => {}
                Ok(received) => {
                    self.heard += 1;
                    let (length, descriptors) = received?;
                    return understand(&bytes[..length], descriptors);
                }
            }
        }
    }
}

fn understand(bytes: &[u8], mut descriptors: Vec<OwnedFd>) -> io::Result<Said> {
    let said = (|| {
        if bytes.is_empty() {
            return Ok(Said::Nothing);
        }
        let message = wire::Message::parse(bytes).map_err(|e| e.to_string())?;
        match (message.kind, descriptors.len()) {
            (Kind::Ready, 0) => Ok(Said::Ready),
            (Kind::Drained, 0) => Ok(Said::Drained),
            (Kind::Room, 0) => Ok(Said::Room),
            (Kind::Forward, 1) => {
                let name = std::str::from_utf8(message.rest).ok().and_then(|name| name.parse().ok());
                match (name, message.records().next(), descriptors.pop()) {
                    (Some(to), Some(record), Some(connection)) => {
                        Ok(Said::Forward { to, record, connection })
                    }
                    _ => Err("it passed a connection on to what is no function's name".to_owned()),
                }
            }
            (Kind::Connections | Kind::Drain, _) => Err("it sent a message that only faasd sends".to_owned()),
            (kind, count) => Err(format!("it sent {count} descriptors with `{kind:?}`")),
        }
    })();
    if !descriptors.is_empty() {
        // Whatever closing them waits for, nobody else is to wait for it.
        tokio::task::spawn_blocking(move || drop(descriptors));
    }
    said.map_err(io::Error::other)
}

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
