//! The zone file, for servers other than ours.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::core::zone::{Zone, serial_is_later, zone_file_serial};

#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} the zone file {}", path.display())]
pub struct ZoneFileError {
    path: PathBuf,
    operation: &'static str,
    #[source]
    source: io::Error,
}

/// Writes the zone file if the zone's content differs from the file's, and returns whether it did. Other servers
/// see the old file or the new one, whatever happens. Takes as long as the disk does: not for the path of a deploy.
///
/// The serial is the zone's. Should the file have a later one (the store was lost and begun anew), it goes on from
/// there: a server that has seen the file takes no notice of a serial that fell.
///
/// # Errors
/// Those of the file system, with the file's name.
pub fn write_zone_file(path: &Path, zone: &Zone) -> Result<bool, ZoneFileError> {
    let fail = |operation| move |source| ZoneFileError { path: path.to_owned(), operation, source };
    let old = match fs::read_to_string(path) {
        Ok(old) => Some(old),
        // Anything that is no text is not ours to keep.
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => None,
        Err(e) => return Err(fail("read")(e)),
    };
    let mut serial = zone.serial();
    if let Some((old, old_serial)) = old.as_deref().and_then(|old| Some((old, zone_file_serial(old)?))) {
        if old == zone.to_zone_file_with_serial(old_serial) {
            return Ok(false);
        }
        if !serial_is_later(serial, old_serial) {
            serial = old_serial.wrapping_add(1);
        }
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(dir).map_err(fail("make the directory of"))?;
    let temporary = path.with_extension("tmp");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(&temporary)
        .map_err(fail("open"))?;
    file.write_all(zone.to_zone_file_with_serial(serial).as_bytes()).map_err(fail("write"))?;
    file.sync_all().map_err(fail("sync"))?;
    fs::rename(&temporary, path).map_err(fail("replace"))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(fail("sync the directory of"))?;
    Ok(true)
}
