//! The making of one connection, from the call to its answer.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rustix::net::{AddressFamily, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout, timeout_at};

use super::{Caller, Destination, Wanted};
use crate::runtime::options::copy_options;
use crate::sys::notify::{Answer, Call, Notifications};
use crate::sys::shared::Shared;
use crate::sys::tcp;

/// How long a connection may take to come about.
const CONNECT_DEADLINE: Duration = Duration::from_secs(30);

/// How long a name may take to be resolved.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(5);

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;

/// How long an address has to itself before the next one is tried beside it (RFC 8305), and how long a program that does
/// not want to wait is held up until it is told that the connection is on its way.
const NEXT_AFTER: Duration = Duration::from_millis(250);

/// How often it is looked whether the caller is still there.
const ALIVE_INTERVAL: Duration = Duration::from_secs(1);

/// A connection, or one that is on its way.
struct Made {
    socket: OwnedFd,
    pending: bool,
}

impl Caller {
    pub(super) async fn connect(&self, notifications: &Notifications, call: &Call, wanted: Wanted) {
        let outside = !matches!(wanted.to, Destination::Function(_));
        let deadline = Instant::now() + deadline(&wanted);
        let mut dialled = std::pin::pin!(self.dial(&wanted, deadline));
        let made = loop {
            match timeout(ALIVE_INTERVAL, dialled.as_mut()).await {
                Ok(made) => break made,
                // Nobody waits for it any longer.
                Err(_) if !notifications.is_waiting(call) => return,
                Err(_) => {}
            }
        };
        let installed = made.and_then(|made| {
            let answer = if made.pending { Answer::Fail(libc::EINPROGRESS) } else { Answer::Done };
            // From here on the function may have it, too.
            let socket = Shared::new(made.socket);
            self.install(notifications, call, &wanted, &socket, answer)
        });
        match installed {
            Ok(()) => self.counts.made(outside),
            Err(error) => {
                self.counts.failed();
                tracing::debug!(function = %self.function, to = ?wanted.to, %error, "a connection was not made");
                let errno = error.raw_os_error().unwrap_or(match error.kind() {
                    io::ErrorKind::TimedOut => libc::ETIMEDOUT,
                    io::ErrorKind::PermissionDenied => libc::EACCES,
                    _ => libc::EHOSTUNREACH,
                });
                let _ = notifications.answer(call, Answer::Fail(errno));
            }
        }
    }

    async fn dial(&self, wanted: &Wanted, deadline: Instant) -> io::Result<Made> {
        match &wanted.to {
            Destination::Function(peer) => self.dial_function(wanted, *peer, deadline).await,
            Destination::Address(peer) => race(wanted, vec![*peer], deadline).await,
            Destination::Name(name, port) => {
                let found = timeout(RESOLVE_DEADLINE, self.egress.resolve(name)).await;
                let found = found.map_err(io::Error::from).and_then(|found| found).inspect_err(|error| {
                    if error.kind() == io::ErrorKind::PermissionDenied {
                        self.counts.refused(None);
                        tracing::warn!(function = %self.function, name, %error, "a name outside leads inside");
                    }
                })?;
                let fits = |address: &IpAddr| wanted.domain == AddressFamily::INET6 || address.is_ipv4();
                let peers = found.into_iter().filter(fits).map(|address| SocketAddr::new(address, *port));
                race(wanted, peers.take(ADDRESSES_MAX).collect(), deadline).await
            }
        }
    }

    /// By loopback, so that the handshake is nearly always over when `connect` returns; also with a function that has no
    /// instance, since it is the kernel that completes it. Then the connection waits in the function's queue.
    async fn dial_function(&self, wanted: &Wanted, peer: SocketAddr, deadline: Instant) -> io::Result<Made> {
        let socket = self.egress.socket().await?;
        copy_options(&wanted.theirs, &socket)?;
        SockRef::from(&socket).bind(&SocketAddr::from((self.source, 0)).into())?;
        begin(&socket, peer)?;
        let socket = match (tcp::has_settled(&socket), wanted.flags.nonblocking) {
            (true, _) => socket,
            (false, true) => {
                // Its queue is full. The SYN is sent again, for which the socket keeps the daemon's mark: so that it gets
                // nowhere else with it, it is held to this peer.
                tcp::hold_to(&socket, peer)?;
                return Ok(Made { socket, pending: true });
            }
            (false, false) => {
                let watched = Arc::new(tcp::watch_handshake(socket)?);
                timeout_at(deadline, settled(&watched)).await??;
                watched.get_ref().try_clone()?
            }
        };
        outcome(&socket, peer)?;
        // What the function is given is not to pass for the daemon's own.
        SockRef::from(&socket).set_mark(0)?;
        Ok(Made { socket, pending: false })
    }
}

/// A socket of the host's namespace on its way to a peer, and held to it.
fn begin_outside(wanted: &Wanted, peer: SocketAddr) -> io::Result<(OwnedFd, SocketAddr)> {
    let (domain, to) = match (wanted.domain, peer) {
        (AddressFamily::INET, _) => (Domain::IPV4, peer),
        // The program goes on with the kind of socket that it made.
        (_, SocketAddr::V4(v4)) => (Domain::IPV6, SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port()))),
        (_, SocketAddr::V6(_)) => (Domain::IPV6, peer),
    };
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(false)?;
    }
    let socket = OwnedFd::from(socket);
    copy_options(&wanted.theirs, &socket)?;
    tcp::hold_to(&socket, peer)?;
    begin(&socket, to)?;
    Ok((socket, to))
}

fn begin(socket: &OwnedFd, peer: SocketAddr) -> io::Result<()> {
    match SockRef::from(socket).connect(&peer.into()) {
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
        other => other,
    }
}

/// The first of some peers that lets itself be connected to, begun one after the other.
async fn race(wanted: &Wanted, peers: Vec<SocketAddr>, deadline: Instant) -> io::Result<Made> {
    let mut failure = io::Error::from_raw_os_error(libc::EHOSTUNREACH);
    let mut attempts: Vec<Arc<AsyncFd<OwnedFd>>> = Vec::new();
    let mut racing = FuturesUnordered::new();
    let mut left = peers.into_iter();
    loop {
        if let Some(peer) = left.next() {
            match begin_outside(wanted, peer) {
                Ok((socket, to)) => {
                    let watched = Arc::new(tcp::watch_handshake(socket)?);
                    attempts.push(Arc::clone(&watched));
                    racing.push(async move {
                        let settled = settled(&watched).await.and_then(|()| outcome(watched.get_ref(), to));
                        settled.map(|()| watched)
                    });
                }
                Err(e) => {
                    failure = e;
                    continue;
                }
            }
        }
        let hurry = left.len() > 0 || wanted.flags.nonblocking;
        let until = if hurry { deadline.min(Instant::now() + NEXT_AFTER) } else { deadline };
        match timeout_at(until, racing.next()).await {
            Ok(Some(Ok(watched))) => {
                return Ok(Made { socket: watched.get_ref().try_clone()?, pending: false });
            }
            Ok(Some(Err(e))) => failure = e,
            Ok(None) if left.len() == 0 => return Err(failure),
            Ok(None) => {}
            Err(_) if left.len() > 0 && Instant::now() < deadline => {}
            // The first that has not failed.
            Err(_) if wanted.flags.nonblocking => {
                let pending = attempts.iter().find(|attempt| !tcp::has_settled(attempt.get_ref()));
                let pending = pending.ok_or(failure)?;
                return Ok(Made { socket: pending.get_ref().try_clone()?, pending: true });
            }
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

async fn settled(watched: &AsyncFd<OwnedFd>) -> io::Result<()> {
    loop {
        let mut guard = watched.writable().await?;
        // A socket counts as writable before it has begun; the word of it may come late.
        if tcp::has_settled(watched.get_ref()) {
            return Ok(());
        }
        guard.clear_ready();
    }
}

/// What became of a handshake that has ended. It is asked for by the same call once more, which leaves a socket that counts
/// as connected, as it would after a call that waited.
fn outcome(socket: &OwnedFd, peer: SocketAddr) -> io::Result<()> {
    SockRef::from(socket).connect(&peer.into())
}

/// A program may have said how long it wants to wait.
fn deadline(wanted: &Wanted) -> Duration {
    let own = sockopt::socket_timeout(&wanted.theirs, sockopt::Timeout::Send).ok().flatten();
    own.map_or(CONNECT_DEADLINE, |own| own.min(CONNECT_DEADLINE))
}
