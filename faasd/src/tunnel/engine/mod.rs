//! What carries the packets of the tunnel process: WireGuard between an interface and a UDP socket, on one thread.
//!
//! gotatun's `noise` does what the protocol is: handshakes, sessions, replay windows, timers. What it has around that, a
//! device with a task for each end and queues between them, is not used: a packet's way here is one function from the
//! read to the write, with no queue, lock or wake-up on it, and packets that come together go together (see
//! `offload`). Peers belong to the one thread that runs; whoever wants something of them hands it a function
//! ([`driver`]).

mod batch;
mod configure;
pub(super) mod driver;
mod limits;
mod peers;
mod routes;
mod socket;
#[cfg(test)]
mod tests;
mod timers;

use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use bytes::BytesMut;
use gotatun::noise::errors::WireGuardError;
use gotatun::noise::handshake::parse_handshake_anon;
use gotatun::noise::{Tunn, TunnResult};
use gotatun::packet::{Packet, WgKind};
use gotatun::tun::MtuWatcher;
use gotatun::x25519;

use super::PublicKey;
use super::dropped::{Dropped, Reason};
use super::offload::coalesce::Coalescer;
use super::offload::segment::Segments;
use batch::Batch;
use limits::Limits;
use peers::{Id, Peers};

/// Where packets are cut and decrypted: the most that one read brings, with what is added to it.
const ARENA_BYTES: usize = 96 << 10;

/// The two ends.
pub(super) trait Ends {
    /// Sends the packets to their destination. Returns how many were lost.
    fn send(&mut self, batch: &Batch) -> u64;

    /// Gives a frame to the interface; false if it was lost.
    fn write(&mut self, frame: &[IoSlice<'_>]) -> bool;
}

/// What was found for the packet before: those that come together are mostly of one session, and from one address within.
#[derive(Default)]
struct Run {
    session: Option<(u32, Id)>,
    /// An address that belongs to the peer.
    source: Option<(Id, IpAddr)>,
}

/// Who we are.
struct Identity {
    private: x25519::StaticSecret,
    public: x25519::PublicKey,
    /// Cookies depend on the key.
    limits: Limits,
}

/// All that a tunnel knows.
pub(super) struct Engine {
    identity: Option<Identity>,
    peers: Peers,
    mtu: MtuWatcher,
    mtu_bytes: usize,
    /// What leaves next.
    batch: Batch,
    /// What goes to the interface next.
    coalescer: Coalescer<Packet>,
    cut: BytesMut,
    received: BytesMut,
    /// The timers' next turn, if any run.
    due: Option<Instant>,
    dropped: Dropped,
}

impl Engine {
    pub(super) fn new(mtu_bytes: u16) -> Self {
        Self {
            identity: None,
            peers: Peers::default(),
            mtu: MtuWatcher::new(mtu_bytes),
            mtu_bytes: mtu_bytes.into(),
            batch: Batch::default(),
            coalescer: Coalescer::default(),
            cut: BytesMut::with_capacity(ARENA_BYTES),
            received: BytesMut::with_capacity(ARENA_BYTES),
            due: None,
            dropped: Dropped::default(),
        }
    }

    pub(super) fn dropped(&self) -> Dropped {
        self.dropped
    }

    /// Counts packets that the network took first and lost then.
    pub(super) fn lose(&mut self, packets: u64) {
        self.dropped.add(Reason::Network, packets);
    }

    /// Sends and writes what waits for more of its kind: at the end of each turn.
    pub(super) fn flush(&mut self, ends: &mut impl Ends) {
        let dropped = &mut self.dropped;
        self.coalescer.flush(&mut |frame| write(ends, dropped, frame));
        send(ends, &mut self.batch, &mut self.dropped);
    }

    /// Takes a frame of the interface: packets to one address, uncut.
    pub(super) fn outgoing(&mut self, frame: &mut [u8], ends: &mut impl Ends) {
        let Ok(mut segments) = Segments::of(frame) else { return };
        // What the interface carries beside IP is of no interest, and IPv6 has to say something as soon as it is up.
        let Some(destination) = ip(segments.packet()).map(|ip| ip.destination) else { return };
        let Some(id) = self.peers.by_address(destination) else {
            return self.dropped.add(Reason::NoPeer, 1);
        };
        let Some(endpoint) = self.peers.get_mut(id).and_then(|peer| peer.endpoint) else {
            return self.dropped.add(Reason::NoEndpoint, 1);
        };
        self.wake(id, ends);
        // Whatever was cut before is sent, or copied to wait.
        reclaim(&mut self.cut);
        while let Some(bytes) = segments.next_onto(&mut self.cut) {
            let padded = bytes.next_multiple_of(16).min(self.mtu_bytes).max(bytes);
            self.cut.resize(padded, 0);
            let Some(peer) = self.peers.get_mut(id) else { return };
            let packet = Packet::from_bytes(self.cut.split());
            match peer.tunn.encapsulate_with_session(packet) {
                Ok(packet) => {
                    let packet = packet.into_bytes();
                    put(ends, &mut self.batch, &mut self.dropped, packet.as_ref(), endpoint);
                }
                Err(packet) => {
                    // It may wait for long: not with the whole arena.
                    let packet = Packet::copy_from(packet.as_ref());
                    if let Some(message) = peer.tunn.handle_outgoing_packet(packet, None) {
                        self.emit(id, message, endpoint, ends);
                    }
                }
            }
        }
    }

    /// Takes a message from the network: packets of one length from one source.
    pub(super) fn incoming(&mut self, message: &[u8], cut: usize, source: SocketAddr, ends: &mut impl Ends) {
        reclaim(&mut self.received);
        let mut run = Run::default();
        for datagram in message.chunks(cut.max(1)) {
            self.received.extend_from_slice(datagram);
            let packet = Packet::from_bytes(self.received.split());
            if let Err(reason) = self.datagram(packet, source, &mut run, ends) {
                self.dropped.add(reason, 1);
            }
        }
    }

    fn datagram(
        &mut self,
        packet: Packet,
        source: SocketAddr,
        run: &mut Run,
        ends: &mut impl Ends,
    ) -> Result<(), Reason> {
        let identity = self.identity.as_mut().ok_or(Reason::UnknownSession)?;
        let message = match identity.limits.verify(packet, source) {
            Ok(message) => message,
            Err(TunnResult::WriteToNetwork(cookie)) => {
                let cookie = Packet::from(cookie);
                put(ends, &mut self.batch, &mut self.dropped, cookie.as_ref(), source);
                return Err(Reason::Overload);
            }
            Err(TunnResult::Err(WireGuardError::InvalidMac)) => return Err(Reason::Handshake),
            Err(_) => return Err(Reason::Malformed),
        };
        let id = match &message {
            WgKind::HandshakeInit(init) => {
                let half = parse_handshake_anon(&identity.private, &identity.public, init)
                    .map_err(|_| Reason::Handshake)?;
                let key = PublicKey::from_bytes(half.peer_static_public);
                self.peers.by_key(key).ok_or(Reason::UnknownPeer)?
            }
            WgKind::HandshakeResp(response) => {
                self.peers.by_index(response.receiver_idx.get()).ok_or(Reason::UnknownSession)?
            }
            WgKind::CookieReply(reply) => {
                self.peers.by_index(reply.receiver_idx.get()).ok_or(Reason::UnknownSession)?
            }
            WgKind::Data(data) => match (data.header.receiver_idx.get(), run.session) {
                (index, Some((last, id))) if index == last => id,
                (index, _) => {
                    let id = self.peers.by_index(index).ok_or(Reason::UnknownSession)?;
                    run.session = Some((index, id));
                    id
                }
            },
        };
        self.wake(id, ends);
        let answers = matches!(message, WgKind::HandshakeInit(_));
        let peer = self.peers.get_mut(id).ok_or(Reason::UnknownPeer)?;
        match peer.tunn.handle_incoming_packet(message) {
            TunnResult::Done => Ok(()),
            TunnResult::Err(error) => Err(reason(&error)),
            TunnResult::WriteToNetwork(message) => {
                peer.endpoint = Some(source);
                peer.unconfirmed = answers;
                self.emit(id, message, source, ends);
                if !answers {
                    self.release(id, source, ends);
                }
                Ok(())
            }
            TunnResult::WriteToTunnel(packet) => {
                peer.endpoint = Some(source);
                if std::mem::take(&mut peer.unconfirmed) {
                    self.release(id, source, ends);
                }
                self.deliver(id, packet, run, ends)
            }
        }
    }

    /// Hands a decrypted packet to the interface, if its sender may have sent it.
    fn deliver(
        &mut self,
        id: Id,
        mut packet: Packet,
        run: &mut Run,
        ends: &mut impl Ends,
    ) -> Result<(), Reason> {
        if packet.is_empty() {
            // A keepalive.
            return Ok(());
        }
        let header = ip(packet.as_ref()).filter(|ip| ip.bytes <= packet.len()).ok_or(Reason::NoPacket)?;
        if run.source != Some((id, header.source)) {
            // Where an answer would go to.
            if self.peers.by_address(header.source) != Some(id) {
                return Err(Reason::Source);
            }
            run.source = Some((id, header.source));
        }
        // Without the padding.
        packet.truncate(header.bytes);
        let dropped = &mut self.dropped;
        self.coalescer.push(packet, &mut |frame| write(ends, dropped, frame));
        Ok(())
    }

    /// Sends what has waited for a session.
    fn release(&mut self, id: Id, endpoint: SocketAddr, ends: &mut impl Ends) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let waiting: Vec<WgKind> = peer.tunn.get_queued_packets(&mut self.mtu).collect();
        for message in waiting {
            self.emit(id, message, endpoint, ends);
        }
    }

    /// Sends a peer's message, to whose index the answer will refer.
    fn emit(&mut self, id: Id, message: WgKind, endpoint: SocketAddr, ends: &mut impl Ends) {
        self.peers.register(id, &message);
        let message = Packet::from(message);
        put(ends, &mut self.batch, &mut self.dropped, message.as_ref(), endpoint);
    }
}

fn put(
    ends: &mut impl Ends,
    batch: &mut Batch,
    dropped: &mut Dropped,
    packet: &[u8],
    destination: SocketAddr,
) {
    if !batch.takes(packet.len(), destination) {
        send(ends, batch, dropped);
    }
    batch.push(packet, destination);
}

fn send(ends: &mut impl Ends, batch: &mut Batch, dropped: &mut Dropped) {
    if !batch.is_empty() {
        dropped.add(Reason::Network, ends.send(batch));
        batch.clear();
    }
}

fn write(ends: &mut impl Ends, dropped: &mut Dropped, frame: &[IoSlice<'_>]) {
    if !ends.write(frame) {
        dropped.add(Reason::Interface, 1);
    }
}

/// Makes room for what one read brings: the room of before, if nobody holds any of it any more.
fn reclaim(arena: &mut BytesMut) {
    if !arena.try_reclaim(ARENA_BYTES) {
        *arena = BytesMut::with_capacity(ARENA_BYTES);
    }
}

fn reason(error: &WireGuardError) -> Reason {
    match error {
        WireGuardError::DuplicateCounter | WireGuardError::InvalidCounter => Reason::Replayed,
        WireGuardError::WrongTai64nTimestamp => Reason::ReplayedHandshake,
        WireGuardError::NoCurrentSession
        | WireGuardError::WrongIndex
        | WireGuardError::ConnectionExpired
        | WireGuardError::UnexpectedPacket => Reason::UnknownSession,
        WireGuardError::WrongKey => Reason::Handshake,
        _ => Reason::Forged,
    }
}

/// What of an IP packet matters here.
struct Ip {
    source: IpAddr,
    destination: IpAddr,
    /// The packet's own length.
    bytes: usize,
}

/// None for what is no IP packet.
fn ip(packet: &[u8]) -> Option<Ip> {
    let two = |at| Some(usize::from(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?)));
    match packet.first()? >> 4 {
        4 => {
            let four = |at| Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
            let bytes = two(2).filter(|bytes| *bytes >= 20)?;
            Some(Ip { source: four(12)?.into(), destination: four(16)?.into(), bytes })
        }
        6 => {
            let sixteen = |at| Some(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?));
            Some(Ip { source: sixteen(8)?.into(), destination: sixteen(24)?.into(), bytes: 40 + two(4)? })
        }
        _ => None,
    }
}

/// The handshakes and sessions with a peer that is new.
fn tunn(identity: &Identity, peers: &Peers, key: PublicKey) -> Tunn {
    Tunn::new(
        identity.private.clone(),
        x25519::PublicKey::from(*key.as_bytes()),
        None,
        None,
        peers.indexes(),
        identity.limits.of_each(),
    )
}
