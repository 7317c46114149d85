//! The marks on sockets, for who makes sockets but does not steer.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use aya::maps::{Map, MapData, MapError, SkStorage};
use faasd_common::{Owner, maps};

use super::{BpfError, Plain, map_error};

/// In the place of a function's slot: nobody may pass the connection on. Whoever could, would have its next owner take what
/// a third one answers for a request of that third one's.
const OUTGOING: u32 = u32::MAX;

/// The map of marks, as it is pinned.
pub struct Marks(Mutex<SkStorage<MapData, Plain<Owner>>>);

impl std::fmt::Debug for Marks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Marks")
    }
}

impl Marks {
    /// `dir` is where [`super::Kernel`] has pinned its maps.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn open(dir: &Path) -> Result<Self, BpfError> {
        let error = |e: MapError| map_error(maps::OWNER, &e);
        let data = MapData::from_pin(dir.join(maps::OWNER)).map_err(error)?;
        let map = SkStorage::try_from(Map::SkStorage(data)).map_err(error)?;
        Ok(Self(Mutex::new(map)))
    }

    /// Marks a connection that a function has made: from here on it connects and binds nowhere else, and unlike one that
    /// the function was given it is not passed on.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn set_outgoing(&self, socket: &impl AsRawFd) -> Result<(), BpfError> {
        let mark = Owner { slot: OUTGOING, seat: Owner::NO_SEAT, counted: 0 };
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.insert(socket, Plain(mark), 0).map_err(|e| map_error(maps::OWNER, &e))
    }

    /// Whether a socket is marked.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn has(&self, socket: &impl AsRawFd) -> Result<bool, BpfError> {
        let map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match map.get(socket, 0) {
            Ok(_) => Ok(true),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(e) => Err(map_error(maps::OWNER, &e)),
        }
    }
}
