//! Which connections go where, as the kernel program knows it: routes by address and port, the branches that a route's
//! connections are shared out to, and the seats of those who accept for themselves.
//!
//! Each entry is replaced whole, so that a connection meets either what was or what is.

use std::net::Ipv6Addr;
use std::path::Path;

use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData, MapError};
use faasd_common::{POOL_SEATS_MAX, Pool, Route, RouteKey, Split, maps};

#[cfg(doc)]
use super::Kernel;
use super::access::{pinned, present};
use super::split::{branches, split};
use super::{BpfError, Branch, Plain, absent_is_fine, address, map_error, typed, words};

/// The maps: open beside a [`Kernel`]'s.
pub struct SteeringMaps {
    routes: HashMap<MapData, Plain<RouteKey>, Plain<Route>>,
    pools: HashMap<MapData, u32, Plain<Pool>>,
    splits: HashMap<MapData, u32, Plain<Split>>,
}

impl std::fmt::Debug for SteeringMaps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SteeringMaps")
    }
}

impl SteeringMaps {
    /// Those that are pinned under `dir`.
    ///
    /// # Errors
    /// [`BpfError::Map`], if nothing is.
    pub fn open(dir: &Path) -> Result<Self, BpfError> {
        Ok(Self {
            routes: pinned(dir, maps::ROUTES, Map::HashMap)?,
            pools: pinned(dir, maps::POOLS, Map::HashMap)?,
            splits: pinned(dir, maps::SPLITS, Map::HashMap)?,
        })
    }

    pub(super) fn of(object: &mut Ebpf) -> Result<Self, BpfError> {
        Ok(Self {
            routes: typed(object, maps::ROUTES)?,
            pools: typed(object, maps::POOLS)?,
            splits: typed(object, maps::SPLITS)?,
        })
    }

    /// Sends a slot's connections to these seats from now on, each to the one with the fewest; to its own listener if
    /// there is none. What is past [`POOL_SEATS_MAX`] stays without.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn set_pool(&mut self, slot: u32, seats: &[u32]) -> Result<(), BpfError> {
        if seats.is_empty() {
            return absent_is_fine(maps::POOLS, self.pools.remove(&slot));
        }
        let mut pool = Pool { len: 0, seats: [0; POOL_SEATS_MAX] };
        for (place, seat) in pool.seats.iter_mut().zip(seats) {
            *place = *seat;
            pool.len += 1;
        }
        self.pools.insert(slot, Plain(pool), 0).map_err(|e| map_error(maps::POOLS, &e))
    }

    /// All pools, by slot, so that a new daemon can remove what is no longer declared.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn pools(&self) -> Result<Vec<(u32, Vec<u32>)>, BpfError> {
        let read = |entry: Result<(u32, Plain<Pool>), MapError>| {
            let (slot, Plain(pool)) = entry.map_err(|e| map_error(maps::POOLS, &e))?;
            Ok((slot, seats(&pool)))
        };
        self.pools.iter().map(read).collect()
    }

    /// Shares out the connections of routes to `slot` that have [`Route::SPLIT`], in place of what was there. A branch
    /// without a weight has no part in it. One where nobody listens leaves its share to the others.
    ///
    /// # Errors
    /// [`BpfError::Split`], [`BpfError::Map`].
    pub fn set_split(&mut self, slot: u32, branches: &[Branch]) -> Result<(), BpfError> {
        let split = split(branches)?;
        self.splits.insert(slot, Plain(split), 0).map_err(|e| map_error(maps::SPLITS, &e))
    }

    /// Forgets how connections were shared out: routes to `slot` lead to it alone.
    ///
    /// # Errors
    /// [`BpfError::Map`]; an absent entry is none.
    pub fn clear_split(&mut self, slot: u32) -> Result<(), BpfError> {
        absent_is_fine(maps::SPLITS, self.splits.remove(&slot))
    }

    /// All of them, by slot, so that a new daemon can remove what is no longer declared.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn splits(&self) -> Result<Vec<(u32, Vec<Branch>)>, BpfError> {
        let read = |entry: Result<(u32, Plain<Split>), MapError>| {
            let (slot, Plain(split)) = entry.map_err(|e| map_error(maps::SPLITS, &e))?;
            Ok((slot, branches(&split)))
        };
        self.splits.iter().map(read).collect()
    }

    /// Sends connections to an address and port to a slot, or to a service of the daemon's own.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn set_route(&mut self, address: Ipv6Addr, port: u16, route: Route) -> Result<(), BpfError> {
        self.routes
            .insert(Plain(key(address, port)), Plain(route), 0)
            .map_err(|e| map_error(maps::ROUTES, &e))
    }

    /// Refuses connections to an address and port from now on.
    ///
    /// # Errors
    /// [`BpfError::Map`]; an absent route is none.
    pub fn clear_route(&mut self, address: Ipv6Addr, port: u16) -> Result<(), BpfError> {
        absent_is_fine(maps::ROUTES, self.routes.remove(&Plain(key(address, port))))
    }

    /// All routes, so that a new daemon can remove what is no longer declared.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn routes(&self) -> Result<Vec<(Ipv6Addr, u16, Route)>, BpfError> {
        self.routes
            .iter()
            .map(|entry| {
                let (Plain(key), Plain(route)) = entry.map_err(|e| map_error(maps::ROUTES, &e))?;
                Ok((address(key.address), key.port as u16, route))
            })
            .collect()
    }

    /// Where connections to an address and port go.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn route(&self, address: Ipv6Addr, port: u16) -> Result<Option<Route>, BpfError> {
        let found = present(maps::ROUTES, self.routes.get(&Plain(key(address, port)), 0))?;
        Ok(found.map(|Plain(route)| route))
    }

    /// How a slot's connections are shared out.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn split(&self, slot: u32) -> Result<Option<Vec<Branch>>, BpfError> {
        let found = present(maps::SPLITS, self.splits.get(&slot, 0))?;
        Ok(found.map(|Plain(split)| branches(&split)))
    }

    /// Who sits in a slot.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn pool(&self, slot: u32) -> Result<Option<Vec<u32>>, BpfError> {
        let found = present(maps::POOLS, self.pools.get(&slot, 0))?;
        Ok(found.map(|Plain(pool)| seats(&pool)))
    }
}

fn seats(pool: &Pool) -> Vec<u32> {
    pool.seats.iter().copied().take(pool.len as usize).collect()
}

fn key(address: Ipv6Addr, port: u16) -> RouteKey {
    RouteKey { address: words(address), port: u32::from(port) }
}
