//! The daemon's end of the hand-off protocol, as far as a measurement needs it.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use faasd_sdk::wire::{
    CONNECTIONS_MAX, HEADER_BYTES, Kind, MESSAGE_BYTES_MAX, Message, RECORD_BYTES, Record, header, status,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sockopt,
};
use rustix::time::{ClockId, clock_gettime};

/// Messages that wait in an instance's socket: the default send buffer holds 278.
const SEND_BUFFER_BYTES: usize = 4 << 20;

/// The queue of a listener, the same for every subject.
const BACKLOG: i32 = 4096;

const CONTROL_BYTES: usize = rustix::cmsg_space!(ScmRights(CONNECTIONS_MAX));

/// Hands connections over, one message each time it is called.
#[derive(Debug)]
pub struct Sender {
    socket: OwnedFd,
    sent: u64,
}

impl Sender {
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, sent: 0 }
    }

    /// Sends up to [`CONNECTIONS_MAX`] connections. Blocks while the instance's queue is full, which leaves further
    /// connections in the listener's.
    ///
    /// # Errors
    /// Those of `sendmsg(2)`.
    pub fn send(&mut self, connections: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
        let mut message = [0; MESSAGE_BYTES_MAX];
        let accepted_ns = now_ns();
        message[..HEADER_BYTES].copy_from_slice(&header(Kind::Connections, connections.len() as u16));
        let records = message[HEADER_BYTES..].chunks_exact_mut(RECORD_BYTES);
        let mut length = HEADER_BYTES;
        for (_, bytes) in connections.iter().zip(records) {
            bytes.copy_from_slice(&Record { id: self.sent, accepted_ns, ..Record::default() }.encode());
            self.sent += 1;
            length += RECORD_BYTES;
        }
        let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(connections)) {
            return Err(rustix::io::Errno::TOOBIG);
        }
        let message = [IoSlice::new(&message[..length])];
        rustix::net::sendmsg(&self.socket, &message, &mut control, SendFlags::NOSIGNAL).map(|_| ())
    }
}

/// Receives the connections of one message without waiting; `None` once the other end is gone.
///
/// # Errors
/// `WouldBlock` if there is no message; otherwise those of `recvmsg(2)`, and what breaks the protocol.
pub fn receive(socket: BorrowedFd<'_>) -> std::io::Result<Option<Vec<OwnedFd>>> {
    let mut bytes = [0; MESSAGE_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
    if received.bytes == 0 {
        return Ok(None);
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(std::io::Error::other(faasd_sdk::wire::WireError::Truncated));
    }
    let message = Message::parse(&bytes[..received.bytes]).map_err(std::io::Error::other)?;
    let mut connections = Vec::with_capacity(message.count());
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = part {
            connections.extend(descriptors);
        }
    }
    if connections.len() != message.count() {
        let (records, descriptors) = (message.count(), connections.len());
        return Err(std::io::Error::other(faasd_sdk::wire::WireError::Count { records, descriptors }));
    }
    Ok(Some(connections))
}

/// Both ends of an instance's socket: the daemon's, the instance's.
///
/// # Errors
/// Those of `socketpair(2)` and `setsockopt(2)`.
pub fn pair() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let (daemon, instance) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    // The forced size needs CAP_NET_ADMIN; without it the default limit has to do.
    if sockopt::set_socket_send_buffer_size_force(&daemon, SEND_BUFFER_BYTES).is_err() {
        sockopt::set_socket_send_buffer_size(&daemon, SEND_BUFFER_BYTES)?;
    }
    Ok((daemon, instance))
}

/// A status page for an instance.
///
/// # Errors
/// Those of `memfd_create(2)`, `ftruncate(2)` and `fcntl(2)`.
pub fn status_page() -> std::io::Result<OwnedFd> {
    let page = rustix::fs::memfd_create("faas-status", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&page, status::BYTES as u64)?;
    rustix::fs::fcntl_add_seals(&page, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(page)
}

/// Tells the daemon's end that the instance can take connections.
///
/// # Errors
/// Those of `send(2)`.
pub fn send_ready(socket: BorrowedFd<'_>) -> std::io::Result<()> {
    rustix::net::send(socket, &header(Kind::Ready, 0), SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Waits until the instance says that it is ready.
///
/// # Errors
/// If it does not in time, or says something else.
pub fn await_ready(socket: BorrowedFd<'_>, patience: Duration) -> anyhow::Result<()> {
    let timeout = Timespec { tv_sec: i64::try_from(patience.as_secs())?, tv_nsec: 0 };
    let mut set = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
    ensure!(poll(&mut set, Some(&timeout))? > 0, "the instance is not ready after {patience:?}");
    let mut bytes = [0; MESSAGE_BYTES_MAX];
    let (_, length) = rustix::net::recv(socket, &mut bytes[..], RecvFlags::DONTWAIT)?;
    ensure!(length > 0, "the instance ended before it was ready");
    match Message::parse(&bytes[..length]).context("the instance's first message")?.kind {
        Kind::Ready => Ok(()),
        other => bail!("the instance's first message is {other:?} rather than Ready"),
    }
}

/// A listener, made alike for every subject that this crate provides.
///
/// # Errors
/// Those of `bind(2)` and `listen(2)`.
pub fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address).with_context(|| format!("cannot bind {address}"))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(TcpListener::from(socket))
}

/// This process's descriptor `number`, which its parent opened for it.
///
/// # Errors
/// If there is none. Needs no unsafe code: the kernel duplicates the number for us.
pub fn inherited(number: i32) -> anyhow::Result<OwnedFd> {
    use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    pidfd_getfd(own.as_fd(), number, PidfdGetfdFlags::empty()).with_context(|| {
        format!("descriptor {number} is not open: this command is started by `faasd-bench run`")
    })
}

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_arrive_in_order_and_open() {
        let (daemon, instance) = pair().unwrap();
        let mut sender = Sender::new(daemon);
        let pipes: Vec<_> = (0..CONNECTIONS_MAX).map(|_| std::io::pipe().unwrap()).collect();
        for count in [1, CONNECTIONS_MAX] {
            let ends: Vec<_> = pipes[..count].iter().map(|(_, write)| write.as_fd()).collect();
            sender.send(&ends).unwrap();
            let received = receive(instance.as_fd()).unwrap().unwrap();
            assert_eq!(received.len(), count);
            for (index, (end, (read, _))) in received.iter().zip(&pipes).enumerate() {
                rustix::io::write(end, &[index as u8]).unwrap();
                let mut byte = [0];
                rustix::io::read(read, &mut byte).unwrap();
                assert_eq!(byte[0], index as u8);
            }
        }
        assert_eq!(receive(instance.as_fd()).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        drop(sender);
        assert!(receive(instance.as_fd()).unwrap().is_none());
    }

    #[test]
    fn readiness_is_waited_for() {
        let (daemon, instance) = pair().unwrap();
        assert!(await_ready(daemon.as_fd(), Duration::ZERO).is_err());
        send_ready(instance.as_fd()).unwrap();
        await_ready(daemon.as_fd(), Duration::from_secs(5)).unwrap();
        rustix::net::send(&instance, &header(Kind::Drained, 0), SendFlags::NOSIGNAL).unwrap();
        assert!(await_ready(daemon.as_fd(), Duration::from_secs(5)).is_err());
    }
}
