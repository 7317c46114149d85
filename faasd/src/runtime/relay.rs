//! For servers that bind their port over IPv4 alone. The function's listener cannot stand in for such a socket: what it
//! accepts has addresses of another size, which not every server takes. So a process within the container's network
//! namespace and cgroup accepts in the server's stead and copies, which costs what a proxy costs; `faas describe` says so.
//!
//! It needs no daemon. It ends with the container, and it stops accepting when the server does: it connects to the
//! server before it accepts, so that a connection that the server would not take stays in the queue, and goes to
//! another instance when the listener closes.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::SocketFlags;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::bundle;
use crate::sys::netns::NetNs;
use crate::sys::pidfd::Pidfd;
use crate::sys::readiness::watch;

/// The process's name, by which a later daemon knows it.
pub const NAME: &str = "faasd-relay";

/// Connections that are relayed at a time; the next ones wait in the listener's queue.
const CONNECTIONS_MAX: usize = 4096;

/// How long the server, a few microseconds away, may take to let itself be connected to.
const CONNECT: Duration = Duration::from_secs(10);

/// The pause after an accept that failed for want of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(50);

/// How long the clients of a server that has ended may take to receive its last words: less than its cgroup may take to
/// become empty.
const FLUSH: Duration = Duration::from_secs(2);

/// What the process is told, besides the listener, which is its standard input.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct RelayArgs {
    /// The port that the server has bound
    #[arg(long)]
    port: u16,
    /// The container's first process
    #[arg(long)]
    container: u32,
}

/// Starts a relay for the container whose first process is `container`, and returns its process id. Whoever starts it
/// puts it into the container's cgroup.
///
/// # Errors
/// Those of `setns(2)` and `execve(2)`.
pub fn spawn(container: u32, slot: u32, port: u16, listener: &OwnedFd) -> io::Result<u32> {
    let ns = NetNs::open(Path::new(&format!("/proc/{container}/ns/net")))?;
    let listener = listener.try_clone()?;
    // A user of the function's own range, and not the one that its code runs as.
    let user = bundle::uid_base(slot) + bundle::USER + 1;
    let child = ns.run(|| {
        // This very program, also where the file has been replaced meanwhile.
        Command::new("/proc/self/exe")
            .arg0(NAME)
            .arg("relay")
            .args(["--port", &port.to_string(), "--container", &container.to_string()])
            .current_dir("/")
            .uid(user)
            .gid(user)
            .stdin(Stdio::from(listener))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
    })?;
    let pid = child.id();
    let process = Pidfd::open(pid)?;
    tokio::spawn(async move { process.exited().await });
    Ok(pid)
}

/// Whether a process is a relay.
#[must_use]
pub fn is_relay(process: u32) -> bool {
    let line = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    line.strip_prefix(NAME.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
}

/// The relay's own life.
///
/// # Errors
/// If the listener or the container cannot be watched.
pub fn run(args: RelayArgs) -> io::Result<()> {
    let listener = io::stdin().as_fd().try_clone_to_owned()?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async move {
        let container = Pidfd::open(args.container)?;
        let mut connections = JoinSet::new();
        tokio::select! {
            exit = container.exited() => exit.map(drop)?,
            relayed = relay(listener, args.port, &mut connections) => relayed?,
        }
        // What the server wrote last is on its way yet, though it has ended.
        let _ = tokio::time::timeout(FLUSH, connections.join_all()).await;
        Ok(())
    })
}

/// Relays until the server listens no more and its last connection has ended.
async fn relay(listener: OwnedFd, port: u16, connections: &mut JoinSet<()>) -> io::Result<()> {
    rustix::io::ioctl_fionbio(&listener, true)?;
    // The copy at standard input would keep the queue open.
    rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let listener = watch(listener)?;
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { break };
        while connections.try_join_next().is_some() {}
        let mut guard = listener.readable().await?;
        let connect = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
        let mut server = match tokio::time::timeout(CONNECT, connect).await {
            Ok(Ok(server)) => server,
            Ok(Err(e)) if e.kind() == io::ErrorKind::ConnectionRefused => break,
            Ok(Err(_)) | Err(_) => {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // Both directions: what comes in one piece goes on in one.
        let _ = server.set_nodelay(true);
        match accept(guard.get_inner().as_fd()) {
            Ok(mut client) => drop(connections.spawn(async move {
                // Both sides have heard of an error by then.
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                drop(permit);
            })),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
    Ok(())
}

fn accept(listener: BorrowedFd<'_>) -> io::Result<TcpStream> {
    let client = rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    let client = std::net::TcpStream::from(client);
    client.set_nodelay(true)?;
    TcpStream::from_std(client)
}
