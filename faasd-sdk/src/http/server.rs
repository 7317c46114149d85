//! The server: takes connections from the platform, or from a listener of its own, and starts a task for each.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::{Request, Response};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpSocket;
use tokio::signal::unix::{SignalKind, signal};

use super::BoxError;
use super::connection::{Shared, TICK, serve};
use crate::{AsyncReceiver, Connection, Error, Event, Open, Receiver, StatusPage};

/// The environment variable that makes a program listen by itself.
const LISTEN: &str = "FAAS_LISTEN";

/// The kernel bounds it by `net.core.somaxconn`.
const BACKLOG: u32 = 4096;

/// How long a listener rests when the process or the machine is out of something.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(20);

/// Serves `service` on one thread, until the platform drains the instance or SIGTERM comes: everything that `main`
/// has to do.
///
/// ```no_run
/// use faasd_sdk::http::{self, Full, Response};
///
/// fn main() -> Result<(), faasd_sdk::Error> {
///     http::run(|request| async move {
///         Ok::<_, std::convert::Infallible>(Response::new(Full::from(format!("{}\n", request.uri().path()))))
///     })
/// }
/// ```
///
/// # Errors
/// See [`Server::run`].
pub fn run<S, F, B, E>(service: S) -> Result<(), Error>
where
    S: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Response<B>, E>> + Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
    E: Into<BoxError>,
{
    Server::new().run(service)
}

/// Serves HTTP/1.1, with settings.
#[derive(Clone, Copy, Debug, Default)]
pub struct Server {
    threads: Option<NonZeroUsize>,
    addresses: bool,
}

/// Where connections come from.
enum Source {
    Platform(Box<AsyncReceiver>),
    Listener(AsyncFd<TcpListener>, Open),
}

impl Server {
    #[must_use]
    pub const fn new() -> Self {
        Self { threads: None, addresses: false }
    }

    /// How many threads serve. Without this it is one, which is the fastest as long as one core suffices.
    #[must_use]
    pub const fn threads(self, threads: NonZeroUsize) -> Self {
        Self { threads: Some(threads), ..self }
    }

    /// Puts [`Addresses`](super::Addresses) among each request's extensions, for two system calls a connection.
    #[must_use]
    pub const fn addresses(self) -> Self {
        Self { addresses: true, ..self }
    }

    /// Serves on a runtime of its own, with connections from the platform, or from the address in `FAAS_LISTEN`.
    /// Returns when the platform drained the instance, hung up, or SIGTERM came, and everything is answered.
    ///
    /// # Errors
    /// Those of the start: no platform and no `FAAS_LISTEN`, an address that cannot be had. Later only
    /// [`Error::Receive`] and [`Error::Wire`], once what was open is finished.
    pub fn run<S, F, B, E>(self, service: S) -> Result<(), Error>
    where
        S: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Response<B>, E>> + Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
        E: Into<BoxError>,
    {
        let mut builder = match self.threads {
            None => tokio::runtime::Builder::new_current_thread(),
            Some(threads) => {
                let mut builder = tokio::runtime::Builder::new_multi_thread();
                builder.worker_threads(threads.get());
                builder
            }
        };
        let runtime = builder.enable_all().build().map_err(Error::Runtime)?;
        runtime.block_on(async {
            let source = match std::env::var(LISTEN) {
                Ok(address) => {
                    let parsed = address.parse().map_err(|_| Error::ListenAddress(address))?;
                    Source::listen(parsed)?
                }
                Err(_) => Source::Platform(Box::new(AsyncReceiver::new(Receiver::inherited()?)?)),
            };
            work(source, service, self.addresses).await
        })
    }

    /// Serves the connections of a receiver of your own, on the current runtime.
    ///
    /// # Errors
    /// See [`Server::run`].
    pub async fn serve<S, F, B, E>(self, receiver: Receiver, service: S) -> Result<(), Error>
    where
        S: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Response<B>, E>> + Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
        E: Into<BoxError>,
    {
        work(Source::Platform(Box::new(AsyncReceiver::new(receiver)?)), service, self.addresses).await
    }
}

async fn work<S, F, B, E>(mut source: Source, service: S, addresses: bool) -> Result<(), Error>
where
    S: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Response<B>, E>> + Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
    E: Into<BoxError>,
{
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Runtime)?;
    // One type for all errors, and one allocation less than boxing the future: only an error is boxed.
    let service = move |request| {
        let future = service(request);
        async move { future.await.map_err(Into::into) }
    };
    let shared = Arc::new(Shared::new(service, source.open().clone(), addresses));
    let clock = tokio::spawn(tick(Arc::clone(&shared)));
    source.ready()?;
    let outcome = tokio::select! {
        outcome = source.take_all(|connection| { tokio::spawn(serve(Arc::clone(&shared), connection)); }) => outcome,
        _ = terminate.recv() => Ok(()),
    };
    clock.abort();
    shared.begin_drain();
    let drained = source.drained().await;
    outcome.and(drained)
}

/// The clock by which connections are found quiet. It stands while hyper has none, so that an idle instance sleeps.
async fn tick<S>(shared: Arc<Shared<S>>) {
    loop {
        if shared.active.load(Ordering::Relaxed) == 0 {
            shared.activated.notified().await;
        }
        tokio::time::sleep(TICK).await;
        shared.tick.notify_waiters();
    }
}

impl Source {
    fn listen(address: SocketAddr) -> Result<Self, Error> {
        let bind = || {
            let socket = if address.is_ipv6() { TcpSocket::new_v6() } else { TcpSocket::new_v4() }?;
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            crate::sys::watch(socket.listen(BACKLOG)?.into_std()?)
        };
        let listener = bind().map_err(|e| Error::Listen(address, e))?;
        let (status, _) = StatusPage::create().map_err(Error::Status)?;
        Ok(Self::Listener(listener, Open::new(status, None)))
    }

    fn open(&self) -> &Open {
        match self {
            Self::Platform(receiver) => receiver.open(),
            Self::Listener(_, open) => open,
        }
    }

    fn ready(&self) -> Result<(), Error> {
        match self {
            Self::Platform(receiver) => receiver.ready(),
            Self::Listener(listener, open) => {
                open.status().set_ready();
                match listener.get_ref().local_addr() {
                    Ok(address) => eprintln!("listening on {address}"),
                    Err(e) => eprintln!("listening: {e}"),
                }
                Ok(())
            }
        }
    }

    /// Gives every connection that comes to `start`, until there are to be no more.
    async fn take_all(&mut self, start: impl Fn(Connection)) -> Result<(), Error> {
        match self {
            Self::Platform(receiver) => loop {
                match receiver.recv().await {
                    Ok(Event::Connections(batch)) => batch.for_each(&start),
                    Ok(Event::Drain | Event::Closed) => return Ok(()),
                    Err(e @ Error::Truncated { .. }) => eprintln!("{e}"),
                    Err(e) => return Err(e),
                }
                answer_first().await;
            },
            Self::Listener(listener, open) => loop {
                match accept(listener).await {
                    Ok(connection) => start(open.admit(connection)),
                    Err(e) => {
                        eprintln!("accepting: {e}");
                        tokio::time::sleep(EXHAUSTED_PAUSE).await;
                    }
                }
                answer_first().await;
            },
        }
    }

    async fn drained(&mut self) -> Result<(), Error> {
        match self {
            Self::Platform(receiver) => receiver.drained().await,
            Self::Listener(_, open) => {
                open.none_left().await;
                Ok(())
            }
        }
    }
}

/// Accepts without registering what is accepted.
async fn accept(listener: &AsyncFd<TcpListener>) -> io::Result<OwnedFd> {
    listener
        .async_io(Interest::READABLE, |listener| {
            match rustix::net::accept_with(listener, SocketFlags::CLOEXEC) {
                // Gone before it was taken: the next one.
                Err(Errno::CONNABORTED | Errno::INTR) => Err(io::ErrorKind::WouldBlock.into()),
                other => other.map_err(io::Error::from),
            }
        })
        .await
}

/// Goes to the end of the runtime's queue, behind the tasks just started, without a turn of the reactor between as
/// `yield_now` would take: a connection's answer comes before the look for the next connection.
async fn answer_first() {
    let mut woken = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut woken, true) {
            return std::task::Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Platform(receiver) => f.debug_tuple("Platform").field(receiver).finish(),
            Self::Listener(listener, _) => f.debug_tuple("Listener").field(listener).finish(),
        }
    }
}
