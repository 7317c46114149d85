//! The hand-off lane: io_uring accepts a connection, the least loaded instance receives its descriptor, our copy is
//! closed. No byte is read.
//!
//! Each acceptor is one thread with one ring, and each function belongs to one acceptor: nothing is shared, so
//! nothing is locked, and once queues have grown to their working size nothing is allocated. The control plane speaks
//! to an acceptor by a bounded queue of [`Command`]s and hears from it by a bounded queue of [`Event`]s; it never calls
//! into it, and a connection never waits for it unless there is no instance.
//!
//! A function without an instance is not accepted from at all. Its connections wait in the kernel's own queue, where
//! they cost us nothing and survive our death; the acceptor only watches for the first of them.

mod acceptor;
mod callers;
mod function;
mod pace;
mod stats;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use faasd_sdk::status::StatusPage;
use faasd_sdk::wire::Arrival;
use rustix::event::EventfdFlags;
use tokio::sync::mpsc::Sender;

pub use callers::Callers;
pub use stats::{LATENCY_BOUNDS_NS, Stats};

/// Commands that may wait for one acceptor.
const COMMANDS_MAX: usize = 4096;

/// What the control plane tells an acceptor.
#[derive(Debug)]
pub enum Command {
    /// Connections of a function come in by `listener`. What is known at the slot already goes on without its former
    /// listener: what waits waits on, and instances finish unless they are added again.
    AddFunction { slot: u32, listener: Arc<OwnedFd>, stats: Arc<Stats> },
    /// The function is gone: what waits is refused.
    RemoveFunction { slot: u32 },
    /// An instance takes connections from now on; also one that was drained.
    AddInstance { slot: u32, instance: Instance },
    /// An instance gets no further connections, which [`Event::Left`] says; before that, those that were accepted when nobody
    /// else serves. It keeps those that it was given.
    DrainInstance { slot: u32, key: u32 },
    /// An instance has ended: connections that it had not received go to another.
    RemoveInstance { slot: u32, key: u32 },
    /// An instance that was at its limit of connections has room again.
    Room { slot: u32 },
    /// A connection that another function passed on, or another slot yielded.
    Adopt { slot: u32, arrival: Arrival, connection: OwnedFd },
    /// What waited was served in another way: watch for the next.
    Watch { slot: u32 },
    /// No instance will come: what waits is refused.
    Refuse { slot: u32 },
    /// What waits is to be served at another slot, for which it comes back by [`Event::Yielded`]; without one it is
    /// refused, unless an instance that leaves is still to take it.
    Yield { slot: u32, heir: Option<u32> },
    /// Accept nothing further, finish what is under way, end.
    Stop,
}

impl Command {
    fn slot(&self) -> u32 {
        match self {
            Self::AddFunction { slot, .. }
            | Self::RemoveFunction { slot }
            | Self::AddInstance { slot, .. }
            | Self::DrainInstance { slot, .. }
            | Self::RemoveInstance { slot, .. }
            | Self::Room { slot }
            | Self::Adopt { slot, .. }
            | Self::Watch { slot }
            | Self::Yield { slot, .. }
            | Self::Refuse { slot } => *slot,
            Self::Stop => 0,
        }
    }
}

/// An instance, as an acceptor sees it.
#[derive(Debug)]
pub struct Instance {
    /// Unique among all instances of the daemon's life.
    pub key: u32,
    /// Our end of its socket pair.
    pub socket: OwnedFd,
    /// A duplicate of its own end, to read back what it did not live to receive.
    pub receive_end: OwnedFd,
    pub page: Arc<StatusPage>,
}

/// What an acceptor tells the control plane.
#[derive(Debug)]
pub enum Event {
    /// Connections wait, and no instance can take them. Told once, until an instance comes or they are refused.
    Waiting { slot: u32 },
    /// An instance has shut its socket for good, and is to be replaced.
    Deaf { key: u32 },
    /// A drained instance has been given the last of its connections, and may be asked to finish.
    Left { key: u32 },
    /// What waited when [`Command::Yield`] came, for this slot.
    Yielded { slot: u32, connections: Vec<(Arrival, OwnedFd)> },
}

/// The running acceptors.
#[derive(Debug)]
pub struct Acceptors {
    threads: Vec<Thread>,
}

#[derive(Debug)]
struct Thread {
    commands: SyncSender<Command>,
    wake: OwnedFd,
    handle: JoinHandle<()>,
}

impl Acceptors {
    /// Starts `count` acceptors, which say of each connection whose it is by `callers`.
    ///
    /// # Errors
    /// Those of `io_uring_setup(2)`, with the remedy where there is one, and of starting a thread.
    pub fn start(count: usize, events: &Sender<Event>, callers: &Arc<Callers>) -> io::Result<Self> {
        let threads = (0..count.max(1))
            .map(|number| {
                let (commands, receiver) = sync_channel(COMMANDS_MAX);
                let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
                let handle =
                    acceptor::spawn(number, receiver, wake.try_clone()?, events.clone(), Arc::clone(callers))
                        .map_err(explain)?;
                Ok(Thread { commands, wake, handle })
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { threads })
    }

    /// Passes a command to the acceptor that its function belongs to. Commands of one function arrive in order.
    ///
    /// # Errors
    /// `BrokenPipe` if the acceptor has ended.
    pub fn send(&self, command: Command) -> io::Result<()> {
        let thread = &self.threads[command.slot() as usize % self.threads.len()];
        thread.pass(command)
    }

    /// Stops accepting, lets what is under way arrive, and waits for the threads to end.
    pub fn stop(self) {
        for thread in self.threads {
            let stopped = thread.pass(Command::Stop).is_err() || thread.handle.join().is_ok();
            if !stopped {
                tracing::error!("an acceptor ended by a panic");
            }
        }
    }
}

impl Thread {
    fn pass(&self, command: Command) -> io::Result<()> {
        self.commands.send(command).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        // EAGAIN: the counter is at its limit, so it is awake already.
        match rustix::io::write(&self.wake, &1u64.to_ne_bytes()) {
            Err(e) if e != rustix::io::Errno::AGAIN => Err(e.into()),
            _ => Ok(()),
        }
    }
}

/// Says what to do where io_uring is switched off.
fn explain(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EPERM) => io::Error::new(
            error.kind(),
            "io_uring is disabled here: run `sysctl -w kernel.io_uring_disabled=0`, or allow it in the container's \
             seccomp profile",
        ),
        Some(libc::ENOSYS | libc::EINVAL) => {
            io::Error::new(error.kind(), "this kernel's io_uring is too old: Linux 6.1 or later is needed")
        }
        _ => error,
    }
}
