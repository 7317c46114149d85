//! One function's connections in one acceptor: who waits, who can take them, and whether to accept more.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use faasd_sdk::wire::{self, Arrival, FORWARDED};
use rustix::net::{RecvFlags, sockopt};

use super::{Instance, Stats};
use crate::core::balance::{Candidate, least_in_flight};
use crate::sys::readiness::waits;
use crate::sys::scm::{self, Handoff};
use crate::sys::uring::{MessageId, Ring, Token};

/// Connections that one function may have accepted and not handed over. Accepting stops with the first of them; what
/// follows is what the kernel had accepted by then.
const WAITING_MAX: usize = 8192;

/// How long accepting pauses when the system is out of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(10);

/// What the listener is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Nobody could take a connection: watched for the first.
    Watching,
    /// The control plane was told that one waits.
    Reported,
    /// Multishot accept is armed.
    Accepting,
    /// It was cancelled; connections may still come.
    Stopping,
    /// Not armed: connections wait for room.
    Stopped,
    /// Not armed until a timer runs out.
    Paused,
}

/// What an instance is to be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Serves,
    /// What was accepted already, since nobody serves: an accept that is cancelled still brings what has come by then.
    Leaves,
    /// Nothing. It may be asked to finish.
    Left,
}

#[derive(Debug)]
struct Receiver {
    instance: Instance,
    /// Its socket has no room; polled for it.
    blocked: bool,
    standing: Standing,
}

impl Candidate for Receiver {
    fn available(&self) -> bool {
        !self.blocked && self.standing != Standing::Left && self.instance.page.has_room()
    }

    fn in_flight(&self) -> u64 {
        self.instance.page.in_flight()
    }
}

/// A function in an acceptor.
#[derive(Debug)]
pub(super) struct Function {
    /// The listener's token: the slot, and a key that the slot's next function does not have.
    token: Token,
    listener: Arc<OwnedFd>,
    stats: Arc<Stats>,
    mode: Mode,
    receivers: Vec<Receiver>,
    /// The receiver chosen last.
    last: usize,
    /// Accepted, and not handed over. Between two sweeps it is empty unless nobody can take a connection.
    waiting: VecDeque<(Arrival, OwnedFd)>,
    /// Messages being filled during a sweep, by receiver.
    open: Vec<Option<MessageId>>,
    /// Messages on their way.
    sending: usize,
    /// What the control plane is still to hear of receivers.
    news: Vec<News>,
    /// They are told again when a timer runs out.
    retries: bool,
}

/// What became of a receiver, by its key.
#[derive(Clone, Copy, Debug)]
pub(super) enum News {
    /// It has shut its socket.
    Deaf(u32),
    /// It was to be given no more, and is not.
    Left(u32),
}

/// What a function leaves to the next one of its slot.
#[derive(Debug)]
pub(super) struct Estate {
    receivers: Vec<Receiver>,
    open: Vec<Option<MessageId>>,
    waiting: VecDeque<(Arrival, OwnedFd)>,
    sending: usize,
}

/// What a change calls for beyond the function itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Then {
    Nothing,
    /// Tell the control plane that connections wait.
    Report,
}

impl Function {
    pub(super) fn new(
        token: Token,
        listener: Arc<OwnedFd>,
        stats: Arc<Stats>,
        ring: &mut Ring,
    ) -> io::Result<Self> {
        let mut function = Self {
            token,
            listener,
            stats,
            mode: Mode::Stopped,
            receivers: Vec::new(),
            last: 0,
            waiting: VecDeque::with_capacity(64),
            open: Vec::new(),
            sending: 0,
            news: Vec::new(),
            retries: false,
        };
        function.watch(ring)?;
        Ok(function)
    }

    pub(super) fn token(&self) -> Token {
        self.token
    }

    pub(super) fn news(&mut self) -> &mut Vec<News> {
        &mut self.news
    }

    /// Whether an accept may still complete.
    pub(super) fn is_armed(&self) -> bool {
        matches!(self.mode, Mode::Accepting | Mode::Stopping)
    }

    pub(super) fn add(&mut self, instance: Instance, ring: &mut Ring) -> io::Result<Then> {
        match self.receivers.iter_mut().find(|r| r.instance.key == instance.key) {
            Some(receiver) => receiver.standing = Standing::Serves,
            None => {
                self.receivers.push(Receiver { instance, blocked: false, standing: Standing::Serves });
                self.open.push(None);
            }
        }
        self.deliver(ring, 0)
    }

    pub(super) fn drain(&mut self, key: u32, ring: &mut Ring) -> io::Result<Then> {
        match self.receivers.iter_mut().find(|r| r.instance.key == key) {
            Some(receiver) if receiver.standing == Standing::Serves => receiver.standing = Standing::Leaves,
            Some(Receiver { standing: Standing::Leaves, .. }) => {}
            // Said before, of one that was withdrawn; or there is nothing that it could be given.
            _ => self.news.push(News::Left(key)),
        }
        self.settle(ring)
    }

    /// Takes a dead instance out, and takes back what it had not received. The caller has flushed the ring: nothing
    /// is on its way to the socket.
    pub(super) fn remove(&mut self, key: u32, ring: &mut Ring, now: u64) -> io::Result<Then> {
        let Some(at) = self.receivers.iter().position(|r| r.instance.key == key) else {
            return Ok(Then::Nothing);
        };
        let Receiver { instance, blocked, .. } = self.receivers.remove(at);
        self.open.pop();
        self.last = 0;
        if blocked {
            ring.cancel_poll(Token { slot: self.token.slot, key })?;
        }
        let mut back = take_back(&instance);
        self.stats.requeue(back.len() as u64);
        // They have waited longest.
        while let Some(connection) = back.pop() {
            self.waiting.push_front(connection);
        }
        self.deliver(ring, now)
    }

    /// Watches for the next connection after the ones that were reported.
    pub(super) fn resume(&mut self, ring: &mut Ring) -> io::Result<()> {
        match self.mode {
            Mode::Reported => self.watch(ring),
            _ => Ok(()),
        }
    }

    /// Refuses everything that waits, here and in the kernel's queue, and watches for the next.
    pub(super) fn refuse(&mut self, ring: &mut Ring) -> io::Result<Then> {
        self.refuse_waiting();
        // While accepting is armed the kernel's queue is empty, and two must not accept at once.
        while !self.is_armed() && waits(&self.listener) {
            match rustix::net::accept_with(&self.listener, rustix::net::SocketFlags::CLOEXEC) {
                Ok(connection) => self.reset(connection),
                Err(e) => {
                    tracing::debug!(slot = self.token.slot, error = %e, "a waiting connection was gone");
                    break;
                }
            }
        }
        self.stats.set_waiting(0);
        match self.mode {
            Mode::Reported | Mode::Stopped if !self.is_served() => self.watch(ring)?,
            _ => {}
        }
        self.settle(ring)
    }

    /// Disarms everything; the function is to be dropped once it [`Self::is_armed`] no more.
    pub(super) fn close(&mut self, ring: &mut Ring) -> io::Result<()> {
        match self.mode {
            Mode::Accepting => self.pause(ring),
            Mode::Watching => ring.cancel_poll(self.token),
            _ => Ok(()),
        }
    }

    /// A connection came in; it is dealt with by [`Self::deliver`] at the end of the sweep.
    pub(super) fn accepted(&mut self, arrival: Arrival, connection: OwnedFd) {
        self.stats.accept();
        self.hold(arrival, connection);
    }

    /// Refuses what was accepted and waits, if nobody is there who will take it.
    pub(super) fn refuse_unclaimed(&mut self) {
        if self.receivers.iter().all(|receiver| receiver.standing == Standing::Left) {
            self.refuse_waiting();
        }
    }

    fn refuse_waiting(&mut self) {
        while let Some((_, connection)) = self.waiting.pop_front() {
            self.reset(connection);
        }
        self.stats.set_waiting(0);
    }

    /// Leaves everything but the listener to the slot's next function.
    pub(super) fn hand_over(&mut self) -> Estate {
        Estate {
            receivers: std::mem::take(&mut self.receivers),
            open: std::mem::take(&mut self.open),
            waiting: std::mem::take(&mut self.waiting),
            sending: std::mem::take(&mut self.sending),
        }
    }

    /// Takes over what the slot's former function left. Its instances are not given more, until they are added again.
    pub(super) fn inherit(&mut self, estate: Estate, ring: &mut Ring, now: u64) -> io::Result<Then> {
        (self.receivers, self.open, self.waiting) = (estate.receivers, estate.open, estate.waiting);
        self.sending = estate.sending;
        for receiver in self.receivers.iter_mut().filter(|r| r.standing == Standing::Serves) {
            receiver.standing = Standing::Leaves;
        }
        self.deliver(ring, now)
    }

    /// Takes what came to the slot's former listener after that was handed over.
    pub(super) fn take_late(
        &mut self,
        late: Vec<(Arrival, OwnedFd)>,
        ring: &mut Ring,
        now: u64,
    ) -> io::Result<Then> {
        late.into_iter().for_each(|(arrival, connection)| self.hold(arrival, connection));
        self.deliver(ring, now)
    }

    /// Gives up what waits, so that it can be served elsewhere.
    pub(super) fn give_up(&mut self) -> Vec<(Arrival, OwnedFd)> {
        self.stats.set_waiting(0);
        self.waiting.drain(..).collect()
    }

    /// Another function passed a connection on, or another slot yielded it.
    pub(super) fn adopt(
        &mut self,
        arrival: Arrival,
        connection: OwnedFd,
        ring: &mut Ring,
        now: u64,
    ) -> io::Result<Then> {
        if arrival.record.flags & FORWARDED == 0 {
            self.stats.requeue(1);
        } else {
            self.stats.forward();
        }
        self.hold(arrival, connection);
        self.deliver(ring, now)
    }

    /// The listener accepts nothing further unless it is armed anew.
    pub(super) fn ended(&mut self, error: Option<&io::Error>, ring: &mut Ring) -> io::Result<Then> {
        self.mode = match self.mode {
            Mode::Accepting => match error.and_then(io::Error::raw_os_error) {
                Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                    tracing::warn!(slot = self.token.slot, "out of descriptors or memory: accepting pauses");
                    ring.timer(PAUSE, self.token)?;
                    Mode::Paused
                }
                _ => Mode::Stopped,
            },
            _ => Mode::Stopped,
        };
        self.settle(ring)
    }

    /// The pause is over.
    pub(super) fn elapsed(&mut self, ring: &mut Ring) -> io::Result<Then> {
        self.retries = false;
        if self.mode == Mode::Paused {
            self.mode = Mode::Stopped;
        }
        self.settle(ring)
    }

    /// The listener that was watched has a connection.
    pub(super) fn readable_now(&mut self) -> Then {
        if self.mode != Mode::Watching {
            return Then::Nothing;
        }
        self.mode = Mode::Reported;
        Then::Report
    }

    /// The report did not get through: watch on, so that it is made again.
    pub(super) fn unreported(&mut self, ring: &mut Ring) -> io::Result<()> {
        self.mode = Mode::Paused;
        ring.timer(PAUSE, self.token)
    }

    /// Something was not told: the next change is not waited for.
    pub(super) fn retry(&mut self, ring: &mut Ring) -> io::Result<()> {
        if std::mem::replace(&mut self.retries, true) { Ok(()) } else { ring.timer(PAUSE, self.token) }
    }

    /// A receiver's socket has room again.
    pub(super) fn writable(&mut self, key: u32, ring: &mut Ring, now: u64) -> io::Result<Then> {
        if let Some(receiver) = self.receivers.iter_mut().find(|r| r.instance.key == key) {
            receiver.blocked = false;
        }
        self.deliver(ring, now)
    }

    /// A message arrived.
    pub(super) fn sent(&mut self, connections: usize, since: u64, now: u64) {
        self.sending = self.sending.saturating_sub(1);
        for _ in 0..connections {
            self.stats.hand_off(now.saturating_sub(since));
        }
    }

    /// A message did not go: its connections wait again, and the receiver is polled for room.
    pub(super) fn unsent(
        &mut self,
        key: u32,
        mut connections: Vec<(Arrival, OwnedFd)>,
        error: &io::Error,
        ring: &mut Ring,
    ) -> io::Result<()> {
        self.sending = self.sending.saturating_sub(1);
        if let Some(receiver) = self.receivers.iter_mut().find(|r| r.instance.key == key) {
            receiver.instance.page.sub_sent(connections.len() as u64);
            block(receiver, &mut self.news, self.token.slot, error, ring)?;
        }
        while let Some(connection) = connections.pop() {
            self.waiting.push_front(connection);
        }
        Ok(())
    }

    /// Hands over what waits, as far as there is someone to take it. One connection goes by plain system calls, which
    /// is the shortest way for it; several share messages, which is the cheapest for all.
    pub(super) fn deliver(&mut self, ring: &mut Ring, now: u64) -> io::Result<Then> {
        if self.waiting.len() == 1 {
            self.deliver_one(ring, now)?;
        } else if !self.waiting.is_empty() {
            self.deliver_many(ring)?;
        }
        self.stats.set_waiting(self.waiting.len());
        self.settle(ring)
    }

    fn deliver_one(&mut self, ring: &mut Ring, now: u64) -> io::Result<()> {
        while let Some(chosen) = least_in_flight(&self.receivers, self.last) {
            let Some((arrival, connection)) = self.waiting.front() else { break };
            let receiver = &mut self.receivers[chosen];
            let sent = LONE.with_borrow_mut(|message| {
                use std::os::fd::AsRawFd;
                message.clear();
                message.push(arrival, connection.as_raw_fd());
                message.send(receiver.instance.socket.as_fd())
            });
            match sent {
                Ok(()) => {
                    receiver.instance.page.add_sent(1);
                    self.last = chosen;
                    let since = arrival.record.accepted_ns;
                    self.stats.hand_off(super::acceptor::now_ns().max(now).saturating_sub(since));
                    // Our copy must go, or the client never sees the function's close.
                    self.waiting.pop_front();
                    break;
                }
                Err(error) => block(receiver, &mut self.news, self.token.slot, &error, ring)?,
            }
        }
        Ok(())
    }

    fn deliver_many(&mut self, ring: &mut Ring) -> io::Result<()> {
        while let Some((arrival, connection)) = self.waiting.pop_front() {
            let chosen = least_in_flight(&self.receivers, self.last);
            let message = chosen.and_then(|i| self.open[i].or_else(|| ring.message()).map(|id| (i, id)));
            let Some((chosen, id)) = message else {
                // Nobody can take it, or all messages are on their way, whose completion brings us back here.
                self.waiting.push_front((arrival, connection));
                break;
            };
            match ring.add(id, &arrival, connection) {
                Ok(()) => {
                    self.open[chosen] = Some(id);
                    self.receivers[chosen].instance.page.add_sent(1);
                    self.last = chosen;
                }
                Err(connection) => {
                    self.open[chosen] = None;
                    self.waiting.push_front((arrival, connection));
                    self.send(chosen, id, ring)?;
                }
            }
        }
        for i in 0..self.open.len() {
            if let Some(id) = self.open[i].take() {
                self.send(i, id, ring)?;
            }
        }
        Ok(())
    }

    fn send(&mut self, receiver: usize, id: MessageId, ring: &mut Ring) -> io::Result<()> {
        self.sending += 1;
        let instance = &self.receivers[receiver].instance;
        ring.send(id, instance.socket.as_fd(), Token { slot: self.token.slot, key: instance.key })
    }

    fn is_served(&self) -> bool {
        self.receivers.iter().any(|receiver| receiver.standing == Standing::Serves)
    }

    /// Brings the listener into line with what there is: accept while someone serves and none waits; watch while there is
    /// nobody; else leave them to the kernel's queue.
    fn settle(&mut self, ring: &mut Ring) -> io::Result<Then> {
        let is_served = self.is_served();
        let accept = is_served && self.waiting.is_empty();
        let is_left = self.receivers.iter().all(|receiver| receiver.standing == Standing::Left);
        match self.mode {
            Mode::Accepting if !accept => self.pause(ring)?,
            Mode::Watching if accept => {
                ring.cancel_poll(self.token)?;
                self.arm(ring)?;
            }
            Mode::Reported | Mode::Stopped if accept => self.arm(ring)?,
            Mode::Stopped if !is_served && self.waiting.is_empty() => self.watch(ring)?,
            Mode::Stopped | Mode::Watching if is_left && !self.waiting.is_empty() => {
                if self.mode == Mode::Watching {
                    // Or there would be one more each time.
                    ring.cancel_poll(self.token)?;
                }
                self.mode = Mode::Reported;
                return Ok(Then::Report);
            }
            _ => {}
        }
        // Who leaves is needed no more when others serve, or when nothing can come that was accepted for it.
        if is_served || !self.is_armed() && self.waiting.is_empty() && self.sending == 0 {
            for receiver in self.receivers.iter_mut().filter(|r| r.standing == Standing::Leaves) {
                receiver.standing = Standing::Left;
                self.news.push(News::Left(receiver.instance.key));
            }
        }
        Ok(Then::Nothing)
    }

    fn arm(&mut self, ring: &mut Ring) -> io::Result<()> {
        self.mode = Mode::Accepting;
        ring.accept(self.listener.as_fd(), self.token)
    }

    fn pause(&mut self, ring: &mut Ring) -> io::Result<()> {
        self.mode = Mode::Stopping;
        ring.cancel_accept(self.token)
    }

    fn watch(&mut self, ring: &mut Ring) -> io::Result<()> {
        self.mode = Mode::Watching;
        ring.poll(self.listener.as_fd(), false, self.token)
    }

    fn hold(&mut self, arrival: Arrival, connection: OwnedFd) {
        if self.waiting.len() < WAITING_MAX {
            self.waiting.push_back((arrival, connection));
        } else {
            self.reset(connection);
        }
    }

    /// Closes with RST, so that the client knows at once that nobody will answer.
    fn reset(&self, connection: OwnedFd) {
        self.stats.refuse();
        if let Err(e) = sockopt::set_socket_linger(&connection, Some(Duration::ZERO)) {
            tracing::debug!(error = %e, "a refused connection is closed by FIN");
        }
        drop(connection);
    }
}

thread_local! {
    /// The message of a lone connection. Its descriptor stays owned by the queue until it has arrived.
    static LONE: std::cell::RefCell<Handoff> = std::cell::RefCell::new(Handoff::new());
}

/// Polls a receiver that could not take a message for room. One that has shut its socket would be reported writable
/// for ever: it is given nothing further, and the control plane is to hear of it.
fn block(
    receiver: &mut Receiver,
    news: &mut Vec<News>,
    slot: u32,
    error: &io::Error,
    ring: &mut Ring,
) -> io::Result<()> {
    if matches!(error.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN)) {
        match receiver.standing {
            Standing::Serves => {
                tracing::warn!(slot, key = receiver.instance.key, "an instance has shut its socket");
                news.push(News::Deaf(receiver.instance.key));
            }
            Standing::Leaves => news.push(News::Left(receiver.instance.key)),
            Standing::Left => {}
        }
        receiver.standing = Standing::Left;
        return Ok(());
    }
    if error.kind() != io::ErrorKind::WouldBlock {
        tracing::warn!(slot, key = receiver.instance.key, %error, "a hand-off failed; its connection goes elsewhere");
    }
    if receiver.blocked {
        return Ok(());
    }
    receiver.blocked = true;
    ring.poll(receiver.instance.socket.as_fd(), true, Token { slot, key: receiver.instance.key })
}

/// Reads back what a dead instance had not received.
fn take_back(instance: &Instance) -> Vec<(Arrival, OwnedFd)> {
    let mut back = Vec::new();
    let mut bytes = [0; wire::MESSAGE_BYTES_MAX];
    loop {
        match scm::recv(&instance.receive_end, &mut bytes, RecvFlags::DONTWAIT) {
            // Our own end is open, so an empty read is an empty message, of which we send none.
            Ok((0, _)) => return back,
            Ok((n, descriptors)) => {
                if let Ok(message) = wire::Message::parse(&bytes[..n]) {
                    let again = |mut arrival: Arrival| {
                        arrival.record.attempt += 1;
                        arrival
                    };
                    back.extend(message.arrivals().map(again).zip(descriptors));
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return back,
            Err(error) => {
                tracing::warn!(key = instance.key, %error, "connections queued to a dead instance are lost");
                return back;
            }
        }
    }
}
