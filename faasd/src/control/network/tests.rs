//! Joining and rotation over a tunnel that fails when it is told to.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::api::types::Join;
use crate::control::store::Embedded;
use crate::core::access::Access as AccessDefault;
use crate::core::address::{FUNCTION_PREFIX, VPN_PREFIX};
use crate::core::zone::{Zone, ZoneSettings};
use crate::tunnel::dropped::Dropped;
use crate::tunnel::interface::{DeviceStatus, InterfaceStatus, Kind};

/// A tunnel in memory.
#[derive(Debug, Default)]
struct Memory {
    peers: Mutex<HashMap<PublicKey, PeerStatus>>,
    fails: AtomicBool,
}

#[derive(Clone, Debug)]
struct Fake(Arc<Memory>);

impl Interface for Fake {
    fn kind(&self) -> Kind {
        Kind::Userspace
    }

    fn name(&self) -> &'static str {
        "fake"
    }

    fn configure(&self, _: &PrivateKey, _: u16) -> Result<(), tunnel::Error> {
        Ok(())
    }

    fn dropped(&self) -> Result<Dropped, tunnel::Error> {
        Ok(Dropped::default())
    }

    fn update(&self, changes: &[PeerChange]) -> Result<(), tunnel::Error> {
        self.check()?;
        let mut peers = self.0.peers.lock().unwrap();
        for change in changes {
            match change {
                PeerChange::Remove(key) => drop(peers.remove(key)),
                PeerChange::Set(peer) => {
                    for other in peers.values_mut() {
                        other.allowed_ips.retain(|ip| !peer.allowed_ips.contains(ip));
                    }
                    let status = PeerStatus {
                        public_key: peer.public_key,
                        endpoint: None,
                        last_handshake: peers.get(&peer.public_key).and_then(|old| old.last_handshake),
                        rx_bytes: 0,
                        tx_bytes: 0,
                        allowed_ips: peer.allowed_ips.clone(),
                        keepalive_s: None,
                    };
                    peers.insert(peer.public_key, status);
                }
            }
        }
        Ok(())
    }

    fn status(&self) -> Result<InterfaceStatus, tunnel::Error> {
        self.check()?;
        let peers = self.0.peers.lock().unwrap().values().cloned().collect();
        Ok(InterfaceStatus { listen_port: 1, public_key: None, peers })
    }

    fn device(&self) -> Result<DeviceStatus, tunnel::Error> {
        Ok(DeviceStatus { listen_port: 1, public_key: None })
    }

    fn check(&self) -> Result<(), tunnel::Error> {
        match self.0.fails.load(Ordering::SeqCst) {
            true => Err(tunnel::Error::Refused { name: "fake".to_owned(), errno: libc::EIO }),
            false => Ok(()),
        }
    }
}

struct Bed {
    network: Arc<Network>,
    tunnel: Arc<Memory>,
    _dir: tempfile::TempDir,
}

impl Bed {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(Embedded::open(&dir.path().join("store")).unwrap());
        let tunnel = Arc::new(Memory::default());
        let here = || NetNs::current().unwrap();
        let zone = Zone::new(ZoneSettings::new(VPN_PREFIX, FUNCTION_PREFIX), 1);
        let network = Network {
            config: Config::default(),
            endpoint: None.into(),
            key: PrivateKey::generate(),
            launch: Launch::new("/bin/false"),
            host: here(),
            ingress: here(),
            access: Arc::new(Access::open(Arc::clone(&store), AccessDefault::Open, FUNCTION_PREFIX).unwrap()),
            store,
            writer: Mutex::new(()),
            peers: RwLock::new(Peers::new(VPN_PREFIX, [])),
            switches: Mutex::default(),
            names: Arc::new(Names::new(zone)),
            up: Mutex::new(Up { interface: Box::new(Fake(Arc::clone(&tunnel))), seen: Seen::default() }),
            files: PeerFiles::new(dir.path().join("peers")),
        };
        network.files.write_all(std::iter::empty());
        Self { network: Arc::new(network), tunnel, _dir: dir }
    }

    /// Invites, and returns the address and the invitation's key.
    fn invite(&self, name: &str) -> (Ipv6Addr, PublicKey) {
        let invite = Invite {
            name: name.parse().unwrap(),
            expires_in_ms: 60_000,
            endpoint: Some("192.0.2.1".to_owned()),
            role: Role::Admin,
            plain: false,
        };
        let invited = self.network.invite(&invite).unwrap();
        let text = Invitation::decode(&invited.invitation, Timestamp::now()).unwrap();
        assert_eq!(text.endpoint, "192.0.2.1:51820");
        (invited.address, text.private_key.parse::<PrivateKey>().unwrap().public())
    }

    /// Who has the address in the tunnel.
    fn owner(&self, address: Ipv6Addr) -> Option<PublicKey> {
        let own = AllowedIp::host(address);
        let peers = self.tunnel.peers.lock().unwrap();
        peers.values().find(|peer| peer.allowed_ips.contains(&own)).map(|peer| peer.public_key)
    }

    fn fail(&self, fails: bool) {
        self.tunnel.fails.store(fails, Ordering::SeqCst);
    }
}

fn key() -> (PublicKey, Join) {
    let key = PrivateKey::generate().public();
    (key, Join { public_key: key.to_string() })
}

#[tokio::test]
async fn a_tunnel_that_fails_leaves_the_invitations_key_without_rights_and_then_without_the_address() {
    let bed = Bed::new();
    let (address, temporary) = bed.invite("anna");
    let (own, join) = key();
    bed.fail(true);
    bed.network.join(address, &join).unwrap_err();
    // Whoever read the invitation still has the address, and may do nothing with it.
    assert_eq!((bed.owner(address), bed.network.role_of(address)), (Some(temporary), None));
    bed.network.finish_overdue(Instant::now());
    assert_eq!(bed.network.role_of(address), None);
    bed.fail(false);
    // The client, which was told of a failure, asks again.
    bed.network.join(address, &join).unwrap();
    bed.network.join(address, &key().1).unwrap_err();
    bed.network.finish_overdue(Instant::now());
    assert_eq!(bed.owner(address), Some(own));
    assert_eq!(bed.network.role_of(address).map(|(_, role)| role), Some(Role::Admin));
    assert!(!bed.tunnel.peers.lock().unwrap().contains_key(&temporary));
}

#[tokio::test]
async fn who_waits_for_a_new_key_and_fails_is_stood_in_for() {
    let bed = Bed::new();
    let (address, temporary) = bed.invite("anna");
    let (own, join) = key();
    bed.network.join(address, &join).unwrap();
    // The one that waits for the new key's handshake cannot ask for it any more.
    bed.fail(true);
    tokio::task::yield_now().await;
    bed.network.finish_overdue(Instant::now());
    bed.fail(false);
    assert_eq!((bed.owner(address), bed.network.role_of(address)), (Some(temporary), None));
    bed.network.finish_overdue(Instant::now() + Duration::from_secs(17));
    assert_eq!(bed.owner(address), Some(own));
    assert!(bed.network.role_of(address).is_some());
}

#[tokio::test]
async fn a_record_that_cannot_be_written_changes_nothing() {
    let bed = Bed::new();
    let (address, temporary) = bed.invite("anna");
    // Somebody else wrote it.
    let name = "anna".parse().unwrap();
    let record = bed.network.known().get(&name).unwrap().record.clone();
    put_json(&*bed.network.store, &PeerRecord::key(&name), &record, Expect::Any).unwrap();
    assert!(matches!(bed.network.join(address, &key().1), Err(ApiError::Forbidden(_))));
    assert!(!bed.network.switches().is_joining(address));
    assert_eq!(bed.owner(address), Some(temporary));
}

#[tokio::test]
async fn a_key_on_record_is_no_mistake_but_anothers_is() {
    let bed = Bed::new();
    let mut addresses = Vec::new();
    for name in ["anna", "bert"] {
        let (address, _) = bed.invite(name);
        bed.network.join(address, &key().1).unwrap();
        bed.network.finish_overdue(Instant::now() + Duration::from_secs(17));
        addresses.push(address);
    }
    let (next, join) = key();
    bed.network.rotate(addresses[0], &join).unwrap();
    // Before the switch and after it: the answer was lost.
    bed.network.rotate(addresses[0], &join).unwrap();
    bed.network.rotate(addresses[0], &key().1).unwrap_err();
    bed.network.finish_overdue(Instant::now() + Duration::from_secs(17));
    assert_eq!(bed.owner(addresses[0]), Some(next));
    bed.network.rotate(addresses[0], &join).unwrap();
    assert!(matches!(bed.network.rotate(addresses[1], &join), Err(ApiError::Invalid { .. })));
}

#[tokio::test]
async fn who_is_revoked_between_two_keys_keeps_neither() {
    let bed = Bed::new();
    let (address, _) = bed.invite("anna");
    bed.network.join(address, &key().1).unwrap();
    assert_eq!(bed.tunnel.peers.lock().unwrap().len(), 2);
    // There is no kernel to cut connections in; the keys are gone all the same.
    let _ = bed.network.revoke(&"anna".parse().unwrap());
    assert!(bed.tunnel.peers.lock().unwrap().is_empty());
    bed.network.finish_overdue(Instant::now() + Duration::from_secs(17));
    assert!(bed.tunnel.peers.lock().unwrap().is_empty());
}
