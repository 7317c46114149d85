//! The name server: authoritative for `faas.`, forwarding every other name.
//!
//! hickory's server receives and encodes; what is answered is decided here, from a [`Zone`] that the daemon swaps
//! at every change. A query therefore sees a change as soon as the swap is done, and never half of one.

mod forward;
mod metrics;
mod reply;
mod tcp;
mod zone_file;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

pub use metrics::{DnsCounts, DnsMetrics};
pub use zone_file::{ZoneFileError, write_zone_file};

use crate::core::zone::Zone;
use forward::Forwarder;
use reply::Replier;

/// More upstreams than this are a mistake in the settings.
pub const UPSTREAMS_MAX: usize = 8;

/// How names are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsConfig {
    /// Where names outside the zone are asked, the first one first. With none, they are refused.
    pub upstreams: Vec<SocketAddr>,
    /// After which a forwarded query fails. Less than the five seconds after which clients ask again.
    pub upstream_timeout: Duration,
    /// Queries that may wait for an upstream at a time; further ones fail at once.
    pub forwarded_max: usize,
    /// TCP connections at a time; further ones wait in the listener's backlog.
    pub tcp_connections_max: usize,
    /// How long a TCP connection may stay without a whole query or without taking its answer.
    pub tcp_idle_timeout: Duration,
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
        }
    }
}

/// Sockets that the caller bound, in whichever network namespace queries arrive.
#[derive(Debug, Default)]
pub struct DnsSockets {
    pub udp: Vec<std::net::UdpSocket>,
    pub tcp: Vec<std::net::TcpListener>,
}

#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    #[error("{0} DNS upstreams are given; at most {UPSTREAMS_MAX} are used")]
    Upstreams(usize),
    #[error("cannot take over a DNS socket")]
    Socket(#[source] io::Error),
    #[error("a DNS listener ended early")]
    Listener(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The running server. Dropping it stops it at once.
pub struct Dns {
    udp: Server<Handler>,
    tcp: JoinSet<()>,
    stop: watch::Sender<bool>,
    metrics: Arc<DnsMetrics>,
}

impl fmt::Debug for Dns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dns").field("metrics", &self.metrics).finish_non_exhaustive()
    }
}

impl Dns {
    /// Starts serving on the current tokio runtime. Queries are forwarded from sockets made in the network namespace
    /// of the runtime's threads.
    ///
    /// # Errors
    /// [`DnsError::Upstreams`], [`DnsError::Socket`].
    pub fn start(
        sockets: DnsSockets,
        config: &DnsConfig,
        zone: Arc<ArcSwap<Zone>>,
    ) -> Result<Self, DnsError> {
        if config.upstreams.len() > UPSTREAMS_MAX {
            return Err(DnsError::Upstreams(config.upstreams.len()));
        }
        let metrics = Arc::new(DnsMetrics::default());
        let handler = Handler(Arc::new(Replier::new(
            zone,
            Forwarder::new(&config.upstreams, config.upstream_timeout, config.forwarded_max),
            Arc::clone(&metrics),
        )));
        let mut udp = Server::new(handler.clone());
        for socket in sockets.udp {
            socket.set_nonblocking(true).map_err(DnsError::Socket)?;
            udp.register_socket(tokio::net::UdpSocket::from_std(socket).map_err(DnsError::Socket)?);
        }
        let (stop, stopped) = watch::channel(false);
        let connections = Arc::new(Semaphore::new(config.tcp_connections_max));
        let mut tcp = JoinSet::new();
        for listener in sockets.tcp {
            listener.set_nonblocking(true).map_err(DnsError::Socket)?;
            let listener = tokio::net::TcpListener::from_std(listener).map_err(DnsError::Socket)?;
            let listener = tcp::Listener {
                listener,
                handler: handler.clone(),
                connections: Arc::clone(&connections),
                idle_timeout: config.tcp_idle_timeout,
                stopped: stopped.clone(),
            };
            tcp.spawn(listener.serve());
        }
        Ok(Self { udp, tcp, stop, metrics })
    }

    #[must_use]
    pub const fn metrics(&self) -> &Arc<DnsMetrics> {
        &self.metrics
    }

    /// Stops receiving, and waits for the TCP queries that are being answered: at most the upstreams' timeout and
    /// the time a client takes for its answer. A UDP client asks again by itself.
    ///
    /// # Errors
    /// [`DnsError::Listener`] if a socket had failed before.
    pub async fn shutdown(mut self) -> Result<(), DnsError> {
        let _ = self.stop.send(true);
        let udp = self.udp.shutdown_gracefully().await;
        let mut result = udp.map_err(|e| DnsError::Listener(Box::new(e)));
        while let Some(ended) = self.tcp.join_next().await {
            if let Err(e) = ended {
                result = Err(DnsError::Listener(Box::new(e)));
            }
        }
        result
    }
}

/// What hickory calls for each request.
#[derive(Clone)]
struct Handler(Arc<Replier>);

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        response: R,
    ) -> ResponseInfo {
        self.0.reply(request).await.send(request, response).await
    }
}
