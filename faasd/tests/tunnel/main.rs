//! Two machines, played by network namespaces joined by a veth pair, and a tunnel between them that really runs.
//!
//! ```text
//!  ingress: wg0 ┄┄┄ host: UDP, veth ─── veth: client, faas0
//! ```

#![expect(clippy::unwrap_used, reason = "in a test, what fails should say where")]

mod bed;
mod joining;

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant, SystemTime};

use faasd::core::address::{FUNCTION_PREFIX, VPN_PREFIX};
use faasd::core::invitation::Invitation;
use faasd::sys::netlink::Netlink;
use faasd::sys::netns::NetNs;
use faasd::tunnel::client::{self, ClientError, Connected, Options};
use faasd::tunnel::dns::{Dns, DnsMode};
use faasd::tunnel::{
    self, AllowedIp, Choice, Interface, Kind, Launch, MTU_BYTES, PeerChange, PeerConfig, PrivateKey,
    PublicKey, Setup, userspace,
};

use bed::*;

#[test]
#[ignore = "needs root"]
fn traffic_passes_and_the_address_is_the_peers() {
    passes(&Bed::new(), Some(Kind::Userspace));
}

/// With kernel WireGuard where there is one, else the same again.
#[test]
#[ignore = "needs root"]
fn traffic_passes_whoever_encrypts() {
    passes(&Bed::with(Choice::Auto), None);
}

fn passes(bed: &Bed, kind: Option<Kind>) {
    let server = bed.serve();
    println!("{} WireGuard", server.kind());
    assert!(kind.is_none_or(|kind| kind == server.kind()));
    assert_eq!(server.name(), "wg0");
    let start = Instant::now();
    let client = bed.client(2, &*server);
    println!("client up: {:?}", start.elapsed());
    let start = Instant::now();
    let mut connection = client.connect();
    println!("first connection, handshake included: {:?}", start.elapsed());
    exchange(&mut connection, 3 << 20);

    let status = server.status().unwrap();
    assert_eq!(status.listen_port, PORT);
    assert_eq!(status.public_key, Some(bed.server_key.public()));
    let [peer] = &status.peers[..] else { panic!("{status:?}") };
    assert_eq!(peer.public_key, client.key.public());
    assert_eq!(peer.endpoint.unwrap().ip(), Ipv6Addr::from_bits(0xffff_0a09_0202).to_canonical());
    assert!(peer.last_handshake.is_some() && peer.rx_bytes > 3 << 20 && peer.tx_bytes > 0, "{peer:?}");
    assert!(client.interface.status().unwrap().peers[0].last_handshake.is_some());

    // What comes from an address that is not the peer's does not come out at the other end.
    let forged = VPN_PREFIX.host(77);
    Netlink::new(&client.net.ns).add_address("faas0", forged, 128).unwrap();
    let served = bed.ingress.ns.run(|| UdpSocket::bind((VPN_PREFIX.server(), 9))).unwrap();
    served.set_read_timeout(Some(DEADLINE)).unwrap();
    for from in [forged, VPN_PREFIX.host(2)] {
        let socket = client.net.ns.run(|| UdpSocket::bind((from, 0))).unwrap();
        socket.send_to(b"x", (VPN_PREFIX.server(), 9)).unwrap();
    }
    assert_eq!(served.recv_from(&mut [0]).unwrap().1.ip(), VPN_PREFIX.host(2));
}

#[test]
#[ignore = "needs root"]
fn wg_shows_a_tunnel_that_is_ours() {
    let name = format!("fw{}", std::process::id() % 100_000);
    let dir = tempfile::tempdir().unwrap();
    let net = Net::new(dir.path(), "net");
    let launch = Launch::new(env!("CARGO_BIN_EXE_faasd"));
    let key = PrivateKey::generate();
    let setup = Setup {
        name: &name,
        address: VPN_PREFIX.server(),
        bits: 64,
        private_key: &key,
        listen_port: 0,
        mtu_bytes: MTU_BYTES,
        choice: Choice::Userspace,
        launch: &launch,
    };
    let interface = net.ns.run(|| Ok(tunnel::bring_up(&net.ns, &setup))).unwrap().unwrap();
    let lock = launch.socket_dir.join(format!("{name}.lock"));
    let shown = net.succeeds(&format!("wg show {name} public-key"));
    let peer = PrivateKey::generate().public();
    // Somebody changes it by hand.
    net.succeeds(&format!(
        "wg set {name} peer {peer} allowed-ips fd00:faa5:0:100::9/128 persistent-keepalive 25"
    ));
    let status = interface.status().unwrap();
    tunnel::take_down(&net.ns, &name, &launch).unwrap();
    std::fs::remove_file(lock).unwrap();
    assert_eq!(shown.trim(), key.public().to_string());
    assert_eq!(status.peers[0].public_key, peer);
    assert_eq!(status.peers[0].keepalive_s, Some(25));
    assert_eq!(Netlink::new(&net.ns).index(&name).unwrap(), None);
    assert!(userspace::find(&name, &launch.socket_dir).unwrap().is_none());
}

#[test]
#[ignore = "needs root"]
fn other_peers_come_and_go_unnoticed() {
    let bed = Bed::new();
    let server = bed.serve();
    let client = bed.client(2, &*server);
    let mut connection = client.connect();
    exchange(&mut connection, 1000);
    let handshake = |interface: &dyn Interface| {
        let status = interface.status().unwrap();
        status
            .peers
            .iter()
            .find(|peer| peer.public_key == client.key.public())
            .unwrap()
            .last_handshake
            .unwrap()
    };
    let before = handshake(&*server);
    let others: Vec<PeerConfig> = (10..130)
        .map(|n| PeerConfig {
            public_key: PrivateKey::generate().public(),
            allowed_ips: vec![AllowedIp::host(VPN_PREFIX.host(n))],
            endpoint: None,
            keepalive_s: None,
        })
        .collect();
    let mut slowest = Duration::ZERO;
    let (began, start) = (SystemTime::now(), Instant::now());
    for round in 0..10 {
        let mut wanted = vec![client.peer()];
        wanted.extend_from_slice(&others[round * 10..]);
        server.set_peers(&wanted).unwrap();
        // The peer itself, said again: its session goes on too.
        server.set_peer(client.peer()).unwrap();
        assert_eq!(server.status().unwrap().peers.len(), wanted.len());
        let start = Instant::now();
        exchange(&mut connection, 10_000);
        slowest = slowest.max(start.elapsed());
    }
    println!("slowest exchange among 10 rounds of changes: {slowest:?}");
    // Derived from a duration, so it trembles; a new handshake would be the last round's.
    let after = handshake(&*server);
    assert!(after < began + start.elapsed() / 2, "the session was made anew: {before:?}, {after:?}");

    // A peer that is removed is cut off, and its address can be given to another.
    server.remove_peer(client.key.public()).unwrap();
    let heir = PeerConfig { public_key: others[0].public_key, ..client.peer() };
    server.set_peer(heir.clone()).unwrap();
    let status = server.status().unwrap();
    let owner = status.peers.iter().find(|peer| peer.allowed_ips == heir.allowed_ips).unwrap();
    assert_eq!(owner.public_key, heir.public_key);
    connection.1.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    connection.0.write_all(b"x").unwrap();
    assert!(connection.1.read(&mut [0]).is_err());
}

#[test]
#[ignore = "needs root"]
fn a_prefix_has_one_owner() {
    let bed = Bed::new();
    let server = bed.serve();
    let config = |n: u64, ips: &[u64]| PeerConfig {
        public_key: PrivateKey::from_bytes([n as u8; 32]).public(),
        allowed_ips: ips.iter().map(|n| AllowedIp::host(VPN_PREFIX.host(*n))).collect(),
        endpoint: None,
        keepalive_s: None,
    };
    server.set_peer(config(1, &[2, 3])).unwrap();
    server.set_peer(config(2, &[2])).unwrap();
    let ips = |n: u64| {
        let status = server.status().unwrap();
        let key = config(n, &[]).public_key;
        status.peers.iter().find(|peer| peer.public_key == key).unwrap().allowed_ips.clone()
    };
    assert_eq!(ips(1), config(1, &[3]).allowed_ips);
    assert_eq!(ips(2), config(2, &[2]).allowed_ips);
}

#[test]
#[ignore = "needs root"]
fn a_killed_tunnel_process_costs_no_connection() {
    let bed = Bed::new();
    let server = bed.serve();
    let client = bed.client(2, &*server);
    let mut connection = client.connect();
    exchange(&mut connection, 1000);
    let known = server.status().unwrap().peers[0].endpoint;

    // The daemon starts again while the process runs: it finds it.
    let first = pid(&bed.server, "wg0");
    bed.serve();
    assert_eq!(pid(&bed.server, "wg0"), first);
    exchange(&mut connection, 1000);

    // Nothing that happens to the terminal or the parent reaches it.
    let process = rustix::process::Pid::from_raw(first);
    assert_eq!(rustix::process::getsid(process).unwrap(), process.unwrap());
    kill(first);
    eventually("the process is gone", || userspace::find("wg0", &bed.server.socket_dir).unwrap().is_none());
    // The interface is still there, with what was given to it.
    let addresses = bed.ingress.succeeds("ip -6 addr show dev wg0");
    assert!(addresses.contains(&VPN_PREFIX.server().to_string()), "{addresses}");
    let start = Instant::now();
    let server = bed.serve();
    server.set_peers(&[PeerConfig { endpoint: known, ..client.peer() }]).unwrap();
    println!("restarted: {:?}", start.elapsed());
    // The client speaks first, into a session that the server no longer has.
    exchange(&mut connection, 1000);
    println!("killed, restarted, first exchange done: {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_ne!(pid(&bed.server, "wg0"), first);
}

/// What one peer costs is the same among ten thousand, but for the list of all.
#[test]
#[ignore = "needs root"]
fn one_of_ten_thousand_peers_is_as_any() {
    const PEERS: u64 = 10_000;
    let bed = Bed::new();
    let server = bed.serve();
    let client = bed.client(2, &*server);
    let mut connection = client.connect();
    let other = |n: u64| PeerConfig {
        public_key: PublicKey::from_bytes(std::array::from_fn(|i| (n >> (8 * (i % 4))) as u8 ^ i as u8)),
        allowed_ips: vec![AllowedIp::host(VPN_PREFIX.host(n))],
        endpoint: None,
        keepalive_s: None,
    };
    // Medians over a few peers that come and go.
    let churn = |from: u64| {
        let mut times = [const { Vec::new() }; 3];
        for number in from..from + 11 {
            let peer = other(number);
            let mut timed = |what: usize, work: &dyn Fn()| {
                let start = Instant::now();
                work();
                times[what].push(start.elapsed());
            };
            timed(0, &|| server.set_peer(peer.clone()).unwrap());
            timed(1, &|| assert!(server.peer(peer.public_key).unwrap().is_some()));
            timed(2, &|| server.remove_peer(peer.public_key).unwrap());
        }
        times.map(|mut times: Vec<Duration>| {
            times.sort_unstable();
            times[5]
        })
    };
    let alone = churn(1_000_000);
    let all: Vec<PeerConfig> = std::iter::once(client.peer()).chain((100..100 + PEERS).map(other)).collect();
    let timed = |what: &str, work: &dyn Fn()| {
        let start = Instant::now();
        work();
        println!("{what}: {:?}", start.elapsed());
    };
    let mut slowest = Duration::ZERO;
    std::thread::scope(|scope| {
        let setting = scope.spawn(|| timed("10,000 peers told", &|| server.set_peers(&all).unwrap()));
        while !setting.is_finished() {
            let start = Instant::now();
            exchange(&mut connection, 1000);
            slowest = slowest.max(start.elapsed());
        }
    });
    println!("slowest exchange meanwhile: {slowest:?}");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    let among = churn(2_000_000);
    println!("join, look, revoke alone: {alone:?}; among 10,000: {among:?}");
    // The machine may be slow, but not by the number of peers: that would be a thousand times. A look at one is a walk
    // through all within the tunnel process, and only its answer is short.
    for (alone, among) in alone.iter().zip(among).step_by(2) {
        assert!(among < *alone * 20 + Duration::from_millis(40), "{alone:?} became {among:?}");
    }
    timed("the list of all", &|| assert_eq!(server.status().unwrap().peers.len(), all.len()));
    timed("the interface alone", &|| assert_eq!(server.device().unwrap().listen_port, PORT));
    timed("the same peers again", &|| server.set_peers(&all).unwrap());
    exchange(&mut connection, 10_000);

    kill(pid(&bed.server, "wg0"));
    eventually("the process is gone", || userspace::find("wg0", &bed.server.socket_dir).unwrap().is_none());
    timed("killed, started with 10,000 peers", &|| bed.serve().set_peers(&all).unwrap());
    // The peer of the connection is among them; it begins anew by itself after a while, and at once if it is told to.
    let endpoint = client.interface.status().unwrap().peers[0].endpoint;
    client.interface.remove_peer(bed.server_key.public()).unwrap();
    client
        .interface
        .set_peer(PeerConfig {
            public_key: bed.server_key.public(),
            allowed_ips: [VPN_PREFIX, FUNCTION_PREFIX]
                .map(|prefix| AllowedIp::new(prefix.network(), 64).unwrap())
                .into(),
            endpoint,
            keepalive_s: Some(25),
        })
        .unwrap();
    exchange(&mut connection, 10_000);
}

#[test]
#[ignore = "needs root"]
fn the_process_ends_with_its_interface() {
    let bed = Bed::new();
    bed.serve();
    // Set down and up again, it is still the same interface.
    let first = pid(&bed.server, "wg0");
    bed.ingress.succeeds("ip link set wg0 down");
    bed.ingress.succeeds("ip link set wg0 up");
    bed.serve();
    assert_eq!(pid(&bed.server, "wg0"), first);
    let process = std::fs::File::open(format!("/proc/{}/stat", pid(&bed.server, "wg0"))).unwrap();
    bed.ingress.succeeds("ip link del wg0");
    // From the start each time: what follows in the file is kept from the first read.
    eventually("the process ends", || process.read_at(&mut [0], 0).is_err());
    assert!(!bed.server.socket_dir.join("wg0.sock").exists());
    // And the next start makes both again, of which another namespace knows nothing.
    bed.serve();
    let setup = Setup {
        name: "wg0",
        address: VPN_PREFIX.server(),
        bits: 64,
        private_key: &bed.server_key,
        listen_port: PORT,
        mtu_bytes: MTU_BYTES,
        choice: Choice::Userspace,
        launch: &bed.server,
    };
    let error = tunnel::bring_up(&bed.host.ns, &setup).unwrap_err();
    assert!(matches!(error, tunnel::Error::Elsewhere { .. }), "{error}");
    tunnel::take_down(&bed.host.ns, "wg0", &bed.server).unwrap();
    assert!(userspace::find("wg0", &bed.server.socket_dir).unwrap().is_some());
}

#[test]
#[ignore = "needs root"]
fn what_is_not_ours_is_left_alone() {
    let bed = Bed::new();
    bed.ingress.succeeds("ip link add wg0 type veth peer name wg0x");
    let setup = Setup {
        name: "wg0",
        address: VPN_PREFIX.server(),
        bits: 64,
        private_key: &bed.server_key,
        listen_port: PORT,
        mtu_bytes: MTU_BYTES,
        choice: Choice::Auto,
        launch: &bed.server,
    };
    let error = tunnel::bring_up(&bed.ingress.ns, &setup).unwrap_err().to_string();
    assert!(error.contains("veth"), "{error}");
    assert!(tunnel::take_down(&bed.ingress.ns, "wg0", &bed.server).is_err());
    bed.ingress.succeeds("ip link del wg0");
    bed.serve();
    let other = PrivateKey::generate();
    let error =
        tunnel::bring_up(&bed.ingress.ns, &Setup { private_key: &other, ..setup }).unwrap_err().to_string();
    assert!(error.contains("another key"), "{error}");
}

/// A kernel without WireGuard is told from other refusals.
#[test]
#[ignore = "needs root"]
fn the_kernel_is_asked() {
    let bed = Bed::with(Choice::Kernel);
    let name = bed.dir.path().join("probe");
    let probe = Net { ns: NetNs::open_or_create(&name).unwrap(), path: name };
    let setup = Setup {
        name: "wg0",
        address: VPN_PREFIX.server(),
        bits: 64,
        private_key: &bed.server_key,
        listen_port: 0,
        mtu_bytes: MTU_BYTES,
        choice: Choice::Kernel,
        launch: &bed.server,
    };
    let there = probe.command("ip link add probe type wireguard").status.success();
    match bed.host.ns.run(|| Ok(tunnel::bring_up(&bed.ingress.ns, &setup))).unwrap() {
        Ok(interface) => assert!(there && interface.kind() == Kind::Kernel),
        Err(tunnel::Error::NoKernelWireGuard { .. }) => assert!(!there),
        Err(e) => panic!("{e}"),
    }
}
