//! The name server: authoritative for `faas.` and for the reverse zones of our prefixes, forwarding every other name.
//!
//! Our own names are answered from the [`Zone`](crate::core::zone::Zone) that is published at the time, over UDP by
//! threads of their own. hickory reads and writes all other messages: what upstreams say, transfers, notifications.

mod cache;
mod files;
mod flights;
mod forward;
mod limit;
mod metrics;
mod names;
mod notify;
mod places;
mod rebind;
mod tcp;
mod transfer;
mod udp;
mod upstream;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

pub use files::{ZoneFileError, ZoneFiles, keep};
pub use metrics::{DnsCounts, DnsMetrics};
pub use names::Names;

use crate::core::zone::{Caller, Labels};
use forward::Forwarder;
use limit::Limit;
use metrics::Outcome;
use places::Places;

/// More upstreams than this are a mistake in the settings.
pub const UPSTREAMS_MAX: usize = 8;
/// The same of secondaries.
pub const SECONDARIES_MAX: usize = 8;

/// UDP sockets that share the port, and so threads: one for each core up to this.
const THREADS_MAX: usize = 4;

/// How many UDP sockets are to share the port.
#[must_use]
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX)
}

/// How names are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsConfig {
    /// Where names outside the zones are asked, the first one first. With none, they are refused.
    pub upstreams: Vec<SocketAddr>,
    /// After which a forwarded query fails. Less than the five seconds after which clients ask again.
    pub upstream_timeout: Duration,
    /// Queries that may wait for an upstream at a time; further ones fail at once.
    pub forwarded_max: usize,
    /// TCP connections at a time; further ones wait in the listener's backlog.
    pub tcp_connections_max: usize,
    /// How long a TCP connection may stay without a whole query or without taking its answer.
    pub tcp_idle_timeout: Duration,
    /// UDP queries a second that each source may send, and as many at once. 0 for no limit.
    pub rate_limit: u32,
    /// Who may have whole zones.
    pub secondaries: Vec<IpAddr>,
    /// A line in the log for each query.
    pub query_log: bool,
}

impl Default for DnsConfig {
    fn default() -> Self {
        const GOOGLE: Ipv6Addr = Ipv6Addr::new(0x2001, 0x4860, 0x4860, 0, 0, 0, 0, 0x8888);
        const CLOUDFLARE: Ipv6Addr = Ipv6Addr::new(0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1111);
        Self {
            upstreams: [GOOGLE, CLOUDFLARE].map(|ip| SocketAddr::new(IpAddr::V6(ip), 53)).to_vec(),
            upstream_timeout: Duration::from_secs(2),
            forwarded_max: 256,
            tcp_connections_max: 128,
            tcp_idle_timeout: Duration::from_secs(5),
            rate_limit: 10_000,
            secondaries: Vec::new(),
            query_log: false,
        }
    }
}

/// Sockets that the caller bound, in whichever network namespace queries arrive.
#[derive(Debug, Default)]
pub struct DnsSockets {
    /// Of IPv6.
    pub udp: Vec<std::net::UdpSocket>,
    pub tcp: Vec<std::net::TcpListener>,
    /// For each secondary that is to be notified, a socket to do so.
    pub notify: Vec<(SocketAddr, std::net::UdpSocket)>,
}

#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    #[error("{0} DNS upstreams are given; at most {UPSTREAMS_MAX} are used")]
    Upstreams(usize),
    #[error("cannot take over a DNS socket")]
    Socket(#[source] io::Error),
    #[error("a DNS listener ended early")]
    Listener,
}

/// The running server. Dropping it stops it, without waiting for the end.
pub struct Dns {
    threads: Vec<(Arc<std::net::UdpSocket>, JoinHandle<()>)>,
    tasks: JoinSet<()>,
    forwarding: JoinSet<()>,
    stop: watch::Sender<bool>,
    shared: Arc<Shared>,
}

impl fmt::Debug for Dns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dns").field("metrics", &self.shared.metrics).finish_non_exhaustive()
    }
}

/// What all that serve have in common.
struct Shared {
    names: Arc<Names>,
    forwarder: Forwarder,
    metrics: Arc<DnsMetrics>,
    limit: Limit,
    secondaries: Vec<IpAddr>,
    query_log: AtomicBool,
    tcp_idle_timeout: Duration,
    began: Instant,
    stopped: AtomicBool,
}

impl Shared {
    fn caller(&self) -> Caller {
        Caller { recursion: self.forwarder.is_enabled() }
    }

    /// One line for a query, if they are wanted. A name is the client's: it is escaped.
    fn log(&self, query: &[u8], source: SocketAddr, tcp: bool, outcome: Option<Outcome>) {
        if self.query_log.load(Ordering::Relaxed) {
            let (name, kind) = Labels::of_query(query).unwrap_or_default();
            tracing::info!(%source, %name, kind, tcp, ?outcome, "DNS query");
        }
    }
}

impl Dns {
    /// Starts serving, on threads and on the current tokio runtime. Queries are forwarded from sockets made in the network
    /// namespace of the runtime's threads. Secondaries are notified whenever `written` says a new serial.
    ///
    /// # Errors
    /// [`DnsError::Upstreams`], [`DnsError::Socket`].
    pub fn start(
        sockets: DnsSockets,
        config: &DnsConfig,
        names: &Arc<Names>,
        written: &watch::Receiver<u32>,
    ) -> Result<Self, DnsError> {
        if config.upstreams.len() > UPSTREAMS_MAX {
            return Err(DnsError::Upstreams(config.upstreams.len()));
        }
        let metrics = Arc::new(DnsMetrics::default());
        let shared = Arc::new(Shared {
            forwarder: Forwarder::new(config, Arc::clone(names), Arc::clone(&metrics)),
            names: Arc::clone(names),
            metrics: Arc::clone(&metrics),
            limit: Limit::new(config.rate_limit),
            secondaries: config.secondaries.clone(),
            query_log: config.query_log.into(),
            tcp_idle_timeout: config.tcp_idle_timeout,
            began: Instant::now(),
            stopped: AtomicBool::new(false),
        });
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let (elsewhere, queries) = mpsc::channel(config.forwarded_max);
        let mut threads = Vec::new();
        for socket in sockets.udp {
            let socket = Arc::new(socket);
            let thread = udp::start(Arc::clone(&socket), Arc::clone(&shared), elsewhere.clone());
            threads.push((socket, thread.map_err(DnsError::Socket)?));
        }
        let mut forwarding = JoinSet::new();
        forwarding.spawn(udp::forward(Arc::clone(&shared), queries));
        let connections = Arc::new(Semaphore::new(config.tcp_connections_max));
        for listener in sockets.tcp {
            listener.set_nonblocking(true).map_err(DnsError::Socket)?;
            let listener = tcp::Listener {
                listener: tokio::net::TcpListener::from_std(listener).map_err(DnsError::Socket)?,
                shared: Arc::clone(&shared),
                connections: Arc::clone(&connections),
                places: Places::new(config.tcp_connections_max),
                stopped: stopped.clone(),
            };
            tasks.spawn(listener.serve());
        }
        for (secondary, socket) in sockets.notify {
            socket.set_nonblocking(true).map_err(DnsError::Socket)?;
            let notifier = notify::Notifier {
                secondary,
                socket: tokio::net::UdpSocket::from_std(socket).map_err(DnsError::Socket)?,
                names: Arc::clone(names),
                metrics: Arc::clone(&metrics),
                written: written.clone(),
            };
            forwarding.spawn(notifier.run());
        }
        Ok(Self { threads, tasks, forwarding, stop, shared })
    }

    #[must_use]
    pub fn metrics(&self) -> &Arc<DnsMetrics> {
        &self.shared.metrics
    }

    /// What can be set while it serves.
    pub fn set(&self, rate_limit: u32, query_log: bool) {
        self.shared.limit.set(rate_limit);
        self.shared.query_log.store(query_log, Ordering::Relaxed);
    }

    /// Stops receiving, and waits for the TCP queries that are being answered: at most the upstreams' timeout and
    /// the time a client takes for its answer. A UDP client asks again by itself.
    ///
    /// # Errors
    /// [`DnsError::Listener`] if a listener had failed before.
    pub async fn shutdown(mut self) -> Result<(), DnsError> {
        self.end();
        let mut result = Ok(());
        for (_, thread) in std::mem::take(&mut self.threads) {
            let ended = tokio::task::spawn_blocking(|| thread.join()).await;
            if !matches!(ended, Ok(Ok(()))) {
                result = Err(DnsError::Listener);
            }
        }
        while let Some(ended) = self.tasks.join_next().await {
            if ended.is_err() {
                result = Err(DnsError::Listener);
            }
        }
        self.forwarding.shutdown().await;
        result
    }

    fn end(&self) {
        self.shared.stopped.store(true, Ordering::Release);
        let _ = self.stop.send(true);
        for (socket, _) in &self.threads {
            // Linux wakes who waits for a message, and says then that the socket was not connected.
            let _ = rustix::net::shutdown(&**socket, rustix::net::Shutdown::Read);
        }
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.end();
    }
}
