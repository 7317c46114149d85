//! The thread on which an engine runs, between an interface and a socket.
//!
//! It waits for the two and for whoever wants something of the engine, and for nothing else. The configuration socket,
//! signals and the texts that are exchanged are the business of the process's other thread, whose work so never stands
//! in a packet's way.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;
use tokio::sync::oneshot;

use super::batch::Batch;
use super::socket::{MESSAGE_BYTES_MAX, Received, Socket};
use super::{Ends, Engine};
use crate::sys::tun::Tun;
use crate::tunnel::offload::{FRAME_BYTES_MAX, HEADER_BYTES};

/// Requests that wait. They come one after the other.
const REQUESTS_MAX: usize = 4;

/// What one end may bring in a turn before the other has its own.
const READS_PER_TURN: usize = 32;
const BYTES_PER_TURN: usize = 256 << 10;

/// Messages that wait for room in the socket; the interface is not read meanwhile.
const STASH_MAX: usize = 8;

const INTERFACE: u64 = 0;
const SOCKET: u64 = 1;
const REQUEST: u64 = 2;

/// Something to be done on the engine's thread, between two turns.
type Request = Box<dyn FnOnce(&mut Engine, &mut Wires) + Send>;

/// A running engine. It ends when this is dropped, or by itself when its interface is removed.
pub(in crate::tunnel) struct Driver {
    requests: Option<SyncSender<Request>>,
    awake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Driver {
    /// Starts an engine. What it ended of is told to the receiver.
    pub(in crate::tunnel) fn start(
        tun: Arc<Tun>,
        mtu_bytes: u16,
    ) -> io::Result<(Self, oneshot::Receiver<io::Error>)> {
        let awake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
        let wires = Wires::new(tun, &awake)?;
        let (requests, asked) = sync_channel(REQUESTS_MAX);
        let (ended, end) = oneshot::channel();
        let turns = Turns { engine: Engine::new(mtu_bytes), wires, asked, awake: Arc::clone(&awake) };
        let thread = thread::Builder::new().name("tunnel".into()).spawn(move || {
            if let Err(error) = turns.run() {
                // Nobody may be left to be told.
                let _ = ended.send(error);
            }
        })?;
        Ok((Self { requests: Some(requests), awake, thread: Some(thread) }, end))
    }

    /// Does something with the engine. None if it has ended.
    pub(in crate::tunnel) async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Engine, &mut Wires) -> T + Send + 'static,
    ) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        let request: Request = Box::new(move |engine, wires| {
            // Whoever asked may have gone.
            let _ = reply.send(work(engine, wires));
        });
        self.requests.as_ref()?.try_send(request).ok()?;
        self.wake();
        answer.await.ok()
    }

    fn wake(&self) {
        // It fails only if it is awake 2^64 times already.
        let _ = rustix::io::write(&*self.awake, &1_u64.to_ne_bytes());
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.requests = None;
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The engine's two ends.
pub(in crate::tunnel) struct Wires {
    tun: Arc<Tun>,
    epoll: OwnedFd,
    socket: Option<Socket>,
    mark: u32,
    stash: VecDeque<Batch>,
}

impl Wires {
    fn new(tun: Arc<Tun>, awake: &OwnedFd) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &*tun, EventData::new_u64(INTERFACE), EventFlags::IN)?;
        epoll::add(&epoll, awake, EventData::new_u64(REQUEST), EventFlags::IN)?;
        Ok(Self { tun, epoll, socket: None, mark: 0, stash: VecDeque::new() })
    }

    /// The socket's port; 0 without one.
    pub(in crate::tunnel) fn port(&self) -> u16 {
        self.socket.as_ref().map_or(0, Socket::port)
    }

    pub(in crate::tunnel) fn mark(&self) -> u32 {
        self.mark
    }

    /// Has a socket on the port. The one that there is stays, with what it has received, if it is on that port, or if
    /// any port will do.
    pub(in crate::tunnel) fn listen(&mut self, port: u16) -> io::Result<()> {
        if self.socket.is_some() && (port == 0 || port == self.port()) {
            return Ok(());
        }
        let socket = Socket::open(port, self.mark)?;
        self.stash.clear();
        // The former is taken out of the set by being closed.
        epoll::add(&self.epoll, &socket, EventData::new_u64(SOCKET), EventFlags::IN)?;
        self.socket = Some(socket);
        self.watch();
        Ok(())
    }

    /// Marks what is sent, for routing; 0 does not.
    pub(in crate::tunnel) fn set_mark(&mut self, mark: u32) -> io::Result<()> {
        if let Some(socket) = &self.socket {
            socket.set_mark(mark)?;
        }
        self.mark = mark;
        Ok(())
    }

    /// Waits for what can be gone on with: while the socket has no room, for room alone.
    fn watch(&self) {
        let blocked = !self.stash.is_empty();
        let interface = if blocked { EventFlags::empty() } else { EventFlags::IN };
        let socket = if blocked { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
        let watched = epoll::modify(&self.epoll, &*self.tun, EventData::new_u64(INTERFACE), interface)
            .and_then(|()| match &self.socket {
                Some(open) => epoll::modify(&self.epoll, open, EventData::new_u64(SOCKET), socket),
                None => Ok(()),
            });
        if let Err(error) = watched {
            tracing::error!(%error, "cannot wait for the tunnel's ends");
        }
    }

    /// Sends what has waited for room, as far as there is some. Returns how many packets were lost.
    fn unstash(&mut self) -> u64 {
        let Some(socket) = &mut self.socket else { return 0 };
        let mut lost = 0;
        while let Some(batch) = self.stash.front() {
            let Ok(some) = socket.send(batch) else { return lost };
            lost += some;
            self.stash.pop_front();
        }
        self.watch();
        lost
    }
}

impl Ends for Wires {
    fn send(&mut self, batch: &Batch) -> u64 {
        let packets = batch.packets() as u64;
        let Some(socket) = &mut self.socket else { return packets };
        if self.stash.is_empty()
            && let Ok(lost) = socket.send(batch)
        {
            return lost;
        }
        if self.stash.len() >= STASH_MAX {
            return packets;
        }
        self.stash.push_back(batch.clone());
        if self.stash.len() == 1 {
            self.watch();
        }
        0
    }

    /// Whatever the kernel does not take, because the interface is set down or it is no packet that it knows, is lost, as
    /// on any link. That the interface is removed is noticed elsewhere.
    fn write(&mut self, frame: &[IoSlice<'_>]) -> bool {
        rustix::io::writev(self.tun.as_fd(), frame).is_ok()
    }
}

/// What the thread has.
struct Turns {
    engine: Engine,
    wires: Wires,
    asked: Receiver<Request>,
    awake: Arc<OwnedFd>,
}

impl Turns {
    /// Runs until nobody can ask for anything any more, or the interface is gone.
    fn run(mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(4);
        let mut frame = vec![0; FRAME_BYTES_MAX];
        let mut message = vec![0; MESSAGE_BYTES_MAX];
        loop {
            events.clear();
            let timeout = self.timeout();
            match epoll::wait(&self.wires.epoll, spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            for event in &events {
                let flags = event.flags;
                match event.data.u64() {
                    // The removal of the interface, and nothing else, shows as an error condition.
                    INTERFACE if flags.intersects(EventFlags::ERR | EventFlags::HUP) => {
                        return Err(io::ErrorKind::NotFound.into());
                    }
                    INTERFACE => self.read_interface(&mut frame)?,
                    SOCKET => {
                        if flags.contains(EventFlags::OUT) {
                            let lost = self.wires.unstash();
                            self.engine.lose(lost);
                        }
                        self.read_socket(&mut message);
                    }
                    _ => {
                        if !self.serve() {
                            return Ok(());
                        }
                    }
                }
                self.engine.flush(&mut self.wires);
            }
            if self.engine.due().is_some() {
                self.engine.tick(Instant::now(), &mut self.wires);
                self.engine.flush(&mut self.wires);
            }
        }
    }

    fn timeout(&self) -> Option<Timespec> {
        let left = self.engine.due()?.saturating_duration_since(Instant::now());
        Some(Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() })
    }

    fn read_interface(&mut self, frame: &mut [u8]) -> io::Result<()> {
        let mut read = 0;
        for _ in 0..READS_PER_TURN {
            match rustix::io::read(self.wires.tun.as_fd(), &mut *frame) {
                Ok(bytes) if bytes > HEADER_BYTES => {
                    if let Some(frame) = frame.get_mut(..bytes) {
                        self.engine.outgoing(frame, &mut self.wires);
                    }
                    read += bytes;
                }
                // EINVAL: the kernel had no words for the frame, and has dropped it.
                Ok(_) | Err(Errno::INTR | Errno::INVAL) => {}
                Err(Errno::WOULDBLOCK) => break,
                Err(e) => return Err(e.into()),
            }
            if read >= BYTES_PER_TURN || !self.wires.stash.is_empty() {
                break;
            }
        }
        Ok(())
    }

    fn read_socket(&mut self, message: &mut [u8]) {
        let mut read = 0;
        for _ in 0..READS_PER_TURN {
            let Some(socket) = &mut self.wires.socket else { return };
            match socket.receive(message) {
                Ok(Some(Received { bytes, cut, source })) => {
                    if let Some(message) = message.get(..bytes) {
                        self.engine.incoming(message, cut, source, &mut self.wires);
                    }
                    read += bytes;
                }
                // From nowhere: there is nobody to answer.
                Ok(None) => {}
                // Empty, or an error that the network tells of some packet sent before, which is read away by this.
                Err(_) => break,
            }
            if read >= BYTES_PER_TURN {
                break;
            }
        }
    }

    /// Does what is asked. False when nobody is left to ask.
    fn serve(&mut self) -> bool {
        let _ = rustix::io::read(&*self.awake, &mut [0; 8]);
        loop {
            match self.asked.try_recv() {
                Ok(request) => request(&mut self.engine, &mut self.wires),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }
}
