//! The tunnel as the control plane sees it: who is in it, who is invited, and that it stays up.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv6Addr, SocketAddr};
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
use crate::api::types::{Invitation, Invite, Invited, Join, Peer};
use crate::core::access::{GroupName, Role, Subject};
use crate::core::invitation;
use crate::core::name::FunctionName;
use crate::sys::netns::NetNs;
use crate::tunnel::interface::{AllowedIp, Interface, PeerChange, PeerConfig, PeerStatus};
use crate::tunnel::keys::{PrivateKey, PublicKey};
use crate::tunnel::userspace::Launch;
use crate::tunnel::{self, Setup};

/// How often the tunnel is looked after.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// How long a peer that joined may take to come back with its own key: as long as it waits for the answer, and more.
const JOIN_DEADLINE: Duration = Duration::from_secs(15);

/// How often it is looked for: at first, and at least. To look at one peer is to look at all.
const JOIN_INTERVAL: Duration = Duration::from_millis(5);
const JOIN_INTERVAL_MAX: Duration = Duration::from_millis(200);

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
    endpoint: Option<String>,
    key: PrivateKey,
    launch: Launch,
    host: NetNs,
    ingress: NetNs,
    store: Arc<dyn Store>,
    access: Arc<Access>,
    /// Held over a change of a peer, from looking at what is there to its being in effect.
    writer: Mutex<()>,
    peers: RwLock<Peers>,
    /// Peers that have joined, and whose invitation's key still has the address: whoever has read the invitation may be
    /// behind it, so that it opens nothing.
    joining: Mutex<HashSet<Ipv6Addr>>,
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
            endpoint,
            key,
            launch,
            host,
            ingress,
            store,
            access,
            writer: Mutex::new(()),
            peers,
            joining: Mutex::default(),
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
        let has_joined = record.invited_until.is_none() && !self.joining().contains(&address);
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
        let removed = record.public_key.parse().ok().map(|key| self.lock().interface.remove_peer(key));
        let cut = self.access.cut_all(record.address);
        let settled = self.access.settle(unguarded);
        removed.transpose().map_err(|e| ApiError::failed(&e))?;
        settled?;
        cut
    }

    /// Replaces an invitation's key by the client's own. The sender's address, which WireGuard ties to the
    /// invitation's key, says whose it is, which is returned. Blocks.
    ///
    /// # Errors
    /// If nobody with this address is invited, or not any more.
    pub fn join(self: &Arc<Self>, source: Ipv6Addr, join: &Join) -> Result<FunctionName, ApiError> {
        let new = public_key(join)?;
        let _writer = self.writer();
        let known = self.known().at(source).cloned();
        let Stored { mut record, version } =
            known.ok_or_else(|| ApiError::Forbidden(format!("{source} is no peer's address")))?;
        match record.invited_until {
            None => return Err(ApiError::Forbidden(format!("'{}' has joined already", record.name))),
            Some(until) if until < Timestamp::now() => {
                return Err(ApiError::Forbidden(format!("the invitation for '{}' expired", record.name)));
            }
            Some(_) => {}
        }
        record.invited_until = None;
        self.joining().insert(source);
        let name = self.replace_key(record, version, new).inspect_err(|_| {
            self.joining().remove(&source);
        })?;
        tracing::info!(peer = %name, %source, "joined");
        Ok(name)
    }

    /// Gives a peer that has joined another key, which it has made. WireGuard has tied its address to the key that it has:
    /// whoever holds that may replace it. Returns whose it is. Blocks.
    ///
    /// # Errors
    /// If nobody with this address has joined, or another key of the peer's is on its way.
    pub fn rotate(self: &Arc<Self>, source: Ipv6Addr, join: &Join) -> Result<FunctionName, ApiError> {
        let new = public_key(join)?;
        let _writer = self.writer();
        let known = self.known().at(source).filter(|peer| peer.record.invited_until.is_none()).cloned();
        let Stored { record, version } =
            known.ok_or_else(|| ApiError::Forbidden(format!("no peer has joined from {source}")))?;
        // An invitation's key has the address for a moment after it was redeemed. It is good for nothing more.
        let current = record.public_key.parse().map_err(|_| ApiError::invalid("the record is damaged"))?;
        let status = self.lock().interface.peer(current).map_err(|e| ApiError::failed(&e))?;
        let own = AllowedIp::host(source);
        if !status.is_some_and(|status| status.allowed_ips.contains(&own)) {
            return Err(ApiError::conflict("the last change of this peer's key is not done yet; try again"));
        }
        let name = self.replace_key(record, version, new)?;
        tracing::info!(peer = %name, %source, "has another key");
        Ok(name)
    }

    /// Puts another key of a peer's on record, and has it take over the address.
    fn replace_key(
        self: &Arc<Self>,
        mut record: PeerRecord,
        version: u64,
        new: PublicKey,
    ) -> Result<FunctionName, ApiError> {
        let former: PublicKey =
            record.public_key.parse().map_err(|_| ApiError::invalid("the record is damaged"))?;
        let is_taken = |known: &PeerRecord| known.public_key == new.to_string();
        if new == self.key.public() || self.known().iter().any(is_taken) {
            return Err(ApiError::invalid("`public_key` is somebody's already; make another"));
        }
        record.public_key = new.to_string();
        self.put(record.clone(), Expect::Version(version)).map_err(|e| match e {
            StoreError::Conflict { .. } => ApiError::Forbidden("the key was just replaced".to_owned()),
            e => ApiError::failed(&e),
        })?;
        self.names.publish_peer(&record.name, record.address);
        // The answer travels through the session of the former key, which therefore keeps the address for a
        // moment longer. The new key is known meanwhile, so that the client's first handshake finds it.
        let known_only =
            PeerConfig { public_key: new, allowed_ips: Vec::new(), endpoint: None, keepalive_s: None };
        self.lock().interface.set_peer(known_only).map_err(|e| ApiError::failed(&e))?;
        let (network, name) = (Arc::clone(self), record.name.clone());
        tokio::task::spawn_blocking(move || {
            if let Err(error) = network.switch(former, new, &record) {
                tracing::warn!(%error, "a peer's new key waits for the tunnel to be looked after");
            }
        });
        Ok(name)
    }

    /// Gives a peer's address to its new key, once the new key has shown itself: then the peer has had its answer.
    fn switch(&self, temporary: PublicKey, new: PublicKey, record: &PeerRecord) -> Result<(), tunnel::Error> {
        let deadline = Instant::now() + JOIN_DEADLINE;
        let met = |peer: PeerStatus| peer.last_handshake.is_some();
        let mut pause = JOIN_INTERVAL;
        while Instant::now() < deadline && !self.lock().interface.peer(new)?.is_some_and(met) {
            std::thread::sleep(pause);
            pause = JOIN_INTERVAL_MAX.min(pause * 2);
        }
        let _writer = self.writer();
        let is_still = |peer: &Stored<PeerRecord>| peer.record.public_key == record.public_key;
        if !self.known().get(&record.name).is_some_and(is_still) {
            // Revoked meanwhile.
            self.joining().remove(&record.address);
            return self.lock().interface.update(&[PeerChange::Remove(temporary), PeerChange::Remove(new)]);
        }
        let changes = [PeerChange::Remove(temporary), PeerChange::Set(config(record, new))];
        let mut up = self.lock();
        // Where the new key's packets come from, should the tunnel have to be brought up before it is next looked at:
        // without an endpoint only the client could begin, and it would wait for 15 s of silence.
        if let Some(peer) = up.interface.peer(new)? {
            up.seen.note(peer);
        }
        up.interface.update(&changes)?;
        drop(up);
        self.let_in(record);
        Ok(())
    }

    /// A peer's address is its own key's alone by now.
    fn let_in(&self, record: &PeerRecord) {
        if self.joining().remove(&record.address) {
            self.access.show_peer(record);
        }
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
        let mut up = self.lock();
        let looked = match up.seen.is_due(LOOK_SHARE) {
            true => up.look().map(drop),
            false => up.interface.check(),
        };
        match looked {
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(%error, "bringing the tunnel up again");
                up.interface = bring_up(&self.config, &self.key, &self.launch, &self.host, &self.ingress)?;
                return self.reconcile(&mut up);
            }
        }
        let now = Timestamp::now();
        let keys = |peers: &Peers| -> Vec<PublicKey> {
            peers.expired(now).filter_map(|record| record.public_key.parse().ok()).collect()
        };
        let expired: Vec<_> = keys(&self.known()).into_iter().map(PeerChange::Remove).collect();
        if !expired.is_empty() {
            up.interface.update(&expired)?;
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

    fn joining(&self) -> MutexGuard<'_, HashSet<Ipv6Addr>> {
        self.joining.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self) -> MutexGuard<'_, ()> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where clients dial: what is asked for, else what is set, with the tunnel's port if none is given.
    fn endpoint(&self, asked: Option<&str>) -> Result<String, ApiError> {
        let endpoint = asked.or(self.endpoint.as_deref()).ok_or_else(|| ApiError::Invalid {
            title: "nothing says where clients are to dial".to_owned(),
            detail: Some(
                "give `--endpoint HOST:PORT`, or set FAAS_VPN_ENDPOINT or `endpoint` in faasd.toml to this \
                 machine's public name or address"
                    .to_owned(),
            ),
        })?;
        let bare_v6 = endpoint.parse::<Ipv6Addr>().is_ok();
        let has_port = endpoint.parse::<SocketAddr>().is_ok()
            || (!bare_v6 && endpoint.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()));
        Ok(match (has_port, bare_v6) {
            (true, _) => endpoint.to_owned(),
            (false, true) => format!("[{endpoint}]:{}", self.config.listen_port),
            (false, false) => format!("{endpoint}:{}", self.config.listen_port),
        })
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

fn public_key(join: &Join) -> Result<PublicKey, ApiError> {
    let invalid = |_| ApiError::invalid("`public_key` is no WireGuard key: 32 bytes in base64");
    join.public_key.parse().map_err(invalid)
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
