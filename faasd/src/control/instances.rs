//! The doing behind the owner's decisions: one task for each container, from its start to its last trace, which tells
//! the owner what happened.

mod messages;
mod task;
mod timings;

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use faasd_sdk::status::StatusPage;
use jiff::Timestamp;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};
use tokio::sync::mpsc;
use tokio::sync::watch as orders;

use self::task::Task;
pub use self::timings::{START_BOUNDS_US, StartTimesSeen, Timings};
use super::fdstore::{FdStore, FdStoreError};
use super::owner::Message;
use super::records::RevisionRecord;
use super::secrets::Secrets;
use crate::core::secret::{SecretBytes, SecretName};
use crate::core::spec::{Contract, FunctionSpec, Lane};
use crate::dataplane;
use crate::runtime::agent::find_listener;
use crate::runtime::egress::Egress;
use crate::runtime::image::RootImage;
use crate::runtime::instance::{Adopted, Request, Runtime, new_id};
use crate::runtime::logs::Logs;
use crate::runtime::mounts::Mounts;
use crate::runtime::relay::is_relay;
use crate::runtime::runners::is_held;
use crate::sys::scm;

/// The send buffer of an instance's socket: room for some thousand connections that it has not yet received.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// Descriptors kept for each instance: its socket's two ends, its page, its log. A fifth is its seccomp filter's, if somebody
/// is asked by that.
const KEPT: usize = 4;

/// The prefix of the descriptor store's entries for instances.
const ENTRY: &str = "instance/";

/// And of those for listeners, by slot.
pub const LISTENER: &str = "listener/";

/// What the owner wants of an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    /// To be made ready to run, and not to run yet.
    Hold,
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
    pub timings: Arc<Timings>,
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
    secrets: Arc<Secrets>,
    egress: Arc<Egress>,
    owner: mpsc::Sender<Message>,
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

    /// What makes functions' own connections.
    #[must_use]
    pub fn egress(&self) -> &Egress {
        &self.egress
    }

    /// What functions may be given to read.
    #[must_use]
    pub fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    #[must_use]
    pub fn new(
        runtime: Arc<Runtime>,
        logs: Logs,
        store: Arc<Mutex<FdStore>>,
        secrets: Arc<Secrets>,
        egress: Arc<Egress>,
        owner: mpsc::Sender<Message>,
    ) -> Self {
        Self { runtime, logs, store, secrets, egress, owner }
    }

    /// Starts an instance. What becomes of it is told to the owner by its key. `listener` is for the warm lane: the
    /// function's address and port, bound and not listening. With `hold` it is made ready, and does not run before it is
    /// ordered to; [`Message::Prepared`] says that it can.
    ///
    /// # Errors
    /// If not even its socket and page could be made.
    pub fn start(
        &self,
        key: u32,
        record: &RevisionRecord,
        files: Files,
        listener: Option<OwnedFd>,
        hold: bool,
    ) -> io::Result<Live> {
        let (socket, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        // Past the system's limit for ordinary users, which root may.
        let _ = sockopt::set_socket_send_buffer_size_force(&socket, SOCKET_BUFFER_BYTES);
        let (page, page_fd) = StatusPage::create()?;
        let id = new_id(&record.name, record.revision);
        let descriptors = match (record.spec.contract, &listener) {
            // A runner that accepts by itself; it says when it is ready.
            (Contract::Handler, Some(listener)) => {
                vec![listener.try_clone()?, theirs.try_clone()?, page_fd.try_clone()?]
            }
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
            hosts: record.spec.connects().then(|| self.egress.grants(&record.spec).hosts()),
            hold: hold && is_held(&record.spec),
            descriptors,
        };
        let parts = Parts { socket, receive_end: theirs, page, listener };
        let order = if hold { Order::Hold } else { Order::Run };
        let (live, task) = self.pair(key, id, record, parts, order);
        tokio::spawn(task.start(request, page_fd));
        Ok(live)
    }

    /// Takes over an instance that an earlier daemon started, with the descriptors that were kept for it. `None` if
    /// they do not make up an instance that is ready.
    #[must_use]
    pub fn adopt(
        &self,
        key: u32,
        record: &RevisionRecord,
        addresses: &[SocketAddr],
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
            Lane::Warm => match find_listener(&self.runtime.processes(&found.id), addresses) {
                // One that was asked to finish has closed it.
                None if page.draining() => None,
                listener => Some(listener?),
            },
        };
        let relayed = listener.as_ref().is_some_and(|(process, _)| is_relay(*process));
        let listener = listener.map(|(_, listener)| listener);
        let parts = Parts { socket, receive_end, page, listener };
        let (mut live, task) = self.pair(key, found.id, record, parts, Order::Run);
        live.adopted = true;
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
        let mut kept = self.with_store(|store| store.list(ENTRY));
        let pairs: io::Result<Vec<_>> = found
            .into_iter()
            .map(|one| {
                let kept = kept.remove(&one.id).unwrap_or_default();
                let own: io::Result<_> = kept.iter().map(|kept| kept.try_clone()).collect();
                Ok((one, own?))
            })
            .collect();
        let pairs = pairs?;
        for (id, kept) in kept {
            kept.first().inspect(|socket| scm::discard(socket));
            self.with_store(|store| store.remove(&format!("{ENTRY}{id}")))?;
        }
        Ok(pairs)
    }

    fn pair(
        &self,
        key: u32,
        id: String,
        record: &RevisionRecord,
        parts: Parts,
        order: Order,
    ) -> (Live, Task) {
        let (sender, receiver) = orders::channel(order);
        let (socket, receive_end) = (Arc::new(parts.socket), Arc::new(parts.receive_end));
        let (page, listener) = (Arc::new(parts.page), parts.listener.map(Arc::new));
        let timings = Arc::<Timings>::default();
        let task = Task {
            all: self.clone(),
            key,
            id: id.clone(),
            function: record.name.clone(),
            socket: Arc::clone(&socket),
            receive_end: Arc::clone(&receive_end),
            page: Arc::clone(&page),
            timings: Arc::clone(&timings),
            listener: listener.clone(),
            spec: record.spec.clone(),
            slot: record.slot,
            orders: receiver,
        };
        let live = Live {
            id,
            revision: record.revision,
            started_at: Timestamp::now(),
            adopted: false,
            pid: None,
            page,
            relayed: false,
            timings,
            seat: None,
            socket,
            receive_end,
            listener,
            orders: sender,
        };
        (live, task)
    }

    /// The secrets that a function is to find, as they are now.
    async fn secrets_of(&self, spec: &FunctionSpec) -> anyhow::Result<Vec<(SecretName, SecretBytes)>> {
        if spec.secrets.is_empty() {
            return Ok(Vec::new());
        }
        let (secrets, names) = (Arc::clone(&self.secrets), spec.secrets.clone());
        Ok(tokio::task::spawn_blocking(move || secrets.values(&names)).await??)
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

/// Keeps the listener of a slot open beyond the daemon's life.
///
/// # Errors
/// [`FdStoreError`].
pub fn keep_listener(store: &Mutex<FdStore>, slot: u32, listener: &Arc<OwnedFd>) -> Result<(), FdStoreError> {
    let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
    store.put(&listener_entry(slot), vec![Arc::clone(listener)])
}

/// Lets the listener of a slot go.
///
/// # Errors
/// [`FdStoreError`].
pub fn drop_listener(store: &Mutex<FdStore>, slot: u32) -> Result<(), FdStoreError> {
    store.lock().unwrap_or_else(PoisonError::into_inner).remove(&listener_entry(slot))
}

/// The store's name for the listener in a slot.
fn listener_entry(slot: u32) -> String {
    format!("{LISTENER}{slot}")
}
