//! An acceptor's thread: waits for completions, notes what they mean, then hands over what came in.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;

use faasd_sdk::wire::{Arrival, Record};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc::Sender;

use super::function::{Function, News, Then};
use super::pace::Pace;
use super::{Callers, Command, Event};
use crate::sys::sched::{self, Wake};
use crate::sys::uring::{Completion, Ring, Token};

/// The token of the descriptor that announces commands: no function has this slot.
const WAKE: Token = Token { slot: 0x00ff_ffff, key: 0 };

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub(super) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Starts an acceptor. The ring is made by its own thread, as `SINGLE_ISSUER` demands.
pub(super) fn spawn(
    number: usize,
    commands: Receiver<Command>,
    wake: OwnedFd,
    events: Sender<Event>,
    callers: Arc<Callers>,
) -> io::Result<JoinHandle<()>> {
    let (ready, made) = std::sync::mpsc::sync_channel(1);
    let handle = std::thread::Builder::new().name(format!("acceptor-{number}")).spawn(move || {
        let ring = match Ring::new() {
            Ok(ring) => ring,
            Err(e) => {
                let _ = ready.send(Err(e));
                return;
            }
        };
        let _ = ready.send(Ok(()));
        let next_id = (number as u64) << 56 | (now_ns() & 0x0000_00ff_ffff_ffff) << 16;
        let mut acceptor = Acceptor {
            functions: Vec::new(),
            closing: Vec::new(),
            commands,
            wake,
            events,
            callers,
            next_id,
            next_key: 0,
            pace: Pace::default(),
        };
        if let Err(error) = acceptor.run(ring) {
            // Connections wait in the kernel's queues until the daemon, which restarts, takes them.
            tracing::error!(number, %error, "an acceptor cannot go on; the daemon ends and is to be restarted");
            std::process::abort();
        }
    })?;
    match made.recv() {
        Ok(Ok(())) => Ok(handle),
        Ok(Err(e)) => Err(e),
        Err(_) => Err(io::Error::other("the acceptor's thread ended before it began")),
    }
}

struct Acceptor {
    /// By slot.
    functions: Vec<Option<Box<Function>>>,
    /// Removed, but an accept is still armed.
    closing: Vec<Function>,
    commands: Receiver<Command>,
    wake: OwnedFd,
    events: Sender<Event>,
    callers: Arc<Callers>,
    next_id: u64,
    next_key: u32,
    pace: Pace,
}

/// What a sweep leaves to be done once all its completions are read.
#[derive(Default)]
struct Sweep {
    /// Slots with connections to deliver.
    dirty: Vec<u32>,
    accepted: u32,
    woken: bool,
}

impl Acceptor {
    fn run(&mut self, mut ring: Ring) -> io::Result<()> {
        ring.poll(self.wake.as_fd(), false, WAKE)?;
        let mut sweep = Sweep { dirty: Vec::with_capacity(64), accepted: 0, woken: false };
        let mut stopping = false;
        while !(stopping && self.is_idle(&ring)) {
            let mut outcome = Ok(());
            ring.wait(|ring, completion| {
                let done = self.complete(completion, ring, &mut sweep);
                if done.is_err() {
                    outcome = done;
                }
            })?;
            outcome?;
            let now = now_ns();
            for slot in sweep.dirty.drain(..) {
                self.with(slot, &mut ring, |function, ring| function.deliver(ring, now))?;
            }
            if let Some(gathers) = self.pace.note(now, std::mem::take(&mut sweep.accepted)) {
                let wake = if gathers { Wake::InTurn } else { Wake::AtOnce };
                if let Err(error) = sched::wake(wake) {
                    tracing::warn!(%error, "an acceptor is woken as before: more CPU or longer waits on a busy core");
                }
            }
            if std::mem::take(&mut sweep.woken) {
                stopping |= self.obey(&mut ring)?;
                ring.poll(self.wake.as_fd(), false, WAKE)?;
            }
        }
        Ok(())
    }

    fn complete(&mut self, completion: Completion, ring: &mut Ring, sweep: &mut Sweep) -> io::Result<()> {
        let now = now_ns();
        match completion {
            Completion::Accepted { token, result, more } => {
                let record = Record { id: self.next_id, accepted_ns: now, ..Record::default() };
                // A multishot accept cannot say whose connection it is: one system call more.
                let caller = result.as_ref().map(|socket| self.callers.of(socket)).unwrap_or_default();
                let Some(function) = self.listener(token) else { return Ok(()) };
                let error = match result {
                    Ok(connection) => {
                        sweep.accepted += 1;
                        function.accepted(Arrival { record, caller }, connection);
                        if sweep.dirty.last() != Some(&token.slot) {
                            sweep.dirty.push(token.slot);
                        }
                        None
                    }
                    Err(error) => Some(error),
                };
                self.next_id += 1;
                if !more {
                    self.ended(token, error.as_ref(), ring)?;
                }
            }
            Completion::Ready { token: WAKE } => sweep.woken = true,
            Completion::Ready { token } => self.with(token.slot, ring, |function, ring| {
                if function.token() == token {
                    Ok(function.readable_now())
                } else {
                    function.writable(token.key, ring, now)
                }
            })?,
            Completion::Elapsed { token } => self.with(token.slot, ring, |function, ring| {
                if function.token() == token { function.elapsed(ring) } else { Ok(Then::Nothing) }
            })?,
            Completion::Sent { token, connections, since } => {
                self.with(token.slot, ring, |function, _| {
                    function.sent(connections, since, now);
                    Ok(Then::Nothing)
                })?;
                // A message buffer is free again; somebody may have waited for it.
                sweep.dirty.push(token.slot);
            }
            Completion::Unsent { token, error, connections } => {
                // Without the function nobody is left to answer: dropping them closes them.
                self.with(token.slot, ring, |function, ring| {
                    function.unsent(token.key, connections, &error, ring).map(|()| Then::Nothing)
                })?;
                sweep.dirty.push(token.slot);
            }
        }
        Ok(())
    }

    /// The function whose listener has this token, be it removed already.
    fn listener(&mut self, token: Token) -> Option<&mut Function> {
        let current = self.functions.get_mut(token.slot as usize).and_then(Option::as_deref_mut);
        current.into_iter().chain(&mut self.closing).find(|f| f.token() == token)
    }

    fn ended(&mut self, token: Token, error: Option<&io::Error>, ring: &mut Ring) -> io::Result<()> {
        if let Some(at) = self.closing.iter().position(|f| f.token() == token) {
            // Without a next function nobody is left to answer.
            let late = self.closing.swap_remove(at).give_up();
            return self.with(token.slot, ring, |function, ring| function.take_late(late, ring, now_ns()));
        }
        self.with(token.slot, ring, |function, ring| function.ended(error, ring))
    }

    /// Runs `change` on a slot's function, if there is one, and does what follows from it.
    fn with(
        &mut self,
        slot: u32,
        ring: &mut Ring,
        change: impl FnOnce(&mut Function, &mut Ring) -> io::Result<Then>,
    ) -> io::Result<()> {
        let Some(function) = self.functions.get_mut(slot as usize).and_then(Option::as_mut) else {
            return Ok(());
        };
        if change(function, ring)? == Then::Report && self.events.try_send(Event::Waiting { slot }).is_err() {
            function.unreported(ring)?;
        }
        function.news().retain(|news| {
            let event = match *news {
                News::Deaf(key) => Event::Deaf { key },
                News::Left(key) => Event::Left { key },
            };
            self.events.try_send(event).is_err()
        });
        // What does not get through is told in a while.
        if function.news().is_empty() { Ok(()) } else { function.retry(ring) }
    }

    /// Works off the commands; true for [`Command::Stop`].
    fn obey(&mut self, ring: &mut Ring) -> io::Result<bool> {
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        let mut stop = false;
        while let Ok(command) = self.commands.try_recv() {
            // What was queued names descriptors that the command may close.
            ring.flush()?;
            let now = now_ns();
            match command {
                Command::AddFunction { slot, listener, stats } => {
                    let former = self.functions.get_mut(slot as usize).and_then(Option::as_mut);
                    let estate = former.map(|function| function.hand_over());
                    self.close(slot, ring)?;
                    self.next_key = self.next_key.wrapping_add(1);
                    // Instances' keys are even, listeners' odd: no completion is taken for another's.
                    let token = Token { slot, key: self.next_key << 1 | 1 };
                    let function = Box::new(Function::new(token, listener, stats, ring)?);
                    let at = slot as usize;
                    if self.functions.len() <= at {
                        self.functions.resize_with(at + 1, || None);
                    }
                    self.functions[at] = Some(function);
                    if let Some(estate) = estate {
                        self.with(slot, ring, |function, ring| function.inherit(estate, ring, now))?;
                    }
                }
                Command::RemoveFunction { slot } => self.close(slot, ring)?,
                Command::AddInstance { slot, instance } => {
                    debug_assert!(instance.key & 1 == 0);
                    self.with(slot, ring, |function, ring| function.add(instance, ring))?;
                }
                Command::DrainInstance { slot, key } => {
                    if self.functions.get(slot as usize).is_none_or(Option::is_none) {
                        // There is nothing that it could be given.
                        let _ = self.events.try_send(Event::Left { key });
                    }
                    self.with(slot, ring, |function, ring| function.drain(key, ring))?;
                }
                Command::RemoveInstance { slot, key } => {
                    self.with(slot, ring, |function, ring| function.remove(key, ring, now))?;
                }
                Command::Room { slot } => {
                    self.with(slot, ring, |function, ring| function.deliver(ring, now))?;
                }
                Command::Adopt { slot, mut arrival, connection } => {
                    arrival.record.id = self.next_id;
                    self.next_id += 1;
                    self.with(slot, ring, |function, ring| function.adopt(arrival, connection, ring, now))?;
                }
                Command::Watch { slot } => {
                    self.with(slot, ring, |function, ring| function.resume(ring).map(|()| Then::Nothing))?;
                }
                Command::Refuse { slot } => {
                    self.with(slot, ring, |function, ring| function.refuse(ring))?;
                }
                Command::Yield { slot, heir } => self.give_up(slot, heir, ring)?,
                Command::Stop => {
                    stop = true;
                    for slot in 0..self.functions.len() as u32 {
                        self.close(slot, ring)?;
                    }
                }
            }
            ring.flush()?;
        }
        Ok(stop)
    }

    /// Sends back what waits at a slot. Dropped, if the control plane does not keep up: that closes it.
    fn give_up(&mut self, slot: u32, heir: Option<u32>, ring: &mut Ring) -> io::Result<()> {
        let mut connections = Vec::new();
        self.with(slot, ring, |function, ring| {
            match heir {
                Some(_) => connections = function.give_up(),
                None => function.refuse_unclaimed(),
            }
            function.deliver(ring, now_ns())
        })?;
        if let Some(slot) = heir.filter(|_| !connections.is_empty())
            && let Err(error) = self.events.try_send(Event::Yielded { slot, connections })
        {
            tracing::warn!(slot, %error, "connections that waited for a revision that left are lost");
        }
        Ok(())
    }

    /// Takes a function out. Its listener stays with us until no accept can complete any more.
    fn close(&mut self, slot: u32, ring: &mut Ring) -> io::Result<()> {
        if let Some(mut function) = self.functions.get_mut(slot as usize).and_then(Option::take) {
            function.close(ring)?;
            if function.is_armed() {
                self.closing.push(*function);
            }
        }
        Ok(())
    }

    fn is_idle(&self, ring: &Ring) -> bool {
        self.closing.is_empty() && ring.is_idle()
    }
}
