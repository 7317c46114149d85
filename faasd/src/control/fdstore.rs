//! The descriptor store: a process of a hundred lines that does nothing but hold descriptors for a daemon that may
//! die, as systemd's own does for a unit.
//!
//! With it a killed daemon closes nothing: connections keep queueing at the functions' listeners, instances keep their
//! sockets, and their output waits in its pipes, until the next daemon takes all of it back. One daemon at a time
//! speaks to it; the next one waits its turn, which comes at the latest when the first is dead.
//!
//! Each request is one `SEQPACKET` message, an operation's byte and a name, and gets one answer.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::net::{
    AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    socket_with, sockopt,
};

use crate::sys::{cgroup, scm};

/// The longest name of an entry, in bytes.
const NAME_BYTES_MAX: usize = 255;

/// How long a new store process may take to listen.
const START_DEADLINE: Duration = Duration::from_secs(5);

/// How long the daemon waits for its turn and for an answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// How often the store is looked after.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

const PUT: u8 = b'P';
const DROP: u8 = b'D';
const LIST: u8 = b'L';
const END: u8 = b'.';
const QUIT: u8 = b'Q';
const OK: u8 = b'k';

/// Why descriptors cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum FdStoreError {
    #[error("cannot start the descriptor store {}", program.display())]
    Start { program: PathBuf, source: io::Error },
    #[error("cannot reach the descriptor store at {}", path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error("the descriptor store failed to {operation} '{name}'")]
    Request { operation: &'static str, name: String, source: io::Error },
}

/// The daemon's store: the process that holds the descriptors, and each of them here, shared with whoever uses it, so that a
/// store that died can be replaced by one that holds the same.
#[derive(Debug)]
pub struct FdStore {
    path: PathBuf,
    program: PathBuf,
    /// Where a store's process is put.
    cgroup: Option<String>,
    connection: Connection,
    kept: BTreeMap<String, Vec<Arc<OwnedFd>>>,
}

/// A conversation with the store's process.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
}

impl FdStore {
    /// Connects to the store at `path`, starting one (`PROGRAM fdstore --socket PATH`) if there is none.
    ///
    /// # Errors
    /// [`FdStoreError`].
    pub fn open(path: &Path, program: &Path, cgroup: Option<String>) -> Result<Self, FdStoreError> {
        let connection = Connection::open(path, program, cgroup.as_deref())?;
        let shared = |(name, kept): (String, Vec<OwnedFd>)| (name, kept.into_iter().map(Arc::new).collect());
        let kept = connection.list()?.into_iter().map(shared).collect();
        Ok(Self { path: path.to_owned(), program: program.to_owned(), cgroup, connection, kept })
    }

    /// Keeps descriptors under a name, in place of what was kept there before.
    ///
    /// # Errors
    /// [`FdStoreError`].
    pub fn put(&mut self, name: &str, descriptors: Vec<Arc<OwnedFd>>) -> Result<(), FdStoreError> {
        let sent: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        let put = self.connection.put(name, &sent);
        self.kept.insert(name.to_owned(), descriptors);
        put.or_else(|error| self.replace_if_dead(error))
    }

    /// Closes what is kept under a name.
    ///
    /// # Errors
    /// [`FdStoreError`].
    pub fn remove(&mut self, name: &str) -> Result<(), FdStoreError> {
        self.kept.remove(name);
        self.connection.remove(name).or_else(|error| self.replace_if_dead(error))
    }

    /// What is kept under names that begin with `prefix`, by what follows it.
    #[must_use]
    pub fn list(&self, prefix: &str) -> BTreeMap<String, Vec<Arc<OwnedFd>>> {
        let wanted =
            |(name, kept): (&String, &Vec<_>)| Some((name.strip_prefix(prefix)?.to_owned(), kept.clone()));
        self.kept.iter().filter_map(wanted).collect()
    }

    /// Whether the store's process has ended.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        // Hanging up shows without being asked for; answers do not.
        let mut poll = [PollFd::new(&self.connection.socket, PollFlags::empty())];
        let zero = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut poll, Some(&zero)).is_ok_and(|ready| ready > 0)
    }

    /// Starts another store in place of one that died, and gives it everything.
    ///
    /// # Errors
    /// [`FdStoreError`].
    pub fn replace(&mut self) -> Result<(), FdStoreError> {
        tracing::warn!("the descriptor store died; another takes its place");
        let connection = Connection::open(&self.path, &self.program, self.cgroup.as_deref())?;
        for (name, kept) in &self.kept {
            let kept: Vec<_> = kept.iter().map(AsFd::as_fd).collect();
            connection.put(name, &kept)?;
        }
        // Last: one that has not got everything is not ours yet, and is tried again.
        self.connection = connection;
        Ok(())
    }

    fn replace_if_dead(&mut self, error: FdStoreError) -> Result<(), FdStoreError> {
        if self.is_dead() { self.replace() } else { Err(error) }
    }
}

/// Replaces the store whenever it has died, for as long as the daemon lives.
pub async fn watch(store: Arc<Mutex<FdStore>>) {
    let mut interval = tokio::time::interval(WATCH_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let store = Arc::clone(&store);
        let looked = tokio::task::spawn_blocking(move || {
            let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
            if store.is_dead() { store.replace() } else { Ok(()) }
        });
        match looked.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                tracing::error!(
                    error,
                    "there is no descriptor store: should the daemon die, connections are lost"
                );
            }
            Err(error) => tracing::error!(%error, "the descriptor store's watch failed"),
        }
    }
}

impl Connection {
    /// Connects to the store at `path`, starting one (`PROGRAM fdstore --socket PATH`) if there is none.
    ///
    /// # Errors
    /// [`FdStoreError`].
    pub fn open(path: &Path, program: &Path, cgroup: Option<&str>) -> Result<Self, FdStoreError> {
        let error = |source| FdStoreError::Connect { path: path.to_owned(), source };
        if let Some(store) = Self::find(path).map_err(error)? {
            return Ok(store);
        }
        // Of its own session, so that no signal to the daemon's group reaches it.
        let mut child = Command::new(program)
            .arg0("faasd-fdstore")
            .args(["fdstore", "--socket"])
            .arg(path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|source| FdStoreError::Start { program: program.to_owned(), source })?;
        if let Some(group) = cgroup {
            cgroup::set_apart(group, child.id());
        }
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            if let Some(store) = Self::find(path).map_err(error)? {
                // It outlives us; when it ends before us, somebody has to have waited for it.
                std::thread::spawn(move || child.wait());
                return Ok(store);
            }
            if Instant::now() > deadline {
                return Err(error(io::ErrorKind::TimedOut.into()));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Connects to the store at `path` if one runs.
    ///
    /// # Errors
    /// Those of `connect(2)`, except that nobody is there.
    pub fn find(path: &Path) -> io::Result<Option<Self>> {
        let socket = seqpacket()?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_DEADLINE))?;
        match connect(&socket, &SocketAddrUnix::new(path)?) {
            Ok(()) => Ok(Some(Self { socket })),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::CONNREFUSED) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Keeps duplicates of descriptors under a name, in place of what was kept there before.
    ///
    /// # Errors
    /// [`FdStoreError::Request`].
    pub fn put(&self, name: &str, descriptors: &[BorrowedFd<'_>]) -> Result<(), FdStoreError> {
        self.request("keep", PUT, name, descriptors)
    }

    /// Closes what is kept under a name.
    ///
    /// # Errors
    /// [`FdStoreError::Request`].
    pub fn remove(&self, name: &str) -> Result<(), FdStoreError> {
        self.request("drop", DROP, name, &[])
    }

    /// Duplicates of everything that is kept.
    ///
    /// # Errors
    /// [`FdStoreError::Request`].
    pub fn list(&self) -> Result<BTreeMap<String, Vec<OwnedFd>>, FdStoreError> {
        let error = |source| FdStoreError::Request { operation: "list", name: String::new(), source };
        scm::send(&self.socket, &[LIST], &[]).map_err(error)?;
        let mut all = BTreeMap::new();
        let mut bytes = [0; 1 + NAME_BYTES_MAX];
        loop {
            let (n, descriptors) = scm::recv(&self.socket, &mut bytes, RecvFlags::empty()).map_err(error)?;
            match bytes[..n].split_first() {
                Some((&PUT, name)) => all.insert(String::from_utf8_lossy(name).into_owned(), descriptors),
                Some((&END, _)) => return Ok(all),
                _ => return Err(error(io::ErrorKind::UnexpectedEof.into())),
            };
        }
    }

    /// Ends the store, and with it everything that it alone holds.
    ///
    /// # Errors
    /// [`FdStoreError::Request`].
    pub fn quit(self) -> Result<(), FdStoreError> {
        self.request("quit", QUIT, "", &[])
    }

    fn request(
        &self,
        operation: &'static str,
        code: u8,
        name: &str,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), FdStoreError> {
        let exchange = || {
            if name.len() > NAME_BYTES_MAX {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let mut message = vec![code];
            message.extend(name.as_bytes());
            scm::send(&self.socket, &message, descriptors)?;
            let mut answer = [0; 1];
            match scm::recv(&self.socket, &mut answer, RecvFlags::empty())? {
                (1, _) if answer[0] == OK => Ok(()),
                _ => Err(io::ErrorKind::UnexpectedEof.into()),
            }
        };
        exchange().map_err(|source| FdStoreError::Request { operation, name: name.to_owned(), source })
    }
}

fn seqpacket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// The store's process: serves until it is told to quit, one daemon after the other.
///
/// # Errors
/// If the socket cannot be made, or a store is there already.
pub fn run(path: &Path) -> io::Result<()> {
    // A shell's hang-up must not reach it either. EPERM: it leads a session already.
    let _ = rustix::process::setsid();
    if Connection::find(path)?.is_some() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "a descriptor store runs here already"));
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = seqpacket()?;
    bind(&listener, &SocketAddrUnix::new(path)?)?;
    // Who holds a listener can take its connections: nobody but us.
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    listen(&listener, 16)?;
    let mut kept = BTreeMap::new();
    loop {
        let daemon = match accept_with(&listener, SocketFlags::CLOEXEC) {
            Ok(daemon) => daemon,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => continue,
            Err(e) => return Err(e.into()),
        };
        let same_user = sockopt::socket_peercred(&daemon)?.uid == rustix::process::getuid();
        if same_user && serve(&daemon, &mut kept) == Served::Quit {
            let _ = std::fs::remove_file(path);
            return Ok(());
        }
    }
}

#[derive(PartialEq, Eq)]
enum Served {
    HungUp,
    Quit,
}

/// Serves one daemon. A message that is no request ends the conversation, never the store.
fn serve(daemon: &OwnedFd, kept: &mut BTreeMap<String, Vec<OwnedFd>>) -> Served {
    let mut bytes = [0; 1 + NAME_BYTES_MAX];
    while let Ok((n, descriptors)) = scm::recv(daemon, &mut bytes, RecvFlags::empty()) {
        let Some((&code, name)) = bytes[..n].split_first() else { break };
        let Ok(name) = std::str::from_utf8(name) else { break };
        let answered = match code {
            PUT => {
                kept.insert(name.to_owned(), descriptors);
                scm::send(daemon, &[OK], &[])
            }
            DROP => {
                kept.remove(name);
                scm::send(daemon, &[OK], &[])
            }
            LIST => list(daemon, kept),
            QUIT => {
                let _ = scm::send(daemon, &[OK], &[]);
                return Served::Quit;
            }
            _ => break,
        };
        if answered.is_err() {
            break;
        }
    }
    Served::HungUp
}

fn list(daemon: &OwnedFd, kept: &BTreeMap<String, Vec<OwnedFd>>) -> io::Result<()> {
    for (name, descriptors) in kept {
        let mut message = vec![PUT];
        message.extend(name.as_bytes());
        let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        scm::send(daemon, &message, &descriptors)?;
    }
    scm::send(daemon, &[END], &[])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn what_one_daemon_leaves_the_next_one_finds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fdstore.sock");
        let server = std::thread::spawn({
            let path = path.clone();
            move || run(&path)
        });
        let open = || {
            let deadline = Instant::now() + START_DEADLINE;
            loop {
                match Connection::find(&path).unwrap() {
                    Some(store) => return store,
                    None => assert!(Instant::now() < deadline),
                }
            }
        };
        let listener = TcpListener::bind("[::1]:0").unwrap();
        let address = listener.local_addr().unwrap();
        let store = open();
        store.put("listener/hello", &[listener.as_fd()]).unwrap();
        store.put("other", &[]).unwrap();
        store.remove("other").unwrap();
        store.remove("never there").unwrap();
        drop((store, listener));
        // The daemon is dead, and a client connects all the same.
        let _client = TcpStream::connect(address).unwrap();
        let next = open();
        let mut all = next.list().unwrap();
        assert_eq!(all.keys().collect::<Vec<_>>(), ["listener/hello"]);
        let listener = TcpListener::from(all.remove("listener/hello").unwrap().remove(0));
        assert_eq!(listener.local_addr().unwrap(), address);
        listener.accept().unwrap();
        next.quit().unwrap();
        server.join().unwrap().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_store_that_was_not_given_everything_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fdstore.sock");
        let start = || {
            let server = std::thread::spawn({
                let path = path.clone();
                move || run(&path)
            });
            let deadline = Instant::now() + START_DEADLINE;
            while Connection::find(&path).unwrap().is_none() {
                assert!(Instant::now() < deadline);
            }
            server
        };
        let server = start();
        let mut store = FdStore::open(&path, Path::new("/nowhere"), None).unwrap();
        store.put("listener/7", Vec::new()).unwrap();
        assert_eq!(store.list("listener/").into_keys().collect::<Vec<_>>(), ["7"]);
        assert!(store.list("instance/").is_empty());
        store.connection.request("quit", QUIT, "", &[]).unwrap();
        server.join().unwrap().unwrap();
        let server = start();
        let refused = "x".repeat(NAME_BYTES_MAX + 1);
        store.kept.insert(refused.clone(), Vec::new());
        store.replace().unwrap_err();
        assert!(store.is_dead(), "it would not be looked after again");
        store.kept.remove(&refused);
        store.replace().unwrap();
        assert!(!store.is_dead());
        assert_eq!(store.connection.list().unwrap().into_keys().collect::<Vec<_>>(), ["listener/7"]);
        store.connection.quit().unwrap();
        server.join().unwrap().unwrap();
    }
}
