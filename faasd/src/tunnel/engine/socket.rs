//! The UDP socket: runs of packets to one peer leave and arrive as one (`UDP_SEGMENT`, `UDP_GRO`).

use std::collections::HashSet;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Type};

use super::batch::Batch;

/// The socket's buffers: a burst of about 2,900 full packets.
const BUFFER_BYTES: usize = 4 << 20;

/// Peers on whose way packets cannot be cut that are remembered.
const UNCUT_MAX: usize = 1024;

/// The longest message.
pub(super) const MESSAGE_BYTES_MAX: usize = 1 << 16;

/// A socket for both families, or for IPv4 alone where there is no IPv6.
pub(super) struct Socket {
    socket: socket2::Socket,
    control: Vec<u8>,
    /// Where cutting failed: an interface without checksums of its own, or a way with a smaller MTU, on which packets
    /// have to be fragmented.
    uncut: HashSet<SocketAddr>,
}

/// A message that was read.
pub(super) struct Received {
    pub(super) bytes: usize,
    /// The length of its packets.
    pub(super) cut: usize,
    pub(super) source: SocketAddr,
}

impl Socket {
    /// Opens a socket on a port; 0 lets the kernel choose one.
    pub(super) fn open(port: u16, mark: u32) -> io::Result<Self> {
        let socket = match open(Domain::IPV6, (Ipv6Addr::UNSPECIFIED, port).into(), mark) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => {
                open(Domain::IPV4, (Ipv4Addr::UNSPECIFIED, port).into(), mark)?
            }
            opened => opened?,
        };
        // As much as an unprivileged process may have, and past `net.core.rmem_max`, if we may.
        let _ = socket.set_recv_buffer_size(BUFFER_BYTES);
        let _ = socket.set_send_buffer_size(BUFFER_BYTES);
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_BYTES);
        let _ = setsockopt(&socket, sockopt::SndBufForce, &BUFFER_BYTES);
        if let Err(error) = setsockopt(&socket, sockopt::UdpGroSegment, &true) {
            tracing::warn!(%error, "packets are received one by one: throughput is lower");
        }
        Ok(Self { socket, control: nix::cmsg_space!(libc::c_int), uncut: HashSet::new() })
    }

    pub(super) fn port(&self) -> u16 {
        let address = self.socket.local_addr().ok().and_then(|address| address.as_socket());
        address.map_or(0, |address| address.port())
    }

    pub(super) fn set_mark(&self, mark: u32) -> io::Result<()> {
        self.socket.set_mark(mark)
    }

    /// Sends packets. Returns how many were lost.
    ///
    /// # Errors
    /// `WouldBlock` if none of them was sent, since there is no room for more.
    pub(super) fn send(&mut self, batch: &Batch) -> io::Result<u64> {
        let to = batch.destination();
        let cut = batch.cut().filter(|_| self.uncut.is_empty() || !self.uncut.contains(&to));
        let error = match self.transmit(batch.bytes(), cut, to, batch.packets() == 1 || cut.is_some()) {
            Some(Ok(())) => return Ok(0),
            Some(Err(e)) if e.kind() == io::ErrorKind::WouldBlock => return Err(e),
            Some(Err(e)) => Some(e),
            None => None,
        };
        match error.as_ref().and_then(io::Error::raw_os_error) {
            Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE) if cut.is_some() => {
                // Forgetting costs one failed call for each that is met again.
                if self.uncut.len() >= UNCUT_MAX {
                    self.uncut.clear();
                }
                self.uncut.insert(to);
            }
            Some(_) => return Ok(batch.packets() as u64),
            None => {}
        }
        // What is lost is lost, as on any way: the protocols inside see to it.
        let sent =
            batch.iter().filter(|packet| matches!(self.transmit(packet, None, to, true), Some(Ok(()))));
        Ok((batch.packets() - sent.count()) as u64)
    }

    fn transmit(
        &self,
        bytes: &[u8],
        cut: Option<u16>,
        to: SocketAddr,
        whole: bool,
    ) -> Option<io::Result<()>> {
        whole.then_some(())?;
        let parts = [IoSlice::new(bytes)];
        let cut = cut.as_ref().map(ControlMessage::UdpGsoSegments);
        let to = SockaddrStorage::from(to);
        let sent =
            sendmsg(self.socket.as_raw_fd(), &parts, cut.as_slice(), MsgFlags::MSG_DONTWAIT, Some(&to));
        Some(sent.map(drop).map_err(io::Error::from))
    }

    /// Reads one message.
    ///
    /// # Errors
    /// `WouldBlock` if there is none.
    pub(super) fn receive(&mut self, data: &mut [u8]) -> io::Result<Option<Received>> {
        let mut parts = [IoSliceMut::new(data)];
        let received = recvmsg::<SockaddrStorage>(
            self.socket.as_raw_fd(),
            &mut parts,
            Some(&mut self.control),
            MsgFlags::MSG_DONTWAIT,
        )?;
        let cut = received.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::UdpGroSegments(bytes) => {
                usize::try_from(bytes).ok().filter(|bytes| *bytes > 0)
            }
            _ => None,
        });
        let bytes = received.bytes;
        let source = received.address.as_ref().and_then(address);
        Ok(source.map(|source| Received { bytes, cut: cut.unwrap_or(bytes), source }))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn open(domain: Domain, address: SocketAddr, mark: u32) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(false)?;
    }
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What leaves as one arrives as it was, also at a receiver that takes packet by packet.
    #[test]
    fn what_leaves_as_one_arrives_as_many() {
        let mut sender = Socket::open(0, 0).unwrap();
        let mut receiver = Socket::open(0, 0).unwrap();
        let plain = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let deadline = std::time::Duration::from_secs(10);
        plain.set_read_timeout(Some(deadline)).unwrap();
        let sent: Vec<Vec<u8>> = (0..40_u8).map(|n| vec![n; if n == 39 { 7 } else { 1400 }]).collect();
        for to in [([127, 0, 0, 1], receiver.port()).into(), plain.local_addr().unwrap()] {
            let mut batch = Batch::default();
            for packet in &sent {
                assert!(batch.takes(packet.len(), to));
                batch.push(packet, to);
            }
            assert_eq!(sender.send(&batch).unwrap(), 0);
        }
        let (mut got, start) = (Vec::new(), std::time::Instant::now());
        let mut data = vec![0; MESSAGE_BYTES_MAX];
        while got.len() < sent.len() {
            match receiver.receive(&mut data) {
                Ok(Some(Received { bytes, cut, source })) => {
                    assert_eq!(source, ([127, 0, 0, 1], sender.port()).into());
                    got.extend(data[..bytes].chunks(cut).map(<[u8]>::to_vec));
                }
                Ok(None) => panic!("no source"),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => assert!(start.elapsed() < deadline),
                Err(e) => panic!("{e}"),
            }
        }
        assert_eq!(got, sent);
        for expected in sent {
            let bytes = plain.recv(&mut data).unwrap();
            assert_eq!(data[..bytes], expected);
        }
    }
}
