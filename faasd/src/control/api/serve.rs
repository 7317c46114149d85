//! The two listeners, and the loop that serves one: bounded in connections and in time, and finished gently.

use std::fs;
use std::future::Future;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
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
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tracing::{debug, warn};

use super::Source;

/// The group whose members may use the API without being root.
pub const GROUP: &str = "faas";

/// The most connections at a time on one listener; the next ones wait in its backlog.
pub const CONNECTIONS_MAX: usize = 256;

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
    serve(listener, router, stop).await;
    Ok(())
}

/// Serves peers on the tunnel's address, which tells each request the address that it came from.
///
/// # Errors
/// When the listener cannot be registered with the async runtime.
pub async fn serve_tunnel(
    listener: std::net::TcpListener,
    router: Router,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    serve(listener, router, stop).await;
    Ok(())
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
}

impl Accept for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<(UnixStream, Option<Source>)> {
        Ok((Self::accept(self).await?.0, None))
    }
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, Option<Source>)> {
        let (stream, peer) = Self::accept(self).await?;
        Ok((stream, Some(Source(ipv6(peer)))))
    }
}

async fn serve(listener: impl Accept, router: Router, stop: impl Future<Output = ()>) {
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
                let connection = connection(stream, source, router.clone(), stopped.clone());
                tokio::spawn(async move {
                    connection.await;
                    drop(permit);
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
