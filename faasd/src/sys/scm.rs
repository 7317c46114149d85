//! Descriptors over unix sockets.
//!
//! [`Handoff`] is the message of the connection path: made once, filled and sent again and again without allocating.
//! [`send`] and [`recv`] serve everything else. The crate `sendfd` was left aside: it neither batches into a buffer
//! that io_uring can send nor tells that descriptors were lost (`MSG_CTRUNC`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use faasd_sdk::wire::{self, ARRIVAL_BYTES, Arrival, CONNECTIONS_MAX, HEADER_BYTES, NAMES_BYTES_MAX};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// The most descriptors that [`send`] and [`recv`] carry in one message.
pub const DESCRIPTORS_MAX: usize = 16;

/// The control buffer's size for a full message, in the words that align it.
const CONTROL_WORDS: usize = 2 + CONNECTIONS_MAX / 2;

/// One hand-off message with its descriptors, at a fixed place in memory: io_uring reads it while the kernel sends.
#[derive(Debug)]
pub struct Handoff {
    parts: Box<Parts>,
    count: usize,
    names_bytes: usize,
    /// Where the name that was written last begins: mostly it is the next connection's as well.
    last_name: usize,
}

#[derive(Debug)]
#[repr(C)]
struct Parts {
    header: libc::msghdr,
    /// What is sent: header and records, then names.
    vectors: [libc::iovec; 2],
    bytes: [u8; HEADER_BYTES + CONNECTIONS_MAX * ARRIVAL_BYTES],
    names: [u8; NAMES_BYTES_MAX],
    /// A `cmsghdr` (two words on 64-bit systems) and the descriptors.
    control: [u64; CONTROL_WORDS],
}

impl Handoff {
    #[expect(unsafe_code, reason = "msghdr has private padding on some targets, so it has no literal")]
    #[must_use]
    pub fn new() -> Self {
        let mut parts = Box::new(Parts {
            // SAFETY: all-zero is the documented empty msghdr: null pointers with zero lengths.
            header: unsafe { std::mem::zeroed() },
            vectors: [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 2],
            bytes: [0; HEADER_BYTES + CONNECTIONS_MAX * ARRIVAL_BYTES],
            names: [0; NAMES_BYTES_MAX],
            control: [0; CONTROL_WORDS],
        });
        parts.vectors[0].iov_base = parts.bytes.as_mut_ptr().cast();
        parts.vectors[1].iov_base = parts.names.as_mut_ptr().cast();
        parts.header.msg_iov = parts.vectors.as_mut_ptr();
        Self { parts, count: 0, names_bytes: 0, last_name: 0 }
    }

    /// Empties the message.
    pub fn clear(&mut self) {
        (self.count, self.names_bytes, self.last_name) = (0, 0, 0);
    }

    /// Adds a connection; false when the message, or its room for names, is full.
    pub fn push(&mut self, arrival: &Arrival, connection: RawFd) -> bool {
        if self.count == CONNECTIONS_MAX {
            return false;
        }
        let Some(name_at) = self.name(arrival.caller.name.as_bytes()) else { return false };
        let at = HEADER_BYTES + self.count * ARRIVAL_BYTES;
        self.parts.bytes[at..at + ARRIVAL_BYTES].copy_from_slice(&arrival.encode(name_at as u16));
        // Two descriptors a word, after the two words of the cmsghdr, in the machine's byte order.
        let (word, half) = (2 + self.count / 2, self.count % 2);
        let mut pair = self.parts.control[word].to_ne_bytes();
        pair[half * 4..half * 4 + 4].copy_from_slice(&connection.to_ne_bytes());
        self.parts.control[word] = u64::from_ne_bytes(pair);
        self.count += 1;
        true
    }

    /// Writes a name, unless it is the one that was written last, and says where it stands.
    fn name(&mut self, name: &[u8]) -> Option<usize> {
        if name.is_empty() || self.parts.names[self.last_name..self.names_bytes] == *name {
            return Some(self.last_name);
        }
        let (begin, end) = (self.names_bytes, self.names_bytes + name.len());
        self.parts.names.get_mut(begin..end)?.copy_from_slice(name);
        (self.last_name, self.names_bytes) = (begin, end);
        Some(begin)
    }

    /// How many connections are in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    #[must_use]
    pub fn is_full(&self) -> bool {
        self.count == CONNECTIONS_MAX
    }

    /// The connections and what is said of them, in order.
    pub fn connections(&self) -> impl ExactSizeIterator<Item = (Arrival, RawFd)> + '_ {
        let names = &self.parts.names[..self.names_bytes];
        self.descriptors().enumerate().map(move |(i, fd)| {
            let at = HEADER_BYTES + i * ARRIVAL_BYTES;
            (Arrival::decode(&self.parts.bytes[at..at + ARRIVAL_BYTES], names), fd)
        })
    }

    /// The connections alone.
    pub fn descriptors(&self) -> impl ExactSizeIterator<Item = RawFd> + '_ {
        (0..self.count).map(|i| {
            let pair = self.parts.control[2 + i / 2].to_ne_bytes();
            RawFd::from_ne_bytes(std::array::from_fn(|byte| pair[(i % 2) * 4 + byte]))
        })
    }

    /// Writes headers and lengths; the message is ready to be sent as it stands.
    fn seal(&mut self) -> *const libc::msghdr {
        let parts = &mut *self.parts;
        parts.bytes[..HEADER_BYTES].copy_from_slice(&wire::arrivals_header(self.count as u16));
        parts.vectors[0].iov_len = HEADER_BYTES + self.count * ARRIVAL_BYTES;
        parts.vectors[1].iov_len = self.names_bytes;
        parts.header.msg_iovlen = 1 + usize::from(self.names_bytes > 0);
        let rights = (self.count * size_of::<RawFd>()) as u32;
        // CMSG_LEN and CMSG_SPACE only add constants; the header is two words: length, then level and type.
        let header_bytes = 2 * size_of::<u64>();
        parts.control[0] = (header_bytes + rights as usize) as u64;
        let mut kind = [0; 8];
        kind[..4].copy_from_slice(&libc::SOL_SOCKET.to_ne_bytes());
        kind[4..].copy_from_slice(&libc::SCM_RIGHTS.to_ne_bytes());
        parts.control[1] = u64::from_ne_bytes(kind);
        parts.header.msg_control = parts.control.as_mut_ptr().cast();
        parts.header.msg_controllen = (header_bytes + (rights as usize).next_multiple_of(8)) as _;
        &raw const parts.header
    }

    /// Sends the message with plain `sendmsg(2)`, without waiting.
    ///
    /// # Errors
    /// `EAGAIN` when the receiver has no room; otherwise those of `sendmsg(2)`.
    #[expect(unsafe_code, reason = "rustix would allocate or copy the ancillary buffer for each call")]
    pub fn send(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        let header = self.seal();
        // SAFETY: `header` and all that it points to live in `self.parts`, which outlives the call; the lengths were
        // just set to the filled parts.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), header, SEND_FLAGS) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The sealed message for io_uring. The pointer is good as long as `self` is neither dropped nor changed.
    pub(super) fn sealed(&mut self) -> *const libc::msghdr {
        self.seal()
    }
}

impl Default for Handoff {
    fn default() -> Self {
        Self::new()
    }
}

// A msghdr points into the same box, which moves between threads as a whole.
#[expect(unsafe_code, reason = "the raw pointers in msghdr hide that the box owns what they point to")]
// SAFETY: all pointers lead into the box itself.
unsafe impl Send for Handoff {}

/// How hand-off messages are sent: never waiting, never by signal.
pub(super) const SEND_FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// Sends one message with descriptors.
///
/// # Errors
/// Those of `sendmsg(2)`; `InvalidInput` for more than [`DESCRIPTORS_MAX`] descriptors.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one message"));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one message with up to [`CONNECTIONS_MAX`] descriptors, all close-on-exec.
///
/// # Errors
/// Those of `recvmsg(2)`; `InvalidData` when bytes or descriptors were lost on the way.
pub fn recv(socket: impl AsFd, bytes: &mut [u8], flags: RecvFlags) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(CONNECTIONS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(bytes)],
        &mut control,
        flags | RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut descriptors = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            descriptors.extend(rights);
        }
    }
    if message.flags.intersects(ReturnFlags::CTRUNC | ReturnFlags::TRUNC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a message lost bytes or descriptors on its way; is the limit of open files (RLIMIT_NOFILE) too low?",
        ));
    }
    Ok((message.bytes, descriptors))
}

/// What the kernel carries at most in one message (`SCM_MAX_FD`).
const RIGHTS_MAX: usize = 253;

/// More messages than a unix socket's queue has room for, at its largest unprivileged size.
const QUEUE_MAX: u32 = 4096;

/// Receives a message of somebody who is not trusted, without waiting. Whatever descriptors come along come in full: the
/// last descriptor of a socket, dropped, may wait for as long as its owner has chosen (`SO_LINGER`), be it by `close(2)`
/// or by the kernel, for want of room; so there is room for all that a message can carry, and none of them lingers.
///
/// # Errors
/// Those of `recvmsg(2)`; `InvalidData` for more bytes than there is room for.
pub fn recv_untrusted(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(RIGHTS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let message = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, flags)?;
    let mut descriptors = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            descriptors.extend(rights.inspect(|descriptor| {
                // Most are no sockets, or do not linger.
                let _ = rustix::net::sockopt::set_socket_linger(descriptor, None);
            }));
        }
    }
    if message.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is too long"));
    }
    Ok((message.bytes, descriptors))
}

/// Throws away what is queued in a socket whose other end is dead, without ever waiting for a descriptor to close.
pub fn discard(socket: impl AsFd) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(RIGHTS_MAX))];
    // An empty message looks like the end of file, which never ends; it is one up to the most that a queue holds.
    let mut empty = 0;
    while empty < QUEUE_MAX {
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received =
            rustix::net::recvmsg(&socket, &mut [IoSliceMut::new(&mut [0; 8])], &mut control, flags);
        let mut any = false;
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = part {
                for descriptor in rights {
                    any = true;
                    // Most are no sockets, or do not linger.
                    let _ = rustix::net::sockopt::set_socket_linger(&descriptor, None);
                }
            }
        }
        match received {
            Ok(message) if message.bytes > 0 || any => empty = 0,
            Ok(_) => empty += 1,
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use faasd_sdk::wire::{Caller, CallerName, MESSAGE_BYTES_MAX, Record};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::os::fd::AsRawFd;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn every_count_of_connections_arrives() {
        let (ours, theirs) = pair();
        let mut message = Handoff::new();
        for count in [1, 2, 3, CONNECTIONS_MAX - 1, CONNECTIONS_MAX] {
            message.clear();
            for id in 0..count as u64 {
                assert!(message.push(&arrival(id, "laptop"), ours.as_raw_fd()));
            }
            assert_eq!(message.is_full(), count == CONNECTIONS_MAX);
            message.send(ours.as_fd()).unwrap();
            let mut bytes = [0; MESSAGE_BYTES_MAX];
            let (n, descriptors) = recv(&theirs, &mut bytes, RecvFlags::empty()).unwrap();
            let read = wire::Message::parse(&bytes[..n]).unwrap();
            assert_eq!((read.count(), descriptors.len()), (count, count));
            assert!(read.records().map(|r| r.id).eq(0..count as u64));
            assert!(message.connections().all(|(_, fd)| fd == ours.as_raw_fd()));
        }
        assert!(!message.push(&Arrival::default(), 0));
    }

    fn arrival(id: u64, name: &str) -> Arrival {
        let caller = Caller { port: 1, name: CallerName::new(name).unwrap(), ..Caller::default() };
        Arrival { record: Record { id, ..Record::default() }, caller }
    }

    #[test]
    fn every_name_arrives_and_a_message_without_room_for_it_is_full() {
        let (ours, theirs) = pair();
        let mut message = Handoff::new();
        // Of one peer's connections the name is written once: all of them fit.
        let names = |i: usize| match i {
            0..3 => "laptop".to_owned(),
            3 => String::new(),
            4..6 => "fn:hello".to_owned(),
            _ => format!("fn:{i:063}"),
        };
        let sent: Vec<_> = (0..)
            .map(|i| arrival(i as u64, &names(i)))
            .take_while(|a| message.push(a, ours.as_raw_fd()))
            .collect();
        assert!((10..CONNECTIONS_MAX).contains(&sent.len()), "{}", sent.len());
        assert!(message.connections().map(|(arrival, _)| arrival).eq(sent.iter().copied()));
        message.send(ours.as_fd()).unwrap();
        let mut bytes = [0; MESSAGE_BYTES_MAX];
        let (n, descriptors) = recv(&theirs, &mut bytes, RecvFlags::empty()).unwrap();
        assert_eq!(descriptors.len(), sent.len());
        assert!(wire::Message::parse(&bytes[..n]).unwrap().arrivals().eq(sent));
    }

    #[test]
    fn a_full_receiver_is_told_at_once() {
        let (ours, _theirs) = pair();
        let mut message = Handoff::new();
        message.push(&Arrival::default(), ours.as_raw_fd());
        let full = (0..100_000).find_map(|_| message.send(ours.as_fd()).err()).unwrap();
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn what_is_not_trusted_comes_in_full_or_not_at_all() {
        let (ours, theirs) = pair();
        let mut bytes = [0; 8];
        send(&theirs, b"plain", &[]).unwrap();
        assert_eq!(recv_untrusted(&ours, &mut bytes).unwrap().0, 5);
        send(&theirs, b"x", &[theirs.as_fd(), theirs.as_fd()]).unwrap();
        assert_eq!(recv_untrusted(&ours, &mut bytes).unwrap().1.len(), 2);
        send(&theirs, b"much too long", &[]).unwrap();
        assert_eq!(recv_untrusted(&ours, &mut bytes).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(recv_untrusted(&ours, &mut bytes).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    /// The kernel waits for a lingering socket wherever its last descriptor is dropped.
    #[test]
    fn discarding_does_not_linger() {
        let (ours, theirs) = pair();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let deaf = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (full, _) = listener.accept().unwrap();
        full.set_nonblocking(true).unwrap();
        while io::Write::write(&mut &full, &[0; 65_536]).is_ok() {}
        rustix::net::sockopt::set_socket_linger(&full, Some(std::time::Duration::from_secs(30))).unwrap();
        full.set_nonblocking(false).unwrap();
        send(&theirs, b"x", &[full.as_fd()]).unwrap();
        drop((full, theirs));
        let started = std::time::Instant::now();
        discard(&ours);
        drop(ours);
        assert!(started.elapsed() < std::time::Duration::from_secs(5));
        drop(deaf);
    }

    #[test]
    fn lost_descriptors_are_an_error() {
        let (ours, theirs) = pair();
        let mut message = Handoff::new();
        (0..2).for_each(|_| assert!(message.push(&Arrival::default(), ours.as_raw_fd())));
        message.send(ours.as_fd()).unwrap();
        let error = recv(&theirs, &mut [0; 4], RecvFlags::empty()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
