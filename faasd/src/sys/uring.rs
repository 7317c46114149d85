//! io_uring, as far as the acceptor needs it: multishot accept, poll, a timer, and hand-off messages whose
//! descriptors are closed in the same submission.
//!
//! The ring owns every buffer that the kernel reads, and every descriptor that is on its way: safe code can neither
//! drop a message too early nor forget to close a connection.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use faasd_sdk::wire::{Arrival, CONNECTIONS_MAX};
use io_uring::squeue::{self, Flags};
use io_uring::{IoUring, cqueue, opcode, types};

use super::scm::{self, Handoff};

/// Hand-off messages that may be on their way at once, each with up to [`CONNECTIONS_MAX`] connections.
const MESSAGES_MAX: usize = 64;

/// Entries of the submission queue: room for several full messages with their closes.
const SUBMISSIONS: u32 = 1024;

/// Entries of the completion queue: a burst of connections on every listener.
const COMPLETIONS: u32 = 8192;

/// What an operation was for, given back with its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Below 2²⁴.
    pub slot: u32,
    /// Tells one use of a slot, or one instance, from the next.
    pub key: u32,
}

/// A message buffer of the ring's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageId(u8);

/// What has happened.
#[derive(Debug)]
pub enum Completion {
    /// A listener accepted, or could not. Without `more` it accepts nothing further until asked again.
    Accepted { token: Token, result: io::Result<OwnedFd>, more: bool },
    /// A descriptor that was polled is ready.
    Ready { token: Token },
    /// A timer ran out.
    Elapsed { token: Token },
    /// A message arrived, and our copies of its connections are closed. `since` is when its first connection was
    /// accepted ([`accepted_ns`](faasd_sdk::wire::Record)).
    Sent { token: Token, connections: usize, since: u64 },
    /// A message did not go; its connections come back.
    Unsent { token: Token, error: io::Error, connections: Vec<(Arrival, OwnedFd)> },
}

#[derive(Clone, Copy)]
#[repr(u8)]
enum Operation {
    Accept = 1,
    Poll,
    Timer,
    /// The message itself: completes only when it fails.
    Send,
    /// The last close of a message's chain: completes when all went well.
    Closed,
    /// Nobody waits for it.
    Silent,
}

fn user_data(operation: Operation, token: Token) -> u64 {
    debug_assert!(token.slot < 1 << 24);
    (operation as u64) << 56 | u64::from(token.slot) << 32 | u64::from(token.key)
}

#[derive(Debug)]
struct Message {
    handoff: Handoff,
    /// Who it is for, while it is on its way.
    token: Option<Token>,
}

/// A ring for one thread.
pub struct Ring {
    ring: IoUring,
    messages: Vec<Message>,
    free: Vec<MessageId>,
    completions: Vec<cqueue::Entry>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ring({} messages free)", self.free.len())
    }
}

impl Ring {
    /// A ring for the calling thread, and for it alone (`SINGLE_ISSUER`).
    ///
    /// # Errors
    /// Those of `io_uring_setup(2)`: `ENOSYS` or `EPERM` where io_uring is switched off.
    pub fn new() -> io::Result<Self> {
        // DEFER_TASKRUN: completions are worked off when we ask for them, not by interrupting what we do. No SQPOLL:
        // its thread takes from the functions the core that it spins on.
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_cqsize(COMPLETIONS)
            .build(SUBMISSIONS)?;
        let messages = (0..MESSAGES_MAX).map(|_| Message { handoff: Handoff::new(), token: None }).collect();
        let free = (0..MESSAGES_MAX as u8).map(MessageId).collect();
        Ok(Self { ring, messages, free, completions: Vec::with_capacity(COMPLETIONS as usize) })
    }

    /// Accepts from a listener again and again. The caller keeps the listener open until the completion without
    /// `more`: io_uring holds a reference of its own, so that a close would not end it.
    ///
    /// # Errors
    /// Those of `io_uring_enter(2)`.
    pub fn accept(&mut self, listener: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        let accept = opcode::AcceptMulti::new(types::Fd(listener.as_raw_fd())).flags(libc::SOCK_CLOEXEC);
        self.push(&[accept.build().user_data(user_data(Operation::Accept, token))])
    }

    /// Ends [`Self::accept`]; connections accepted until then still come.
    ///
    /// # Errors
    /// Those of `io_uring_enter(2)`.
    pub fn cancel_accept(&mut self, token: Token) -> io::Result<()> {
        self.cancel(user_data(Operation::Accept, token))
    }

    /// Tells once when a descriptor is readable (`writable`: writable).
    ///
    /// # Errors
    /// Those of `io_uring_enter(2)`.
    pub fn poll(&mut self, fd: BorrowedFd<'_>, writable: bool, token: Token) -> io::Result<()> {
        let events = if writable { libc::POLLOUT } else { libc::POLLIN };
        let poll = opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), events as u32).build();
        self.push(&[poll.user_data(user_data(Operation::Poll, token))])
    }

    /// Ends [`Self::poll`]; it completes no more, unless it just did.
    ///
    /// # Errors
    /// Those of `io_uring_enter(2)`.
    pub fn cancel_poll(&mut self, token: Token) -> io::Result<()> {
        self.cancel(user_data(Operation::Poll, token))
    }

    /// Tells once when `delay` is over.
    ///
    /// # Errors
    /// Those of `io_uring_enter(2)`.
    pub fn timer(&mut self, delay: std::time::Duration, token: Token) -> io::Result<()> {
        let timespec = types::Timespec::from(delay);
        let timeout = opcode::Timeout::new(&raw const timespec).build();
        self.push(&[timeout.user_data(user_data(Operation::Timer, token))])?;
        // The kernel copies the timespec while it takes the entry, so that is done before `timespec` goes.
        self.ring.submit().map(drop)
    }

    /// An empty message to be filled, or `None` while all are on their way.
    pub fn message(&mut self) -> Option<MessageId> {
        let id = self.free.pop()?;
        self.slot(id).handoff.clear();
        Some(id)
    }

    /// Adds a connection to a message; it comes back when the message is full.
    ///
    /// # Errors
    /// The connection itself.
    pub fn add(&mut self, id: MessageId, arrival: &Arrival, connection: OwnedFd) -> Result<(), OwnedFd> {
        if !self.slot(id).handoff.push(arrival, connection.as_raw_fd()) {
            return Err(connection);
        }
        // The message owns it from now on.
        let _ = connection.into_raw_fd();
        Ok(())
    }

    /// Sends a message and closes our copies of its connections, all in one submission: the closes are linked to the
    /// message, so that they happen only once it has arrived.
    ///
    /// # Errors
    /// Those of `io_uring_enter(2)`.
    pub fn send(&mut self, id: MessageId, socket: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        let message = self.slot(id);
        if message.handoff.is_empty() {
            self.free.push(id);
            return Ok(());
        }
        message.token = Some(token);
        let header = message.handoff.sealed();
        let own = Token { slot: u32::from(id.0), key: 0 };
        let mut chain: [squeue::Entry; CONNECTIONS_MAX + 1] =
            std::array::from_fn(|_| opcode::Nop::new().build());
        let count = message.handoff.len();
        // MSG_DONTWAIT: it is sent while it is submitted or fails with EAGAIN, never parked in the kernel.
        chain[0] = opcode::SendMsg::new(types::Fd(socket.as_raw_fd()), header)
            .flags(scm::SEND_FLAGS as u32)
            .build()
            .flags(Flags::IO_LINK | Flags::SKIP_SUCCESS)
            .user_data(user_data(Operation::Send, own));
        for (entry, fd) in chain[1..].iter_mut().zip(message.handoff.descriptors()) {
            *entry = opcode::Close::new(types::Fd(fd))
                .build()
                .flags(Flags::IO_LINK | Flags::SKIP_SUCCESS)
                .user_data(user_data(Operation::Silent, own));
        }
        let last = opcode::Close::new(types::Fd(message.handoff.descriptors().last().unwrap_or(-1)));
        chain[count] = last.build().user_data(user_data(Operation::Closed, own));
        self.push(&chain[..=count])
    }

    /// Submits what was asked for, so that the descriptors it names may be closed.
    ///
    /// # Errors
    /// Those of `io_uring_enter(2)`.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.ring.submission().is_empty() { Ok(()) } else { self.ring.submit().map(drop) }
    }

    /// Whether no message is on its way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.free.len() == MESSAGES_MAX
    }

    /// Submits what was asked for, waits for at least one completion, and gives all that are there to `each`.
    ///
    /// # Errors
    /// Those of `io_uring_enter(2)`; an interruption is none.
    pub fn wait(&mut self, mut each: impl FnMut(&mut Self, Completion)) -> io::Result<()> {
        match self.ring.submit_and_wait(1) {
            Ok(_) => {}
            // EBUSY: the completion queue has to be emptied first, which follows.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
            Err(e) => return Err(e),
        }
        let mut completions = std::mem::take(&mut self.completions);
        completions.extend(self.ring.completion());
        for entry in completions.drain(..) {
            if let Some(completion) = self.read(&entry) {
                each(self, completion);
            }
        }
        self.completions = completions;
        Ok(())
    }

    fn read(&mut self, entry: &cqueue::Entry) -> Option<Completion> {
        let data = entry.user_data();
        let token = Token { slot: (data >> 32) as u32 & 0x00ff_ffff, key: data as u32 };
        let (result, more) = (entry.result(), cqueue::more(entry.flags()));
        match (data >> 56) as u8 {
            op if op == Operation::Accept as u8 => {
                let result =
                    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(owned(result)) };
                Some(Completion::Accepted { token, result, more })
            }
            op if op == Operation::Poll as u8 && result != -libc::ECANCELED => {
                Some(Completion::Ready { token })
            }
            op if op == Operation::Timer as u8 => Some(Completion::Elapsed { token }),
            op if op == Operation::Send as u8 => {
                // A chain whose head is silent on success is silent as a whole when the head fails: no close reports.
                Some(self.finish(MessageId(token.slot as u8), Some(-result)))
            }
            op if op == Operation::Closed as u8 => Some(self.finish(MessageId(token.slot as u8), None)),
            _ => None,
        }
    }

    /// The end of a message's chain: the buffer is free again.
    fn finish(&mut self, id: MessageId, failed: Option<i32>) -> Completion {
        let message = self.slot(id);
        let token = message.token.take().unwrap_or(Token { slot: 0, key: 0 });
        let completion = match failed {
            None => Completion::Sent {
                token,
                connections: message.handoff.len(),
                since: message
                    .handoff
                    .connections()
                    .next()
                    .map_or(0, |(arrival, _)| arrival.record.accepted_ns),
            },
            Some(errno) => Completion::Unsent {
                token,
                error: io::Error::from_raw_os_error(errno),
                // The closes were cancelled with the message, so the descriptors are ours still.
                connections: message
                    .handoff
                    .connections()
                    .map(|(arrival, fd)| (arrival, owned(fd)))
                    .collect(),
            },
        };
        message.handoff.clear();
        self.free.push(id);
        completion
    }

    fn slot(&mut self, id: MessageId) -> &mut Message {
        &mut self.messages[usize::from(id.0)]
    }

    fn cancel(&mut self, data: u64) -> io::Result<()> {
        let silent = Token { slot: 0, key: 0 };
        let cancel = opcode::AsyncCancel::new(data).build().flags(Flags::SKIP_SUCCESS);
        self.push(&[cancel.user_data(user_data(Operation::Silent, silent))])
    }

    /// Queues entries that belong together. A chain must not be cut by a submission, so room is made first.
    #[expect(unsafe_code, reason = "the kernel reads what submission entries point to")]
    fn push(&mut self, entries: &[squeue::Entry]) -> io::Result<()> {
        let room = |ring: &mut IoUring| {
            let queue = ring.submission();
            queue.capacity() - queue.len()
        };
        if room(&mut self.ring) < entries.len() {
            self.ring.submit()?;
        }
        // SAFETY: entries point to nothing but message headers, which are boxed in `self.messages` and neither moved
        // nor changed until their chain completes (`finish`), and a timespec, which `timer` keeps until submitted.
        unsafe { self.ring.submission().push_multiple(entries) }
            .map_err(|_| io::Error::other("the submission queue has no room although it was just emptied"))
    }
}

/// A descriptor that the kernel just gave us, or gave back.
#[expect(unsafe_code, reason = "io_uring hands descriptors over as numbers")]
fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: fresh from accept, or returned by a message whose closes were cancelled: nobody else closes it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use faasd_sdk::wire::{self, Record};
    use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    const TOKEN: Token = Token { slot: 3, key: 9 };

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    fn until<T>(ring: &mut Ring, mut found: impl FnMut(Completion) -> Option<T>) -> T {
        loop {
            let mut out = None;
            ring.wait(|_, completion| out = out.take().or_else(|| found(completion))).unwrap();
            if let Some(out) = out {
                return out;
            }
        }
    }

    fn message_of(ring: &mut Ring, count: usize) -> (MessageId, Vec<RawFd>) {
        let id = ring.message().unwrap();
        let fds = (0..count).map(|_| pair().0).collect::<Vec<_>>();
        let numbers = fds.iter().map(AsRawFd::as_raw_fd).collect();
        for (i, fd) in fds.into_iter().enumerate() {
            ring.add(
                id,
                &Arrival { record: Record { id: i as u64, ..Record::default() }, ..Arrival::default() },
                fd,
            )
            .unwrap();
        }
        (id, numbers)
    }

    #[test]
    fn a_batch_arrives_and_our_copies_are_closed() {
        let mut ring = Ring::new().unwrap();
        let (ours, theirs) = pair();
        for count in [1, 5, CONNECTIONS_MAX] {
            let (id, _) = message_of(&mut ring, count);
            ring.send(id, ours.as_fd(), TOKEN).unwrap();
            let sent = until(&mut ring, |c| match c {
                Completion::Sent { token, connections, .. } => Some((token, connections)),
                other => panic!("{other:?}"),
            });
            assert_eq!(sent, (TOKEN, count));
            let mut bytes = [0; wire::MESSAGE_BYTES_MAX];
            let (n, received) = scm::recv(&theirs, &mut bytes, RecvFlags::empty()).unwrap();
            assert_eq!(wire::Message::parse(&bytes[..n]).unwrap().count(), count);
            // The receiver holds the only copies: the other ends see a hang-up once it lets go.
            assert_eq!(received.len(), count);
        }
        assert_eq!(ring.free.len(), MESSAGES_MAX);
    }

    #[test]
    fn a_batch_that_finds_no_room_comes_back_open() {
        let mut ring = Ring::new().unwrap();
        let (ours, _theirs) = pair();
        let mut filler = Handoff::new();
        filler.push(&Arrival::default(), ours.as_raw_fd());
        while filler.send(ours.as_fd()).is_ok() {}
        let (id, numbers) = message_of(&mut ring, 3);
        ring.send(id, ours.as_fd(), TOKEN).unwrap();
        let back = until(&mut ring, |c| match c {
            Completion::Unsent { connections, error, .. } => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                Some(connections)
            }
            other => panic!("{other:?}"),
        });
        assert!(back.iter().map(|(_, fd)| fd.as_raw_fd()).eq(numbers));
        assert!(back.iter().map(|(arrival, _)| arrival.record.id).eq(0..3));
        assert!(back.iter().all(|(_, fd)| rustix::io::fcntl_getfd(fd).is_ok()));
    }

    #[test]
    fn accepting_goes_on_until_it_is_cancelled() {
        let mut ring = Ring::new().unwrap();
        let listener = TcpListener::bind("[::1]:0").unwrap();
        let address = listener.local_addr().unwrap();
        ring.accept(listener.as_fd(), TOKEN).unwrap();
        let _clients = (0..3).map(|_| TcpStream::connect(address).unwrap()).collect::<Vec<_>>();
        let mut accepted = 0;
        until(&mut ring, |c| match c {
            Completion::Accepted { result: Ok(_), more: true, token: TOKEN } => {
                accepted += 1;
                (accepted == 3).then_some(())
            }
            other => panic!("{other:?}"),
        });
        ring.cancel_accept(TOKEN).unwrap();
        let error = until(&mut ring, |c| match c {
            Completion::Accepted { result: Err(e), more: false, .. } => Some(e),
            other => panic!("{other:?}"),
        });
        assert_eq!(error.raw_os_error(), Some(libc::ECANCELED));
    }
}
