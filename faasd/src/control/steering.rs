//! Which connections go where: as it is wanted, and as the kernel's maps have it.
//!
//! Every write goes to memory first. One that the kernel does not take is known from then on to be behind, and whatever the
//! maps and memory differ in, for whatever reason, [`Steering::reconcile`] finds and writes.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::Ipv6Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use faasd_common::{POOL_SEATS_MAX, maps};
use tokio::sync::Notify;

use crate::sys::bpf::{BpfError, Branch, Route, SteeringMaps};

/// An entry's place. What a route leads to is before it and after it: in this order entries are written, and in the other
/// they are removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    Pool(u32),
    Split(u32),
    Route(Ipv6Addr, u16),
}

/// What is in a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Who accepts what comes to a slot.
    Pool(Vec<u32>),
    /// To whom a slot's connections are shared out.
    Split(Vec<Branch>),
    Route(Route),
}

/// The kernel's maps, as they are used here.
pub trait Maps: Send + Sync + fmt::Debug {
    /// Everything that they hold.
    ///
    /// # Errors
    /// Those of the maps.
    fn all(&self) -> Result<HashMap<Place, Target>, BpfError>;

    /// What is in a place.
    ///
    /// # Errors
    /// Those of the maps.
    fn get(&self, place: Place) -> Result<Option<Target>, BpfError>;

    /// Replaces what is in a place, or leaves nothing there.
    ///
    /// # Errors
    /// Those of the maps.
    fn put(&self, place: Place, target: Option<&Target>) -> Result<(), BpfError>;
}

/// Those of a kernel.
#[derive(Debug)]
pub struct KernelMaps {
    /// For looks at everything, which take their time: nobody who writes is to wait for one.
    look: SteeringMaps,
    maps: Mutex<SteeringMaps>,
}

impl KernelMaps {
    /// Those that are pinned under `dir`.
    ///
    /// # Errors
    /// If nothing is.
    pub fn open(dir: &Path) -> Result<Self, BpfError> {
        Ok(Self { look: SteeringMaps::open(dir)?, maps: Mutex::new(SteeringMaps::open(dir)?) })
    }

    fn maps(&self) -> MutexGuard<'_, SteeringMaps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Maps for KernelMaps {
    fn all(&self) -> Result<HashMap<Place, Target>, BpfError> {
        let routes = self.look.routes()?.into_iter();
        let mut all: HashMap<_, _> = routes
            .map(|(address, port, route)| (Place::Route(address, port), Target::Route(route)))
            .collect();
        let splits = self.look.splits()?.into_iter();
        all.extend(splits.map(|(slot, branches)| (Place::Split(slot), Target::Split(branches))));
        let pools = self.look.pools()?.into_iter();
        all.extend(pools.map(|(slot, seats)| (Place::Pool(slot), Target::Pool(seats))));
        Ok(all)
    }

    fn get(&self, place: Place) -> Result<Option<Target>, BpfError> {
        let maps = self.maps();
        Ok(match place {
            Place::Pool(slot) => maps.pool(slot)?.map(Target::Pool),
            Place::Split(slot) => maps.split(slot)?.map(Target::Split),
            Place::Route(address, port) => maps.route(address, port)?.map(Target::Route),
        })
    }

    fn put(&self, place: Place, target: Option<&Target>) -> Result<(), BpfError> {
        let mut maps = self.maps();
        match (place, target) {
            (Place::Pool(slot), Some(Target::Pool(seats))) => maps.set_pool(slot, seats),
            (Place::Split(slot), Some(Target::Split(branches))) => maps.set_split(slot, branches),
            (Place::Route(address, port), Some(Target::Route(route))) => {
                maps.set_route(address, port, *route)
            }
            (Place::Pool(slot), _) => maps.set_pool(slot, &[]),
            (Place::Split(slot), _) => maps.clear_split(slot),
            (Place::Route(address, port), _) => maps.clear_route(address, port),
        }
    }
}

#[derive(Debug)]
struct State {
    wanted: HashMap<Place, Target>,
    /// What the kernel did not take.
    behind: HashSet<Place>,
    repaired: u64,
}

impl State {
    /// Says so once, however often it is tried.
    fn fall_behind(&mut self, place: Place, error: &BpfError) {
        if self.behind.insert(place) {
            tracing::error!(?place, %error, "the kernel does not take where connections go");
        }
    }
}

/// How well the maps follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Following {
    /// Entries that the kernel has not taken yet.
    pub behind: u64,
    /// Entries that were not as they should be and were written again.
    pub repaired: u64,
}

/// What is wanted, and the maps. Shared by the owner, who writes, and by who looks after the maps.
#[derive(Debug)]
pub struct Steering {
    maps: Box<dyn Maps>,
    /// Held over a write of both.
    state: Mutex<State>,
    /// Told of what the kernel did not take.
    late: Arc<Notify>,
}

impl Steering {
    /// What an earlier daemon has left in the maps is wanted until it is changed.
    ///
    /// # Errors
    /// Those of the maps.
    pub fn new(maps: Box<dyn Maps>, late: Arc<Notify>) -> Result<Self, BpfError> {
        let state = State { wanted: maps.all()?, behind: HashSet::new(), repaired: 0 };
        Ok(Self { maps, state: Mutex::new(state), late })
    }

    /// Sends connections to an address and port to a slot, or to a service of the daemon's own.
    ///
    /// # Errors
    /// [`BpfError::Map`]: it is wanted all the same, and will be tried again. That goes for all of these.
    pub fn set_route(&self, address: Ipv6Addr, port: u16, route: Route) -> Result<(), BpfError> {
        self.write(Place::Route(address, port), Some(Target::Route(route)))
    }

    /// Refuses connections to an address and port from now on.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn clear_route(&self, address: Ipv6Addr, port: u16) -> Result<(), BpfError> {
        self.write(Place::Route(address, port), None)
    }

    /// Shares out a slot's connections ([`SteeringMaps::set_split`]).
    ///
    /// # Errors
    /// [`BpfError::Map`]; [`BpfError::Split`], which is not tried again.
    pub fn set_split(&self, slot: u32, branches: &[Branch]) -> Result<(), BpfError> {
        let branches = branches.iter().copied().filter(|branch| branch.weight > 0).collect();
        self.write(Place::Split(slot), Some(Target::Split(branches)))
    }

    /// Forgets how a slot's connections were shared out.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn clear_split(&self, slot: u32) -> Result<(), BpfError> {
        self.write(Place::Split(slot), None)
    }

    /// Sends a slot's connections to these seats ([`SteeringMaps::set_pool`]).
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn set_pool(&self, slot: u32, seats: &[u32]) -> Result<(), BpfError> {
        let seats: Vec<u32> = seats.iter().copied().take(POOL_SEATS_MAX).collect();
        self.write(Place::Pool(slot), (!seats.is_empty()).then_some(Target::Pool(seats)))
    }

    /// All routes.
    #[must_use]
    pub fn routes(&self) -> Vec<(Ipv6Addr, u16, Route)> {
        self.wanted(|place, target| match (place, target) {
            (Place::Route(address, port), Target::Route(route)) => Some((*address, *port, *route)),
            _ => None,
        })
    }

    /// The branches of each slot that has some.
    #[must_use]
    pub fn splits(&self) -> Vec<(u32, Vec<Branch>)> {
        self.wanted(|place, target| match (place, target) {
            (Place::Split(slot), Target::Split(branches)) => Some((*slot, branches.clone())),
            _ => None,
        })
    }

    /// The seats of each slot that has some.
    #[must_use]
    pub fn pools(&self) -> Vec<(u32, Vec<u32>)> {
        self.wanted(|place, target| match (place, target) {
            (Place::Pool(slot), Target::Pool(seats)) => Some((*slot, seats.clone())),
            _ => None,
        })
    }

    fn wanted<T>(&self, read: impl Fn(&Place, &Target) -> Option<T>) -> Vec<T> {
        self.state().wanted.iter().filter_map(|(place, target)| read(place, target)).collect()
    }

    fn write(&self, place: Place, target: Option<Target>) -> Result<(), BpfError> {
        let mut state = self.state();
        let written = self.put(&state, place, target.as_ref());
        if matches!(written, Err(BpfError::Split { .. })) {
            // Nobody can have it so.
            return written;
        }
        match target {
            Some(target) => drop(state.wanted.insert(place, target)),
            None => drop(state.wanted.remove(&place)),
        }
        match &written {
            Ok(()) => _ = state.behind.remove(&place),
            Err(error) => {
                state.fall_behind(place, error);
                self.late.notify_one();
            }
        }
        written
    }

    /// A route that shares out waits for what it shares out by: without, its connections would get nowhere.
    fn put(&self, state: &State, place: Place, target: Option<&Target>) -> Result<(), BpfError> {
        if let Some(Target::Route(route)) = target
            && route.flags & Route::SPLIT != 0
            && state.behind.contains(&Place::Split(route.slot))
            && self.maps.get(Place::Split(route.slot))?.is_none()
        {
            let reason = format!("slot {} is not shared out yet", route.slot);
            return Err(BpfError::Map { map: maps::ROUTES, reason });
        }
        self.maps.put(place, target)
    }

    /// Compares the maps with what is wanted, and writes what differs: each entry whatever becomes of the others. Blocks.
    ///
    /// # Errors
    /// Those of reading the maps. What cannot be written is still [`Following::behind`].
    pub fn reconcile(&self) -> Result<Following, BpfError> {
        // Others write meanwhile. What differs is therefore looked at once more, by itself.
        let there = self.maps.all()?;
        let mut differing: Vec<Place> = {
            let state = self.state();
            let differs = |place: &&Place| state.wanted.get(place) != there.get(place);
            let known: HashSet<&Place> = state.wanted.keys().chain(there.keys()).collect();
            known.into_iter().filter(differs).chain(&state.behind).copied().collect()
        };
        differing.sort_unstable();
        differing.dedup();
        // What goes: routes before what they lead to.
        let is_wanted = |place: &Place| self.state().wanted.contains_key(place);
        let (come, go): (Vec<_>, Vec<_>) = differing.into_iter().partition(is_wanted);
        for place in come.into_iter().chain(go.into_iter().rev()) {
            self.repair(place);
        }
        Ok(self.following())
    }

    fn repair(&self, place: Place) {
        let mut state = self.state();
        let target = state.wanted.get(&place);
        let written = match self.maps.get(place) {
            Ok(there) if there.as_ref() == target => Ok(false),
            _ => self.put(&state, place, target).map(|()| true),
        };
        match written {
            Ok(is_repaired) => {
                state.behind.remove(&place);
                state.repaired += u64::from(is_repaired);
                if is_repaired {
                    tracing::warn!(?place, "the kernel's maps were not as they should be, and are again");
                }
            }
            Err(error) => state.fall_behind(place, &error),
        }
    }

    #[must_use]
    pub fn following(&self) -> Following {
        let state = self.state();
        Following { behind: state.behind.len() as u64, repaired: state.repaired }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
