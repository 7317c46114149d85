//! A daemon without a machine under it: the real router on a real socket, and a service that keeps all in memory.

#![allow(dead_code, clippy::allow_attributes, reason = "each test program uses a part of it")]

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::Response;
use faasd::api::condition::{Condition, etag};
use faasd::api::types::{
    Changed, Connections, DefaultChange, Deploy, Event, EventLine, Function, FunctionPolicy, FunctionUsage,
    Group, GroupChange, Image, ImportedImage, Instance, Invite, Invited, Join, NamedImage, PROBLEM_HEADER,
    Peer, Phase, Policies, Pruned, Queues, Revision, Revisions, RuleChange, Secret, State, Traffic,
    TrafficShare, Version,
};
use faasd::control::access::Access;
use faasd::control::api::{
    Api, ApiError, Refusals, Service, Spool, WRITES_PER_SECOND, bind_unix, local, serve_tunnel, serve_unix,
    tunnel,
};
use faasd::control::events::Filter;
use faasd::control::flows::Seen;
use faasd::control::owner::{Listed, Lives};
use faasd::control::records::PeerRecord;
use faasd::control::store::Embedded;
use faasd::control::used::{self, UsedBy};
use faasd::core::access::{GroupName, Role};
use faasd::core::address::{FUNCTION_PREFIX, VPN_PREFIX};
use faasd::core::image::ImageName;
use faasd::core::name::FunctionName;
use faasd::core::revision::{Alias, RevisionName, WantedShare};
use faasd::core::secret::{SecretBytes, SecretName};
use faasd::runtime::image;
use faasd::runtime::logs::Query;
use futures_util::stream::{self, BoxStream, StreamExt};
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, oneshot};

/// The fake. What goes wrong is a knob on it.
#[derive(Debug, Default)]
pub struct Fake {
    pub functions: Mutex<BTreeMap<FunctionName, Function>>,
    pub peers: Mutex<BTreeMap<FunctionName, Peer>>,
    /// Digest and entries of every archive that came in.
    pub images: Mutex<BTreeMap<String, Vec<String>>>,
    pub roots: Mutex<BTreeMap<ImageName, NamedImage>>,
    pub events: Mutex<Vec<Event>>,
    pub secrets: Mutex<BTreeMap<SecretName, (Secret, SecretBytes)>>,
    pub joined: Mutex<Vec<(Ipv6Addr, String)>>,
    /// Who asks through the tunnel.
    pub roles: Mutex<BTreeMap<Ipv6Addr, (FunctionName, Role)>>,
    /// The real one, without a kernel.
    pub access: Policy,
    /// The next deploy fails with this.
    pub deploy_fails: Mutex<Option<ApiError>>,
    /// `/wait` answers once this is notified.
    pub release: Notify,
    pub waiting: AtomicU64,
}

/// Who may call what, on record in a directory of its own.
#[derive(Debug)]
pub struct Policy {
    access: Access,
    _dir: tempfile::TempDir,
}

impl Default for Policy {
    fn default() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Embedded::open(&dir.path().join("store")).unwrap());
        let access = Access::open(store, faasd::core::access::Access::Open, FUNCTION_PREFIX).unwrap();
        Self { access, _dir: dir }
    }
}

impl std::ops::Deref for Policy {
    type Target = Access;

    fn deref(&self) -> &Access {
        &self.access
    }
}

/// As the owner decides it.
fn meets(name: &FunctionName, condition: &Condition, present: Option<&Function>) -> Result<(), ApiError> {
    let found = || present.map_or("no function".to_owned(), etag);
    match condition.holds(present) {
        true => Ok(()),
        false => {
            let (name, expected) = (name.clone(), condition.to_string());
            Err(ApiError::Precondition { name, expected, found: found() })
        }
    }
}

impl Fake {
    fn find(&self, name: &FunctionName) -> Result<Function, ApiError> {
        let functions = self.functions.lock().unwrap();
        let known = functions.keys().map(FunctionName::as_str);
        functions.get(name).cloned().ok_or_else(|| ApiError::no_function(name, known))
    }
}

#[async_trait]
impl Service for Fake {
    async fn version(&self) -> Version {
        Version {
            version: env!("CARGO_PKG_VERSION").into(),
            started_at: Timestamp::now(),
            wireguard: "userspace".into(),
            runtime: "runc 1.1.5".into(),
            layout: 1,
        }
    }

    async fn functions(&self, _: &str) -> Result<Vec<Function>, ApiError> {
        Ok(self.functions.lock().unwrap().values().cloned().collect())
    }

    async fn function(&self, name: &FunctionName) -> Result<Function, ApiError> {
        self.find(name)
    }

    async fn add_image(&self, archive: &Path) -> Result<Image, ApiError> {
        let bytes = std::fs::read(archive).map_err(|e| ApiError::failed(&e))?;
        let bad = |_| ApiError::invalid("the upload is no tar archive");
        let digest = image::digest(bytes.as_slice()).map_err(|e| ApiError::invalid(e.to_string()))?;
        let mut entries = Vec::new();
        for entry in tar::Archive::new(bytes.as_slice()).entries().map_err(bad)? {
            entries.push(entry.map_err(bad)?.path().map_err(bad)?.display().to_string());
        }
        self.images.lock().unwrap().insert(digest.clone(), entries);
        Ok(Image { digest, bytes: bytes.len() as u64 })
    }

    async fn images(&self) -> Result<Vec<NamedImage>, ApiError> {
        Ok(self.roots.lock().unwrap().values().cloned().collect())
    }

    async fn import_image(
        &self,
        archive: &Path,
        name: Option<ImageName>,
        fallback: Option<ImageName>,
    ) -> Result<ImportedImage, ApiError> {
        let bytes = std::fs::read(archive).map_err(|e| ApiError::failed(&e))?;
        let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let name = name.or(fallback).ok_or_else(|| ApiError::invalid("it does not say what it is called"))?;
        let image = NamedImage {
            name: name.clone(),
            digest: format!("sha256:{digest}"),
            manifest: None,
            bytes: bytes.len() as u64,
            layers: 1,
            imported_at: Timestamp::now(),
            functions: Vec::new(),
        };
        self.roots.lock().unwrap().insert(name, image.clone());
        Ok(ImportedImage { image, notes: vec!["left out: /dev/null".into()] })
    }

    async fn remove_image(&self, name: ImageName) -> Result<(), ApiError> {
        let removed = self.roots.lock().unwrap().remove(&name);
        removed.map(drop).ok_or(ApiError::NotFound { what: format!("image '{name}'"), suggestion: None })
    }

    async fn prune_images(&self, names: bool) -> Result<Pruned, ApiError> {
        let mut roots = self.roots.lock().unwrap();
        let names = if names { std::mem::take(&mut *roots).into_keys().collect() } else { Vec::new() };
        Ok(Pruned { names, freed_bytes: 7 })
    }

    async fn has_image(&self, digest: &str) -> bool {
        self.images.lock().unwrap().contains_key(digest)
    }

    async fn deploy(
        &self,
        name: FunctionName,
        deploy: Deploy,
        condition: Condition,
    ) -> Result<Function, ApiError> {
        if let Some(error) = self.deploy_fails.lock().unwrap().take() {
            return Err(error);
        }
        let code = deploy.image.clone().unwrap_or_default();
        if !self.images.lock().unwrap().contains_key(&code) {
            return Err(ApiError::NotFound { what: format!("image {code}"), suggestion: None });
        }
        let mut functions = self.functions.lock().unwrap();
        meets(&name, &condition, functions.get(&name))?;
        if let Some(present) = functions.get(&name)
            && !deploy.force
            && (&present.image, &present.dependencies, &present.spec)
                == (&deploy.image, &deploy.dependencies, &deploy.spec)
        {
            return Ok(present.clone());
        }
        let revision = functions.get(&name).map_or(0, |function| function.revision) + 1;
        let instance = Instance {
            id: format!("{name}-{revision}"),
            revision,
            pid: Some(4321),
            phase: Phase::Ready,
            started_at: Timestamp::now(),
            in_flight: 0,
            requests: 0,
            errors: 0,
            adopted: false,
            relayed: false,
            start: None,
        };
        let function = Function {
            name: name.clone(),
            revision,
            address: FUNCTION_PREFIX.function(&name),
            image: deploy.image,
            root: None,
            dependencies: deploy.dependencies,
            spec: deploy.spec,
            deployed_at: Timestamp::now(),
            traffic: vec![TrafficShare { revision, weight: 100 }],
            aliases: BTreeMap::new(),
            state: State::Warm,
            reason: None,
            failures: 0,
            retry_in_ms: None,
            instances: vec![instance],
            connections: Connections::default(),
            egress: Default::default(),
        };
        self.access.show_function(&name, self.access.fresh_number(), function.address);
        functions.insert(name, function.clone());
        Ok(function)
    }

    async fn revisions(&self, name: &FunctionName) -> Result<Revisions, ApiError> {
        let function = self.find(name)?;
        let revision = |number| Revision {
            revision: number,
            weight: function.traffic.iter().find(|s| s.revision == number).map_or(0, |share| share.weight),
            aliases: function.aliases.iter().filter(|(_, n)| **n == number).map(|(a, _)| a.clone()).collect(),
            ready: 1,
            image: function.image.clone(),
            root: None,
            dependencies: None,
            spec: function.spec.clone(),
            deployed_at: function.deployed_at,
        };
        Ok(Revisions { revisions: (1..=function.revision).rev().map(revision).collect() })
    }

    async fn set_traffic(&self, name: &FunctionName, traffic: Traffic) -> Result<Function, ApiError> {
        self.find(name)?;
        let mut functions = self.functions.lock().unwrap();
        let function = functions.get_mut(name).unwrap();
        function.traffic = traffic
            .shares
            .iter()
            .filter_map(|share| match share.revision {
                RevisionName::Number(revision) => Some(TrafficShare { revision, weight: share.weight }),
                RevisionName::Alias(_) => None,
            })
            .collect();
        Ok(function.clone())
    }

    async fn rollback(&self, name: &FunctionName) -> Result<Function, ApiError> {
        let previous = self.find(name)?.revision.checked_sub(1).filter(|n| *n > 0);
        let revision =
            previous.ok_or_else(|| ApiError::conflict(format!("'{name}' has nothing to go back to")))?;
        let revision = RevisionName::Number(revision);
        self.set_traffic(name, Traffic { shares: vec![WantedShare { revision, weight: 100 }] }).await
    }

    async fn alias(
        &self,
        name: &FunctionName,
        alias: Alias,
        revision: Option<u64>,
    ) -> Result<Function, ApiError> {
        self.find(name)?;
        let mut functions = self.functions.lock().unwrap();
        let function = functions.get_mut(name).unwrap();
        match revision {
            Some(revision) => drop(function.aliases.insert(alias, revision)),
            None => drop(function.aliases.remove(&alias)),
        }
        Ok(function.clone())
    }

    async fn remove(&self, name: &FunctionName, condition: Condition) -> Result<(), ApiError> {
        meets(name, &condition, Some(&self.find(name)?))?;
        self.functions.lock().unwrap().remove(name);
        Ok(())
    }

    async fn logs(&self, name: &FunctionName, query: Query) -> Result<Vec<String>, ApiError> {
        self.find(name)?;
        if let Some(instance) = query.instance {
            return Ok(vec![format!("of {instance}, {}", query.since.is_some())]);
        }
        Ok((1..=query.lines).map(|line| format!("line {line}")).collect())
    }

    /// Three lines; then the function is removed, unless it is called `endless`.
    async fn follow_logs(
        &self,
        name: &FunctionName,
        query: Query,
    ) -> Result<BoxStream<'static, String>, ApiError> {
        self.find(name)?;
        let lines = stream::iter((1..=query.lines).map(|line| format!("line {line}")));
        Ok(match name.as_str() {
            "endless" => lines.chain(stream::pending()).boxed(),
            _ => lines.boxed(),
        })
    }

    fn events(&self, filter: &Filter, limit: usize) -> Vec<Event> {
        let events = self.events.lock().unwrap();
        let found: Vec<_> = events.iter().filter(|event| filter.matches(event)).cloned().collect();
        found[found.len().saturating_sub(limit)..].to_vec()
    }

    fn follow_events(&self, filter: Filter, limit: usize) -> BoxStream<'static, EventLine> {
        stream::iter(self.events(&filter, limit)).map(EventLine::Event).chain(stream::pending()).boxed()
    }

    async fn secrets(&self) -> Result<Vec<Secret>, ApiError> {
        Ok(self.secrets.lock().unwrap().values().map(|(secret, _)| secret.clone()).collect())
    }

    async fn set_secret(&self, name: &SecretName, value: SecretBytes) -> Result<Secret, ApiError> {
        let (bytes, set_at) = (value.as_bytes().len(), Timestamp::now());
        let secret = Secret { name: name.clone(), bytes, set_at, functions: Vec::new() };
        self.secrets.lock().unwrap().insert(name.clone(), (secret.clone(), value));
        Ok(secret)
    }

    async fn remove_secret(&self, name: &SecretName, force: bool) -> Result<(), ApiError> {
        if !force {
            return Err(ApiError::conflict(format!("the secret '{name}' is read by hello")));
        }
        let removed = self.secrets.lock().unwrap().remove(name);
        removed.map(drop).ok_or(ApiError::NotFound { what: format!("secret '{name}'"), suggestion: None })
    }

    /// Echoes; `/status/NNN` answers with that status, `/wait` when it is let go, `/forge` poses as the daemon.
    async fn invoke(&self, name: &FunctionName, request: Request) -> Result<Response, ApiError> {
        self.find(name)?;
        let (head, body) = request.into_parts();
        let path = head.uri.path();
        let mut answer = Response::builder().header("x-method", head.method.as_str());
        if let Some(host) = head.headers.get("host") {
            answer = answer.header("x-host", host);
        }
        if let Some(value) = head.headers.get("x-test") {
            answer = answer.header("x-test", value);
        }
        if let Some(status) = path.strip_prefix("/status/") {
            answer = answer.status(StatusCode::from_bytes(status.as_bytes()).unwrap());
        } else if path == "/wait" {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            self.release.notified().await;
        } else if path == "/forge" {
            answer = answer.status(404).header(PROBLEM_HEADER, "1");
        }
        let body = axum::body::to_bytes(body, 64 << 20).await.map_err(|e| ApiError::failed(&e))?;
        let body = if body.is_empty() { Body::from(head.uri.to_string()) } else { Body::from(body) };
        Ok(answer.body(body).unwrap())
    }

    async fn peers(&self) -> Result<Vec<Peer>, ApiError> {
        Ok(self.peers.lock().unwrap().values().cloned().collect())
    }

    async fn invite(&self, invite: Invite) -> Result<Invited, ApiError> {
        let mut peers = self.peers.lock().unwrap();
        let expires_at = Timestamp::now() + Duration::from_millis(invite.expires_in_ms);
        let peer = Peer {
            name: invite.name.clone(),
            address: VPN_PREFIX.host(peers.len() as u64 + 2),
            role: invite.role,
            groups: Vec::new(),
            public_key: "k".repeat(44),
            invited_until: Some(expires_at),
            endpoint: None,
            last_handshake: None,
            received_bytes: 0,
            sent_bytes: 0,
        };
        let address = peer.address;
        if peers.contains_key(&invite.name) {
            return Err(ApiError::conflict(format!("there is a peer '{}' already", invite.name)));
        }
        self.access.show_peer(&PeerRecord {
            name: invite.name.clone(),
            number: self.access.fresh_number(),
            address,
            role: invite.role,
            public_key: peer.public_key.clone(),
            invited_until: Some(expires_at),
            endpoint: None,
        });
        peers.insert(invite.name.clone(), peer);
        let endpoint = invite.endpoint.unwrap_or_else(|| "vpn.example.org:51820".into());
        Ok(Invited { name: invite.name, address, expires_at, invitation: format!("faas1-{endpoint}") })
    }

    async fn revoke(&self, name: &FunctionName) -> Result<(), ApiError> {
        let mut peers = self.peers.lock().unwrap();
        match peers.remove(name) {
            Some(_) => Ok(()),
            None => Err(ApiError::no_peer(name, peers.keys().map(FunctionName::as_str))),
        }
    }

    async fn rotate(&self, source: Ipv6Addr, join: Join) -> Result<(), ApiError> {
        self.join(source, join).await
    }

    async fn join(&self, source: Ipv6Addr, join: Join) -> Result<(), ApiError> {
        self.joined.lock().unwrap().push((source, join.public_key));
        Ok(())
    }

    fn role(&self, source: Ipv6Addr) -> Option<(FunctionName, Role)> {
        self.roles.lock().unwrap().get(&source).cloned()
    }

    async fn set_role(&self, name: &FunctionName, role: Role) -> Result<Peer, ApiError> {
        let mut peers = self.peers.lock().unwrap();
        let known: Vec<_> = peers.keys().map(ToString::to_string).collect();
        let peer = peers.get_mut(name);
        let peer = peer.ok_or_else(|| ApiError::no_peer(name, known.iter().map(String::as_str)))?;
        peer.role = role;
        Ok(peer.clone())
    }

    async fn policies(&self, prefix: &str) -> Result<Policies, ApiError> {
        self.access.policies(prefix)
    }

    async fn policy(&self, name: &FunctionName) -> Result<FunctionPolicy, ApiError> {
        self.access.policy_of(name)
    }

    async fn set_rules(&self, change: RuleChange) -> Result<Changed, ApiError> {
        self.access.set_rules(&change)
    }

    async fn set_default(
        &self,
        name: Option<FunctionName>,
        change: DefaultChange,
    ) -> Result<Changed, ApiError> {
        self.access.set_default(name.as_ref(), &change)
    }

    async fn groups(&self) -> Result<Vec<Group>, ApiError> {
        Ok(self.access.groups())
    }

    async fn group(&self, name: &GroupName) -> Result<Group, ApiError> {
        self.access.group(name)
    }

    async fn change_group(&self, name: &GroupName, change: GroupChange) -> Result<Changed, ApiError> {
        self.access.change_group(name, &change)
    }

    async fn remove_group(&self, name: &GroupName, keep: bool) -> Result<Changed, ApiError> {
        self.access.remove_group(name, keep)
    }

    async fn usage(&self, prefix: &str) -> Result<Vec<FunctionUsage>, ApiError> {
        let listed = |function| Listed {
            function,
            stats: Vec::new(),
            lives: Lives::default(),
            queues: Queues::default(),
        };
        let listed: Vec<_> = self.functions(prefix).await?.into_iter().map(listed).collect();
        Ok(used::usage(&listed, &UsedBy::new(), &Seen::default()))
    }

    async fn metrics(&self) -> Result<String, ApiError> {
        Ok("faasd_up 1\n".into())
    }
}

/// The fake, served from a thread of its own until this is dropped.
#[derive(Debug)]
pub struct Daemon {
    pub fake: Arc<Fake>,
    pub socket: PathBuf,
    pub tunnel: std::net::SocketAddr,
    pub refusals: Arc<Refusals>,
    dir: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Daemon {
    pub fn start() -> Self {
        Self::with(u64::MAX, WRITES_PER_SECOND)
    }

    pub fn with_archive_bytes_max(bytes: u64) -> Self {
        Self::with(bytes, WRITES_PER_SECOND)
    }

    pub fn with_writes_per_second(writes: u32) -> Self {
        Self::with(u64::MAX, NonZeroU32::new(writes).unwrap())
    }

    fn with(bytes: u64, writes_per_second: NonZeroU32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("faasd.sock");
        let listener = bind_unix(&socket).unwrap();
        let spool = Spool::open(dir.path().join("spool")).unwrap().with_archive_bytes_max(bytes);
        let tcp = std::net::TcpListener::bind("[::1]:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let fake = Arc::new(Fake::default());
        let service = Arc::clone(&fake) as Arc<dyn Service>;
        let (stop, stopped) = oneshot::channel::<()>();
        let refusals = Arc::<Refusals>::default();
        let counted = Arc::clone(&refusals);
        let thread = thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                // The tunnel's listener has no end of its own: it is dropped with the other.
                let api = Api::new(service, spool, writes_per_second);
                let routes = tunnel(&api, Ipv6Addr::LOCALHOST, address.port(), Arc::clone(&counted));
                tokio::spawn(serve_tunnel(tcp, routes, counted, std::future::pending()));
                let stopped = async { drop(stopped.await) };
                serve_unix(listener, local(&api), stopped).await.unwrap();
            });
        });
        Self { fake, socket, tunnel: address, refusals, dir, stop: Some(stop), thread: Some(thread) }
    }

    /// From now on no upload can be written.
    pub fn lose_spool(&self) {
        std::fs::remove_dir(self.dir.path().join("spool")).unwrap();
    }

    /// Files that wait in the spool directory.
    pub fn spooled(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("spool")).unwrap().count()
    }

    /// Begins the shutdown, without waiting for its end.
    pub fn begin_stop(&mut self) {
        drop(self.stop.take());
    }

    pub fn finished(&self) -> bool {
        self.thread.as_ref().is_none_or(thread::JoinHandle::is_finished)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.begin_stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}
