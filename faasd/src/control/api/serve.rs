//! The two listeners, and the loop that serves one: bounded in connections and in time, and finished gently.

use std::fs;
use std::future::Future;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::net::{AddressFamily, sockopt};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio_io_timeout::TimeoutStream;
use tracing::{debug, warn};

use super::share::Shares;
use super::{Refusals, Source};

/// The group whose members may use the API without being root.
pub const GROUP: &str = "faas";

/// The most connections at a time on one listener; the next ones wait in its backlog.
pub const CONNECTIONS_MAX: usize = 256;

/// The most connections of one peer at a time on the tunnel's listener: sixteen peers together may take it all.
pub const CONNECTIONS_PER_PEER_MAX: usize = 16;

/// How long a client may leave what it is sent lying.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// After which silence a peer is asked whether it is still there, and how often it is asked.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(60))
    .with_interval(Duration::from_secs(15))
    .with_retries(4);

/// How long a client may take over the head of a request, and may keep a connection without one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);

/// The most bytes of a request's head.
const HEAD_BYTES_MAX: usize = 32 << 10;

/// How long requests that run when the daemon stops have to finish.
const GRACE: Duration = Duration::from_secs(10);

/// The pause after an accept that failed for want of descriptors or memory: trying at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Binds the API's socket: mode 0660 for root and the group `faas`, or 0600 where there is no such group.
///
/// It is bound beside its final name, given its mode and moved into place, so that it is never there with a wider
/// one. A socket left by a daemon that is gone is replaced.
///
/// # Errors
/// `AddrInUse` when somebody listens there; otherwise those of `bind(2)`, `chmod(2)`, `chown(2)` and `rename(2)`.
pub fn bind_unix(path: &Path) -> io::Result<StdUnixListener> {
    if StdUnixStream::connect(path).is_ok() {
        let text = format!("another faasd listens on {}; stop it, or choose another socket", path.display());
        return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
    }
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = StdUnixListener::bind(&new)?;
    let group = nix::unistd::Group::from_name(GROUP)?;
    // The owner first: were the mode first, whoever owns the directory's default group could connect in between.
    if let Some(group) = &group {
        std::os::unix::fs::chown(&new, None, Some(group.gid.as_raw()))?;
    }
    let mode = if group.is_some() { 0o660 } else { 0o600 };
    fs::set_permissions(&new, fs::Permissions::from_mode(mode))?;
    fs::rename(&new, path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The API's socket as systemd has made it, with the mode and group of its unit: `faas` waits there while no daemon runs.
///
/// # Errors
/// If it is no unix socket that listens.
pub fn inherit_unix(listener: OwnedFd) -> io::Result<StdUnixListener> {
    if !sockopt::socket_acceptconn(&listener)? || sockopt::socket_domain(&listener)? != AddressFamily::UNIX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let listener = StdUnixListener::from(listener);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Serves the API on its unix socket until `stop` is done and the requests that run then are answered.
///
/// The socket's file stays: the next daemon replaces it, and this one could no longer tell whether it still is its
/// own.
///
/// # Errors
/// When the listener cannot be registered with the async runtime.
pub async fn serve_unix(
    listener: StdUnixListener,
    router: Router,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let listener = UnixListener::from_std(listener)?;
    // Whoever may use it is root, or as good as root.
    serve(
        listener,
        router,
        &Limits { of_each: CONNECTIONS_MAX, write: WRITE_TIMEOUT },
        &Arc::default(),
        stop,
    )
    .await;
    Ok(())
}

/// Serves peers on the tunnel's address, which tells each request the address that it came from. Connections that are
/// too many for one peer are reset, and counted in `refusals`.
///
/// # Errors
/// When the listener cannot be registered with the async runtime.
pub async fn serve_tunnel(
    listener: std::net::TcpListener,
    router: Router,
    refusals: Arc<Refusals>,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    serve(
        listener,
        router,
        &Limits { of_each: CONNECTIONS_PER_PEER_MAX, write: WRITE_TIMEOUT },
        &refusals,
        stop,
    )
    .await;
    Ok(())
}

/// What a client may have.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Connections of one source at a time.
    of_each: usize,
    /// How long it may leave what it is sent lying.
    write: Duration,
}

fn ipv6(peer: SocketAddr) -> Ipv6Addr {
    match peer {
        SocketAddr::V6(peer) => *peer.ip(),
        SocketAddr::V4(peer) => peer.ip().to_ipv6_mapped(),
    }
}

/// A listener of either kind.
trait Accept: Send + Sync {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Option<Source>)>> + Send;

    /// Ends a connection so that its other end hears of it at once.
    fn refuse(stream: Self::Stream);
}

impl Accept for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<(UnixStream, Option<Source>)> {
        Ok((Self::accept(self).await?.0, None))
    }

    fn refuse(stream: UnixStream) {
        drop(stream);
    }
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, Option<Source>)> {
        let (stream, peer) = Self::accept(self).await?;
        // A peer that is gone without a word is not to keep its share.
        SockRef::from(&stream).set_tcp_keepalive(&KEEPALIVE)?;
        Ok((stream, Some(Source(ipv6(peer)))))
    }

    fn refuse(stream: TcpStream) {
        // What fails here ends by being dropped all the same.
        let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    }
}

async fn serve(
    listener: impl Accept,
    router: Router,
    limits: &Limits,
    refusals: &Refusals,
    stop: impl Future<Output = ()>,
) {
    let shares = Shares::new(limits.of_each);
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let (stopping, stopped) = watch::channel(false);
    let mut stop = pin!(stop);
    loop {
        let next = async {
            // The permit comes first: a connection that cannot be served yet is not accepted yet.
            let permit = Arc::clone(&room).acquire_owned().await.ok();
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            () = &mut stop => break,
            next = next => next,
        };
        match accepted {
            Ok((stream, source)) => {
                let share = source.map(|Source(address)| shares.take(address));
                if matches!(share, Some(None)) {
                    refusals.count_share();
                    refuse(&listener, stream);
                    continue;
                }
                let mut stream = TimeoutStream::new(stream);
                stream.set_write_timeout(Some(limits.write));
                let connection = connection(Box::pin(stream), source, router.clone(), stopped.clone());
                tokio::spawn(async move {
                    connection.await;
                    drop((share, permit));
                });
            }
            Err(e) => {
                warn!(error = %e, "cannot accept a connection to the API");
                tokio::select! {
                    () = &mut stop => break,
                    () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                }
            }
        }
    }
    drop(listener);
    stopping.send_replace(true);
    // Every permit back means every connection closed.
    let all = u32::try_from(CONNECTIONS_MAX).unwrap_or(u32::MAX);
    if tokio::time::timeout(GRACE, room.acquire_many(all)).await.is_err() {
        warn!(seconds = GRACE.as_secs(), "requests still ran at the end of the grace period");
    }
}

fn refuse<A: Accept>(_: &A, stream: A::Stream) {
    A::refuse(stream);
}

/// Tells a response that has no end of its own when the daemon stops.
#[derive(Clone, Debug)]
pub(super) struct Stopping(pub watch::Receiver<bool>);

async fn connection<S>(stream: S, source: Option<Source>, router: Router, mut stopped: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let router = TowerToHyperService::new(router);
    let stopping = Stopping(stopped.clone());
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(stopping.clone());
        if let Some(source) = source {
            request.extensions_mut().insert(source);
        }
        router.call(request)
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_header_size(HEAD_BYTES_MAX)
            // A client that has sent its request and shut its side down still waits for the response.
            .half_close(true)
            .serve_connection(TokioIo::new(stream), service)
    );
    let served = tokio::select! {
        served = connection.as_mut() => served,
        // The guard that this waits for cannot be held across an await.
        () = async { drop(stopped.wait_for(|stopped| *stopped).await) } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(e) = served {
        debug!(error = %e, "a connection to the API broke off");
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream as StdTcpStream;

    use axum::routing::get;
    use socket2::{Domain, Socket, Type};

    use super::*;

    /// As much as no socket buffers.
    const LARGE: usize = 64 << 20;
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: faasd\r\nconnection: close\r\n\r\n";

    fn start(limits: Limits) -> (SocketAddr, Arc<Refusals>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let refusals = Arc::<Refusals>::default();
        let counted = Arc::clone(&refusals);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                let routes = Router::new().route("/", get(async || vec![0u8; LARGE]));
                serve(listener, routes, &limits, &counted, std::future::pending()).await;
            });
        });
        (address, refusals)
    }

    fn connect(from: &str, to: SocketAddr) -> StdTcpStream {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(from.parse().unwrap(), 0).into()).unwrap();
        socket.connect(&to.into()).unwrap();
        let stream = StdTcpStream::from(socket);
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    /// Reads to the end, be it a good one or not.
    fn length(mut stream: StdTcpStream) -> usize {
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        all.len()
    }

    fn ask(stream: &mut StdTcpStream) {
        stream.write_all(REQUEST).unwrap();
    }

    #[test]
    fn a_peer_that_takes_its_share_leaves_the_rest_to_others() {
        let (address, refusals) = start(Limits { of_each: 3, write: WRITE_TIMEOUT });
        let held: Vec<_> = (0..3).map(|_| connect("127.0.0.2", address)).collect();
        let mut fourth = connect("127.0.0.2", address);
        let ended = fourth.read(&mut [0]).unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(refusals.counts().into_iter().find(|(reason, _)| *reason == "share").unwrap().1, 1);
        let mut other = connect("127.0.0.3", address);
        ask(&mut other);
        assert!(length(other) > LARGE);
        drop(held);
        served_at_last("127.0.0.2", address);
    }

    #[test]
    fn who_does_not_take_an_answer_loses_its_place() {
        let (address, _) = start(Limits { of_each: 1, write: Duration::from_millis(500) });
        let mut stalled = connect("127.0.0.1", address);
        ask(&mut stalled);
        served_at_last("127.0.0.1", address);
        drop(stalled);
    }

    /// Waits until a source is given a place again: others' are let go of when their end is noticed.
    fn served_at_last(from: &str, to: SocketAddr) {
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while {
            let mut again = connect(from, to);
            let asked = again.write_all(REQUEST);
            asked.is_err() || length(again) < LARGE
        } {
            assert!(std::time::Instant::now() < deadline, "its place is still taken");
        }
    }
}
