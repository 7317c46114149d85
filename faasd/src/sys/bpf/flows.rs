//! What has passed between subjects and functions, as the kernel program counted it when connections ended.

use std::net::Ipv6Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use aya::maps::{HashMap, Map, MapData, MapError};
use faasd_common::{Flow, FlowKey, maps};

use super::access::pinned;
use super::{BpfError, Plain, address, map_error};

/// The maps, open beside a [`super::Kernel`]'s.
pub struct Flows {
    flows: HashMap<MapData, Plain<FlowKey>, Plain<Flow>>,
    marks: MapData,
}

impl std::fmt::Debug for Flows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Flows")
    }
}

impl Flows {
    /// Those that are pinned under `dir`.
    ///
    /// # Errors
    /// [`BpfError::Map`], if nothing is.
    pub fn open(dir: &Path) -> Result<Self, BpfError> {
        let marks = MapData::from_pin(dir.join(maps::OWNER)).map_err(|e| map_error(maps::OWNER, &e))?;
        Ok(Self { flows: pinned(dir, maps::FLOWS, Map::LruHashMap)?, marks })
    }

    /// By the subject's number and the function's own address. Of connections that have ended, as far as they are kept
    /// ([`faasd_common::FLOWS_MAX`]).
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn ended(&self) -> Result<Vec<(u32, Ipv6Addr, Flow)>, BpfError> {
        let read = |entry: Result<(Plain<FlowKey>, Plain<Flow>), MapError>| {
            let (Plain(key), Plain(flow)) = entry.map_err(|e| map_error(maps::FLOWS, &e))?;
            Ok((key.subject, address(key.function), flow))
        };
        self.flows.iter().map(read).collect()
    }

    /// The map of marks, by which the kernel tells sockets that are functions' from others.
    #[must_use]
    pub fn marks(&self) -> BorrowedFd<'_> {
        self.marks.fd().as_fd()
    }
}
