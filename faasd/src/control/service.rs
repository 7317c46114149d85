//! The daemon as the API sees it: questions go to the owner or to the network, code to the image store.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use futures_util::stream::{BoxStream, StreamExt, unfold};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};

use super::access::{Access, NamedCounts};
use super::api::{ApiError, Refusals, Service};
use super::dns::{DnsMetrics, Names};
use super::events::{Events, Filter, NewEvent};
use super::flows::{Flows, Seen};
use super::ingress::Ingress;
use super::metrics::{self, Snapshot};
use super::network::Network;
use super::owner::{Listed, Message, Wanted, images};
use super::secrets::Secrets;
use super::steering::Steering;
use super::used::{self, Consumption, UsedBy};
use crate::api::condition::Condition;
use crate::api::types::{
    Changed, DefaultChange, Deploy, Event, EventKind, EventLine, Function, FunctionPolicy, FunctionUsage,
    Group, GroupChange, Image, ImportedImage, Invite, Invited, Join, NamedImage, Peer, Policies, Pruned,
    Revisions, RuleAction, RuleChange, Secret, Traffic, Version,
};
use crate::core::access::{GroupName, Role, Subject};
use crate::core::image::ImageName;
use crate::core::name::FunctionName;
use crate::core::revision::Alias;
use crate::core::secret::{SecretBytes, SecretName};
use crate::runtime::image::{self, UnpackError};
use crate::runtime::logs::{Logs, Query};

/// The running daemon.
#[derive(Debug)]
pub struct Daemon {
    pub owner: mpsc::Sender<Message>,
    pub network: Arc<Network>,
    pub access: Arc<Access>,
    /// What the API has turned away in the tunnel.
    pub refusals: Arc<Refusals>,
    pub steering: Arc<Steering>,
    pub ingress: Arc<Ingress>,
    pub images: image::Store,
    pub logs: Logs,
    pub events: Events,
    pub secrets: Arc<Secrets>,
    pub dns: Arc<DnsMetrics>,
    pub names: Arc<Names>,
    pub flows: Arc<Flows>,
    pub consumption: Arc<Consumption>,
    pub runtime_version: String,
    pub started_at: Timestamp,
}

impl Daemon {
    async fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> Message) -> Result<T, ApiError> {
        let stopping = || ApiError::Unavailable {
            title: "faasd is stopping".to_owned(),
            detail: Some("try again when it is back".to_owned()),
        };
        let (reply, answer) = oneshot::channel();
        self.owner.send(message(reply)).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())
    }

    /// For each function, the secrets that its revisions read which serve or have a name.
    async fn read_secrets(&self) -> Result<Vec<(FunctionName, BTreeSet<SecretName>)>, ApiError> {
        let mut all = Vec::new();
        for Function { name, revision, spec, traffic, aliases, .. } in self.functions("").await? {
            let mut secrets = BTreeSet::from_iter(spec.secrets);
            let mut numbers = traffic.iter().map(|share| share.revision).chain(aliases.into_values());
            if numbers.any(|number| number != revision) {
                let others = match self.revisions(&name).await {
                    Ok(all) => all.revisions,
                    // Removed meanwhile.
                    Err(ApiError::NotFound { .. }) => continue,
                    Err(error) => return Err(error),
                };
                let used = others.into_iter().filter(|other| other.weight > 0 || !other.aliases.is_empty());
                secrets.extend(used.flat_map(|revision| revision.spec.secrets));
            }
            all.push((name, secrets));
        }
        Ok(all)
    }

    async fn readers(&self, secret: &SecretName) -> Result<Vec<FunctionName>, ApiError> {
        let all = self.read_secrets().await?;
        Ok(all.into_iter().filter(|(_, read)| read.contains(secret)).map(|(name, _)| name).collect())
    }

    async fn counts(&self) -> Result<NamedCounts, ApiError> {
        let access = Arc::clone(&self.access);
        blocking(move || access.counts()).await
    }

    /// Runs a change of who may what to its end, whether or not anybody waits for it.
    async fn changing<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Access, &Events) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let (access, events) = (Arc::clone(&self.access), self.events.clone());
        blocking(move || work(&access, &events)).await
    }

    async fn listed(&self, prefix: &str) -> Result<Vec<Listed>, ApiError> {
        let prefix = prefix.to_owned();
        self.ask(|reply| Message::List { prefix, reply }).await
    }

    /// What these functions use, and what passes between whom.
    async fn used(&self, prefix: &str, listed: &Arc<Vec<Listed>>) -> Result<(UsedBy, Arc<Seen>), ApiError> {
        let (flows, consumption) = (Arc::clone(&self.flows), Arc::clone(&self.consumption));
        let (prefix, listed) = (prefix.to_owned(), Arc::clone(listed));
        blocking(move || {
            let used = consumption.look(&prefix, listed.iter().map(|listed| &listed.function));
            Ok((used, flows.look()?))
        })
        .await
    }

    async fn snapshot(&self) -> Result<Snapshot, ApiError> {
        let began = Instant::now();
        let ingress = Arc::clone(&self.ingress);
        let unroutable = move || ingress.unroutable_packets().map_err(|e| ApiError::failed(&e));
        let functions = Arc::new(self.listed("").await?);
        let (used, flows) = self.used("", &functions).await?;
        let network = Arc::clone(&self.network);
        let (wireguard, tunnel_dropped) = blocking(move || Ok((network.kind(), network.dropped()))).await?;
        Ok(Snapshot {
            began,
            functions,
            used,
            flows,
            wireguard,
            tunnel_dropped,
            unroutable_packets: blocking(unroutable).await?,
            decisions: self.ask(|reply| Message::Decisions { reply }).await??,
            dns: self.dns.counts(),
            zone: Arc::clone(&self.names.load()),
            peers: self.peers().await?,
            access: self.counts().await?,
            api_refused: self.refusals.counts(),
            following: [("policy", self.access.following()), ("steering", self.steering.following())],
        })
    }
}

/// Runs what waits for a disk or a socket where it holds up nobody.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| ApiError::failed(&e))?
}

/// What is wrong with what was sent, with its whole chain of causes.
fn refusal(error: &dyn std::error::Error) -> ApiError {
    match ApiError::failed(error) {
        ApiError::Failed { title, detail } => ApiError::Invalid { title, detail },
        other => other,
    }
}

fn cut_text(cut: u64) -> String {
    match cut {
        0 => String::new(),
        1 => "; 1 connection was cut".to_owned(),
        cut => format!("; {cut} connections were cut"),
    }
}

#[async_trait]
impl Service for Daemon {
    async fn version(&self) -> Version {
        let network = Arc::clone(&self.network);
        let wireguard = tokio::task::spawn_blocking(move || network.kind()).await;
        Version {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.started_at,
            wireguard: wireguard.unwrap_or_else(|_| "unknown".to_owned()),
            runtime: self.runtime_version.clone(),
            layout: faasd_common::LAYOUT,
        }
    }

    async fn functions(&self, prefix: &str) -> Result<Vec<Function>, ApiError> {
        Ok(self.listed(prefix).await?.into_iter().map(|listed| listed.function).collect())
    }

    async fn usage(&self, prefix: &str) -> Result<Vec<FunctionUsage>, ApiError> {
        let listed = Arc::new(self.listed(prefix).await?);
        let (used, flows) = self.used(prefix, &listed).await?;
        Ok(used::usage(&listed, &used, &flows))
    }

    async fn function(&self, name: &FunctionName) -> Result<Function, ApiError> {
        let name = name.clone();
        self.ask(|reply| Message::Get { name, reply }).await?
    }

    async fn add_image(&self, archive: &Path) -> Result<Image, ApiError> {
        let (images, archive) = (self.images.clone(), archive.to_owned());
        blocking(move || {
            let file = std::fs::File::open(archive).map_err(|e| ApiError::failed(&e))?;
            let unpacked = images.unpack(std::io::BufReader::new(file)).map_err(|e| match e {
                UnpackError::Write { .. } | UnpackError::Store { .. } => ApiError::failed(&e),
                refused => refusal(&refused),
            })?;
            Ok(Image { digest: unpacked.digest, bytes: unpacked.bytes })
        })
        .await
    }

    async fn images(&self) -> Result<Vec<NamedImage>, ApiError> {
        self.ask(|reply| Message::Images { reply }).await?
    }

    async fn import_image(
        &self,
        archive: &Path,
        name: Option<ImageName>,
        fallback: Option<ImageName>,
    ) -> Result<ImportedImage, ApiError> {
        let (images, archive) = (self.images.clone(), archive.to_owned());
        let imported = blocking(move || {
            let file = std::fs::File::open(archive).map_err(|e| ApiError::failed(&e))?;
            images.roots().import(&file, name.as_ref(), fallback.as_ref()).map_err(|e| match e.is_ours() {
                true => ApiError::failed(&e),
                false => refusal(&e),
            })
        })
        .await?;
        tracing::info!(image = %imported.named.name, digest = imported.named.digest, "imported");
        // Functions keep the image that they were deployed with, whatever its name stands for now.
        let functions = self.functions("").await?;
        let users = functions.into_iter().filter(|f| f.root.as_ref() == Some(&imported.named.digest));
        let users = users.map(|function| function.name).collect();
        Ok(ImportedImage { image: images::view(imported.named, users), notes: imported.notes })
    }

    async fn remove_image(&self, name: ImageName) -> Result<(), ApiError> {
        self.ask(|reply| Message::RemoveImage { name, reply }).await?
    }

    async fn prune_images(&self, names: bool) -> Result<Pruned, ApiError> {
        self.ask(|reply| Message::PruneImages { names, reply }).await?
    }

    async fn has_image(&self, digest: &str) -> bool {
        self.images.directory(digest).is_some()
    }

    async fn deploy(
        &self,
        name: FunctionName,
        deploy: Deploy,
        condition: Condition,
    ) -> Result<Function, ApiError> {
        let Deploy { image, dependencies, spec, no_traffic, force } = deploy;
        let wanted = Wanted::Deploy {
            image,
            dependencies,
            spec: Box::new(spec),
            serve: !no_traffic,
            force,
            condition,
        };
        self.ask(|reply| Message::Change { name, wanted, reply }).await?
    }

    async fn revisions(&self, name: &FunctionName) -> Result<Revisions, ApiError> {
        let name = name.clone();
        self.ask(|reply| Message::Revisions { name, reply }).await?
    }

    async fn set_traffic(&self, name: &FunctionName, traffic: Traffic) -> Result<Function, ApiError> {
        let (name, wanted) = (name.clone(), Wanted::Traffic(traffic.shares));
        self.ask(|reply| Message::Change { name, wanted, reply }).await?
    }

    async fn rollback(&self, name: &FunctionName) -> Result<Function, ApiError> {
        let name = name.clone();
        self.ask(|reply| Message::Change { name, wanted: Wanted::Rollback, reply }).await?
    }

    async fn alias(
        &self,
        name: &FunctionName,
        alias: Alias,
        revision: Option<u64>,
    ) -> Result<Function, ApiError> {
        let (name, wanted) = (name.clone(), Wanted::Alias { alias, revision });
        self.ask(|reply| Message::Change { name, wanted, reply }).await?
    }

    async fn remove(&self, name: &FunctionName, condition: Condition) -> Result<(), ApiError> {
        let name = name.clone();
        self.ask(|reply| Message::Remove { name, condition, reply }).await?
    }

    async fn logs(&self, name: &FunctionName, query: Query) -> Result<Vec<String>, ApiError> {
        self.function(name).await?;
        let (logs, name) = (self.logs.clone(), name.clone());
        blocking(move || logs.tail(&name, &query).map_err(|e| ApiError::failed(&e))).await
    }

    async fn follow_logs(
        &self,
        name: &FunctionName,
        query: Query,
    ) -> Result<BoxStream<'static, String>, ApiError> {
        // First: a removal that comes after the question is seen.
        let watch = self.logs.watch(name);
        self.function(name).await?;
        let logs = self.logs.clone();
        let follow = blocking(move || watch.begin(&logs, &query).map_err(|e| ApiError::failed(&e))).await?;
        Ok(unfold(follow, |mut follow| async { Some((follow.next().await?, follow)) }).boxed())
    }

    fn events(&self, filter: &Filter, limit: usize) -> Vec<Event> {
        self.events.last(filter, limit).into_iter().map(Arc::unwrap_or_clone).collect()
    }

    fn follow_events(&self, filter: Filter, limit: usize) -> BoxStream<'static, EventLine> {
        self.events.follow(filter, limit)
    }

    async fn secrets(&self) -> Result<Vec<Secret>, ApiError> {
        let functions = self.read_secrets().await?;
        let mut all = self.secrets.list();
        for secret in &mut all {
            let readers = functions.iter().filter(|(_, read)| read.contains(&secret.name));
            secret.functions = readers.map(|(name, _)| name.clone()).collect();
        }
        Ok(all)
    }

    async fn set_secret(&self, name: &SecretName, value: SecretBytes) -> Result<Secret, ApiError> {
        let (secrets, at) = (Arc::clone(&self.secrets), name.clone());
        let mut secret = blocking(move || Ok(secrets.set(&at, &value)?)).await?;
        tracing::info!(secret = %name, bytes = secret.bytes, "set");
        secret.functions = self.readers(name).await?;
        Ok(secret)
    }

    async fn remove_secret(&self, name: &SecretName, force: bool) -> Result<(), ApiError> {
        let readers = self.readers(name).await?;
        if !readers.is_empty() && !force {
            let readers: Vec<_> = readers.iter().map(FunctionName::as_str).collect();
            return Err(ApiError::Conflict {
                title: format!("the secret '{name}' is read by {}", readers.join(", ")),
                detail: Some(
                    "deploy them without it first; with `--force` it goes, and no instance of theirs starts any more"
                        .to_owned(),
                ),
            });
        }
        let (secrets, at) = (Arc::clone(&self.secrets), name.clone());
        match blocking(move || Ok(secrets.remove(&at)?)).await? {
            true => tracing::info!(secret = %name, "removed"),
            false => return Err(self.secrets.not_found(name)),
        }
        Ok(())
    }

    async fn invoke(&self, name: &FunctionName, mut request: Request) -> Result<Response, ApiError> {
        let function = self.function(name).await?;
        let unreachable = |e: &dyn std::fmt::Display| ApiError::Unavailable {
            title: format!("'{name}' took no connection: {e}"),
            detail: function.reason.clone(),
        };
        let (ingress, address, port) = (Arc::clone(&self.ingress), function.address, function.spec.port);
        let stream = tokio::task::spawn_blocking(move || ingress.connect(address, port))
            .await
            .map_err(|e| ApiError::failed(&e))?
            .map_err(|e| unreachable(&e))?;
        stream.set_nonblocking(true).map_err(|e| ApiError::failed(&e))?;
        let stream = tokio::net::TcpStream::from_std(stream).map_err(|e| ApiError::failed(&e))?;
        let broke_off = |e: hyper::Error| ApiError::BadAnswer(format!("'{name}' did not answer: {e}"));
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broke_off)?;
        // It drives the response's body as well, and ends with it.
        tokio::spawn(connection);
        let host = if port == 80 { format!("{name}.faas") } else { format!("{name}.faas:{port}") };
        if let Ok(host) = host.parse() {
            request.headers_mut().insert(hyper::header::HOST, host);
        }
        let response = sender.send_request(request).await.map_err(broke_off)?;
        Ok(response.map(Body::new))
    }

    async fn peers(&self) -> Result<Vec<Peer>, ApiError> {
        let network = Arc::clone(&self.network);
        blocking(move || network.peers()).await
    }

    async fn invite(&self, invite: Invite) -> Result<Invited, ApiError> {
        let (network, events) = (Arc::clone(&self.network), self.events.clone());
        blocking(move || {
            let invited = network.invite(&invite)?;
            let text = format!("'{}' is invited as {}", invited.name, invite.role.as_str());
            events.record_daemon(NewEvent::new(EventKind::PeerInvited, text));
            Ok(invited)
        })
        .await
    }

    async fn revoke(&self, name: &FunctionName) -> Result<(), ApiError> {
        let (network, events, name) = (Arc::clone(&self.network), self.events.clone(), name.clone());
        blocking(move || {
            let cut = network.revoke(&name)?;
            tracing::info!(peer = %name, cut, "revoked");
            let text = format!("'{name}' is out{}", cut_text(cut));
            events.record_daemon(NewEvent::new(EventKind::PeerRevoked, text));
            Ok(())
        })
        .await
    }

    async fn join(&self, source: Ipv6Addr, join: Join) -> Result<(), ApiError> {
        let (network, events) = (Arc::clone(&self.network), self.events.clone());
        blocking(move || {
            let name = network.join(source, &join)?;
            let text = format!("'{name}' has joined, at {source}");
            events.record_daemon(NewEvent::new(EventKind::PeerJoined, text));
            Ok(())
        })
        .await
    }

    async fn rotate(&self, source: Ipv6Addr, join: Join) -> Result<(), ApiError> {
        let (network, events) = (Arc::clone(&self.network), self.events.clone());
        blocking(move || {
            let name = network.rotate(source, &join)?;
            events.record_daemon(NewEvent::new(EventKind::PeerRotated, format!("'{name}' has another key")));
            Ok(())
        })
        .await
    }

    fn role(&self, source: Ipv6Addr) -> Option<(FunctionName, Role)> {
        self.network.role_of(source)
    }

    async fn set_role(&self, name: &FunctionName, role: Role) -> Result<Peer, ApiError> {
        let (network, events, name) = (Arc::clone(&self.network), self.events.clone(), name.clone());
        blocking(move || {
            let before = network.set_role(&name, role)?;
            if before != role {
                let text = format!("'{name}' is {} now, and was {}", role.as_str(), before.as_str());
                tracing::info!(peer = %name, role = role.as_str(), "role changed");
                events.record_daemon(NewEvent::new(EventKind::RoleChanged, text));
            }
            let peers = network.peers()?;
            peers.into_iter().find(|peer| peer.name == name).ok_or_else(|| ApiError::no_peer(&name, []))
        })
        .await
    }

    async fn policies(&self, prefix: &str) -> Result<Policies, ApiError> {
        let (access, prefix) = (Arc::clone(&self.access), prefix.to_owned());
        blocking(move || access.policies(&prefix)).await
    }

    async fn policy(&self, name: &FunctionName) -> Result<FunctionPolicy, ApiError> {
        let (access, name) = (Arc::clone(&self.access), name.clone());
        blocking(move || access.policy_of(&name)).await
    }

    async fn set_rules(&self, change: RuleChange) -> Result<Changed, ApiError> {
        self.changing(move |access, events| {
            let changed = access.set_rules(&change)?;
            if changed.changed == 0 {
                return Ok(changed);
            }
            let who: Vec<_> = change.subjects.iter().map(ToString::to_string).collect();
            let who = who.join(", ");
            let (kind, text) = match change.action {
                RuleAction::Allow => (EventKind::Allowed, format!("{who} may call it")),
                RuleAction::Deny => (EventKind::Denied, format!("{who} may not call it")),
                RuleAction::Forget => (EventKind::PolicyChanged, format!("no rule for {who}")),
            };
            tracing::info!(subjects = who, functions = change.functions.len(), action = ?change.action, "rules changed");
            for function in &change.functions {
                events.record(function, NewEvent::new(kind, &*text));
            }
            Ok(changed)
        })
        .await
    }

    async fn set_default(
        &self,
        name: Option<FunctionName>,
        change: DefaultChange,
    ) -> Result<Changed, ApiError> {
        self.changing(move |access, events| {
            let changed = access.set_default(name.as_ref(), &change)?;
            if changed.changed > 0 {
                let to = change.default.map_or("what comes next", |access| access.as_str());
                let event = NewEvent::new(
                    EventKind::PolicyChanged,
                    format!("the default is {to}{}", cut_text(changed.cut)),
                );
                match &name {
                    Some(name) => events.record(name, event),
                    None => events.record_daemon(event),
                }
            }
            Ok(changed)
        })
        .await
    }

    async fn groups(&self) -> Result<Vec<Group>, ApiError> {
        let access = Arc::clone(&self.access);
        blocking(move || Ok(access.groups())).await
    }

    async fn group(&self, name: &GroupName) -> Result<Group, ApiError> {
        self.access.group(name)
    }

    async fn change_group(&self, name: &GroupName, change: GroupChange) -> Result<Changed, ApiError> {
        let name = name.clone();
        self.changing(move |access, events| {
            let changed = access.change_group(&name, &change)?;
            if changed.changed > 0 {
                let names = |subjects: &[Subject]| -> String {
                    subjects.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
                };
                let text = match (names(&change.add), names(&change.remove)) {
                    (come, go) if go.is_empty() => format!("@{name}: {come} came"),
                    (come, go) if come.is_empty() => format!("@{name}: {go} left"),
                    (come, go) => format!("@{name}: {come} came, {go} left"),
                };
                events.record_daemon(NewEvent::new(EventKind::GroupChanged, text));
            }
            Ok(changed)
        })
        .await
    }

    async fn remove_group(&self, name: &GroupName, keep: bool) -> Result<Changed, ApiError> {
        let name = name.clone();
        self.changing(move |access, events| {
            let changed = access.remove_group(&name, keep)?;
            let text = format!("@{name} is gone{}", cut_text(changed.cut));
            events.record_daemon(NewEvent::new(EventKind::GroupChanged, text));
            Ok(changed)
        })
        .await
    }

    async fn metrics(&self) -> Result<String, ApiError> {
        let snapshot = self.snapshot().await?;
        // Of ten thousand functions it is megabytes.
        blocking(move || metrics::render(&snapshot).map_err(|e| ApiError::failed(&e))).await
    }
}
