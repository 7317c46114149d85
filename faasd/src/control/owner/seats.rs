//! The warm lane: instances that accept connections themselves, each with a listener of its own that the kernel program
//! steers to. All listeners of a function share its address and port, so that whatever waits at one that closes goes to
//! another (`net.ipv4.tcp_migrate_req`); the one in the function's slot, which nobody accepts from, takes what comes
//! while no instance is there.

use rustix::net::Shutdown;

use super::*;
use crate::core::spec::{Contract, Lane};
use crate::sys::readiness::waits;

const _: () = assert!(crate::core::spec::INSTANCES_MAX as usize == faasd_common::POOL_SEATS_MAX);

/// Numbers of seats that are given to nobody.
#[derive(Debug, Default)]
pub(super) struct Seats {
    free: Vec<u32>,
    /// Above all that were given.
    next: u32,
}

impl Seats {
    /// Passes over the numbers that an earlier daemon gave, until [`Self::release`].
    pub(super) fn above(taken: impl IntoIterator<Item = u32>) -> Self {
        Self { free: Vec::new(), next: taken.into_iter().max().map_or(0, |seat| seat + 1) }
    }

    fn take(&mut self) -> Option<u32> {
        self.free.pop().or_else(|| {
            let seat = self.next;
            (seat < faasd_common::SEATS_MAX).then(|| {
                self.next += 1;
                seat
            })
        })
    }

    pub(super) fn release(&mut self, seat: u32) {
        self.free.push(seat);
    }
}

impl Owner {
    /// The listener that a new instance of the warm lane gets.
    pub(super) fn instance_listener(&mut self, record: &FunctionRecord) -> anyhow::Result<Option<OwnedFd>> {
        let Some(entry) = self.functions.get(&record.name) else { return Ok(None) };
        let (slot, address, port) = (entry.slot, entry.address, record.spec.port);
        let ingress = &self.parts.ingress;
        let listener = match record.spec.contract {
            _ if record.spec.lane() == Lane::HandOff => return Ok(None),
            // It listens when the server does: until then nothing is to come its way.
            Contract::Port | Contract::Handler | Contract::Fd => ingress.bind(address, port)?,
            Contract::ListenFds => ingress.listen(address, port, self.parts.config.backlog)?,
        };
        self.parts.kernel.mark(slot, &listener)?;
        Ok(Some(listener))
    }

    /// Seats an instance: connections go to it from now on, and those that waited go first.
    pub(super) fn take_seat(&mut self, name: &FunctionName, key: u32) -> anyhow::Result<()> {
        let Some(live) = self.functions.get_mut(name).and_then(|entry| entry.live.get_mut(&key)) else {
            return Ok(());
        };
        let Some(listener) = live.listener() else { return Ok(()) };
        let seat = match live.seat {
            Some(seat) => seat,
            None => self.seats.take().context("every seat is taken")?,
        };
        self.parts.kernel.set_seat(seat, listener)?;
        live.seat = Some(seat);
        self.set_pool(name)?;
        self.move_to_seats(name);
        Ok(())
    }

    /// An instance gets no connection any more. It keeps those that it has.
    pub(super) fn withdraw(&mut self, name: &FunctionName, key: u32) {
        let Some(entry) = self.functions.get_mut(name) else { return };
        let slot = entry.slot;
        let Some(live) = entry.live.get_mut(&key).filter(|live| live.seat.is_some()) else {
            return self.tell(Command::DrainInstance { slot, key });
        };
        live.release_listener();
        if let Err(error) = self.set_pool(name) {
            tracing::error!(function = %name, %error, "an instance that ends is still given connections");
        }
    }

    /// An instance has ended.
    pub(super) fn leave_seat(&mut self, name: &FunctionName, key: u32, seat: u32) {
        if let Some(live) = self.functions.get_mut(name).and_then(|entry| entry.live.get_mut(&key)) {
            live.seat = None;
        }
        for error in
            [self.set_pool(name), self.parts.kernel.clear_seat(seat)].into_iter().filter_map(Result::err)
        {
            tracing::error!(function = %name, %error, "an instance that ended leaves a trace in the kernel's maps");
        }
        self.seats.release(seat);
    }

    /// Tells the kernel program who sits where.
    pub(super) fn set_pool(&mut self, name: &FunctionName) -> Result<(), BpfError> {
        let Some(entry) = self.functions.get(name) else { return Ok(()) };
        let ready = entry.live.iter().filter(|(key, _)| entry.lifecycle.is_ready(**key));
        let seats: Vec<u32> = ready.filter_map(|(_, live)| live.seat).collect();
        self.parts.kernel.set_pool(entry.slot, &seats)
    }

    /// Moves what waits in the function's own queue to those that are seated. False if nobody is.
    ///
    /// A listener that stops listening leaves its queue to the others of its port. It listens again at once, for the
    /// next time that nobody is there.
    pub(super) fn move_to_seats(&mut self, name: &FunctionName) -> bool {
        let Some(entry) = self.functions.get(name) else { return false };
        let is_seated = |(key, live): (&u32, &Live)| live.seat.is_some() && entry.lifecycle.is_ready(*key);
        if !entry.live.iter().any(is_seated) {
            return false;
        }
        let Some(listener) = entry.listener.as_ref() else { return true };
        let (slot, backlog) = (entry.slot, self.parts.config.backlog);
        if waits(listener) {
            let moved = rustix::net::shutdown(&**listener, Shutdown::Read)
                .and_then(|()| rustix::net::listen(&**listener, i32::try_from(backlog).unwrap_or(i32::MAX)))
                .map_err(anyhow::Error::from)
                .and_then(|()| Ok(self.parts.kernel.set_listener(slot, &**listener)?));
            if let Err(error) = moved {
                tracing::error!(function = %name, %error, "connections that wait were not moved");
            }
        }
        self.tell(Command::Watch { slot });
        true
    }

    /// Frees the seats that an earlier daemon gave, once everybody has a new one.
    pub(super) fn forget_stale_seats(&mut self, pools: Vec<(u32, Vec<u32>)>) -> anyhow::Result<()> {
        for (slot, seats) in pools {
            if !self.by_slot.contains_key(&slot) {
                self.parts.kernel.set_pool(slot, &[])?;
            }
            for seat in seats {
                self.parts.kernel.clear_seat(seat)?;
                self.seats.release(seat);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seat_is_given_once_until_it_is_free() {
        let mut seats = Seats::above([3, 7]);
        assert_eq!((seats.take(), seats.take()), (Some(8), Some(9)));
        seats.release(3);
        assert_eq!((seats.take(), seats.take()), (Some(3), Some(10)));
        let mut full = Seats { free: Vec::new(), next: faasd_common::SEATS_MAX };
        assert_eq!(full.take(), None);
    }
}
