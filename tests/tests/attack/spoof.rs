//! Packets that claim to be somebody else's.

use std::io::ErrorKind;
use std::net::{Ipv6Addr, SocketAddr, TcpStream, UdpSocket};

use anyhow::{Result, ensure};
use faasd::core::address::VPN_PREFIX;
use faasd::sys::netns::NetNs;
use faasd_tests::{Bed, address, get};
use socket2::{Domain, Socket, Type};

use crate::{SILENCE, decided, dropped, metric, peer_address, two};

/// A question for `hello.faas`'s address.
const QUERY: &[u8] = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x05hello\x04faas\x00\x00\x1c\x00\x01";

/// Dials and asks from an address that is not one's own. Fails if anything comes back.
fn try_from(ns: &NetNs, source: Ipv6Addr, function: Ipv6Addr) -> Result<()> {
    let dialled = ns.run(|| {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((source, 0)).into())?;
        socket.connect_timeout(&SocketAddr::from((function, 80)).into(), SILENCE)
    });
    ensure!(
        dialled.as_ref().is_err_and(|e| e.kind() == ErrorKind::TimedOut),
        "a connection from {source}: {dialled:?}"
    );
    let answered = ns.run(|| {
        let socket = UdpSocket::bind((source, 0))?;
        socket.set_read_timeout(Some(SILENCE))?;
        socket.send_to(QUERY, (VPN_PREFIX.server(), 53))?;
        socket.recv(&mut [0; 512])
    });
    ensure!(
        answered.as_ref().is_err_and(|e| e.kind() == ErrorKind::WouldBlock),
        "a query from {source}: {answered:?}"
    );
    Ok(())
}

/// All queries that the daemon has had, and all connections that functions were given.
fn reached(bed: &Bed) -> Result<[u64; 3]> {
    let mut queries = 0;
    for outcome in ["answered", "nxdomain", "forwarded", "refused", "failed"] {
        queries += metric(bed, &format!("faasd_dns_queries_total{{outcome=\"{outcome}\"}}"))?;
    }
    Ok([queries, decided(bed, "steered")?, decided(bed, "warm")?])
}

pub fn through_the_tunnel() -> Result<()> {
    let bed = two()?;
    bed.deploy_hello("hello", "")?;
    let hello = address(&bed.describe("hello")?)?;
    let (victim, own) = (peer_address(&bed, "client")?, peer_address(&bed, "other")?);
    bed.faas(&["deny", "other", "hello"])?.ok()?;
    let interface = format!("{}t2", bed.name());
    let other = bed.client_at(2);
    let before = reached(&bed)?;
    let spoofed = dropped(&bed.client(), &["source"])?;
    // Of a peer, of nobody, of a function, of the server. WireGuard ties each address to a key.
    let function = Ipv6Addr::from_bits(hello.to_bits() ^ 1);
    for source in [victim, VPN_PREFIX.host(0x9999), function] {
        let host = format!("{source}/128");
        other.run(&["ip", "addr", "add", &host, "dev", &interface, "nodad"])?.ok()?;
        let tried = try_from(&other.netns()?, source, hello);
        other.run(&["ip", "addr", "del", &host, "dev", &interface])?.ok()?;
        tried?;
    }
    ensure!(reached(&bed)? == before, "something arrived");
    let spoofed = dropped(&bed.client(), &["source"])? - spoofed;
    ensure!(spoofed >= 6, "of three connections and three queries {spoofed} packets are counted");
    let admitted = |bed: &Bed| metric(bed, "faasd_subject_admitted_total{subject=\"client\"}");
    ensure!(admitted(&bed)? == 0, "it passed for the client");
    // With its own address it is who it is: known, and refused.
    let refused = || metric(&bed, "faasd_policy_refused_total{subject=\"other\",function=\"hello\"}");
    let before = refused()?;
    crate::is_refused("its own address", &other.connect(hello, 80))?;
    ensure!(refused()? == before + 1, "{own} is not counted");
    ensure!(get(&mut bed.client().connect(hello, 80)?, "/")?.0 == 200);
    ensure!(admitted(&bed)? == 1);
    bed.finish()
}

pub fn beside_the_tunnel() -> Result<()> {
    let mut bed = Bed::joined()?;
    let attacker = bed.add_client()?;
    bed.deploy_hello("hello", "")?;
    let hello = address(&bed.describe("hello")?)?;
    let victim = peer_address(&bed, "client")?;
    let before = reached(&bed)?;

    // By the cable to the server: its own network knows no way to any function.
    let outside = bed.client_at(attacker);
    let gateway = format!("fd00:{attacker}::1");
    for prefix in ["fd00:faa5:0:100::/64", "fd00:faa5:0:200::/64"] {
        outside.run(&["ip", "route", "add", prefix, "via", &gateway])?.ok()?;
    }
    let dialled = outside.within(|| TcpStream::connect_timeout(&SocketAddr::from((hello, 80)), SILENCE));
    ensure!(dialled.is_err(), "from outside, by its own address: {dialled:?}");
    outside.run(&["ip", "addr", "add", &format!("{victim}/128"), "dev", "lo", "nodad"])?.ok()?;
    let dialled = outside.within(|| {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((victim, 0)).into())?;
        socket.connect_timeout(&SocketAddr::from((hello, 80)).into(), SILENCE)
    });
    ensure!(dialled.is_err(), "from outside, by a peer's address: {dialled:?}");
    ensure!(reached(&bed)? == before, "something arrived");

    ensure!(get(&mut bed.client().connect(hello, 80)?, "/")?.0 == 200);
    bed.finish()
}
