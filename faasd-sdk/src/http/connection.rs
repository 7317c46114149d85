//! One connection: hyper while requests come, next to nothing while none does.
//!
//! hyper holds buffers of some 17 KB a connection for as long as it has it. So a connection on which nothing
//! happened between two ticks of the server's clock is taken apart, and put together again when its next request
//! comes; with very many connections that is done after each answer, so that memory has a bound. What has sent half a request's head by then and does not go on is closed after a while.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::sync::Notify;

use super::BoxError;
use super::stream::Stream;
use crate::wire::{Caller, CallerName};
use crate::{Connection, Open};

/// How often the server looks for connections on which nothing happens.
pub(crate) const TICK: Duration = Duration::from_secs(2);

/// How many connections hyper may have before it has to give each back once it is quiet. Some 5 MiB of buffers.
const ACTIVE_MAX: u64 = 256;

/// How many ticks in a row may find an unfinished head: about half a minute.
const HEAD_TICKS_MAX: u32 = 15;

/// How long an idle connection may take for one more request once the server drains: its client cannot know yet, and
/// may be about to ask. The answer tells it to ask elsewhere from then on.
const LAST_REQUEST_GRACE: Duration = Duration::from_secs(3);

/// Why hyper is interrupted.
enum Talked {
    Ended,
    /// There are too many connections for this one to stay.
    Crowded,
}

/// What all connections of a server share.
#[derive(Debug)]
pub(crate) struct Shared<S> {
    pub(crate) service: S,
    pub(crate) open: Open,
    /// Requests carry [`Addresses`].
    addresses: bool,
    pub(crate) draining: AtomicBool,
    /// Wakes the connections that hyper has: the clock ticked, or the server drains.
    pub(crate) tick: Notify,
    /// Wakes the connections that are parked: the server drains.
    pub(crate) drain: Notify,
    /// Connections that hyper has: without any, the clock stands still.
    pub(crate) active: AtomicU64,
    /// Wakes the clock.
    pub(crate) activated: Notify,
}

impl<S> Shared<S> {
    pub(crate) fn new(service: S, open: Open, addresses: bool) -> Self {
        Self {
            service,
            open,
            addresses,
            draining: AtomicBool::new(false),
            tick: Notify::new(),
            drain: Notify::new(),
            active: AtomicU64::new(0),
            activated: Notify::new(),
        }
    }

    pub(crate) fn begin_drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
        self.tick.notify_waiters();
        self.drain.notify_waiters();
    }

    pub(crate) fn draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }
}

/// Counts a connection as active.
struct Active<'a, S>(&'a Shared<S>);

impl<'a, S> Active<'a, S> {
    fn new(shared: &'a Shared<S>) -> Self {
        if shared.active.fetch_add(1, Ordering::Relaxed) == 0 {
            shared.activated.notify_one();
        }
        Self(shared)
    }
}

impl<S> Drop for Active<'_, S> {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The two ends of a request's connection: an extension of the request, if the server was asked for it.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// The caller's. Within the VPN it is the caller's identity.
    pub peer: SocketAddr,
    /// The one that was dialled.
    pub local: SocketAddr,
    name: CallerName,
}

impl Addresses {
    fn of(socket: &OwnedFd, caller: &Caller) -> Option<Self> {
        let peer = match caller.socket_address() {
            Some(told) => told,
            None => rustix::net::getpeername(socket).ok()??.try_into().ok()?,
        };
        let local = rustix::net::getsockname(socket).ok()?.try_into().ok()?;
        Some(Self { peer, local, name: caller.name })
    }

    /// The name of who dialled: a peer's, or `fn:` and a function's. `None` if the platform does not know the address,
    /// or is none.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.is_known().then(|| self.name.as_str())
    }
}

/// What happens on one connection, as its socket, its service and its responses' bodies see it.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    /// Requests begun, ever.
    requests: AtomicU64,
    /// Requests whose answer hyper has not taken in whole.
    unanswered: AtomicU32,
    /// The last write had to wait: bytes are left in hyper's buffer.
    blocked: AtomicBool,
    /// The last request had a body. Whether it was read to its end only hyper knows.
    body: AtomicBool,
    addresses: Option<Addresses>,
}

impl Activity {
    pub(crate) fn set_blocked(&self, blocked: bool) {
        self.blocked.store(blocked, Ordering::Relaxed);
    }

    fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Whether hyper holds nothing of this connection's but input that it has not understood yet.
    fn is_quiet(&self) -> bool {
        self.unanswered.load(Ordering::Relaxed) == 0
            && !self.blocked.load(Ordering::Relaxed)
            && !self.body.load(Ordering::Relaxed)
    }
}

/// One request, from its head to the end of its answer.
#[derive(Debug)]
struct Unanswered(Arc<Activity>);

impl Unanswered {
    fn new(activity: &Arc<Activity>, request: &Request<Incoming>) -> Self {
        activity.requests.fetch_add(1, Ordering::Relaxed);
        activity.unanswered.fetch_add(1, Ordering::Relaxed);
        activity.body.store(!request.body().is_end_stream(), Ordering::Relaxed);
        Self(Arc::clone(activity))
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        self.0.unanswered.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A response's body that knows when it is done with.
#[derive(Debug)]
pub(crate) struct Tracked<B> {
    body: Pin<Box<B>>,
    _unanswered: Unanswered,
}

/// Serves one connection to its end.
pub(crate) async fn serve<S, F, B>(shared: Arc<Shared<S>>, connection: Connection)
where
    S: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Response<B>, BoxError>> + Send,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let Connection { caller, stream, guard, .. } = connection;
    let addresses = if shared.addresses { Addresses::of(&stream, &caller) } else { None };
    let activity = Arc::new(Activity { addresses, ..Activity::default() });
    let mut stream = Stream::new(stream, Arc::clone(&activity), guard);
    loop {
        // Boxed, so that a parked connection's task is small.
        match Box::pin(talk(&shared, stream, &activity)).await {
            Some(quiet) => stream = quiet,
            None => break,
        }
        let drained = shared.drain.notified();
        if !shared.draining() {
            tokio::select! {
                biased;
                ready = stream.readable() => if ready.is_err() { break },
                () = drained => {}
            }
        }
        if shared.draining() && !stream.has_input() {
            let asked = tokio::time::timeout(LAST_REQUEST_GRACE, stream.readable()).await;
            if !matches!(asked, Ok(Ok(()))) || !stream.has_input() {
                break;
            }
        }
    }
}

/// Lets hyper serve the connection: to its end, or until it is quiet, when its socket is given back.
async fn talk<S, F, B>(shared: &Arc<Shared<S>>, stream: Stream, activity: &Arc<Activity>) -> Option<Stream>
where
    S: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Response<B>, BoxError>> + Send,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let _active = Active::new(shared);
    let mut stream = stream;
    let mut unfinished_ticks = 0;
    // What was asked for when the connection was found in the midst of a request's head, which is no time to park.
    let mut unfinished_at = None;
    loop {
        let service = service_fn(|request| answer(shared, activity, request));
        let talk = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        let mut talk = talk.with_upgrades();
        let mut seen = activity.requests();
        let ticked;
        loop {
            let tick = shared.tick.notified();
            if shared.draining() {
                if let Ok(_end) = tokio::time::timeout(LAST_REQUEST_GRACE, &mut talk).await {
                    return None;
                }
                Pin::new(&mut talk).graceful_shutdown();
                let _ = talk.await;
                return None;
            }
            let talked = poll_fn(|cx| match Pin::new(&mut talk).poll(cx) {
                // An error is the client's: it hung up or spoke something else than HTTP.
                Poll::Ready(_end) => Poll::Ready(Talked::Ended),
                Poll::Pending
                    if shared.active.load(Ordering::Relaxed) > ACTIVE_MAX
                        && activity.is_quiet()
                        && unfinished_at != Some(activity.requests()) =>
                {
                    Poll::Ready(Talked::Crowded)
                }
                Poll::Pending => Poll::Pending,
            });
            let crowded = tokio::select! {
                biased;
                talked = talked => match talked {
                    Talked::Ended => return None,
                    Talked::Crowded => true,
                },
                () = tick => false,
            };
            let quiet = activity.is_quiet() && activity.requests() == seen;
            if (crowded || quiet) && !shared.draining() {
                ticked = !crowded;
                break;
            }
            if activity.requests() != seen {
                unfinished_ticks = 0;
            }
            seen = activity.requests();
        }
        // Upgraded, and the service's from then on.
        let parts = talk.into_parts()?;
        stream = parts.io.into_inner();
        if parts.read_buf.is_empty() {
            return Some(stream);
        }
        unfinished_at = Some(activity.requests());
        unfinished_ticks += u32::from(ticked);
        if unfinished_ticks > HEAD_TICKS_MAX {
            return None;
        }
        stream.put_back(parts.read_buf);
    }
}

/// Calls the service. Whatever it does, there is an answer.
async fn answer<S, F, B>(
    shared: &Shared<S>,
    activity: &Arc<Activity>,
    mut request: Request<Incoming>,
) -> Result<Response<Either<Tracked<B>, Full<Bytes>>>, Infallible>
where
    S: Fn(Request<Incoming>) -> F,
    F: Future<Output = Result<Response<B>, BoxError>>,
{
    let unanswered = Unanswered::new(activity, &request);
    if let Some(addresses) = activity.addresses {
        request.extensions_mut().insert(addresses);
    }
    let status = shared.open.status();
    let called = catch_unwind(AssertUnwindSafe(|| (shared.service)(request)));
    let outcome = match called {
        Ok(future) => {
            let mut future = pin!(future);
            poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
                Ok(poll) => poll.map(Some),
                // The panic's message went to stderr by the hook; the future is not polled again.
                Err(_panic) => Poll::Ready(None),
            })
            .await
        }
        Err(_panic) => None,
    };
    let mut response = match outcome {
        Some(Ok(response)) => {
            response.map(|body| Either::Left(Tracked { body: Box::pin(body), _unanswered: unanswered }))
        }
        Some(Err(e)) => {
            eprintln!("the service failed: {e}");
            failure()
        }
        None => failure(),
    };
    status.add_request();
    if response.status().is_server_error() {
        status.add_error();
    }
    if shared.draining() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

fn failure<B>() -> Response<Either<B, Full<Bytes>>> {
    let mut response = Response::new(Either::Right(Full::from("internal server error\n")));
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}

impl<B: Body> Body for Tracked<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        self.body.as_mut().poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
