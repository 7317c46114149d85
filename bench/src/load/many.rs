//! Many clients on one epoll set.

use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};

use super::response::{Fault, Response};
use super::script::Script;
use super::socket::{BUFFER_BYTES, exchange, fd, open, open_conversation, silence};
use super::{Clock, Load, Tally};

const EVENTS_MAX: usize = 256;

pub(super) fn run(
    load: &Load<'_>,
    script: &Script,
    tally: &mut Tally,
    clock: &mut Clock<'_>,
) -> anyhow::Result<()> {
    anyhow::ensure!(script.body == 0, "only one client uploads");
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut set = Clients {
        load,
        request: &script.request,
        epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        slots: Vec::with_capacity(load.clients),
        live: 0,
        end: Instant::now(),
    };
    for index in 0..load.clients {
        let mut slot = Slot::new(script.answer);
        if load.scenario.keeps_connections() {
            // Blocking until here; every later call on it is MSG_DONTWAIT.
            let socket = open_conversation(load.to, script, &mut buffer)?;
            exchange(fd(&socket), script, &mut slot.response, &mut buffer)?;
            epoll::add(&set.epoll, &socket, EventData::new_u64(index as u64), EventFlags::IN)?;
            slot.socket = Some(socket);
        }
        set.slots.push(slot);
    }
    set.end = clock.start(load.duration);
    for index in 0..load.clients {
        set.next(index, tally);
    }
    let mut events = Vec::with_capacity(EVENTS_MAX);
    let silence = silence();
    while set.live > 0 {
        match epoll::wait(&set.epoll, rustix::buffer::spare_capacity(&mut events), Some(&silence)) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        if events.is_empty() {
            set.slots.iter().filter_map(Slot::overdue).for_each(|fault| tally.failed(&fault));
            break;
        }
        for event in events.drain(..) {
            let index = usize::try_from(event.data.u64())?;
            set.ready(index, event.flags, &mut buffer, tally);
        }
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    /// The handshake is not through: the request is sent once the socket can be written to.
    Connecting,
    Receiving,
    /// The answer is complete; the server's FIN is to come.
    Closing,
}

struct Slot {
    socket: Option<OwnedFd>,
    phase: Phase,
    since: Instant,
    response: Response,
}

impl Slot {
    fn new(answer: Option<u64>) -> Self {
        Self { socket: None, phase: Phase::Idle, since: Instant::now(), response: Response::new(answer) }
    }

    fn overdue(&self) -> Option<Fault> {
        match self.phase {
            Phase::Idle => None,
            Phase::Closing => Some(Fault::KeptOpen),
            Phase::Connecting | Phase::Receiving => Some(Fault::Silence),
        }
    }
}

struct Clients<'a> {
    load: &'a Load<'a>,
    request: &'a [u8],
    epoll: OwnedFd,
    slots: Vec<Slot>,
    live: usize,
    end: Instant,
}

impl Clients<'_> {
    /// Starts the next request of an idle client, unless the time is up.
    fn next(&mut self, index: usize, tally: &mut Tally) {
        while Instant::now() < self.end && !tally.hopeless() {
            match self.start(index) {
                Ok(()) => {
                    self.live += 1;
                    return;
                }
                Err(fault) => self.fail(index, &fault, tally),
            }
        }
    }

    fn fail(&mut self, index: usize, fault: &Fault, tally: &mut Tally) {
        tally.failed(fault);
        self.slots[index].socket = None;
        self.slots[index].phase = Phase::Idle;
    }

    fn start(&mut self, index: usize) -> Result<(), Fault> {
        let slot = &mut self.slots[index];
        slot.response.clear();
        slot.since = Instant::now();
        if let Some(socket) = &slot.socket {
            slot.phase = send(socket, self.request)?;
            return Ok(());
        }
        let socket = open(self.load.to, SocketFlags::NONBLOCK)?;
        match rustix::net::connect(&socket, &self.load.to.address) {
            // Over loopback the handshake is through when connect returns, though it says that it is in progress.
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(errno) => return Err(Fault::Call { call: "connect", errno }),
        }
        slot.phase = send(&socket, self.request)?;
        let interest = if slot.phase == Phase::Connecting { EventFlags::OUT } else { EventFlags::IN };
        epoll::add(&self.epoll, &socket, EventData::new_u64(index as u64), interest)
            .map_err(Fault::call("epoll_ctl"))?;
        slot.socket = Some(socket);
        Ok(())
    }

    fn ready(&mut self, index: usize, flags: EventFlags, buffer: &mut [u8], tally: &mut Tally) {
        match self.advance(index, flags, buffer, tally) {
            Ok(false) => return,
            Ok(true) => self.slots[index].phase = Phase::Idle,
            Err(fault) => self.fail(index, &fault, tally),
        }
        self.live -= 1;
        self.next(index, tally);
    }

    /// Goes on with a client; true once its request is through.
    fn advance(
        &mut self,
        index: usize,
        flags: EventFlags,
        buffer: &mut [u8],
        tally: &mut Tally,
    ) -> Result<bool, Fault> {
        let slot = &mut self.slots[index];
        let Some(socket) = slot.socket.as_ref().filter(|_| slot.phase != Phase::Idle) else {
            // Closed by the server after the client's last request.
            slot.socket = None;
            return Ok(false);
        };
        if slot.phase == Phase::Connecting {
            if flags.contains(EventFlags::OUT) {
                slot.phase = send(socket, self.request)?;
                epoll::modify(&self.epoll, socket, EventData::new_u64(index as u64), EventFlags::IN)
                    .map_err(Fault::call("epoll_ctl"))?;
            }
            return Ok(false);
        }
        let length = match rustix::net::recv(socket, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((_, length)) => length,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
            Err(errno) => return Err(Fault::Call { call: "recv", errno }),
        };
        match (slot.phase, length) {
            (Phase::Closing, 0) => {
                slot.socket = None;
                Ok(true)
            }
            (Phase::Closing, 1..) => Err(Fault::Overrun),
            (_, 0) => Err(Fault::Closed),
            (_, length) if slot.response.feed(&buffer[..length])? => {
                tally.answered(slot.since);
                slot.phase = Phase::Closing;
                Ok(self.load.scenario.keeps_connections())
            }
            _ => Ok(false),
        }
    }
}

/// Sends the request, which fits into an empty send buffer whole or not at all.
fn send(socket: &OwnedFd, request: &[u8]) -> Result<Phase, Fault> {
    match rustix::net::send(socket, request, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
        Ok(sent) if sent == request.len() => Ok(Phase::Receiving),
        Ok(_) => Err(Fault::Call { call: "send", errno: Errno::NOBUFS }),
        Err(Errno::AGAIN) => Ok(Phase::Connecting),
        Err(errno) => Err(Fault::Call { call: "send", errno }),
    }
}
