//! The tunnel as the control plane sees it: who is in it, who is invited, and that it stays up.

mod keys;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

use super::access::Access;
use super::api::ApiError;
use super::config::Config;
use super::dns::Names;
use super::peer_files::PeerFiles;
use super::peers::Peers;
use super::records::{PEERS, PeerRecord};
use super::seen::Seen;
use super::store::{Expect, Store, StoreError, Stored, Write, list_json, put_json};
use crate::api::types::{Invitation, Invite, Invited, Peer};
use crate::core::access::{GroupName, Role, Subject};
use crate::core::name::FunctionName;
use crate::core::{endpoint, invitation};
use crate::sys::netns::NetNs;
use crate::tunnel::dropped::Dropped;
use crate::tunnel::interface::{AllowedIp, Interface, PeerChange, PeerConfig, PeerStatus};
use crate::tunnel::keys::{PrivateKey, PublicKey};
use crate::tunnel::userspace::Launch;
use crate::tunnel::{self, Setup};
use keys::Switches;

/// How often the tunnel is looked after.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// The longest time an invitation may be open: 30 days.
const INVITATION_MS_MAX: u64 = 30 * 24 * 3600 * 1000;

/// Of what part of the time the peers' whereabouts are read when nobody asks: one in so many.
const LOOK_SHARE: u32 = 100;

/// The same, at most, however often somebody asks.
const ASKED_SHARE: u32 = 5;

/// The tunnel and its peers.
#[derive(Debug)]
pub struct Network {
    config: Config,
    endpoint: RwLock<Option<String>>,
    key: PrivateKey,
    launch: Launch,
    host: NetNs,
    ingress: NetNs,
    store: Arc<dyn Store>,
    access: Arc<Access>,
    /// Held over a change of a peer, from looking at what is there to its being in effect.
    writer: Mutex<()>,
    peers: RwLock<Peers>,
    /// Keys that give way to others.
    switches: Mutex<Switches>,
    names: Arc<Names>,
    up: Mutex<Up>,
    files: PeerFiles,
}

#[derive(Debug)]
struct Up {
    interface: Box<dyn Interface>,
    seen: Seen,
}

/// What the tunnel is made from.
#[derive(Debug)]
pub struct Parts {
    pub config: Config,
    /// `HOST` or `HOST:PORT` that clients dial.
    pub endpoint: Option<String>,
    pub key: PrivateKey,
    pub launch: Launch,
    pub host: NetNs,
    pub ingress: NetNs,
    pub store: Arc<dyn Store>,
    pub access: Arc<Access>,
    pub names: Arc<Names>,
    /// Where the peers are written down for others, one file each.
    pub files: PathBuf,
}

impl Up {
    /// The peers as the tunnel sees them, or as it saw them a moment ago where there are so many that it would do little
    /// else than tell of them.
    fn look(&mut self) -> Result<Arc<HashMap<PublicKey, PeerStatus>>, tunnel::Error> {
        if self.seen.is_due(ASKED_SHARE) {
            self.seen.read(&*self.interface)?;
        }
        Ok(self.seen.peers())
    }
}

impl Network {
    /// Brings the tunnel up with all its peers, or finds it up. Blocks.
    ///
    /// # Errors
    /// Those of the tunnel and of the store.
    pub fn open(parts: Parts) -> anyhow::Result<Self> {
        let Parts { config, endpoint, key, launch, host, ingress, store, access, files, names } = parts;
        let files = PeerFiles::new(files);
        let records = list_json(&*store, PEERS)?.into_iter().map(|(_, stored)| stored);
        let peers = RwLock::new(Peers::new(config.vpn_prefix, records));
        let interface = bring_up(&config, &key, &launch, &host, &ingress)?;
        let network = Self {
            config,
            endpoint: RwLock::new(endpoint),
            key,
            launch,
            host,
            ingress,
            store,
            access,
            writer: Mutex::new(()),
            peers,
            switches: Mutex::default(),
            names,
            up: Mutex::new(Up { interface, seen: Seen::default() }),
            files,
        };
        network.reconcile(&mut network.lock())?;
        for record in network.known().iter().filter(|record| record.invited_until.is_none()) {
            network.names.publish_peer(&record.name, record.address);
        }
        network.files.write_all(network.known().iter());
        Ok(network)
    }

    /// `kernel` or `userspace`.
    #[must_use]
    pub fn kind(&self) -> String {
        self.lock().interface.kind().to_string()
    }

    /// What the tunnel dropped, unless it is gone at the moment, or of a version that does not tell. Blocks.
    #[must_use]
    pub fn dropped(&self) -> Option<Dropped> {
        let dropped = self.lock().interface.dropped();
        dropped.inspect_err(|error| tracing::debug!(%error, "the tunnel does not tell what it dropped")).ok()
    }

    /// All peers, with what the tunnel knows of them. Blocks.
    ///
    /// # Errors
    /// [`ApiError::Failed`].
    pub fn peers(&self) -> Result<Vec<Peer>, ApiError> {
        let seen = self.lock().look().map_err(|e| ApiError::failed(&e))?;
        let records: Vec<_> = self.known().iter().cloned().collect();
        let view = |record: PeerRecord| {
            let groups = self.access.groups_of(&Subject::Peer(record.name.clone()));
            let status = record.public_key.parse().ok().and_then(|key: PublicKey| seen.get(&key));
            view(&record, status, groups)
        };
        Ok(records.into_iter().map(view).collect())
    }

    /// The peer that has joined with this address, and what it may do.
    #[must_use]
    pub fn role_of(&self, address: Ipv6Addr) -> Option<(FunctionName, Role)> {
        let peers = self.known();
        let record = &peers.at(address)?.record;
        let has_joined = record.invited_until.is_none() && !self.switches().is_joining(address);
        has_joined.then(|| (record.name.clone(), record.role))
    }

    /// Gives a peer another role, and returns the one that it had. Connections of one that may do less are cut: a request
    /// that follows logs or events would have no end. Blocks.
    ///
    /// # Errors
    /// If there is no such peer.
    pub fn set_role(&self, name: &FunctionName, role: Role) -> Result<Role, ApiError> {
        let _writer = self.writer();
        let Stored { mut record, version } = self.peer(name)?;
        let before = std::mem::replace(&mut record.role, role);
        if before != role {
            let address = record.address;
            self.put(record, Expect::Version(version)).map_err(|e| ApiError::failed(&e))?;
            if before == Role::Admin {
                self.access.cut_all(address)?;
            }
        }
        Ok(before)
    }

    /// Makes an invitation, in place of an open one for the same name. Blocks.
    ///
    /// # Errors
    /// If the name has joined already, or nothing says where clients are to dial.
    pub fn invite(&self, invite: &Invite) -> Result<Invited, ApiError> {
        let failed = |e: &dyn std::error::Error| ApiError::failed(e);
        if !(1_000..=INVITATION_MS_MAX).contains(&invite.expires_in_ms) {
            return Err(ApiError::invalid("an invitation is open for 1 s to 30 days"));
        }
        let endpoint = self.endpoint(invite.endpoint.as_deref())?;
        let _writer = self.writer();
        let before = self.known().get(&invite.name).cloned();
        if let Some(joined) = before.as_ref().filter(|b| b.record.invited_until.is_none()) {
            return Err(ApiError::Conflict {
                title: format!("the peer '{}' has joined already", joined.record.name),
                detail: Some(format!("`faas vpn revoke {}` first, or choose another name", invite.name)),
            });
        }
        let (address, number) = match &before {
            Some(Stored { record, .. }) => (record.address, record.number),
            None => {
                let address = self.known().free_address();
                let address = address.ok_or_else(|| ApiError::conflict("the tunnel has no address left"))?;
                (address, self.access.fresh_number())
            }
        };
        let temporary = PrivateKey::generate();
        let expires_at = Timestamp::now() + SignedDuration::from_millis(invite.expires_in_ms as i64);
        let record = PeerRecord {
            name: invite.name.clone(),
            number,
            address,
            role: invite.role,
            public_key: temporary.public().to_string(),
            invited_until: (!invite.plain).then_some(expires_at),
            endpoint: None,
        };
        let expect = before.as_ref().map_or(Expect::Absent, |b| Expect::Version(b.version));
        let peer = config(&record, temporary.public());
        self.put(record.clone(), expect).map_err(|e| failed(&e))?;
        self.access.show_peer(&record);
        let former = before.and_then(|before| before.record.public_key.parse().ok()).map(PeerChange::Remove);
        let changes: Vec<_> = former.into_iter().chain([PeerChange::Set(peer)]).collect();
        self.lock().interface.update(&changes).map_err(|e| failed(&e))?;
        if invite.plain {
            self.names.publish_peer(&record.name, record.address);
        }
        let invitation = Invitation {
            v: invitation::VERSION,
            name: invite.name.to_string(),
            address,
            private_key: temporary.to_base64(),
            server_public_key: self.key.public().to_string(),
            endpoint,
            server: self.config.vpn_prefix.server(),
            vpn_prefix: self.config.vpn_prefix,
            function_prefix: self.config.function_prefix,
            http_port: self.config.http_port,
            expires_at,
        };
        let text = invitation.encode().map_err(|e| failed(&e))?;
        Ok(Invited { name: invite.name.clone(), address, expires_at, invitation: text })
    }

    /// Takes a peer out: nothing that it sends is taken from now on, and its connections are cut. With it go the rules
    /// that speak of it, and its places in groups. Returns how many connections there were. Blocks.
    ///
    /// # Errors
    /// If there is no such peer.
    pub fn revoke(&self, name: &FunctionName) -> Result<u64, ApiError> {
        let _writer = self.writer();
        let record = self.peer(name)?.record;
        let write = Write::Delete { key: PeerRecord::key(name) };
        let gone = self.access.remove(&Subject::Peer(name.clone()), vec![write]);
        let gone = gone.map_err(|e| ApiError::failed(&e))?;
        self.known_mut().remove(name);
        self.files.remove(name);
        // Functions without a rule now may go on looking for some until the owner has come to it.
        let unguarded = self.access.finish(gone);
        self.names.remove_peer(name);
        // Each of these whatever becomes of the others: on record the peer is gone, and a second call finds nobody.
        let former = self.switches().end(record.address).map(|switch| switch.former);
        let keys = record.public_key.parse().ok().into_iter().chain(former);
        let removed = self.lock().interface.update(&keys.map(PeerChange::Remove).collect::<Vec<_>>());
        let cut = self.access.cut_all(record.address);
        let settled = self.access.settle(unguarded);
        removed.map_err(|e| ApiError::failed(&e))?;
        settled?;
        cut
    }

    /// Looks after the tunnel: brings it up again if its process is gone, ends invitations that have expired.
    pub async fn watch(self: Arc<Self>) {
        let mut interval = tokio::time::interval(WATCH_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let network = Arc::clone(&self);
            match tokio::task::spawn_blocking(move || network.look_after()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(error = format!("{error:#}"), "the tunnel is down"),
                Err(error) => tracing::error!(%error, "the tunnel's watch failed"),
            }
        }
    }

    fn look_after(&self) -> anyhow::Result<()> {
        let looked = {
            let mut up = self.lock();
            match up.seen.is_due(LOOK_SHARE) {
                true => up.look().map(drop),
                false => up.interface.check(),
            }
        };
        if let Err(error) = looked {
            tracing::warn!(%error, "bringing the tunnel up again");
            // Whoever changes a peer does it before or after, and not in between.
            let _writer = self.writer();
            let mut up = self.lock();
            up.interface = bring_up(&self.config, &self.key, &self.launch, &self.host, &self.ingress)?;
            return self.reconcile(&mut up);
        }
        self.finish_overdue(Instant::now());
        let now = Timestamp::now();
        let keys = |peers: &Peers| -> Vec<PublicKey> {
            peers.expired(now).filter_map(|record| record.public_key.parse().ok()).collect()
        };
        let expired: Vec<_> = keys(&self.known()).into_iter().map(PeerChange::Remove).collect();
        if !expired.is_empty() {
            self.lock().interface.update(&expired)?;
            self.known_mut().settle_expired(now);
        }
        Ok(())
    }

    /// Makes the tunnel's peers those on record, without those whose invitation has expired.
    fn reconcile(&self, up: &mut Up) -> anyhow::Result<()> {
        let now = Timestamp::now();
        let mut wanted = Vec::new();
        let seen = up.seen.peers();
        for record in self.known().iter() {
            if record.invited_until.is_some_and(|until| until < now) {
                continue;
            }
            let Ok(key) = record.public_key.parse::<PublicKey>() else {
                tracing::error!(peer = %record.name, "the peer's record has no valid key");
                continue;
            };
            let mut peer = config(record, key);
            peer.endpoint = seen.get(&key).and_then(|peer| peer.endpoint);
            wanted.push(peer);
        }
        up.interface.set_peers(&wanted)?;
        // Nobody has an address by an invitation's key any more, unless the invitation is open.
        self.known().iter().for_each(|record| self.let_in(record));
        Ok(())
    }

    /// Puts a peer on record.
    fn put(&self, record: PeerRecord, expect: Expect) -> Result<(), StoreError> {
        let version = put_json(&*self.store, &PeerRecord::key(&record.name), &record, expect)?;
        self.files.write(&record);
        self.known_mut().insert(Stored { record, version });
        Ok(())
    }

    fn peer(&self, name: &FunctionName) -> Result<Stored<PeerRecord>, ApiError> {
        let peers = self.known();
        let known = || peers.iter().map(|record| record.name.as_str());
        peers.get(name).cloned().ok_or_else(|| ApiError::no_peer(name, known()))
    }

    fn known(&self) -> RwLockReadGuard<'_, Peers> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn known_mut(&self) -> RwLockWriteGuard<'_, Peers> {
        self.peers.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn switches(&self) -> MutexGuard<'_, Switches> {
        self.switches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self) -> MutexGuard<'_, ()> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another place for clients to dial, in invitations from now on.
    pub fn set_endpoint(&self, endpoint: Option<String>) {
        *self.endpoint.write().unwrap_or_else(PoisonError::into_inner) = endpoint;
    }

    /// Where clients dial: what is asked for, else what is set, with the tunnel's port if none is given.
    fn endpoint(&self, asked: Option<&str>) -> Result<String, ApiError> {
        let set = self.endpoint.read().unwrap_or_else(PoisonError::into_inner).clone();
        let endpoint = asked.or(set.as_deref()).ok_or_else(|| ApiError::Invalid {
            title: "nothing says where clients are to dial".to_owned(),
            detail: Some(
                "give `--endpoint HOST:PORT`, or set FAAS_VPN_ENDPOINT or `endpoint` in faasd.toml to this \
                 machine's public name or address"
                    .to_owned(),
            ),
        })?;
        endpoint::normalize(endpoint, self.config.listen_port).map_err(|e| ApiError::invalid(e.to_string()))
    }

    fn lock(&self) -> MutexGuard<'_, Up> {
        self.up.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Brings the interface up in the ingress namespace, from a thread in the host's: there its UDP socket stays.
fn bring_up(
    config: &Config,
    key: &PrivateKey,
    launch: &Launch,
    host: &NetNs,
    ingress: &NetNs,
) -> anyhow::Result<Box<dyn Interface>> {
    let setup = Setup {
        name: &config.interface,
        address: config.vpn_prefix.server(),
        bits: crate::core::address::Prefix::BITS,
        private_key: key,
        listen_port: config.listen_port,
        mtu_bytes: config.mtu_bytes,
        choice: config.wireguard,
        launch,
    };
    let interface = host.run(|| Ok(tunnel::bring_up(ingress, &setup)))??;
    Ok(interface)
}

fn config(record: &PeerRecord, public_key: PublicKey) -> PeerConfig {
    let own = AllowedIp::new(record.address, 128);
    PeerConfig { public_key, allowed_ips: own.into_iter().collect(), endpoint: None, keepalive_s: None }
}

fn view(record: &PeerRecord, status: Option<&PeerStatus>, groups: Vec<GroupName>) -> Peer {
    Peer {
        name: record.name.clone(),
        address: record.address,
        role: record.role,
        groups,
        public_key: record.public_key.clone(),
        invited_until: record.invited_until,
        endpoint: status.and_then(|s| s.endpoint),
        last_handshake: status.and_then(|s| s.last_handshake).and_then(|t| Timestamp::try_from(t).ok()),
        received_bytes: status.map_or(0, |s| s.rx_bytes),
        sent_bytes: status.map_or(0, |s| s.tx_bytes),
    }
}
