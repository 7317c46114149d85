//! Receiving connections, without an async runtime.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use crate::wire::{
    self, Arrival, CONNECTIONS_MAX, Caller, Kind, MESSAGE_BYTES_MAX, Message, Record, WireError,
};
use crate::{Error, StatusPage};

/// Room for the records of a later version, which may be longer.
const BUFFER_BYTES: usize = 2 * MESSAGE_BYTES_MAX;

const CONTROL_BYTES: usize = rustix::cmsg_space!(ScmRights(CONNECTIONS_MAX));

/// Receives the connections that the platform hands to this instance.
pub struct Receiver {
    socket: Arc<OwnedFd>,
    open: Open,
    buffer: Box<[u8; BUFFER_BYTES]>,
    descriptors: [Option<OwnedFd>; CONNECTIONS_MAX],
    arrivals: [Arrival; CONNECTIONS_MAX],
    /// Connections lost by the message that was received last, told after those that arrived.
    lost: usize,
}

/// What the platform says.
#[derive(Debug)]
pub enum Event<'a> {
    /// New connections.
    Connections(Batch<'a>),
    /// None follow: finish what is open, then [`Receiver::drained`].
    Drain,
    /// The platform is gone for good: a daemon that restarts keeps its end open. Finish what is open and exit.
    Closed,
}

/// What was received, before it is lent out.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Received {
    Connections(usize),
    Drain,
    Closed,
}

/// The connections of one message. Those that are not taken are closed when it is dropped.
pub struct Batch<'a> {
    open: &'a Open,
    descriptors: &'a mut [Option<OwnedFd>],
    arrivals: &'a [Arrival],
    next: usize,
}

/// A connection, counted as open until it is dropped.
#[derive(Debug)]
pub struct Connection {
    /// What the platform knows about it.
    pub record: Record,
    /// Who dialled, as the platform says.
    pub caller: Caller,
    /// The connected socket. Nothing was read from it.
    pub stream: OwnedFd,
    /// Keep this as long as the connection is at work.
    pub guard: Guard,
}

/// Counts a connection as finished when it is dropped.
#[derive(Debug)]
pub struct Guard(Open);

/// Knows how many connections are open, and the status page. Clones are handles to the same.
#[derive(Clone, Debug)]
pub struct Open(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    status: StatusPage,
    /// The platform's, if there is one.
    socket: Option<Arc<OwnedFd>>,
    /// Somebody waits for the last connection: only then is finishing one more than an addition.
    waited_for: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
    #[cfg(feature = "tokio")]
    notify: tokio::sync::Notify,
}

impl Receiver {
    /// Takes the descriptors 3 and 4, with which the platform starts an instance.
    ///
    /// # Errors
    /// [`Error::NotASocket`] and [`Error::Status`] if they are not there, [`Error::Taken`] the second time.
    pub fn inherited() -> Result<Self, Error> {
        let (socket, status) = crate::sys::inherited()?;
        Ok(Self::new(socket, status))
    }

    /// A receiver on a `SOCK_SEQPACKET` socket of your own.
    #[must_use]
    pub fn new(socket: OwnedFd, status: StatusPage) -> Self {
        let socket = Arc::new(socket);
        Self {
            open: Open::new(status, Some(Arc::clone(&socket))),
            socket,
            buffer: Box::new([0; BUFFER_BYTES]),
            descriptors: [const { None }; CONNECTIONS_MAX],
            arrivals: [Arrival::default(); CONNECTIONS_MAX],
            lost: 0,
        }
    }

    /// Takes no more than so many connections at a time: what comes while they are open goes to another instance, or
    /// waits. To be called before [`Receiver::ready`]; 0 is any number.
    pub fn limit(&self, connections: u64) {
        self.open.status().set_limit(connections);
    }

    /// Tells the platform that connections are welcome from now on.
    ///
    /// # Errors
    /// [`Error::Send`].
    pub fn ready(&self) -> Result<(), Error> {
        self.open.status().set_ready();
        self.send(Kind::Ready)
    }

    /// Waits for what the platform says.
    ///
    /// # Errors
    /// [`Error::Truncated`] if connections were lost, after which receiving can go on; [`Error::Wire`] for what is
    /// not of this protocol's version; those of `recvmsg(2)`.
    pub fn recv(&mut self) -> Result<Event<'_>, Error> {
        let received = loop {
            match self.receive(RecvFlags::empty()) {
                Ok(Some(received)) => break received,
                // The platform's end may have made the socket non-blocking for its own sake.
                Ok(None) => {
                    let mut poll = [PollFd::new(&self.socket, PollFlags::IN)];
                    match rustix::event::poll(&mut poll, None) {
                        Ok(_) | Err(Errno::INTR) => {}
                        Err(e) => return Err(Error::Receive(e.into())),
                    }
                }
                Err(e) => return Err(e),
            }
        };
        Ok(self.lend(received))
    }

    /// What the platform has said already, if anything. For a loop of your own: wait until the socket is readable
    /// (`AsFd`), but try this first, since under load there is more most of the time.
    ///
    /// # Errors
    /// As [`Receiver::recv`].
    pub fn try_recv(&mut self) -> Result<Option<Event<'_>>, Error> {
        Ok(self.receive(RecvFlags::DONTWAIT)?.map(|received| self.lend(received)))
    }

    /// Waits until all connections are finished, then says so to the platform. Call it after [`Event::Drain`], or
    /// whenever the instance wants to go; exit with 0 afterwards. What is still queued goes to another instance.
    ///
    /// # Errors
    /// [`Error::StillOpen`] at the deadline.
    pub fn drained(&self, deadline: Option<Instant>) -> Result<(), Error> {
        self.open.wait(deadline)?;
        self.say_drained()
    }

    pub(crate) fn say_drained(&self) -> Result<(), Error> {
        match self.send(Kind::Drained) {
            // Nobody is left to hear it.
            Err(Error::Send(_, e)) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    }

    /// The count of open connections and the status page.
    #[must_use]
    pub fn open(&self) -> &Open {
        &self.open
    }

    fn send(&self, kind: Kind) -> Result<(), Error> {
        send(&self.socket, kind, &wire::header(kind, 0), None)
    }

    /// Receives one message into the receiver's own buffers: nothing is allocated.
    pub(crate) fn receive(&mut self, flags: RecvFlags) -> Result<Option<Received>, Error> {
        let lost = std::mem::take(&mut self.lost);
        if lost > 0 {
            return Err(Error::Truncated { lost });
        }
        let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let message = loop {
            let mut data = [IoSliceMut::new(&mut self.buffer[..])];
            match rustix::net::recvmsg(&self.socket, &mut data, &mut control, flags | RecvFlags::CMSG_CLOEXEC)
            {
                Ok(message) => break message,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(e) => return Err(Error::Receive(e.into())),
            }
        };
        // Taken out at once: descriptors that nobody owns would stay open for ever.
        let mut arrived = 0;
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = part {
                for descriptor in descriptors {
                    // More than there is room for do not fit into the control buffer; the rest closes on drop.
                    if let Some(slot) = self.descriptors.get_mut(arrived) {
                        *slot = Some(descriptor);
                        arrived += 1;
                    }
                }
            }
        }
        match self.understand(message.bytes, message.flags, arrived) {
            Ok(received) => Ok(Some(received)),
            Err(e) => {
                self.descriptors[..arrived].fill_with(|| None);
                Err(e)
            }
        }
    }

    fn understand(&mut self, bytes: usize, flags: ReturnFlags, arrived: usize) -> Result<Received, Error> {
        if bytes == 0 && arrived == 0 {
            return Ok(Received::Closed);
        }
        let bytes = bytes.min(BUFFER_BYTES);
        if flags.contains(ReturnFlags::TRUNC) {
            return Err(WireError::Short(bytes).into());
        }
        let message = Message::parse(&self.buffer[..bytes])?;
        let count = message.count();
        match message.kind {
            Kind::Connections if count > CONNECTIONS_MAX => {
                Err(WireError::Count { records: count, descriptors: arrived }.into())
            }
            Kind::Connections => {
                let lost = count.saturating_sub(arrived);
                if lost > 0 && !flags.contains(ReturnFlags::CTRUNC) || arrived > count {
                    return Err(WireError::Count { records: count, descriptors: arrived }.into());
                }
                self.arrivals.iter_mut().zip(message.arrivals()).for_each(|(slot, arrival)| *slot = arrival);
                let status = self.open.status();
                status.add_received(count as u64);
                if lost > 0 {
                    // The kernel has closed them: as far as the platform's count goes, they are finished, badly.
                    self.open.finish(lost as u64);
                    (0..lost).for_each(|_| self.open.status().add_error());
                    if arrived == 0 {
                        return Err(Error::Truncated { lost });
                    }
                    self.lost = lost;
                }
                Ok(Received::Connections(arrived))
            }
            Kind::Drain if arrived == 0 => Ok(Received::Drain),
            Kind::Drain => Err(WireError::Count { records: 0, descriptors: arrived }.into()),
            // Only an instance says these, and only the runners are held.
            kind @ (Kind::Ready | Kind::Drained | Kind::Forward | Kind::Room | Kind::Held | Kind::Go) => {
                Err(WireError::Kind(kind as u16).into())
            }
        }
    }

    pub(crate) fn lend(&mut self, received: Received) -> Event<'_> {
        match received {
            Received::Connections(count) => Event::Connections(Batch {
                open: &self.open,
                descriptors: &mut self.descriptors[..count],
                arrivals: &self.arrivals[..count],
                next: 0,
            }),
            Received::Drain => Event::Drain,
            Received::Closed => Event::Closed,
        }
    }
}

impl AsFd for Receiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Receiver {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver")
            .field("socket", &self.socket)
            .field("open", &self.open)
            .finish_non_exhaustive()
    }
}

impl Iterator for Batch<'_> {
    type Item = Connection;

    fn next(&mut self) -> Option<Connection> {
        let at = self.next;
        let stream = self.descriptors.get_mut(at)?.take()?;
        self.next += 1;
        let Arrival { record, caller } = self.arrivals[at];
        Some(Connection { record, caller, stream, guard: Guard(self.open.clone()) })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.descriptors.len() - self.next;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Batch<'_> {}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.for_each(drop);
    }
}

impl fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.arrivals[self.next..]).finish()
    }
}

impl Connection {
    /// The socket as the standard library's type, and what counts it as open.
    #[must_use]
    pub fn into_tcp(self) -> (TcpStream, Guard) {
        (self.stream.into(), self.guard)
    }

    /// The name of who dialled: a peer's, or `fn:` and a function's. `None` if the platform does not know the address,
    /// or is none.
    #[must_use]
    pub fn peer(&self) -> Option<&str> {
        self.caller.name.is_known().then(|| self.caller.name.as_str())
    }

    /// The address that was dialled from. `None` if there is no platform to tell it: ask the socket then.
    #[must_use]
    pub fn client(&self) -> Option<SocketAddr> {
        self.caller.socket_address()
    }

    /// Passes the connection on to another function, which `forward` in this function's declaration has to name. What
    /// was read from it is gone: look at its first bytes by `peek` instead. The other function is woken if it has no
    /// instance; a connection that nobody may or can take is reset.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::NoPlatform`] where the program listens by itself, [`Error::Send`]; the connection is
    /// closed then.
    pub fn forward(self, to: &str) -> Result<(), Error> {
        if to.is_empty() || to.len() > wire::NAME_BYTES_MAX {
            return Err(Error::Name(to.to_owned()));
        }
        let socket = self.guard.0.0.socket.as_ref().ok_or(Error::NoPlatform)?;
        send(socket, Kind::Forward, &wire::forward(&self.record, to), Some(self.stream.as_fd()))
    }
}

fn send(socket: &OwnedFd, kind: Kind, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> Result<(), Error> {
    let descriptors = descriptor.as_slice();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    loop {
        let mut control = SendAncillaryBuffer::new(&mut space);
        // There is room for one.
        let _ = descriptors.is_empty() || control.push(SendAncillaryMessage::ScmRights(descriptors));
        match rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(Error::Send(kind, e.into())),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.finish(1);
    }
}

impl Open {
    pub(crate) fn new(status: StatusPage, socket: Option<Arc<OwnedFd>>) -> Self {
        Self(Arc::new(Shared {
            status,
            socket,
            waited_for: AtomicBool::new(false),
            lock: Mutex::new(()),
            changed: Condvar::new(),
            #[cfg(feature = "tokio")]
            notify: tokio::sync::Notify::new(),
        }))
    }

    /// The status page.
    #[must_use]
    pub fn status(&self) -> &StatusPage {
        &self.0.status
    }

    /// How many connections are open.
    #[must_use]
    pub fn count(&self) -> u64 {
        // Finished first: the other order could see a connection finished and not yet received.
        let finished = self.status().finished();
        self.status().received().saturating_sub(finished)
    }

    /// Counts a connection that came by another way than the platform's.
    #[cfg(feature = "http")]
    pub(crate) fn admit(&self, stream: OwnedFd) -> Connection {
        self.status().add_sent(1);
        self.status().add_received(1);
        let Arrival { record, caller } = Arrival::default();
        Connection { record, caller, stream, guard: Guard(self.clone()) }
    }

    fn finish(&self, count: u64) {
        let shared = &self.0;
        let before = shared.status.add_finished(count);
        if let Some(socket) = &shared.socket
            && shared.status.has_room_again(before, count)
        {
            // The daemon asks again when it has another one to hand over.
            let _ = send(socket, Kind::Room, &wire::header(Kind::Room, 0), None);
        }
        // Sequentially consistent, as is `wait`: it says that it waits and then counts, we count and then look
        // whether somebody waits, so one of the two sees the other.
        if shared.waited_for.load(Ordering::SeqCst) {
            drop(shared.lock.lock().unwrap_or_else(PoisonError::into_inner));
            shared.changed.notify_all();
            #[cfg(feature = "tokio")]
            shared.notify.notify_waiters();
        }
    }

    /// Waits until no connection is open.
    ///
    /// # Errors
    /// [`Error::StillOpen`] at the deadline.
    pub fn wait(&self, deadline: Option<Instant>) -> Result<(), Error> {
        let shared = &self.0;
        shared.waited_for.store(true, Ordering::SeqCst);
        let mut lock = shared.lock.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let open = self.count();
            if open == 0 {
                return Ok(());
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Err(Error::StillOpen { open });
            }
            lock = match left {
                Some(left) => {
                    shared.changed.wait_timeout(lock, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => shared.changed.wait(lock).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Waits until no connection is open, on tokio.
    #[cfg(feature = "tokio")]
    pub async fn none_left(&self) {
        self.0.waited_for.store(true, Ordering::SeqCst);
        loop {
            // Made before counting: it hears every notification from here on.
            let notified = self.0.notify.notified();
            if self.count() == 0 {
                return;
            }
            notified.await;
        }
    }
}
