//! Addresses that are made up: what comes in by an interface that its source does not belong to.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use aya::util::KernelVersion;
use faasd::core::address::{FUNCTION_PREFIX, VPN_PREFIX};
use faasd::sys::bpf::Route;
use faasd_common::{DAEMON_MARK, Decision};
use socket2::{Domain, Protocol, Socket, Type};

use crate::access::{caller, decided, is_refused, subject};
use crate::bed::{Bed, DEADLINE, PORT, accept, address, begin, dial, peer, wait_until};

/// How long nothing has to come.
const SILENCE: Duration = Duration::from_millis(300);

#[test]
#[ignore = "needs root"]
fn an_address_counts_by_its_own_way_alone() {
    let bed = Bed::new();
    bed.link("foreign0", "foreign1");
    let mut kernel = bed.load();
    let listener = bed.listen();
    kernel.set_listener(1, 1, &listener).unwrap();
    kernel.steering.set_route(address(), PORT, Route::to(1)).unwrap();
    kernel.access.set_subject(peer(2), subject(7, &[])).unwrap();
    kernel.access.set_subject(caller(), subject(8, &[])).unwrap();
    let by_peer = || bed.dial_from(peer(2), address());
    assert_eq!(decided(&mut kernel, |_| assert!(!is_refused(by_peer))), ["steered"]);

    // The same peer, by another interface: the kernel program alone stops it, and its datagrams.
    bed.peers_go_by("foreign1");
    assert_eq!(decided(&mut kernel, |_| assert!(is_refused(by_peer))), ["foreign"]);
    let server = VPN_PREFIX.server();
    let socket = bed.ingress.udp(server, 53, 1).unwrap();
    kernel.steering.set_route(server, 53, Route::SERVICE).unwrap();
    let asked = || bed.ask(peer(2), server, 53).unwrap_err().kind();
    assert_eq!(decided(&mut kernel, |_| assert_eq!(asked(), ErrorKind::ConnectionRefused)), ["foreign"]);
    drop(socket);

    // A function's address, by the tunnel. (The answer goes to where that function is, and tells nobody.)
    bed.peers_go_by("wg1");
    let foreign = || kernel.decisions().unwrap()[Decision::Foreign as usize];
    let before = foreign();
    let begun = bed.peers.run(|| Ok(begin(caller(), None, address()))).unwrap();
    wait_until("it is refused", || foreign() > before);
    drop(begun);
    // A peer's, by loopback.
    let before = foreign();
    let begun = bed.inside(|| begin(peer(2), Some(DAEMON_MARK), address()));
    wait_until("it is refused", || foreign() > before);
    drop(begun);
    bed.finish(kernel);
}

#[test]
#[ignore = "needs root"]
fn what_claims_to_be_a_peer_is_not_heard_at_all() {
    let bed = Bed::new();
    bed.link("foreign0", "foreign1");
    let mut kernel = bed.load();
    let listener = bed.listen();
    kernel.set_listener(1, 1, &listener).unwrap();
    kernel.steering.set_route(address(), PORT, Route::to(1)).unwrap();
    kernel.access.set_subject(peer(2), subject(7, &[])).unwrap();
    let mut client = bed.dial_from(peer(2), address()).unwrap();
    let mut connection = accept(&listener);

    // The attack is real: what claims to belong to the connection arrives, and a peer is heard.
    bed.peers_go_by("foreign1");
    client.write_all(b"1").unwrap();
    connection.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(read(&mut connection), Some(b'1'));
    assert!(is_answered(&bed, peer(2), address()));

    bed.ingress.guard("wg0", VPN_PREFIX.server(), FUNCTION_PREFIX).unwrap();
    // A daemon does it each time that it starts.
    bed.ingress.guard("wg0", VPN_PREFIX.server(), FUNCTION_PREFIX).unwrap();
    let before = bed.ingress.unroutable_packets().unwrap();
    client.write_all(b"2").unwrap();
    connection.set_read_timeout(Some(SILENCE)).unwrap();
    assert_eq!(read(&mut connection), None);
    assert!(!is_answered(&bed, peer(2), address()));
    assert!(bed.ingress.unroutable_packets().unwrap() >= before + 2);
    // So for an interface that comes later.
    bed.link("later0", "later1");
    bed.peers_go_by("later1");
    assert!(!is_answered(&bed, peer(2), address()));
    // A function's address by the tunnel, and the server's: no answer could come back, but the kernel counts it.
    bed.peers_go_by("wg1");
    let before = bed.ingress.unroutable_packets().unwrap();
    for ours in [caller(), VPN_PREFIX.server()] {
        assert!(!is_answered(&bed, ours, address()));
    }
    assert!(bed.ingress.unroutable_packets().unwrap() >= before + 2);

    // Whom it belongs to is heard as before: the open connection, new ones, and the daemon itself.
    connection.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(read(&mut connection), Some(b'2'));
    connection.write_all(b"3").unwrap();
    assert_eq!(read(&mut client), Some(b'3'));
    assert!(is_answered(&bed, peer(2), address()));
    assert!(bed.dial_from(peer(2), address()).is_ok());
    assert!(bed.inside(dial).is_ok());
    bed.finish(kernel);
}

#[test]
#[ignore = "needs root"]
fn each_start_puts_one_guard_in_the_place_of_the_last() {
    let bed = Bed::new();
    let guards = |interface: &str| {
        let mut tc = Command::new("tc");
        tc.args(["filter", "show", "dev", interface, "egress"]);
        let shown = bed.inside(|| tc.output()).unwrap();
        assert!(shown.status.success(), "{shown:?}");
        // A line for each, in which the name may be twice.
        let shown = String::from_utf8(shown.stdout).unwrap();
        shown.lines().filter(|line| line.contains("guard_egress")).count()
    };
    // From Linux 6.6 on they are links, which `tc` does not show, and which end with their pin.
    let filters = usize::from(KernelVersion::current().unwrap() < KernelVersion::new(6, 6, 0));
    for _ in 0..3 {
        let kernel = bed.load();
        assert_eq!(["lo", "wg0"].map(guards), [filters; 2]);
        // The last one is at work.
        let dropped = || kernel.decisions().unwrap()[Decision::DroppedSyn as usize];
        let before = dropped();
        let begun = bed.inside(|| begin(caller(), None, address()));
        wait_until("the guard drops it", || dropped() > before);
        drop((begun, kernel));
    }
    let kernel = bed.load();
    bed.finish(kernel);
}

/// A connection that is begun with a hop-by-hop header such as the kernel gives to long packets.
const HIDDEN: &str = "\
import socket, sys
s = socket.socket(socket.AF_INET6)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_HOPOPTS, bytes([0, 0, 0xc2, 4, 0, 0, 0, 0]))
s.setblocking(False)
s.connect_ex((sys.argv[1], int(sys.argv[2])))
";

#[test]
#[ignore = "needs root"]
fn long_packets_pass_the_guard_and_no_connection_behind_their_header() {
    const BYTES: usize = 16 << 20;
    let bed = Bed::new();
    // The kernel cuts them later than elsewhere, as it does of itself on some machines and for some ways to control congestion.
    bed.ip(bed.ingress.ns(), "link set lo gso_max_size 200000");
    let mut kernel = bed.load();
    let listener = bed.listen();
    kernel.set_listener(1, 1, &listener).unwrap();
    kernel.steering.set_route(address(), PORT, Route::to(1)).unwrap();
    let dropped =
        |kernel: &faasd::sys::bpf::Kernel| kernel.decisions().unwrap()[Decision::DroppedSyn as usize];
    let before = dropped(&kernel);
    let mut client = bed.inside(dial).unwrap();
    let mut connection = accept(&listener);
    let sender = std::thread::spawn(move || connection.write_all(&vec![1; BYTES]));
    let mut received = Vec::new();
    client.read_to_end(&mut received).unwrap();
    sender.join().unwrap().unwrap();
    assert_eq!((received.len(), dropped(&kernel)), (BYTES, before));

    let mut python = Command::new("python3");
    python.args(["-c", HIDDEN, &address().to_string(), &PORT.to_string()]);
    assert!(bed.inside(|| python.status()).unwrap().success());
    wait_until("the guard drops it", || dropped(&kernel) > before);
    bed.finish(kernel);
}

/// The next byte, if one comes in time.
fn read(stream: &mut TcpStream) -> Option<u8> {
    let mut byte = [0];
    match stream.read(&mut byte) {
        Ok(length) => {
            assert_eq!(length, 1);
            Some(byte[0])
        }
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::WouldBlock);
            None
        }
    }
}

/// Whether an echo request from a peer's address is answered there.
fn is_answered(bed: &Bed, source: Ipv6Addr, to: Ipv6Addr) -> bool {
    const REQUEST: u8 = 128;
    const REPLY: u8 = 129;
    let mut socket = bed.peers.run(|| Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))).unwrap();
    socket.set_freebind_v6(true).unwrap();
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    socket.send_to(&[REQUEST, 0, 0, 0, 0, 7, 0, 7], &SocketAddr::from((to, 0)).into()).unwrap();
    let mut message = [0; 1500];
    // Its own request, and what else the kernel has to say, may come as well.
    loop {
        match socket.read(&mut message) {
            Ok(_) if message[0] == REPLY => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
}
