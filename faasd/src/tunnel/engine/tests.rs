//! Two engines and the wire between them, which the tests carry by hand: what is sent twice, bent, or sent from elsewhere
//! is then no question of luck.

use std::io::IoSlice;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::batch::Batch;
use super::{Ends, Engine};
use crate::tunnel::dropped::Reason;
use crate::tunnel::offload::Header;
use crate::tunnel::uapi::SetPeer;
use crate::tunnel::{AllowedIp, PrivateKey, PublicKey};

/// The ends of an engine, as a record of what came out of it.
#[derive(Default)]
struct Record {
    sent: Vec<(Vec<u8>, SocketAddr)>,
    written: Vec<Vec<u8>>,
}

impl Ends for Record {
    fn send(&mut self, batch: &Batch) -> u64 {
        self.sent.extend(batch.iter().map(|packet| (packet.to_vec(), batch.destination())));
        0
    }

    fn write(&mut self, frame: &[IoSlice<'_>]) -> bool {
        let frame: Vec<u8> = frame.iter().flat_map(|part| part.iter().copied()).collect();
        self.written.push(frame[Header::PLAIN.len()..].to_vec());
        true
    }
}

/// A machine: an engine with its address on the network and its address in the tunnel.
struct Machine {
    engine: Engine,
    key: PrivateKey,
    outside: SocketAddr,
    inside: Ipv6Addr,
    record: Record,
}

impl Machine {
    fn new(n: u8) -> Self {
        let key = PrivateKey::generate();
        let mut engine = Engine::new(1420);
        engine.set_private_key(&key);
        Self { engine, key, outside: outside(n), inside: inside(n), record: Record::default() }
    }

    /// What others say of this machine.
    fn peer(&self) -> SetPeer {
        SetPeer { allowed_ips: vec![AllowedIp::host(self.inside)], ..SetPeer::new(self.key.public()) }
    }

    fn change(&mut self, change: &SetPeer) {
        self.engine.change(change, false, &mut self.record);
        self.engine.flush(&mut self.record);
    }

    /// The interface has a packet for an address.
    fn send(&mut self, packet: &[u8]) {
        let mut frame = [&Header::PLAIN[..], packet].concat();
        self.engine.outgoing(&mut frame, &mut self.record);
        self.engine.flush(&mut self.record);
    }

    /// The network brings a datagram.
    fn receive(&mut self, datagram: &[u8], source: SocketAddr) {
        self.engine.incoming(datagram, datagram.len(), source, &mut self.record);
        self.engine.flush(&mut self.record);
    }

    fn dropped(&self, reason: Reason) -> u64 {
        self.engine.dropped().get(reason)
    }

    fn dropped_in_all(&self) -> u64 {
        self.engine.dropped().iter().map(|(_, packets)| packets).sum()
    }
}

fn outside(n: u8) -> SocketAddr {
    ([192, 0, 2, n], 51820).into()
}

fn inside(n: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0xfaa5, 0, 0x100, 0, 0, 0, n.into())
}

/// An IPv6 packet without a protocol.
fn packet(from: Ipv6Addr, to: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, payload.len() as u8, 59, 64];
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}

/// Carries everything between the two until nothing is under way.
fn carry(a: &mut Machine, b: &mut Machine) {
    loop {
        let (from_a, from_b) = (std::mem::take(&mut a.record.sent), std::mem::take(&mut b.record.sent));
        if from_a.is_empty() && from_b.is_empty() {
            return;
        }
        from_a.iter().for_each(|(datagram, _)| b.receive(datagram, a.outside));
        from_b.iter().for_each(|(datagram, _)| a.receive(datagram, b.outside));
    }
}

/// A client and the server that knows it, with a session.
fn joined() -> (Machine, Machine) {
    let (mut client, mut server) = (Machine::new(2), Machine::new(1));
    server.change(&client.peer());
    client.change(&SetPeer { endpoint: Some(server.outside), ..server.peer() });
    carry(&mut client, &mut server);
    assert_eq!(client.dropped_in_all() + server.dropped_in_all(), 0);
    (client, server)
}

/// The datagram that carries a packet, taken from the wire.
fn datagram(from: &mut Machine, packet: &[u8]) -> Vec<u8> {
    from.send(packet);
    let mut sent = std::mem::take(&mut from.record.sent);
    assert_eq!(sent.len(), 1);
    sent.remove(0).0
}

#[test]
fn what_is_sent_before_there_is_a_session_arrives() {
    let (mut client, mut server) = (Machine::new(2), Machine::new(1));
    server.change(&client.peer());
    client.change(&SetPeer { endpoint: Some(server.outside), ..server.peer() });
    // The handshake that it began with is lost; the packets wait for the next.
    client.record.sent.clear();
    let sent: Vec<_> = (0..3).map(|n| packet(client.inside, server.inside, &[n; 40])).collect();
    sent.iter().for_each(|packet| client.send(packet));
    assert!(client.record.sent.is_empty());
    let start = Instant::now();
    while server.record.written.is_empty() {
        assert!(start.elapsed() < Duration::from_secs(20), "no second handshake");
        if let Some(due) = client.engine.due() {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        client.engine.tick(Instant::now(), &mut client.record);
        client.engine.flush(&mut client.record);
        carry(&mut client, &mut server);
    }
    assert_eq!(server.record.written, sent);
    let answer = packet(server.inside, client.inside, b"answer");
    server.send(&answer);
    carry(&mut client, &mut server);
    assert_eq!(client.record.written, [answer]);
}

#[test]
fn a_peer_speaks_only_for_its_own_address() {
    let (mut client, mut server) = joined();
    client.send(&packet(inside(9), server.inside, b"as another"));
    client.send(&packet("2001:db8::1".parse().unwrap(), server.inside, b"as a stranger"));
    client.send(&[&[0x50; 1][..], &[0; 60]].concat());
    carry(&mut client, &mut server);
    assert!(server.record.written.is_empty());
    // The third is not even taken from the interface.
    assert_eq!((server.dropped(Reason::Source), server.dropped_in_all()), (2, 2));
}

#[test]
fn what_is_recorded_and_sent_again_is_dropped() {
    let (mut client, mut server) = (Machine::new(2), Machine::new(1));
    server.change(&client.peer());
    client.change(&SetPeer { endpoint: Some(server.outside), ..server.peer() });
    let initiation = client.record.sent[0].0.clone();
    carry(&mut client, &mut server);
    let sent = packet(client.inside, server.inside, b"pay me");
    let data = datagram(&mut client, &sent);
    server.receive(&data, client.outside);
    for _ in 0..3 {
        server.receive(&data, outside(66));
        server.receive(&initiation, outside(66));
    }
    assert_eq!(server.record.written.len(), 1);
    assert_eq!((server.dropped(Reason::Replayed), server.dropped(Reason::ReplayedHandshake)), (3, 3));
    // Nor does an echo from elsewhere lead the answers there.
    let answer = packet(server.inside, client.inside, b"paid");
    server.record.sent.clear();
    server.send(&answer);
    assert_eq!(server.record.sent[0].1, client.outside);
}

#[test]
fn who_moves_is_found_where_it_is() {
    let (mut client, mut server) = joined();
    let sent = packet(client.inside, server.inside, b"here now");
    let data = datagram(&mut client, &sent);
    server.receive(&data, outside(77));
    server.record.sent.clear();
    server.send(&packet(server.inside, client.inside, b"there"));
    assert_eq!(server.record.sent[0].1, outside(77));
}

#[test]
fn what_is_bent_or_no_message_is_dropped() {
    let (mut client, mut server) = joined();
    let sent = packet(client.inside, server.inside, b"straight");
    let mut data = datagram(&mut client, &sent);
    *data.last_mut().unwrap() ^= 1;
    server.receive(&data, client.outside);
    assert_eq!(server.dropped(Reason::Forged), 1);
    for junk in [&b""[..], b"GET / HTTP/1.1\r\n", &[4, 0, 0, 0], &[1; 148], &[0; 1500]] {
        server.receive(junk, outside(66));
    }
    // What is nothing at all is no message to take apart; the one of a handshake's length bears nobody's mark.
    assert_eq!((server.dropped(Reason::Malformed), server.dropped(Reason::Handshake)), (3, 1));
    assert!(server.record.written.is_empty() && server.record.sent.is_empty());
}

#[test]
fn who_is_removed_is_a_stranger() {
    let (mut client, mut server) = joined();
    server.change(&SetPeer { remove: true, ..SetPeer::new(client.key.public()) });
    client.send(&packet(client.inside, server.inside, b"still there?"));
    carry(&mut client, &mut server);
    assert_eq!(server.dropped(Reason::UnknownSession), 1);
    server.send(&packet(server.inside, client.inside, b"nobody"));
    assert_eq!(server.dropped(Reason::NoPeer), 1);
    // It asks anew, and so does somebody who was never known.
    let mut stranger = Machine::new(3);
    for asking in [&mut client, &mut stranger] {
        asking.change(&SetPeer { remove: true, ..SetPeer::new(server.key.public()) });
        asking.change(&SetPeer { endpoint: Some(server.outside), ..server.peer() });
        carry(asking, &mut server);
    }
    assert_eq!((server.dropped(Reason::UnknownPeer), server.dropped_in_all()), (2, 4));
    assert!(server.record.written.is_empty() && server.record.sent.is_empty());
}

#[test]
fn handshakes_that_come_too_fast_have_to_prove_their_address() {
    let mut server = Machine::new(1);
    for _ in 0..400 {
        let mut stranger = Machine::new(9);
        stranger.change(&SetPeer { endpoint: Some(server.outside), ..server.peer() });
        let (initiation, _) = &stranger.record.sent[0];
        server.receive(initiation, stranger.outside);
    }
    let (overload, unknown) = (server.dropped(Reason::Overload), server.dropped(Reason::UnknownPeer));
    // Each of them is answered by a cookie, shorter than what asked for it.
    assert!(overload > 0 && overload + unknown == 400, "{overload} and {unknown}");
    assert_eq!(server.record.sent.len() as u64, overload);
    assert!(server.record.sent.iter().all(|(cookie, _)| cookie.len() < 148));
}

#[test]
fn what_leads_nowhere_is_counted() {
    let (mut client, mut server) = joined();
    server.change(&Machine::new(5).peer());
    server.send(&packet(server.inside, inside(5), b"never seen"));
    server.send(&packet(server.inside, inside(6), b"nobody's"));
    assert_eq!((server.dropped(Reason::NoEndpoint), server.dropped(Reason::NoPeer)), (1, 1));
    carry(&mut client, &mut server);
    assert_eq!(server.dropped_in_all(), 2);
}

/// A prefix is one peer's: whoever is told last has it.
#[test]
fn an_address_is_its_last_owners() {
    let (mut client, mut server) = joined();
    let mut other = Machine::new(3);
    server.change(&SetPeer { allowed_ips: vec![AllowedIp::host(client.inside)], ..other.peer() });
    client.send(&packet(client.inside, server.inside, b"was mine"));
    carry(&mut client, &mut server);
    assert_eq!(server.dropped(Reason::Source), 1);
    other.inside = client.inside;
    other.change(&SetPeer { endpoint: Some(server.outside), ..server.peer() });
    carry(&mut other, &mut server);
    other.send(&packet(client.inside, server.inside, b"is mine"));
    carry(&mut other, &mut server);
    assert_eq!(server.record.written.len(), 1);
}

/// Ten thousand peers that say nothing cost nothing.
#[test]
fn who_sleeps_has_no_timers() {
    let mut server = Machine::new(1);
    for n in 0..10_000_u32 {
        let address = Ipv6Addr::from_bits(inside(0).to_bits() | u128::from(n + 2));
        let key = PublicKey::from_bytes(*PrivateKey::generate().public().as_bytes());
        server.change(&SetPeer { allowed_ips: vec![AllowedIp::host(address)], ..SetPeer::new(key) });
    }
    assert_eq!(server.engine.due(), None);
    let mut all = 0;
    let mut from = Some(0);
    while let Some(first) = from {
        let (page, next) = server.engine.page(first, 128);
        assert!(page.len() <= 128);
        all += page.len();
        from = next;
    }
    assert_eq!(all, 10_000);
}
