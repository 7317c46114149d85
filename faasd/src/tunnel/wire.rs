//! The tunnel process's UDP socket: runs of packets to one peer leave and arrive as one (`UDP_SEGMENT`, `UDP_GRO`).

use std::collections::HashSet;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};

use gotatun::packet::{Packet, PacketBufPool};
use gotatun::udp::socket::{UdpSocket, UdpSocketFactory};
use gotatun::udp::{UdpRecv, UdpSend, UdpTransportFactory, UdpTransportFactoryParams};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::Interest;

/// The socket's buffers: a burst of about 2,900 full packets.
const BUFFER_BYTES: usize = 4 << 20;

/// Packets in one message: the kernel's own limit, before Linux 6.9 raised it.
const SEGMENTS_MAX: usize = 64;

/// Bytes in one message; the kernel's limit counts its headers.
const MESSAGE_BYTES_MAX: usize = 65_000;

/// Packets that are taken from gotatun at a time; its own sending, which we fall back to, takes no more.
const PACKETS_PER_TURN_MAX: usize = 100;

/// Messages read in one turn, each of up to [`SEGMENTS_MAX`] packets.
const MESSAGES_PER_TURN_MAX: usize = 16;

/// Peers on whose way packets cannot be cut that are remembered.
const UNCUT_MAX: usize = 1024;

/// The UDP socket, kept for as long as its port is wanted.
///
/// gotatun asks for a new one whenever a key changes or all peers go, while tasks that it has only just told to end
/// hold the old one: the port may still be taken, and the packets of all other peers that had arrived on the old
/// socket are lost, first handshakes among them, which are repeated after 5 s.
pub(super) struct OneSocket {
    factory: UdpSocketFactory,
    socket: Option<Wire>,
}

impl OneSocket {
    pub(super) fn new() -> Self {
        let bytes = Some(BUFFER_BYTES);
        Self { factory: UdpSocketFactory { recv_buffer_size: bytes, send_buffer_size: bytes }, socket: None }
    }
}

impl UdpTransportFactory for OneSocket {
    type Send = Wire;
    type Recv = Wire;

    async fn bind(&mut self, params: &UdpTransportFactoryParams) -> io::Result<(Wire, Wire)> {
        if let Some(wire) = &self.socket {
            let port = wire.socket.local_addr()?.port();
            if params.addr.is_none() && (params.port == 0 || params.port == port) {
                if let Some(mark) = params.fwmark {
                    wire.socket.set_fwmark(mark)?;
                }
                return Ok((wire.clone(), wire.clone()));
            }
        }
        let (socket, _) = self.factory.bind(params).await?;
        // Past `net.core.rmem_max`, if we may.
        let _ = setsockopt(socket.socket(), sockopt::RcvBufForce, &BUFFER_BYTES);
        let _ = setsockopt(socket.socket(), sockopt::SndBufForce, &BUFFER_BYTES);
        let wire = Wire { socket, uncut: Arc::default() };
        self.socket = Some(wire.clone());
        Ok((wire.clone(), wire))
    }
}

/// The socket in use.
#[derive(Clone)]
pub(super) struct Wire {
    socket: UdpSocket,
    /// Where cutting failed: an interface without checksums of its own, or a way with a smaller MTU, on which packets
    /// have to be fragmented.
    uncut: Arc<Mutex<HashSet<SocketAddr>>>,
}

impl Wire {
    fn is_uncut(&self, destination: SocketAddr) -> bool {
        self.uncut.lock().unwrap_or_else(PoisonError::into_inner).contains(&destination)
    }

    fn remember(&self, destination: SocketAddr) {
        let mut uncut = self.uncut.lock().unwrap_or_else(PoisonError::into_inner);
        // Forgetting costs one failed call for each that is met again.
        if uncut.len() >= UNCUT_MAX {
            uncut.clear();
        }
        uncut.insert(destination);
    }

    /// Sends packets of one length, but for the last, which may be shorter, to one peer.
    async fn send_run(&self, run: &[(Packet, SocketAddr)]) -> io::Result<()> {
        let Some((first, destination)) = run.first() else { return Ok(()) };
        let to = SockaddrStorage::from(*destination);
        let length = u16::try_from(first.len()).unwrap_or(u16::MAX);
        let cut = [ControlMessage::UdpGsoSegments(&length)];
        let control = if run.len() > 1 { &cut[..] } else { &[] };
        let mut parts = [IoSlice::new(&[]); SEGMENTS_MAX];
        for (part, (packet, _)) in parts.iter_mut().zip(run) {
            *part = IoSlice::new(packet);
        }
        let parts = parts.get(..run.len()).unwrap_or_default();
        let socket = self.socket.socket();
        let fd = socket.as_raw_fd();
        let send = || Ok(sendmsg(fd, parts, control, MsgFlags::MSG_DONTWAIT, Some(&to))?);
        socket.async_io(Interest::WRITABLE, send).await.map(drop)
    }
}

/// How many of the packets, from the first, can leave as one.
fn run(packets: &[(Packet, SocketAddr)]) -> usize {
    let Some((first, destination)) = packets.first() else { return 0 };
    let (mut count, mut bytes) = (1, first.len());
    for (packet, to) in packets.iter().skip(1).take(SEGMENTS_MAX - 1) {
        bytes += packet.len();
        if to != destination || packet.len() > first.len() || bytes > MESSAGE_BYTES_MAX {
            break;
        }
        count += 1;
        if packet.len() < first.len() {
            break;
        }
    }
    count
}

impl UdpSend for Wire {
    type SendManyBuf = ();

    async fn send_to(&self, packet: Packet, destination: SocketAddr) -> io::Result<()> {
        self.socket.send_to(packet, destination).await
    }

    fn max_number_of_packets_to_send(&self) -> usize {
        PACKETS_PER_TURN_MAX
    }

    async fn send_many_to(&self, (): &mut (), packets: &mut Vec<(Packet, SocketAddr)>) -> io::Result<()> {
        let mut rest = &packets[..];
        while let Some((_, destination)) = rest.first() {
            let (now, later) = rest.split_at(run(rest));
            let whole = now.len() == 1 || !self.is_uncut(*destination);
            let refused = whole
                && self.send_run(now).await.is_err_and(|e| {
                    now.len() > 1
                        && matches!(e.raw_os_error(), Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE))
                });
            if refused {
                self.remember(*destination);
            }
            if refused || !whole {
                for one in now.chunks(1) {
                    // What is lost is lost, as on any way: the protocols inside see to it.
                    let _ = self.send_run(one).await;
                }
            }
            rest = later;
        }
        packets.clear();
        Ok(())
    }

    fn local_addr(&self) -> io::Result<Option<SocketAddr>> {
        self.socket.local_addr().map(Some)
    }

    fn set_fwmark(&self, mark: u32) -> io::Result<()> {
        self.socket.set_fwmark(mark)
    }
}

/// Where messages are read to, before they are cut.
pub(super) struct Message {
    data: Box<[u8]>,
    control: Vec<u8>,
}

impl Default for Message {
    fn default() -> Self {
        Self { data: vec![0; 1 << 16].into(), control: nix::cmsg_space!(libc::c_int) }
    }
}

impl Message {
    /// Reads one message, whose packets are appended.
    fn read(
        &mut self,
        fd: std::os::fd::RawFd,
        pool: &PacketBufPool,
        packets: &mut Vec<(Packet, SocketAddr)>,
    ) -> io::Result<()> {
        let mut parts = [IoSliceMut::new(&mut self.data)];
        let received =
            recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut self.control), MsgFlags::MSG_DONTWAIT)?;
        let cut = received.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::UdpGroSegments(bytes) => {
                usize::try_from(bytes).ok().filter(|bytes| *bytes > 0)
            }
            _ => None,
        });
        let (bytes, source) = (received.bytes, received.address.as_ref().and_then(address));
        if let (Some(source), Some(data)) = (source, self.data.get(..bytes)) {
            for segment in data.chunks(cut.unwrap_or(bytes).max(1)) {
                let mut packet = pool.get();
                packet.buf_mut().clear();
                packet.buf_mut().extend_from_slice(segment);
                packets.push((packet, source));
            }
        }
        Ok(())
    }
}

/// The sender, without the wrapping that IPv4 has in a socket for both.
fn address(from: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = from.as_sockaddr_in().map(|v4| SocketAddr::from(*v4));
    let v6 = || from.as_sockaddr_in6().map(|v6| SocketAddr::from(*v6));
    let mut found = v4.or_else(v6)?;
    if found.ip().to_canonical().is_ipv4() {
        found.set_ip(found.ip().to_canonical());
    }
    Some(found)
}

impl UdpRecv for Wire {
    type RecvManyBuf = Message;

    async fn recv_from(&mut self, pool: &mut PacketBufPool) -> io::Result<(Packet, SocketAddr)> {
        self.socket.recv_from(pool).await
    }

    async fn recv_many_from(
        &mut self,
        message: &mut Message,
        pool: &mut PacketBufPool,
        packets: &mut Vec<(Packet, SocketAddr)>,
    ) -> io::Result<()> {
        let socket = self.socket.socket();
        let fd = socket.as_raw_fd();
        let receive = || {
            for _ in 0..MESSAGES_PER_TURN_MAX {
                match message.read(fd, pool, packets) {
                    Ok(()) => {}
                    // A failure that comes after packets comes again.
                    Err(_) if !packets.is_empty() => break,
                    Err(e) => return Err(e),
                }
            }
            Ok(())
        };
        socket.async_io(Interest::READABLE, receive).await
    }

    fn enable_udp_gro(&self) -> io::Result<()> {
        self.socket.enable_udp_gro()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packets(lengths: &[usize]) -> Vec<(Packet, SocketAddr)> {
        let to = SocketAddr::from(([127, 0, 0, 1], 9));
        lengths.iter().map(|bytes| (Packet::copy_from(&vec![1; *bytes][..]), to)).collect()
    }

    #[test]
    fn a_run_is_of_one_length_but_for_its_last() {
        assert_eq!(run(&[]), 0);
        assert_eq!(run(&packets(&[100])), 1);
        assert_eq!(run(&packets(&[100, 100, 50, 100])), 3);
        assert_eq!(run(&packets(&[100, 200])), 1);
        assert_eq!(run(&packets(&[10; 200])), SEGMENTS_MAX);
        assert_eq!(run(&packets(&[1452; 60])), MESSAGE_BYTES_MAX / 1452);
        let mut two = packets(&[100, 100]);
        two[1].1.set_port(10);
        assert_eq!(run(&two), 1);
    }

    /// What leaves as one arrives as it was, also to a receiver that takes packet by packet.
    #[tokio::test]
    async fn what_leaves_as_one_arrives_as_many() {
        let params = UdpTransportFactoryParams { addr: None, port: 0, fwmark: None };
        let (sender, _) = OneSocket::new().bind(&params).await.unwrap();
        let (receiver, mut wire) = OneSocket::new().bind(&params).await.unwrap();
        let plain = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = UdpSend::local_addr(&receiver).unwrap().unwrap().port();
        let sent: Vec<Vec<u8>> = (0..40_u8).map(|n| vec![n; if n == 39 { 7 } else { 1400 }]).collect();
        for to in [SocketAddr::from(([127, 0, 0, 1], port)), plain.local_addr().unwrap()] {
            let mut packets: Vec<_> = sent.iter().map(|data| (Packet::copy_from(&data[..]), to)).collect();
            sender.send_many_to(&mut (), &mut packets).await.unwrap();
            assert!(packets.is_empty());
        }
        let mut got = Vec::new();
        while got.len() < sent.len() {
            let mut pool = PacketBufPool::new(4);
            wire.recv_many_from(&mut Message::default(), &mut pool, &mut got).await.unwrap();
        }
        assert!(got.iter().all(|(_, from)| from.ip().is_ipv4()));
        assert_eq!(got.iter().map(|(packet, _)| packet[..].to_vec()).collect::<Vec<_>>(), sent);
        for expected in sent {
            let mut data = [0; 2000];
            let bytes = plain.recv(&mut data).await.unwrap();
            assert_eq!(data[..bytes], expected);
        }
    }
}
