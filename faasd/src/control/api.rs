//! The API's server side: routes, limits and errors. What is done about a request is a [`Service`]'s business.
//!
//! There are two routers. [`local`] is for whoever may open the unix socket, and can do everything. [`tunnel`] is for
//! peers, and takes the source address of a connection, which WireGuard has bound to a key, for the caller's identity:
//! `/metrics` is for all of them, `/v1/join` for who is invited, `/v1/rotate` for who has joined, and everything else for
//! admins ([`gate`]).

mod access;
mod answer;
mod document;
mod error;
mod extract;
mod follow;
mod gate;
mod handlers;
mod images;
mod limit;
mod list;
mod logs;
mod secrets;
mod serve;
mod share;
mod traffic;

use std::io;
use std::net::Ipv6Addr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aide::axum::ApiRouter;
use aide::axum::routing::{delete_with, get_with, post_with, put_with};
use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::any;
use futures_util::stream::BoxStream;
use tokio::sync::Semaphore;
use tower_http::timeout::RequestBodyTimeoutLayer;
use tracing::debug;

pub use document::document;
pub use error::{ApiError, nearest};
pub use gate::Refusals;
pub use limit::WRITES_PER_SECOND;
pub use serve::{
    CONNECTIONS_MAX, CONNECTIONS_PER_PEER_MAX, GROUP, bind_unix, inherit_unix, serve_tunnel, serve_unix,
};

use super::events::Filter;
use crate::api::condition::Condition;
use crate::api::types::{
    ARCHIVE_BYTES_MAX, Changed, DefaultChange, Deploy, Event, EventLine, Function, FunctionPolicy,
    FunctionUsage, Group, GroupChange, Image, ImportedImage, Invite, Invited, Join, NamedImage, Peer,
    Policies, Pruned, Revisions, RuleChange, Secret, Traffic, Version,
};
use crate::core::access::{GroupName, Role};
use crate::core::image::ImageName;
use crate::core::name::FunctionName;
use crate::core::revision::Alias;
use crate::core::secret::{SecretBytes, SecretName};
use crate::runtime::logs::Query;

/// The most uploads at a time: each may hold [`ARCHIVE_BYTES_MAX`] of disk.
pub const UPLOADS_MAX: usize = 4;

/// The most clients that follow logs or events.
pub const FOLLOWERS_MAX: usize = 64;

/// How long a request may take that only looks something up or changes a record.
pub const QUICK: Duration = Duration::from_secs(30);

/// How long an upload may take, unpacking included.
pub const UPLOAD: Duration = Duration::from_secs(600);

/// How long a root image may take, to be sent and to be unpacked.
pub const IMPORT: Duration = Duration::from_secs(3600);

/// How long a function may take until its response begins. The body may then take as long as it likes.
pub const INVOKE: Duration = Duration::from_secs(300);

/// How long removing a function may take: its longest drain, and the rest.
pub const REMOVE: Duration = Duration::from_secs(660);

/// How long a change of who serves may take: revisions without an instance have to start, by their own deadlines.
pub const TRAFFIC: Duration = Duration::from_secs(1260);

/// What a deploy may take beyond the function's own deadlines.
pub const DEPLOY_MARGIN: Duration = Duration::from_secs(60);

/// The daemon, as the API sees it.
///
/// Any of these futures is dropped when its time is up or the client hangs up: work that must not stop half-way
/// belongs in a task of its own.
#[async_trait]
pub trait Service: Send + Sync + 'static {
    async fn version(&self) -> Version;
    /// Those whose names begin so.
    async fn functions(&self, prefix: &str) -> Result<Vec<Function>, ApiError>;
    async fn function(&self, name: &FunctionName) -> Result<Function, ApiError>;
    /// Takes in the code in a tar archive. The file is removed when this returns.
    async fn add_image(&self, archive: &Path) -> Result<Image, ApiError>;
    /// The root images.
    async fn images(&self) -> Result<Vec<NamedImage>, ApiError>;
    /// Takes in a root image from an archive, under `name`, or the name that it has, or else `fallback`. The file is
    /// removed when this returns.
    async fn import_image(
        &self,
        archive: &Path,
        name: Option<ImageName>,
        fallback: Option<ImageName>,
    ) -> Result<ImportedImage, ApiError>;
    async fn remove_image(&self, name: ImageName) -> Result<(), ApiError>;
    /// Removes what nothing names or runs; with `names` also the names of images that no function runs.
    async fn prune_images(&self, names: bool) -> Result<Pruned, ApiError>;
    /// Whether code has been uploaded and is still there.
    async fn has_image(&self, digest: &str) -> bool;
    /// Returns once an instance is ready (or at once, for a function that keeps none, and where nothing is to be
    /// changed). Whether the condition holds is decided together with the change.
    async fn deploy(
        &self,
        name: FunctionName,
        deploy: Deploy,
        condition: Condition,
    ) -> Result<Function, ApiError>;
    /// The revisions that are kept, the newest first.
    async fn revisions(&self, name: &FunctionName) -> Result<Revisions, ApiError>;
    /// Returns once these revisions serve.
    async fn set_traffic(&self, name: &FunctionName, traffic: Traffic) -> Result<Function, ApiError>;
    /// Goes back to who served before the last change, and returns once they do.
    async fn rollback(&self, name: &FunctionName) -> Result<Function, ApiError>;
    /// Names a revision, or without one takes the name away.
    async fn alias(
        &self,
        name: &FunctionName,
        alias: Alias,
        revision: Option<u64>,
    ) -> Result<Function, ApiError>;
    /// Returns once the function's instances are gone.
    async fn remove(&self, name: &FunctionName, condition: Condition) -> Result<(), ApiError>;
    /// What a function has written last, oldest first.
    async fn logs(&self, name: &FunctionName, query: Query) -> Result<Vec<String>, ApiError>;
    /// The same, and what it writes from now on, until it is removed.
    async fn follow_logs(
        &self,
        name: &FunctionName,
        query: Query,
    ) -> Result<BoxStream<'static, String>, ApiError>;
    /// The last `limit` events, oldest first.
    fn events(&self, filter: &Filter, limit: usize) -> Vec<Event>;
    /// The same, and those that come. It ends for whoever does not keep up.
    fn follow_events(&self, filter: Filter, limit: usize) -> BoxStream<'static, EventLine>;
    async fn secrets(&self) -> Result<Vec<Secret>, ApiError>;
    async fn set_secret(&self, name: &SecretName, value: SecretBytes) -> Result<Secret, ApiError>;
    /// Unless `force`, one that a function reads stays.
    async fn remove_secret(&self, name: &SecretName, force: bool) -> Result<(), ApiError>;
    /// Sends a request to the function. Its URI is the path and query that the function shall see.
    async fn invoke(&self, name: &FunctionName, request: Request) -> Result<Response, ApiError>;
    async fn peers(&self) -> Result<Vec<Peer>, ApiError>;
    async fn invite(&self, invite: Invite) -> Result<Invited, ApiError>;
    async fn revoke(&self, name: &FunctionName) -> Result<(), ApiError>;
    /// Replaces the key of the peer whose address `source` is, if its invitation is still open.
    async fn join(&self, source: Ipv6Addr, join: Join) -> Result<(), ApiError>;
    /// Gives the peer that has joined with this address another key.
    async fn rotate(&self, source: Ipv6Addr, join: Join) -> Result<(), ApiError>;
    /// What the peer may do that has joined with this address, if there is one.
    fn role(&self, source: Ipv6Addr) -> Option<(FunctionName, Role)>;
    async fn set_role(&self, name: &FunctionName, role: Role) -> Result<Peer, ApiError>;
    /// Of functions whose names begin so.
    async fn policies(&self, prefix: &str) -> Result<Policies, ApiError>;
    async fn policy(&self, name: &FunctionName) -> Result<FunctionPolicy, ApiError>;
    async fn set_rules(&self, change: RuleChange) -> Result<Changed, ApiError>;
    /// Of a function, or of all that have none of their own.
    async fn set_default(
        &self,
        name: Option<FunctionName>,
        change: DefaultChange,
    ) -> Result<Changed, ApiError>;
    async fn groups(&self) -> Result<Vec<Group>, ApiError>;
    async fn group(&self, name: &GroupName) -> Result<Group, ApiError>;
    async fn change_group(&self, name: &GroupName, change: GroupChange) -> Result<Changed, ApiError>;
    async fn remove_group(&self, name: &GroupName, keep: bool) -> Result<Changed, ApiError>;
    /// What functions use whose names begin so.
    async fn usage(&self, prefix: &str) -> Result<Vec<FunctionUsage>, ApiError>;
    /// Every metric in Prometheus's text format.
    async fn metrics(&self) -> Result<String, ApiError>;
}

/// Where a request through the tunnel came from.
#[derive(Clone, Copy, Debug)]
pub struct Source(pub Ipv6Addr);

/// Where uploads wait until they are unpacked, and how large they may be.
#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    archive_bytes_max: u64,
    room: Semaphore,
}

impl Spool {
    /// Makes the directory, and empties it of what an earlier daemon left.
    ///
    /// # Errors
    /// Those of `mkdir(2)` and `unlink(2)`.
    pub fn open(dir: PathBuf) -> io::Result<Self> {
        match std::fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        std::fs::create_dir_all(&dir)?;
        Ok(Self { dir, archive_bytes_max: ARCHIVE_BYTES_MAX, room: Semaphore::new(UPLOADS_MAX) })
    }

    /// Sets a lower limit than [`ARCHIVE_BYTES_MAX`], for a machine with little disk.
    #[must_use]
    pub fn with_archive_bytes_max(mut self, bytes: u64) -> Self {
        self.archive_bytes_max = bytes.min(ARCHIVE_BYTES_MAX);
        self
    }
}

/// What both routers serve from. A handle: clones share it.
#[derive(Clone)]
pub struct Api {
    service: Arc<dyn Service>,
    spool: Arc<Spool>,
    followers: Arc<Semaphore>,
    /// Of changes, by all callers together.
    bucket: limit::Bucket,
}

impl Api {
    /// With how many changes a second it takes.
    pub fn new(service: Arc<dyn Service>, spool: Spool, writes_per_second: NonZeroU32) -> Self {
        Self {
            service,
            spool: Arc::new(spool),
            followers: Arc::new(Semaphore::new(FOLLOWERS_MAX)),
            bucket: limit::bucket(writes_per_second),
        }
    }
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Api")
    }
}

/// The routes of the unix socket.
pub fn local(api: &Api) -> Router {
    finish(local_routes().into(), api)
}

/// Every route with its description, from which [`document`] is made. One that is added by `route` instead of
/// `api_route` is missing there, and a test says so.
fn local_routes() -> ApiRouter<Api> {
    use document::{any_json, archive, op};
    use {handlers as h, images as i};
    ApiRouter::new()
        .api_route(
            "/v1/openapi.json",
            get_with(document::serve, |o| any_json(op(o, "document", "This document"))),
        )
        .api_route("/v1/version", get_with(h::version, |o| op(o, "version", "The daemon's version")))
        .api_route("/v1/functions", get_with(h::functions, |o| op(o, "listFunctions", "All functions")))
        .api_route(
            "/v1/images",
            get_with(i::list, |o| op(o, "listImages", "The root images"))
                .post_with(h::add_image, |o| archive(op(o, "uploadCode", "Upload a function's code")))
                .delete_with(i::remove, |o| op(o, "removeImage", "Remove a root image")),
        )
        .api_route(
            "/v1/images/import",
            post_with(i::import, |o| archive(op(o, "importImage", "Import a root image"))),
        )
        .api_route(
            "/v1/images/prune",
            post_with(i::prune, |o| op(o, "pruneImages", "Remove images that nothing uses")),
        )
        .api_route("/v1/images/{digest}", get_with(h::image, |o| op(o, "hasCode", "Whether code is there")))
        .api_route(
            "/v1/functions/{name}",
            get_with(h::function, |o| op(o, "getFunction", "One function"))
                .put_with(h::deploy, |o| {
                    op(o, "deployFunction", "Deploy a function; answered once it is ready")
                })
                .delete_with(h::remove, |o| {
                    op(o, "removeFunction", "Remove a function; answered once it is gone")
                }),
        )
        .merge(traffic_routes())
        .merge(observed_routes())
        // `any` takes methods that a document has no words for, so these are described apart.
        .route("/v1/functions/{name}/invoke", any(h::invoke))
        .route("/v1/functions/{name}/invoke/", any(h::invoke))
        .route("/v1/functions/{name}/invoke/{*path}", any(h::invoke))
        .merge(access_routes())
}

/// Who is in the network, and who may call what.
fn access_routes() -> ApiRouter<Api> {
    use document::op;
    use {access as a, handlers as h};
    ApiRouter::new()
        .api_route(
            "/v1/peers",
            get_with(h::peers, |o| op(o, "listPeers", "All peers of the tunnel"))
                .post_with(h::invite, |o| op(o, "invitePeer", "Invite a peer")),
        )
        .api_route("/v1/peers/{name}", delete_with(h::revoke, |o| op(o, "revokePeer", "Revoke a peer")))
        .api_route(
            "/v1/peers/{name}/role",
            put_with(a::set_role, |o| op(o, "setRole", "Make a peer an admin, or a user again")),
        )
        .api_route(
            "/v1/policy",
            get_with(a::policies, |o| op(o, "listPolicies", "Who may call which function"))
                .post_with(a::set_rules, |o| op(o, "setRules", "Allow, deny, or forget that"))
                .put_with(a::set_common_default, |o| {
                    op(o, "setCommonDefault", "The default of functions that have none of their own")
                }),
        )
        .api_route(
            "/v1/policy/{name}",
            get_with(a::policy, |o| op(o, "getPolicy", "Who may call a function"))
                .put_with(a::set_default, |o| op(o, "setDefault", "A function's own default")),
        )
        .api_route("/v1/groups", get_with(a::groups, |o| op(o, "listGroups", "The groups")))
        .api_route(
            "/v1/groups/{name}",
            get_with(a::group, |o| op(o, "getGroup", "A group"))
                .post_with(a::change_group, |o| op(o, "changeGroup", "Who comes into a group, and who goes"))
                .delete_with(a::remove_group, |o| op(o, "removeGroup", "Remove a group, and its rules")),
        )
}

/// What functions write, what happens to them, what they read.
fn observed_routes() -> ApiRouter<Api> {
    use document::{events, octets, op, text};
    use {handlers as h, logs as l, secrets as s};
    ApiRouter::new()
        .api_route(
            "/v1/functions/{name}/logs",
            get_with(l::logs, |o| text(op(o, "logs", "What a function wrote, and writes from now on"))),
        )
        .api_route(
            "/v1/usage",
            get_with(h::usage, |o| op(o, "usage", "What functions use now, and have used so far")),
        )
        .api_route(
            "/v1/events",
            get_with(l::events, |o| events(op(o, "events", "What happened, and what happens from now on"))),
        )
        .api_route(
            "/v1/secrets",
            get_with(s::list, |o| op(o, "listSecrets", "The secrets, not what they are")),
        )
        .api_route(
            "/v1/secrets/{secret}",
            put_with(s::set, |o| octets(op(o, "setSecret", "Set a secret, or change it")))
                .delete_with(s::remove, |o| op(o, "removeSecret", "Remove a secret")),
        )
}

/// Who serves, and by what name.
fn traffic_routes() -> ApiRouter<Api> {
    use document::op;
    use traffic as t;
    ApiRouter::new()
        .api_route(
            "/v1/functions/{name}/revisions",
            get_with(t::revisions, |o| {
                op(o, "listRevisions", "The revisions that are kept, the newest first")
            }),
        )
        .api_route(
            "/v1/functions/{name}/traffic",
            put_with(t::set_traffic, |o| op(o, "setTraffic", "Who serves; answered once it is in effect")),
        )
        .api_route(
            "/v1/functions/{name}/rollback",
            post_with(t::rollback, |o| op(o, "rollBack", "Go back to who served before the last change")),
        )
        .api_route(
            "/v1/functions/{name}/aliases/{alias}",
            put_with(t::set_alias, |o| op(o, "setAlias", "Name a revision"))
                .delete_with(t::remove_alias, |o| op(o, "removeAlias", "Take a revision's name away")),
        )
}

/// How long a peer may leave a body that it has begun to send without a further piece.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// The routes of the tunnel's own address: those of [`local`] as well, for admins. `port` is where it listens; what is
/// refused at the gate is counted in `refusals`.
pub fn tunnel(api: &Api, server: Ipv6Addr, port: u16, refusals: Arc<Refusals>) -> Router {
    let gate = gate::Gate::new(Arc::clone(&api.service), server, port, refusals);
    let routes = Router::from(tunnel_routes().merge(local_routes()));
    // Outermost: nothing is parsed of what somebody sends who has no business here.
    finish(routes, api)
        .layer(RequestBodyTimeoutLayer::new(BODY_TIMEOUT))
        .layer(middleware::from_fn_with_state(gate, gate::check))
}

fn tunnel_routes() -> ApiRouter<Api> {
    use document::{op, text};
    use handlers as h;
    ApiRouter::new()
        .api_route(gate::METRICS, get_with(h::metrics, |o| text(op(o, "metrics", "Metrics for Prometheus"))))
        .api_route(
            gate::JOIN,
            post_with(h::join, |o| op(o, "join", "Replace an invitation's key by one's own")),
        )
        .api_route(
            gate::ROTATE,
            post_with(h::rotate, |o| op(o, "rotate", "Replace one's key by another of one's own")),
        )
}

fn finish(routes: Router<Api>, api: &Api) -> Router {
    routes
        .method_not_allowed_fallback(handlers::no_method)
        .fallback(handlers::no_route)
        .layer(middleware::from_fn_with_state(Arc::clone(&api.bucket), limit::throttle))
        .layer(middleware::from_fn(trace))
        // Bodies are bounded where they are read: an archive's limit is not that of a record.
        .layer(axum::extract::DefaultBodyLimit::disable())
        .with_state(api.clone())
}

async fn trace(request: Request<Body>, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let began = Instant::now();
    let response = next.run(request).await;
    debug!(%method, path, status = response.status().as_u16(), elapsed = ?began.elapsed(), "API request");
    response
}
