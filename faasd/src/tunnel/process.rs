//! The tunnel process: a TUN interface in one namespace, a UDP socket in another, an engine between them, and the
//! unix socket over which `wg` and the daemon configure it.
//!
//! It holds no state of its own: keys and peers come from the daemon, over the socket. It outlives the daemon, so
//! that a crash or an upgrade of the daemon costs the tunnel nothing, and ends on SIGTERM, or when its interface
//! is removed. If it is killed, the interface stays (with its addresses, routes and connections) for the next one
//! to take over.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::MTU_BYTES;
use super::engine::driver::Driver;
use super::interface::{InterfaceStatus, PEERS_PER_REQUEST_MAX};
use super::uapi::{self, Request, Scope, Set, SetPeer};
use crate::sys::netns::NetNs;
use crate::sys::tun::Tun;

/// Where `wg` looks for the sockets of userspace implementations.
pub const SOCKET_DIR: &str = "/var/run/wireguard";

/// Clients of the unix socket at one time.
const CLIENTS_MAX: usize = 16;

/// How long a client may keep the socket without finishing a request.
const CLIENT_DEADLINE: Duration = Duration::from_secs(10);

/// The errno of a request that is refused, as in the protocol's other implementations.
const REFUSED: i32 = -libc::EINVAL;

/// Peers told of at a time: some 50 µs, for which packets wait.
const PEERS_PER_PAGE: usize = 128;

/// What a tunnel process is told at its start. Keys are not among it: others can read a command line.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct ProcessArgs {
    /// Name of the interface
    pub name: String,
    /// Network namespace to make the interface in, as a path; without, the process's own
    #[arg(long, value_name = "PATH")]
    pub netns: Option<PathBuf>,
    /// Directory for the configuration socket NAME.sock
    #[arg(long, value_name = "DIR", default_value = SOCKET_DIR)]
    pub socket_dir: PathBuf,
    /// MTU of the interface, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = MTU_BYTES)]
    pub mtu_bytes: u32,
}

impl ProcessArgs {
    /// The command line that reads as this.
    #[must_use]
    pub fn to_args(&self) -> Vec<OsString> {
        let mut args = vec!["--socket-dir".into(), self.socket_dir.clone().into_os_string()];
        args.extend(["--mtu-bytes".into(), self.mtu_bytes.to_string().into()]);
        if let Some(netns) = &self.netns {
            args.extend(["--netns".into(), netns.clone().into_os_string()]);
        }
        args.extend(["--".into(), self.name.clone().into()]);
        args
    }
}

/// Why a tunnel process ends other than by SIGTERM.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("cannot {operation} {}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot make the TUN interface {name} (is /dev/net/tun there, and CAP_NET_ADMIN?)")]
    Tun { name: String, source: io::Error },
    #[error("another tunnel process has {name}")]
    Running { name: String },
    #[error("cannot start the runtime")]
    Runtime { source: io::Error },
    #[error("the interface {name} was removed")]
    Gone { name: String, source: Option<io::Error> },
}

/// Runs a tunnel until it is told to end, or its interface is removed.
///
/// # Errors
/// Everything that keeps it from starting, and the loss of the interface.
pub fn run(args: &ProcessArgs) -> Result<(), ProcessError> {
    // A session of its own: a terminal's Ctrl-C and hang-up are not meant for us. It fails if we lead one already.
    let _ = rustix::process::setsid();
    // The socket gives away the private key.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let lock = lock(args)?;
    let tun = Arc::new(attach(args)?);
    tun.set_persistent(true).map_err(|source| ProcessError::Tun { name: args.name.clone(), source })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| ProcessError::Runtime { source })?;
    let socket = args.socket_dir.join(format!("{}.sock", args.name));
    let result = runtime.block_on(serve(args, &tun, &socket));
    let _ = fs::remove_file(&socket);
    // Only an orderly end takes the interface along.
    let _ = tun.set_persistent(false);
    runtime.shutdown_timeout(Duration::from_secs(1));
    drop(lock);
    result
}

/// Holds the name: two processes of one name in different namespaces would fight over the socket.
fn lock(args: &ProcessArgs) -> Result<File, ProcessError> {
    let io = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| ProcessError::Io { operation, path, source }
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&args.socket_dir)
        .map_err(io("create", &args.socket_dir))?;
    let path = args.socket_dir.join(format!("{}.lock", args.name));
    let file = File::create(&path).map_err(io("create", &path))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(ProcessError::Running { name: args.name.clone() }),
        Err(e) => Err(io("lock", &path)(e.into())),
    }
}

fn attach(args: &ProcessArgs) -> Result<Tun, ProcessError> {
    let attached = match &args.netns {
        None => Tun::attach(&args.name),
        Some(path) => NetNs::open(path)
            .map_err(|source| ProcessError::Io { operation: "open", path: path.clone(), source })?
            .run(|| Tun::attach(&args.name)),
    };
    attached.map_err(|source| match source.raw_os_error() {
        Some(libc::EBUSY) => ProcessError::Running { name: args.name.clone() },
        _ => ProcessError::Tun { name: args.name.clone(), source },
    })
}

/// A request's text, and where its answer goes.
type Question = (String, oneshot::Sender<String>);

async fn serve(args: &ProcessArgs, tun: &Arc<Tun>, socket: &Path) -> Result<(), ProcessError> {
    let runtime = |source| ProcessError::Runtime { source };
    if !tun.segments() {
        tracing::warn!(interface = args.name, "this kernel cuts packets itself: throughput is lower");
    }
    let mtu_bytes = u16::try_from(args.mtu_bytes).unwrap_or(u16::MAX);
    let mut end = signal(SignalKind::terminate()).map_err(runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(runtime)?;
    let (engine, mut gone) = Driver::start(Arc::clone(tun), mtu_bytes).map_err(runtime)?;

    let listener = bind(args, socket)?;
    let (questions, mut asked) = mpsc::channel(CLIENTS_MAX);
    tokio::spawn(listen(listener, questions));
    tracing::info!(interface = args.name, "the tunnel process is ready");
    loop {
        tokio::select! {
            error = &mut gone => {
                return Err(ProcessError::Gone { name: args.name.clone(), source: error.ok() });
            }
            Some((text, reply)) = asked.recv() => {
                // An engine that has ended answers nothing, and is noticed in the next turn. A client that went away
                // needs no answer.
                let answer = answer(&engine, &text).await;
                let _ = reply.send(answer.unwrap_or_else(|| uapi::write_errno(-libc::ENODEV)));
            }
            _ = end.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
    }
}

fn bind(args: &ProcessArgs, socket: &Path) -> Result<UnixListener, ProcessError> {
    // Ours died without removing it, or else somebody else's process has this name.
    if StdUnixStream::connect(socket).is_ok() {
        return Err(ProcessError::Running { name: args.name.clone() });
    }
    let io = |source| ProcessError::Io { operation: "listen on", path: socket.to_owned(), source };
    match fs::remove_file(socket) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io(e)),
        _ => {}
    }
    UnixListener::bind(socket).map_err(io)
}

async fn listen(listener: UnixListener, questions: mpsc::Sender<Question>) {
    let places = Arc::new(Semaphore::new(CLIENTS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let questions = questions.clone();
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, &questions).await {
                        tracing::debug!(%error, "a client of the configuration socket left");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                // Descriptors have run out; some will be free again.
                tracing::warn!(%error, "cannot accept on the configuration socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Serves one client, which may send several requests one after the other.
async fn converse(mut stream: UnixStream, questions: &mpsc::Sender<Question>) -> io::Result<()> {
    let mut request: Vec<u8> = Vec::new();
    loop {
        let mut seen = 0;
        let end = loop {
            let unseen = request.get(seen..).unwrap_or_default();
            if let Some(at) = unseen.windows(2).position(|two| two == b"\n\n") {
                break seen + at;
            }
            // The last byte may be the first of the two.
            seen = request.len().saturating_sub(1);
            if request.len() > uapi::REQUEST_BYTES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            match timeout(CLIENT_DEADLINE, stream.read_buf(&mut request)).await {
                Ok(Ok(0)) => return Ok(()),
                Ok(Ok(_)) => {}
                Ok(Err(e)) => return Err(e),
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
        };
        let text: Vec<u8> = request.drain(..end + 2).take(end).collect();
        let text = String::from_utf8(text).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        let (reply, answer) = oneshot::channel();
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        questions.send((text, reply)).await.map_err(|_| gone())?;
        let answer = answer.await.map_err(|_| gone())?;
        timeout(CLIENT_DEADLINE, stream.write_all(answer.as_bytes())).await??;
    }
}

/// None if the engine has ended.
async fn answer(engine: &Driver, text: &str) -> Option<String> {
    match Request::parse(text) {
        Ok(Request::Get(Scope::Dropped)) => {
            Some(uapi::write_dropped(&engine.with(|engine, _| engine.dropped()).await?))
        }
        Ok(Request::Get(scope)) => status(engine, scope).await,
        Ok(Request::Set(set)) => Some(uapi::write_errno(apply(engine, set).await?)),
        Err(error) => {
            tracing::warn!(%error, "refused a request");
            Some(uapi::write_errno(REFUSED))
        }
    }
}

/// Applies changes, some peers at a time: packets pass between them.
async fn apply(engine: &Driver, mut set: Set) -> Option<i32> {
    let replace = set.replace_peers;
    let named = std::mem::take(&mut set.peers);
    let has_peers = !named.is_empty();
    let configured = engine.with(move |engine, wires| {
        if let Some(key) = &set.private_key {
            engine.set_private_key(key);
        }
        let keyed = engine.private_key().is_some();
        if !keyed && (set.listen_port.is_some() || has_peers) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        if let Some(mark) = set.fwmark {
            wires.set_mark(mark)?;
        }
        if keyed { wires.listen(set.listen_port.unwrap_or(0)) } else { Ok(()) }
    });
    if let Err(error) = configured.await? {
        tracing::error!(%error, "cannot apply a configuration");
        return Some(error.raw_os_error().map_or(REFUSED, |errno| -errno));
    }
    let mut changes = named;
    if replace {
        let named: HashSet<_> = changes.iter().map(|peer| peer.public_key).collect();
        let there = engine.with(|engine, _| engine.keys()).await?;
        let gone = there.into_iter().filter(|key| !named.contains(key));
        // First, so that their addresses are free.
        changes.splice(0..0, gone.map(|key| SetPeer { remove: true, ..SetPeer::new(key) }));
    }
    while !changes.is_empty() {
        let rest = changes.split_off(changes.len().min(PEERS_PER_REQUEST_MAX));
        engine
            .with(move |engine, wires| changes.iter().for_each(|peer| engine.change(peer, replace, wires)))
            .await?;
        changes = rest;
    }
    Some(0)
}

/// None if the engine has ended.
async fn status(engine: &Driver, scope: Scope) -> Option<String> {
    let device = engine.with(|engine, wires| (engine.private_key(), wires.port(), wires.mark()));
    let (key, listen_port, mark) = device.await?;
    let mut status = InterfaceStatus { listen_port, public_key: None, peers: Vec::new() };
    match scope {
        Scope::Device | Scope::Dropped => {}
        Scope::Peer(key) => status.peers.extend(engine.with(move |engine, _| engine.peer(key)).await?),
        Scope::All => {
            let mut from = Some(0);
            while let Some(first) = from {
                let page = engine.with(move |engine, _| engine.page(first, PEERS_PER_PAGE));
                let (peers, next) = page.await?;
                status.peers.extend(peers);
                from = next;
            }
        }
    }
    Some(uapi::write_status(key.as_ref(), Some(mark).filter(|mark| *mark != 0), &status))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        args: ProcessArgs,
    }

    #[test]
    fn the_command_line_reads_as_it_was_written() {
        for netns in [None, Some("/run/faasd/ingress".into())] {
            let args =
                ProcessArgs { name: "wg0".into(), netns, socket_dir: "/run/x y".into(), mtu_bytes: 1280 };
            let line = [OsString::from("tunnel")].into_iter().chain(args.to_args());
            assert_eq!(Program::parse_from(line).args, args);
        }
    }
}
