//! Who may ask for what at the tunnel's address, by where a request comes from.

use std::net::Ipv6Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::{ApiError, Service, Source, limit};
use crate::core::access::Role;
use crate::core::zone::{SERVER_LABEL, ZONE};

/// For every peer.
pub(super) const METRICS: &str = "/metrics";

/// For who is invited, which its handler sees to.
pub(super) const JOIN: &str = "/v1/join";

/// For who has joined.
pub(super) const ROTATE: &str = "/v1/rotate";

/// Where a browser says which site a request comes from.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// What the client calls the server, whatever its address.
const HOST: &str = "faasd";

/// Why requests were turned away, counted.
#[derive(Debug, Default)]
pub struct Refusals {
    role: AtomicU64,
    page: AtomicU64,
    share: AtomicU64,
}

impl Refusals {
    /// By reason, as the metric names it.
    #[must_use]
    pub fn counts(&self) -> [(&'static str, u64); 3] {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        [("role", read(&self.role)), ("page", read(&self.page)), ("share", read(&self.share))]
    }

    /// A connection was one too many for its peer.
    pub(super) fn count_share(&self) {
        self.share.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Clone)]
pub(super) struct Gate {
    service: Arc<dyn Service>,
    /// What a request may call the server.
    hosts: Arc<[String]>,
    refusals: Arc<Refusals>,
}

impl Gate {
    pub fn new(service: Arc<dyn Service>, server: Ipv6Addr, port: u16, refusals: Arc<Refusals>) -> Self {
        // Nobody else can have its name in our zone lead elsewhere.
        let name = format!("{SERVER_LABEL}.{ZONE}");
        let with_port = |host: &str| format!("{host}:{port}");
        let address = format!("[{server}]");
        let hosts = [HOST.to_owned(), with_port(&address), address, with_port(&name), name];
        Self { service, hosts: hosts.into(), refusals }
    }

    /// Whether a web page sends it, from a peer's browser: all but reads have an origin there, what a page of another
    /// site reads is said to be that, and what a page reads under a name of its own has that name. Functions have names
    /// of their own in invocations.
    fn is_from_a_page(&self, request: &Request<Body>) -> bool {
        let headers = request.headers();
        let text = |name| headers.get(name).and_then(|value: &header::HeaderValue| value.to_str().ok());
        let is_ours = text(header::HOST).is_some_and(|host| {
            self.hosts.iter().any(|ours| ours.eq_ignore_ascii_case(host))
                || (limit::is_invocation(request.uri().path()) && is_a_functions(host))
        });
        // What a person types, and what no browser sends, is `none` or nothing.
        let is_foreign = text(SEC_FETCH_SITE).is_some_and(|site| site != "none");
        headers.contains_key(header::ORIGIN) || is_foreign || !is_ours
    }
}

/// `NAME.faas`, with or without a port.
fn is_a_functions(host: &str) -> bool {
    let name = host.split_once(':').map_or(host, |(name, _)| name).to_ascii_lowercase();
    name.strip_suffix(ZONE).is_some_and(|name| name.ends_with('.'))
}

/// Lets admins do everything, and others what is for them, before anything else of a request is looked at.
pub(super) async fn check(State(gate): State<Gate>, request: Request<Body>, next: Next) -> Response {
    let peer = request.extensions().get::<Source>().and_then(|source| gate.service.role(source.0));
    let refused = match (request.uri().path(), peer) {
        (JOIN, _) | (METRICS | ROTATE, Some(_)) | (_, Some((_, Role::Admin))) => {
            gate.is_from_a_page(&request).then_some((&gate.refusals.page, ApiError::Page))
        }
        (_, peer) => Some((&gate.refusals.role, ApiError::NotAdmin { peer: peer.map(|(name, _)| name) })),
    };
    let Some((count, error)) = refused else { return next.run(request).await };
    count.fetch_add(1, Ordering::Relaxed);
    // Its body is not read: whoever sends a long one sees the connection closed.
    let mut response = error.into_response();
    response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    response
}
