//! The engine's peers: found by key, by the index of a session and by address, each at the same cost among any number.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};

use gotatun::noise::Tunn;
use gotatun::noise::index_table::IndexTable;
use gotatun::packet::WgKind;
use slab::Slab;

use super::routes::Routes;
use crate::tunnel::{AllowedIp, PublicKey};

/// Where a peer is kept. It may be another's after the peer is removed.
pub(super) type Id = usize;

/// A peer, with its handshakes and sessions.
pub(super) struct Peer {
    pub(super) key: PublicKey,
    pub(super) tunn: Tunn,
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) allowed_ips: HashSet<AllowedIp>,
    /// We have answered a handshake, and may send only when the peer has shown that it got the answer.
    pub(super) unconfirmed: bool,
    /// What tells it from former owners of its place.
    serial: u64,
    /// The timers run.
    awake: bool,
    /// Under which it is found, some of them perhaps stale.
    indexes: Vec<u32>,
}

/// All peers.
pub(super) struct Peers {
    /// Boxed: a peer's replay windows alone are 8 KB, which a growing list would copy.
    all: Slab<Box<Peer>>,
    by_key: HashMap<PublicKey, Id>,
    by_index: HashMap<u32, Id>,
    routes: Routes<Id>,
    /// Which indexes are in use is told by the sessions themselves, which give theirs back at their end.
    indexes: IndexTable,
    /// Those whose timers run, in the order in which they are looked at, with their serials.
    awake: VecDeque<(Id, u64)>,
    serial: u64,
}

impl Default for Peers {
    fn default() -> Self {
        Self {
            all: Slab::new(),
            by_key: HashMap::new(),
            by_index: HashMap::new(),
            routes: Routes::default(),
            indexes: IndexTable::from_os_rng(),
            awake: VecDeque::new(),
            serial: 0,
        }
    }
}

impl Peers {
    pub(super) fn get_mut(&mut self, id: Id) -> Option<&mut Peer> {
        self.all.get_mut(id).map(|peer| &mut **peer)
    }

    pub(super) fn by_key(&self, key: PublicKey) -> Option<Id> {
        self.by_key.get(&key).copied()
    }

    pub(super) fn by_index(&self, index: u32) -> Option<Id> {
        self.by_index.get(&index).copied()
    }

    pub(super) fn by_address(&self, address: IpAddr) -> Option<Id> {
        self.routes.find(address)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = PublicKey> {
        self.by_key.keys().copied()
    }

    /// Peers from a place on, in the order of places.
    pub(super) fn from(&self, first: Id) -> impl Iterator<Item = (Id, &Peer)> {
        (first..self.all.capacity()).filter_map(|id| Some((id, &**self.all.get(id)?)))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Peer> {
        self.all.iter_mut().map(|(_, peer)| &mut **peer)
    }

    /// Where new handshakes take their indexes from.
    pub(super) fn indexes(&self) -> IndexTable {
        self.indexes.clone()
    }

    /// Adds a peer that is not there, without addresses.
    pub(super) fn add(&mut self, key: PublicKey, tunn: Tunn) -> Id {
        self.serial += 1;
        let id = self.all.insert(Box::new(Peer {
            key,
            tunn,
            endpoint: None,
            allowed_ips: HashSet::new(),
            unconfirmed: false,
            serial: self.serial,
            awake: false,
            indexes: Vec::new(),
        }));
        self.by_key.insert(key, id);
        id
    }

    /// Forgets a peer with its sessions.
    pub(super) fn remove(&mut self, key: PublicKey) {
        let Some(id) = self.by_key.remove(&key) else { return };
        let peer = self.all.remove(id);
        for ip in &peer.allowed_ips {
            self.routes.remove(*ip);
        }
        for index in &peer.indexes {
            self.forget(*index, id);
        }
    }

    /// Gives a peer these addresses and no others. A prefix has one owner: who had it loses it.
    pub(super) fn set_allowed_ips(&mut self, id: Id, wanted: HashSet<AllowedIp>) {
        let Some(before) = self.get_mut(id).map(|peer| std::mem::take(&mut peer.allowed_ips)) else { return };
        for ip in before.difference(&wanted) {
            self.routes.remove(*ip);
        }
        for ip in wanted.difference(&before) {
            if let Some(former) = self.routes.owner(*ip).and_then(|former| self.all.get_mut(former)) {
                former.allowed_ips.remove(ip);
            }
            self.routes.insert(*ip, id);
        }
        if let Some(peer) = self.get_mut(id) {
            peer.allowed_ips = wanted;
        }
    }

    /// Makes a peer known by the index that a message of ours has in it, if it is one that answers refer to.
    pub(super) fn register(&mut self, id: Id, message: &WgKind) {
        let index = match message {
            WgKind::HandshakeInit(init) => init.sender_idx.get(),
            WgKind::HandshakeResp(response) => response.sender_idx.get(),
            WgKind::CookieReply(_) | WgKind::Data(_) => return,
        };
        self.prune(id);
        if let Some(peer) = self.all.get_mut(id) {
            peer.indexes.push(index);
            self.by_index.insert(index, id);
        }
    }

    /// Forgets the indexes of a peer's sessions that are over.
    fn prune(&mut self, id: Id) {
        let Some(peer) = self.all.get_mut(id) else { return };
        let (live, stale) = std::mem::take(&mut peer.indexes)
            .into_iter()
            .partition(|index| self.indexes.in_use(*index) && self.by_index.get(index) == Some(&id));
        peer.indexes = live;
        let stale: Vec<u32> = stale;
        for index in stale {
            self.forget(index, id);
        }
    }

    /// An index that is free again may be another peer's by now.
    fn forget(&mut self, index: u32, id: Id) {
        if self.by_index.get(&index) == Some(&id) {
            self.by_index.remove(&index);
        }
    }

    /// Lets a peer's timers run. Whether they stood still, and so do not know the time.
    pub(super) fn wake(&mut self, id: Id) -> bool {
        let Some(peer) = self.all.get_mut(id).filter(|peer| !peer.awake) else { return false };
        peer.awake = true;
        self.awake.push_back((id, peer.serial));
        true
    }

    /// How many peers' timers run; some of them may be gone.
    pub(super) fn awake(&self) -> usize {
        self.awake.len()
    }

    /// The peer whose timers were not looked at for longest, which is asleep now: to stay awake, it is woken again.
    pub(super) fn next_awake(&mut self) -> Option<Id> {
        while let Some((id, serial)) = self.awake.pop_front() {
            if let Some(peer) = self.all.get_mut(id).filter(|peer| peer.serial == serial) {
                peer.awake = false;
                return Some(id);
            }
        }
        None
    }

    /// What is left to do when a peer's sessions are over and its timers stop.
    pub(super) fn settle(&mut self, id: Id) {
        self.prune(id);
    }
}
