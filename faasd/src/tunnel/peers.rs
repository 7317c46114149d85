//! The tunnel process's peers: changes as WireGuard's tools ask for them, made to gotatun's device.

use std::collections::{HashMap, HashSet};

use gotatun::device::configure::DeviceWrite;
use gotatun::device::{Device, Peer};
use gotatun::x25519;

use super::interface::{AllowedIp, PEERS_PER_REQUEST_MAX};
use super::packets::{Inbound, Outbound};
use super::uapi::{Set, SetPeer};
use super::wire::OneSocket;

type Transports = (OneSocket, Outbound, Inbound);

/// gotatun, between our ends.
pub(super) type Gotatun = Device<Transports>;

/// The errno of a request that is refused, as in the protocol's other implementations.
pub(super) const REFUSED: i32 = -libc::EINVAL;

/// Who has which addresses. gotatun can be asked for all of its peers only, which would make a change of one as long as
/// the list of all.
#[derive(Debug, Default)]
pub(super) struct Peers {
    owners: HashMap<AllowedIp, x25519::PublicKey>,
    of: HashMap<x25519::PublicKey, HashSet<AllowedIp>>,
}

impl Peers {
    /// Applies changes, peer by peer and field by field, so that a session goes on unless its peer is removed. Returns
    /// the peers whose whereabouts were told. Other peers' packets pass between any two batches.
    pub(super) async fn apply(
        &mut self,
        device: &Gotatun,
        set: &Set,
    ) -> Result<Result<Vec<x25519::PublicKey>, i32>, gotatun::device::Error> {
        let gone: Vec<_> = match set.replace_peers {
            true => {
                let named: HashSet<_> = set.peers.iter().map(|peer| *peer.public_key.as_bytes()).collect();
                self.of.keys().filter(|key| !named.contains(key.as_bytes())).copied().collect()
            }
            false => Vec::new(),
        };
        let configured = device.write(async |device| configure(device, set).await).await?;
        if let Err(errno) = configured {
            return Ok(Err(errno));
        }
        for batch in gone.chunks(PEERS_PER_REQUEST_MAX) {
            device
                .write(async |device| {
                    for key in batch {
                        self.remove(device, key).await;
                    }
                })
                .await?;
        }
        let mut reached = Vec::new();
        for batch in set.peers.chunks(PEERS_PER_REQUEST_MAX) {
            device
                .write(async |device| {
                    for change in batch {
                        let key = x25519::PublicKey::from(*change.public_key.as_bytes());
                        if change.remove {
                            self.remove(device, &key).await;
                        } else if self.set(device, key, change, set.replace_peers).await
                            && change.endpoint.is_some()
                        {
                            reached.push(key);
                        }
                    }
                })
                .await?;
        }
        Ok(Ok(reached))
    }

    async fn remove(&mut self, device: &mut DeviceWrite<'_, Transports>, key: &x25519::PublicKey) {
        for ip in self.of.remove(key).unwrap_or_default() {
            self.owners.remove(&ip);
        }
        device.remove_peer(key).await;
    }

    /// Whether there is such a peer now.
    async fn set(
        &mut self,
        device: &mut DeviceWrite<'_, Transports>,
        key: x25519::PublicKey,
        change: &SetPeer,
        replace: bool,
    ) -> bool {
        let before = self.of.get(&key).cloned();
        if before.is_none() && change.update_only {
            return false;
        }
        let asked: HashSet<AllowedIp> = change.allowed_ips.iter().copied().collect();
        self.take_from_others(device, &key, &asked).await;
        let wanted = match &before {
            Some(before) if !(change.replace_allowed_ips || replace) => before | &asked,
            _ => asked,
        };
        for ip in before.iter().flatten() {
            self.owners.remove(ip);
        }
        self.owners.extend(wanted.iter().map(|ip| (*ip, key)));
        self.of.insert(key, wanted.clone());
        let keepalive = change.keepalive_s.filter(|seconds| *seconds != 0);
        let preshared_key = change.preshared_key.filter(|key| *key != [0; 32]);
        let mut peer = with_ips(key, &wanted);
        let Some(before) = before else {
            peer.endpoint = change.endpoint;
            peer.keepalive = keepalive;
            peer.preshared_key = preshared_key;
            return device.add_peer(peer);
        };
        device
            .modify_peer(&key, |now| {
                if before != wanted {
                    now.clear_allowed_ips();
                    now.add_allowed_ips(peer.allowed_ips);
                }
                if change.endpoint.is_some() {
                    now.set_endpoint(change.endpoint);
                }
                if change.keepalive_s.is_some() {
                    now.set_keepalive(keepalive);
                }
                if change.preshared_key.is_some() {
                    now.set_preshared_key(preshared_key);
                }
            })
            .await
    }

    /// A prefix has one owner. gotatun routes by the newest, but would give it back at the former owner's next change:
    /// an address is an identity, so it is taken away there too.
    async fn take_from_others(
        &mut self,
        device: &mut DeviceWrite<'_, Transports>,
        key: &x25519::PublicKey,
        asked: &HashSet<AllowedIp>,
    ) {
        let others: HashSet<_> = asked
            .iter()
            .filter_map(|ip| self.owners.get(ip))
            .filter(|owner| *owner != key)
            .copied()
            .collect();
        for other in others {
            let Some(theirs) = self.of.get_mut(&other) else { continue };
            theirs.retain(|ip| !asked.contains(ip));
            let rest = with_ips(other, theirs).allowed_ips;
            device
                .modify_peer(&other, |now| {
                    now.clear_allowed_ips();
                    now.add_allowed_ips(rest);
                })
                .await;
        }
    }
}

/// A peer with these addresses, in gotatun's own type.
fn with_ips(key: x25519::PublicKey, ips: &HashSet<AllowedIp>) -> Peer {
    Peer::new(key).with_allowed_ips(ips.iter().filter_map(|ip| ip.to_string().parse().ok()))
}

async fn configure(device: &mut DeviceWrite<'_, Transports>, set: &Set) -> Result<(), i32> {
    if let Some(key) = &set.private_key {
        device.set_private_key(x25519::StaticSecret::from(key.to_bytes())).await;
    }
    if device.private_key().is_none() && (set.listen_port.is_some() || !set.peers.is_empty()) {
        return Err(REFUSED);
    }
    if let Some(port) = set.listen_port {
        device.set_listen_port(port);
    }
    if let Some(mark) = set.fwmark {
        device.set_fwmark(mark).map_err(|_| REFUSED)?;
    }
    Ok(())
}
