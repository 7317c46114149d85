//! The warm lane: instances that accept connections themselves, each with a listener of its own that the kernel program
//! steers to. All listeners of a function share its address and port, so that whatever waits at one that closes goes to
//! another (`net.ipv4.tcp_migrate_req`); the one in the branch's slot, which nobody accepts from, takes what comes
//! while no instance is there.

use std::collections::BTreeSet;

use rustix::net::Shutdown;

use super::*;
use crate::core::spec::Lane;
use crate::sys::readiness::waits;

const _: () = assert!(crate::core::spec::INSTANCES_MAX as usize == faasd_common::POOL_SEATS_MAX);

/// The numbers of seats.
#[derive(Debug, Default)]
pub(super) struct Seats {
    /// Given once, and back.
    free: Vec<u32>,
    /// All below were given, or are an earlier daemon's.
    next: u32,
    /// An earlier daemon gave them, and somebody may still sit there.
    earlier: BTreeSet<u32>,
}

impl Seats {
    /// Passes over the numbers that an earlier daemon gave, until [`Self::release`].
    pub(super) fn beside(earlier: impl IntoIterator<Item = u32>) -> Self {
        Self { earlier: earlier.into_iter().collect(), ..Self::default() }
    }

    fn take(&mut self) -> Option<u32> {
        let fresh = || (self.next..faasd_common::SEATS_MAX).find(|seat| !self.earlier.contains(seat));
        let seat = self.free.pop().or_else(fresh)?;
        self.next = self.next.max(seat + 1);
        Some(seat)
    }

    /// A seat that an instance has from an earlier daemon.
    pub(super) fn keep(&mut self, seat: u32) {
        self.earlier.insert(seat);
    }

    pub(super) fn release(&mut self, seat: u32) {
        // What is not below `next` is found there.
        if !self.earlier.remove(&seat) || seat < self.next {
            self.free.push(seat);
        }
    }
}

impl Owner {
    /// The listener that a new instance of the warm lane gets.
    pub(super) fn instance_listener(&mut self, record: &RevisionRecord) -> anyhow::Result<Option<OwnedFd>> {
        let Some(entry) = self.functions.get(&record.name) else { return Ok(None) };
        let (slot, port) = (entry.slot, record.spec.port);
        let planned = entry.changes.values().flat_map(|change| change.weighed());
        let mut shares = entry.record.iter().flat_map(FunctionRecord::weighed).chain(planned);
        // One without any share is to show that it becomes ready, or is reached by its own name.
        let weight = shares.find(|(number, _)| *number == record.revision).map_or(0, |(_, weight)| weight);
        let address = self.homes(&record.name, record.revision, weight)[0];
        let ingress = &self.parts.ingress;
        let listener = match record.spec.lane() {
            Lane::HandOff => return Ok(None),
            // It listens when the server does, or is about to run: until then nothing is to come its way.
            Lane::Warm => ingress.bind(address, port)?,
        };
        self.parts.kernel.mark(slot, &listener)?;
        Ok(Some(listener))
    }

    /// Seats an instance in its revision's branch: connections go to it from now on, and those that waited go first.
    pub(super) fn take_seat(&mut self, name: &FunctionName, key: u32, slot: u32) -> anyhow::Result<()> {
        let Some(entry) = self.functions.get_mut(name) else { return Ok(()) };
        let owner = entry.slot;
        let Some(live) = entry.live.get(&key).filter(|live| live.listener().is_some()) else { return Ok(()) };
        let seat = match live.seat {
            Some(seat) => seat,
            // What waits for the first is counted there already.
            None => {
                self.first_seat(name, slot).or_else(|| self.seats.take()).context("every seat is taken")?
            }
        };
        let Some(live) = self.functions.get_mut(name).and_then(|entry| entry.live.get_mut(&key)) else {
            return Ok(());
        };
        live.seat = Some(seat);
        if let Some(listener) = live.listener() {
            self.parts.kernel.set_seat(seat, owner, listener)?;
        }
        self.set_pool(name, slot)?;
        self.move_to_seats(name, slot);
        Ok(())
    }

    /// The lobby's seat, for the first instance of a branch that is seated.
    fn first_seat(&mut self, name: &FunctionName, slot: u32) -> Option<u32> {
        let entry = self.functions.get_mut(name)?;
        if seated(entry, slot).next().is_some() {
            return None;
        }
        entry.branches.values_mut().find(|branch| branch.slot == slot)?.lobby.take()
    }

    /// Has connections that wait at a branch's own listener counted at a seat that is nobody's yet, if its instances are
    /// going to be seated.
    pub(super) fn count_in_lobby(&mut self, name: &FunctionName, revision: u64) -> anyhow::Result<()> {
        let Some(entry) = self.functions.get_mut(name) else { return Ok(()) };
        let is_seated = |record: &RevisionRecord| record.spec.lane() == Lane::Warm;
        let (owner, is_seated) = (entry.slot, entry.revisions.get(&revision).is_some_and(is_seated));
        let Some(branch) = entry.branches.get_mut(&revision).filter(|_| is_seated) else { return Ok(()) };
        let lobby = match branch.lobby {
            Some(seat) => seat,
            None => *branch.lobby.insert(self.seats.take().context("every seat is taken")?),
        };
        self.parts.kernel.count_at(lobby, owner, &*branch.listener)?;
        Ok(())
    }

    /// Lets go of an instance's listener: from now on it is the instance's alone, and closing it is heard.
    pub(super) fn let_go(&mut self, name: &FunctionName, key: u32) {
        if let Some(live) = self.functions.get_mut(name).and_then(|entry| entry.live.get_mut(&key)) {
            live.release_listener();
        }
    }

    /// An instance that had a seat has ended.
    pub(super) fn leave_seat(&mut self, name: &FunctionName, slot: Option<u32>, seat: u32) {
        let pool = slot.map_or(Ok(()), |slot| self.set_pool(name, slot));
        for error in [pool, self.parts.kernel.clear_seat(seat)].into_iter().filter_map(Result::err) {
            tracing::error!(function = %name, %error, "an instance that ended leaves a trace in the kernel's maps");
        }
        self.seats.release(seat);
    }

    /// Tells the kernel program who sits in a branch.
    pub(super) fn set_pool(&mut self, name: &FunctionName, slot: u32) -> Result<(), BpfError> {
        let Some(entry) = self.functions.get(name) else { return Ok(()) };
        let seats: Vec<u32> = seated(entry, slot).filter_map(|live| live.seat).collect();
        self.parts.steering.set_pool(slot, &seats)
    }

    /// Moves what waits in a branch's own queue to those that are seated. False if nobody is.
    ///
    /// A listener that stops listening leaves its queue to the others of its port. It listens again at once, for the
    /// next time that nobody is there.
    pub(super) fn move_to_seats(&mut self, name: &FunctionName, slot: u32) -> bool {
        let Some(entry) = self.functions.get(name) else { return false };
        if seated(entry, slot).next().is_none() {
            return false;
        }
        let branch = entry.branches.iter().find(|(_, branch)| branch.slot == slot);
        let Some((&revision, branch)) = branch else { return true };
        let (owner, listener, backlog) = (entry.slot, &branch.listener, self.parts.config.backlog);
        if waits(listener) {
            let moved = rustix::net::shutdown(&**listener, Shutdown::Read)
                .and_then(|()| rustix::net::listen(&**listener, i32::try_from(backlog).unwrap_or(i32::MAX)))
                .map_err(anyhow::Error::from)
                .and_then(|()| Ok(self.parts.kernel.set_listener(slot, owner, &**listener)?));
            if let Err(error) = moved {
                tracing::error!(function = %name, %error, "connections that wait were not moved");
            }
        }
        if let Err(error) = self.count_in_lobby(name, revision) {
            tracing::warn!(function = %name, error = format!("{error:#}"), "connections that wait are not counted");
        }
        self.tell(Command::Watch { slot });
        true
    }

    /// Frees the seats that an earlier daemon gave, apart from those that are still taken.
    pub(super) fn forget_stale_seats(&mut self, pools: Vec<(u32, Vec<u32>)>) -> anyhow::Result<()> {
        let taken: HashSet<u32> = self
            .functions
            .values()
            .flat_map(|entry| entry.live.values())
            .filter_map(|live| live.seat)
            .collect();
        for (slot, seats) in pools {
            if !self.by_slot.contains_key(&slot) {
                // Tried again, if it is not taken.
                let _ = self.parts.steering.set_pool(slot, &[]);
            }
            for seat in seats.into_iter().filter(|seat| !taken.contains(seat)) {
                self.parts.kernel.clear_seat(seat)?;
                self.seats.release(seat);
            }
        }
        Ok(())
    }
}

/// The instances with a seat in a branch that are to be given connections.
fn seated(entry: &Entry, slot: u32) -> impl Iterator<Item = &Live> {
    entry
        .live
        .iter()
        .filter(move |(key, _)| entry.placed.get(key) == Some(&slot))
        .filter(|(key, live)| live.seat.is_some() && entry.lifecycle.takes_connections(**key))
        .map(|(_, live)| live)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seat_is_given_once_until_it_is_free() {
        let mut seats = Seats::beside([1, 4]);
        assert_eq!((seats.take(), seats.take()), (Some(0), Some(2)));
        seats.release(1);
        seats.release(4);
        assert_eq!([(); 3].map(|()| seats.take()), [Some(1), Some(3), Some(4)]);
        seats.release(2);
        assert_eq!((seats.take(), seats.take()), (Some(2), Some(5)));
        let mut full = Seats { next: faasd_common::SEATS_MAX, ..Seats::default() };
        assert_eq!(full.take(), None);
    }

    #[test]
    fn restarts_use_no_numbers_up() {
        let mut held = vec![0, 1];
        for _ in 0..3 * faasd_common::SEATS_MAX {
            let mut seats = Seats::beside(held.clone());
            held = vec![seats.take().unwrap(), seats.take().unwrap()];
        }
        assert!(held.iter().all(|seat| *seat < 4), "{held:?}");
    }
}
