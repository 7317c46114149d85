//! What the daemon and WireGuard's tools change and ask.

use std::collections::HashSet;
use std::time::SystemTime;

use gotatun::x25519;

use super::limits::Limits;
use super::peers::{Id, Peer};
use super::{Ends, Engine, Identity, tunn};
use crate::tunnel::uapi::SetPeer;
use crate::tunnel::{AllowedIp, PeerStatus, PrivateKey, PublicKey};

impl Engine {
    /// Our key, if there is one.
    pub(in crate::tunnel) fn private_key(&self) -> Option<PrivateKey> {
        self.identity.as_ref().map(|identity| PrivateKey::from_bytes(identity.private.to_bytes()))
    }

    /// Changes our key. All sessions end, unless it is the same.
    pub(in crate::tunnel) fn set_private_key(&mut self, key: &PrivateKey) {
        let private = x25519::StaticSecret::from(key.to_bytes());
        let public = x25519::PublicKey::from(&private);
        if self.identity.as_ref().is_some_and(|identity| identity.public == public) {
            return;
        }
        let limits = Limits::new(&public);
        for peer in self.peers.iter_mut() {
            peer.tunn.set_static_private(private.clone(), public, limits.of_each());
        }
        self.identity = Some(Identity { private, public, limits });
    }

    /// Changes a peer field by field, so that its session goes on unless it is removed. `replace` takes the addresses
    /// that are not named away. Nothing happens without a key of ours.
    pub(in crate::tunnel) fn change(&mut self, change: &SetPeer, replace: bool, ends: &mut impl Ends) {
        if change.remove {
            return self.peers.remove(change.public_key);
        }
        let Some(id) = self.find_or_add(change) else { return };
        // A preshared key that is taken away is told as zeroes, a keepalive as 0.
        if let Some(key) = change.preshared_key
            && let Some(peer) = self.peers.get_mut(id)
        {
            peer.tunn.set_preshared_key(Some(key).filter(|key| *key != [0; 32]));
        }
        let mut wanted: HashSet<AllowedIp> = change.allowed_ips.iter().copied().collect();
        if let Some(peer) = self.peers.get_mut(id) {
            peer.endpoint = change.endpoint.or(peer.endpoint);
            if !(change.replace_allowed_ips || replace) {
                wanted.extend(&peer.allowed_ips);
            }
        }
        self.peers.set_allowed_ips(id, wanted);
        if let Some(seconds) = change.keepalive_s {
            let keepalive = Some(seconds).filter(|seconds| *seconds != 0);
            if keepalive.is_some() {
                self.wake(id, ends);
            }
            if let Some(peer) = self.peers.get_mut(id) {
                peer.tunn.set_persistent_keepalive(keepalive);
            }
        }
        if change.endpoint.is_some() {
            self.greet(id, ends);
        }
    }

    fn find_or_add(&mut self, change: &SetPeer) -> Option<Id> {
        let key = change.public_key;
        if let Some(id) = self.peers.by_key(key) {
            return Some(id);
        }
        let identity = self.identity.as_ref().filter(|_| !change.update_only)?;
        let tunn = tunn(identity, &self.peers, key);
        Some(self.peers.add(key, tunn))
    }

    /// Begins a handshake with a peer that has just been told. Whoever knew us under an earlier process holds a session
    /// that we lost, and would notice only after 15 s of silence.
    fn greet(&mut self, id: Id, ends: &mut impl Ends) {
        self.wake(id, ends);
        let Some(peer) = self.peers.get_mut(id) else { return };
        if let Some(endpoint) = peer.endpoint
            && !peer.tunn.has_active_session()
            && let Some(initiation) = peer.tunn.format_handshake_initiation(false)
        {
            self.emit(id, initiation.into(), endpoint, ends);
        }
    }

    /// Who the peers are.
    pub(in crate::tunnel) fn keys(&self) -> Vec<PublicKey> {
        self.peers.keys().collect()
    }

    /// The peer, if it is there.
    pub(in crate::tunnel) fn peer(&mut self, key: PublicKey) -> Option<PeerStatus> {
        let id = self.peers.by_key(key)?;
        self.peers.get_mut(id).map(|peer| status(peer))
    }

    /// So many peers from a place on, and the place from which to go on, if there are more.
    pub(in crate::tunnel) fn page(&self, first: Id, peers: usize) -> (Vec<PeerStatus>, Option<Id>) {
        let mut page = Vec::with_capacity(peers);
        for (id, peer) in self.peers.from(first) {
            if page.len() == peers {
                return (page, Some(id));
            }
            page.push(status(peer));
        }
        (page, None)
    }
}

fn status(peer: &Peer) -> PeerStatus {
    let (since, tx_bytes, rx_bytes, ..) = peer.tunn.stats();
    PeerStatus {
        public_key: peer.key,
        endpoint: peer.endpoint,
        last_handshake: since.and_then(|ago| SystemTime::now().checked_sub(ago)),
        rx_bytes: rx_bytes as u64,
        tx_bytes: tx_bytes as u64,
        allowed_ips: peer.allowed_ips.iter().copied().collect(),
        keepalive_s: peer.tunn.persistent_keepalive(),
    }
}
