//! One client, blocking.

use std::os::fd::OwnedFd;
use std::time::Instant;

use super::response::{Fault, Response};
use super::script::Script;
use super::socket::{BUFFER_BYTES, await_close, exchange, fd, open_conversation};
use super::{Clock, Load, Tally};

pub(super) fn run(
    load: &Load<'_>,
    script: &Script,
    tally: &mut Tally,
    clock: &mut Clock<'_>,
) -> Result<(), Fault> {
    let response = Response::new(script.answer);
    let mut client = Client { load, script, response, buffer: vec![0; BUFFER_BYTES] };
    let mut kept = None;
    if load.scenario.keeps_connections() {
        kept = Some(client.warm()?);
    }
    let end = clock.start(load.duration);
    while Instant::now() < end && !tally.hopeless() {
        let done = match &kept {
            Some(socket) => client.on(socket, tally),
            None if load.scenario.keeps_connections() => client.warm().map(|socket| kept = Some(socket)),
            None => client.once(tally),
        };
        if let Err(fault) = done {
            tally.failed(&fault);
            kept = None;
        }
    }
    Ok(())
}

struct Client<'a> {
    load: &'a Load<'a>,
    script: &'a Script,
    response: Response,
    buffer: Vec<u8>,
}

impl Client<'_> {
    /// Opens a connection and uses it once: whatever a subject does only at a connection's start is behind it.
    fn warm(&mut self) -> Result<OwnedFd, Fault> {
        let socket = open_conversation(self.load.to, self.script, &mut self.buffer)?;
        exchange(fd(&socket), self.script, &mut self.response, &mut self.buffer)?;
        Ok(socket)
    }

    fn on(&mut self, socket: &OwnedFd, tally: &mut Tally) -> Result<(), Fault> {
        let since = Instant::now();
        exchange(fd(socket), self.script, &mut self.response, &mut self.buffer)?;
        tally.answered(since);
        Ok(())
    }

    fn once(&mut self, tally: &mut Tally) -> Result<(), Fault> {
        let since = Instant::now();
        let socket = open_conversation(self.load.to, self.script, &mut self.buffer)?;
        self.on_new(&socket, since, tally)
    }

    fn on_new(&mut self, socket: &OwnedFd, since: Instant, tally: &mut Tally) -> Result<(), Fault> {
        exchange(fd(socket), self.script, &mut self.response, &mut self.buffer)?;
        tally.answered(since);
        await_close(fd(socket), &mut self.buffer)
    }
}
