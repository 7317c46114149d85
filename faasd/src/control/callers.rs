//! Who has which address, published to those who ask at each connection: the acceptors, by a table in memory, and
//! functions that accept connections themselves, by a directory that their containers see.
//!
//! The directory has a symbolic link for each address, whose target is the name. One `readlink(2)` therefore answers
//! "who is this", in any language, atomically, and whether a daemon runs or not. It may be searched and not listed:
//! a function learns the names of those whose addresses it knows, which are its callers.

use std::collections::HashSet;
use std::fs::{self, Permissions};
use std::io;
use std::net::Ipv6Addr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::dataplane;

/// A link under its draft's name. No address begins with a dot.
const DRAFT: &str = ".new";

/// Whoever may search, nobody may list.
const DIRECTORY_MODE: u32 = 0o711;

/// The table and the directory.
#[derive(Debug)]
pub struct Callers {
    table: Arc<dataplane::Callers>,
    dir: PathBuf,
    /// Held over a change of the directory.
    writer: Mutex<()>,
}

impl Callers {
    /// An empty table, and the directory as an earlier daemon left it.
    ///
    /// # Errors
    /// Those of making the directory.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        fs::set_permissions(dir, Permissions::from_mode(DIRECTORY_MODE))?;
        Ok(Self { table: Arc::default(), dir: dir.to_owned(), writer: Mutex::new(()) })
    }

    /// What the acceptors read.
    #[must_use]
    pub fn table(&self) -> &Arc<dataplane::Callers> {
        &self.table
    }

    /// Somebody has an address from now on.
    pub fn set(&self, address: Ipv6Addr, name: &str) {
        self.table.set(address, name);
        let _writer = self.writer();
        if let Err(error) = self.link(address, name) {
            tracing::error!(%address, name, %error, "functions that accept by themselves do not see a caller's name");
        }
    }

    /// Nobody has an address from now on.
    pub fn clear(&self, address: Ipv6Addr) {
        self.table.clear(address);
        let _writer = self.writer();
        match fs::remove_file(self.dir.join(address.to_string())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::error!(%address, %error, "a caller's name is still seen by functions that accept by themselves");
            }
            _ => {}
        }
    }

    /// Replaces everything, also what an earlier daemon has left of those who are gone.
    ///
    /// # Errors
    /// Those of reading and writing the directory.
    pub fn replace(&self, all: Vec<(Ipv6Addr, String)>) -> io::Result<()> {
        let _writer = self.writer();
        all.iter().try_for_each(|(address, name)| self.link(*address, name))?;
        let known: HashSet<String> = all.iter().map(|(address, _)| address.to_string()).collect();
        self.table.replace(all);
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if !entry.file_name().to_str().is_some_and(|name| known.contains(name)) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// At no time is an address that is somebody's nobody's.
    fn link(&self, address: Ipv6Addr, name: &str) -> io::Result<()> {
        let link = self.dir.join(address.to_string());
        if fs::read_link(&link).is_ok_and(|now| now == Path::new(name)) {
            return Ok(());
        }
        let draft = self.dir.join(DRAFT);
        match symlink(name, &draft) {
            // Of a daemon that was killed in the midst of it.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_file(&draft)?;
                symlink(name, &draft)?;
            }
            other => other?,
        }
        fs::rename(draft, link)
    }

    fn writer(&self) -> std::sync::MutexGuard<'_, ()> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_seen_by_both_and_what_is_gone_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("callers");
        let address = |n: u16| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n);
        let seen = |n: u16| fs::read_link(place.join(address(n).to_string())).ok();
        let callers = Callers::open(&place).unwrap();
        callers.set(address(2), "laptop");
        callers.set(address(3), "phone");
        callers.set(address(4), "fn:hello");
        callers.set(address(2), "other");
        callers.clear(address(3));
        callers.clear(address(9));
        assert_eq!(seen(2).as_deref(), Some(Path::new("other")));
        assert_eq!((seen(3), seen(4).as_deref()), (None, Some(Path::new("fn:hello"))));
        assert_eq!(callers.table().name(address(4)).as_str(), "fn:hello");
        assert_eq!(fs::metadata(&place).unwrap().permissions().mode() & 0o777, DIRECTORY_MODE);

        // The next daemon: names stay while it finds out who is there.
        symlink("half", place.join(DRAFT)).unwrap();
        let callers = Callers::open(&place).unwrap();
        assert!(seen(4).is_some() && !callers.table().name(address(4)).is_known());
        callers.replace(vec![(address(2), "other".to_owned()), (address(5), "new".to_owned())]).unwrap();
        assert_eq!((seen(2).is_some(), seen(4), seen(5).is_some()), (true, None, true));
        assert_eq!(fs::read_dir(&place).unwrap().count(), 2);
    }
}
