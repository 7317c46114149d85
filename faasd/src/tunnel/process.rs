//! The tunnel process: a TUN interface in one namespace, a UDP socket in another, gotatun between them, and the
//! unix socket over which `wg` and the daemon configure it.
//!
//! It holds no state of its own: keys and peers come from the daemon, over the socket. It outlives the daemon, so
//! that a crash or an upgrade of the daemon costs the tunnel nothing, and ends on SIGTERM, or when its interface
//! is removed. If it is killed, the interface stays (with its addresses, routes and connections) for the next one
//! to take over.
//!
//! The socket is served here rather than by gotatun's own server, which makes every peer that is mentioned anew
//! and so loses its session, and which can only listen in one directory.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gotatun::device;
use gotatun::x25519;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::MTU_BYTES;
use super::interface::{AllowedIp, InterfaceStatus, PeerStatus};
use super::keys::{PrivateKey, PublicKey};
use super::packets::{Inbound, Outbound};
use super::peers::{Gotatun, Peers, REFUSED};
use super::uapi::{self, Request, Scope};
use super::wire::OneSocket;
use crate::sys::netns::NetNs;
use crate::sys::tun::Tun;

/// Where `wg` looks for the sockets of userspace implementations.
pub const SOCKET_DIR: &str = "/var/run/wireguard";

/// Clients of the unix socket at one time.
const CLIENTS_MAX: usize = 16;

/// How long a client may keep the socket without finishing a request.
const CLIENT_DEADLINE: Duration = Duration::from_secs(10);

/// How long to wait for first packets of handshakes to leave.
const HANDSHAKE_SEND_DEADLINE: Duration = Duration::from_millis(20);

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
    #[error("gotatun refused to start")]
    Device { source: device::Error },
    #[error("the interface {name} was removed, or its UDP socket failed")]
    Fatal { name: String },
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
    let fatal = || ProcessError::Fatal { name: args.name.clone() };
    let runtime = |source| ProcessError::Runtime { source };
    if !tun.segments() {
        tracing::warn!(interface = args.name, "this kernel cuts packets itself: throughput is lower");
    }
    let outbound = Outbound::new(Arc::clone(tun));
    let tun = Arc::new(tun.register().map_err(runtime)?);
    let mtu_bytes = u16::try_from(args.mtu_bytes).unwrap_or(u16::MAX);
    let mut device: Gotatun = device::build()
        .with_udp(OneSocket::new())
        .with_ip_pair(outbound, Inbound::new(Arc::clone(&tun), mtu_bytes))
        .build()
        .await
        .map_err(|source| ProcessError::Device { source })?;
    let mut end = signal(SignalKind::terminate()).map_err(runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(runtime)?;

    let listener = bind(args, socket)?;
    let (questions, mut asked) = mpsc::channel(CLIENTS_MAX);
    tokio::spawn(listen(listener, questions));
    tracing::info!(interface = args.name, "the tunnel process is ready");
    // gotatun 0.10.2 takes the end of its own tasks at a change of key or port for a fatal error, and keeps that
    // for good: after a second configuration only the interface's own failure counts.
    let mut configurations = 0_u32;
    let mut peers = Peers::default();
    loop {
        tokio::select! {
            // The removal of the interface, and nothing else, shows as an error condition.
            _ = tun.ready(Interest::ERROR) => return Err(fatal()),
            () = device.wait(), if configurations < 2 => return Err(fatal()),
            Some((text, reply)) = asked.recv() => {
                let answer = answer(&device, &mut peers, &text).await;
                configurations = configurations.saturating_add(answer.configured.into());
                // A client that went away needs no answer.
                let _ = reply.send(answer.text);
                greet(&device, answer.reached).await;
            }
            _ = end.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    // Its tasks end with the runtime at the latest.
    let _ = timeout(Duration::from_secs(1), device.stop()).await;
    Ok(())
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
            if request.len() > uapi::MESSAGE_BYTES_MAX {
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

/// What a request led to.
#[derive(Default)]
struct Answer {
    text: String,
    /// The peers whose whereabouts it told.
    reached: Vec<x25519::PublicKey>,
    /// Whether it had the key, the port or the mark in it.
    configured: bool,
}

impl Answer {
    fn errno(errno: i32) -> Self {
        Self { text: uapi::write_errno(errno), ..Self::default() }
    }
}

async fn answer(device: &Gotatun, peers: &mut Peers, text: &str) -> Answer {
    let set = match Request::parse(text) {
        Ok(Request::Get(scope)) => return Answer { text: status(device, &scope).await, ..Answer::default() },
        Ok(Request::Set(set)) => set,
        Err(error) => {
            tracing::warn!(%error, "refused a request");
            return Answer::errno(REFUSED);
        }
    };
    let configured = set.private_key.is_some() || set.listen_port.is_some() || set.fwmark.is_some();
    match peers.apply(device, &set).await {
        Ok(Ok(reached)) => Answer { reached, configured, ..Answer::errno(0) },
        Ok(Err(errno)) => Answer { configured, ..Answer::errno(errno) },
        Err(error) => {
            tracing::error!(%error, "cannot apply a configuration");
            let errno = match error {
                device::Error::Bind(e, _) | device::Error::IoError(e) => e.raw_os_error().map(|e| -e),
                _ => None,
            };
            Answer { configured, ..Answer::errno(errno.unwrap_or(REFUSED)) }
        }
    }
}

/// Begins a handshake with peers that have just been told. Whoever knew us under an earlier process holds a
/// session that we lost, and would notice only after 15 s of silence.
async fn greet(device: &Gotatun, peers: Vec<x25519::PublicKey>) {
    let begun = peers.iter().map(|key| device.force_handshake(key));
    // The first packet leaves when the future is first polled; the rest is the protocol's timers' business.
    let _ = timeout(HANDSHAKE_SEND_DEADLINE, futures_util::future::join_all(begun)).await;
}

async fn status(device: &Gotatun, scope: &Scope) -> String {
    let now = SystemTime::now();
    device
        .read(async |device| {
            let all = if *scope == Scope::Device { Vec::new() } else { device.peers().await };
            let peers = all.into_iter().filter_map(|peer| {
                let public_key = PublicKey::from_bytes(peer.peer.public_key.to_bytes());
                scope.has(public_key).then(|| PeerStatus {
                    public_key,
                    endpoint: peer.peer.endpoint,
                    last_handshake: peer.stats.last_handshake.and_then(|ago| now.checked_sub(ago)),
                    rx_bytes: peer.stats.rx_bytes as u64,
                    tx_bytes: peer.stats.tx_bytes as u64,
                    allowed_ips: peer
                        .peer
                        .allowed_ips
                        .iter()
                        .filter_map(|net| AllowedIp::new(net.network(), net.prefix()))
                        .collect(),
                    keepalive_s: peer.peer.keepalive,
                })
            });
            let peers = peers.collect();
            let key = device.private_key().map(|key| PrivateKey::from_bytes(key.to_bytes()));
            let status = InterfaceStatus { listen_port: device.listen_port(), public_key: None, peers };
            uapi::write_status(key.as_ref(), device.fwmark(), &status)
        })
        .await
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
