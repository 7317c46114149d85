//! WireGuard in the kernel.

use std::io;

use wireguard_control::{Backend, Device, DeviceUpdate, InterfaceName, Key, KeyPair, PeerConfigBuilder};

use super::Error;
use super::dropped::{Dropped, Reason};
use super::interface::{
    AllowedIp, DeviceStatus, Interface, InterfaceStatus, Kind, PEERS_PER_REQUEST_MAX, PeerChange, PeerStatus,
};
use super::keys::{PrivateKey, PublicKey};
use crate::sys::netns::NetNs;

/// A kernel WireGuard link, in whatever namespace it lives.
#[derive(Debug)]
pub struct KernelInterface {
    ns: NetNs,
    name: String,
    link: InterfaceName,
}

impl KernelInterface {
    /// A handle on the link `name` of `ns`.
    pub(super) fn new(ns: &NetNs, name: &str) -> Result<Self, Error> {
        let link = name.parse().map_err(|_| Error::Name(name.to_owned()))?;
        let ns = ns.try_clone().map_err(|source| Error::Namespace { source })?;
        Ok(Self { ns, name: name.to_owned(), link })
    }

    fn error(&self, operation: &'static str) -> impl FnOnce(io::Error) -> Error {
        let name = self.name.clone();
        move |source| Error::Interface { operation, name, source }
    }

    fn apply(&self, operation: &'static str, update: DeviceUpdate) -> Result<(), Error> {
        self.ns.run(|| update.apply(&self.link, Backend::Kernel)).map_err(self.error(operation))
    }
}

impl Interface for KernelInterface {
    fn kind(&self) -> Kind {
        Kind::Kernel
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn configure(&self, private_key: &PrivateKey, listen_port: u16) -> Result<(), Error> {
        let now = self.device()?;
        let mut update = DeviceUpdate::new();
        if now.public_key != Some(private_key.public()) {
            update = update.set_keypair(KeyPair::from_private(Key(private_key.to_bytes())));
        }
        if listen_port != 0 && now.listen_port != listen_port {
            update = update.set_listen_port(listen_port);
        }
        self.apply("configure", update)
    }

    fn update(&self, changes: &[PeerChange]) -> Result<(), Error> {
        for batch in changes.chunks(PEERS_PER_REQUEST_MAX) {
            let update = batch.iter().fold(DeviceUpdate::new(), |update, change| match change {
                PeerChange::Remove(key) => update.remove_peer_by_key(&Key(*key.as_bytes())),
                PeerChange::Set(peer) => {
                    let mut builder = PeerConfigBuilder::new(&Key(*peer.public_key.as_bytes()))
                        .replace_allowed_ips()
                        .set_persistent_keepalive_interval(peer.keepalive_s.unwrap_or(0));
                    for ip in &peer.allowed_ips {
                        builder = builder.add_allowed_ip(ip.address(), ip.bits());
                    }
                    if let Some(endpoint) = peer.endpoint {
                        builder = builder.set_endpoint(endpoint);
                    }
                    update.add_peer(builder)
                }
            });
            self.apply("change the peers of", update)?;
        }
        Ok(())
    }

    fn status(&self) -> Result<InterfaceStatus, Error> {
        let device = self.ns.run(|| Device::get(&self.link, Backend::Kernel)).map_err(self.error("read"))?;
        Ok(InterfaceStatus {
            listen_port: device.listen_port.unwrap_or(0),
            // The kernel reports a key of zeroes while none is set.
            public_key: device
                .private_key
                .filter(|key| key.0 != [0; 32])
                .map(|key| PrivateKey::from_bytes(key.0).public()),
            peers: device
                .peers
                .into_iter()
                .map(|peer| PeerStatus {
                    public_key: PublicKey::from_bytes(peer.config.public_key.0),
                    endpoint: peer.config.endpoint,
                    last_handshake: peer.stats.last_handshake_time,
                    rx_bytes: peer.stats.rx_bytes,
                    tx_bytes: peer.stats.tx_bytes,
                    allowed_ips: peer
                        .config
                        .allowed_ips
                        .iter()
                        .filter_map(|ip| AllowedIp::new(ip.address, ip.cidr))
                        .collect(),
                    keepalive_s: peer.config.persistent_keepalive_interval.filter(|seconds| *seconds != 0),
                })
                .collect(),
        })
    }

    /// The kernel tells of an interface with all its peers; there is no shorter question.
    fn device(&self) -> Result<DeviceStatus, Error> {
        let InterfaceStatus { listen_port, public_key, .. } = self.status()?;
        Ok(DeviceStatus { listen_port, public_key })
    }

    /// The kernel counts in the link's statistics, and less finely: handshakes that it refuses are in none of them.
    fn dropped(&self) -> Result<Dropped, Error> {
        let statistics = crate::sys::netlink::Netlink::new(&self.ns).statistics(&self.name)?;
        let mut dropped = Dropped::default();
        dropped.add(Reason::Malformed, statistics.rx_length_errors);
        dropped.add(Reason::Source, statistics.rx_frame_errors);
        dropped.add(Reason::NoPeer, statistics.tx_errors);
        dropped.add(Reason::Interface, statistics.rx_dropped);
        Ok(dropped)
    }

    fn check(&self) -> Result<(), Error> {
        match crate::sys::netlink::Netlink::new(&self.ns).index(&self.name)? {
            Some(_) => Ok(()),
            None => Err(self.error("find")(io::ErrorKind::NotFound.into())),
        }
    }
}
