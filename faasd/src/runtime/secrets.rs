//! Secrets as containers see them: files on a file system in memory, a directory for each instance, which is bind-mounted
//! into its container alone.
//!
//! The file system outlives the daemon, as containers do. It is mounted when the first instance needs it.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::core::secret::{SecretBytes, SecretName};

/// Room for all instances' secrets together. They are not swapped, where the kernel (6.4 or later) can do without.
const OPTIONS: [&CStr; 2] =
    [c"mode=0711,size=64m,nr_inodes=65536,noswap", c"mode=0711,size=64m,nr_inodes=65536"];

/// A file that is being written. No secret's name begins with a dot.
const UNFINISHED: &str = ".new";

/// The files of all instances' secrets.
#[derive(Debug)]
pub struct SecretFiles {
    dir: PathBuf,
    /// Held while it is looked at whether the file system is there.
    mounting: Mutex<()>,
}

/// Why an instance has no secrets.
#[derive(Debug, thiserror::Error)]
pub enum SecretFilesError {
    #[error("cannot mount a file system in memory for secrets on {}", path.display())]
    Mount { path: PathBuf, source: io::Error },
    #[error(
        "the file system for secrets, {}, is full: fewer instances, or smaller secrets, are needed",
        path.display()
    )]
    Full { path: PathBuf },
    #[error("cannot write the secrets below {}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

impl SecretFiles {
    /// Files below `dir`. Makes nothing yet.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, mounting: Mutex::default() }
    }

    /// The directory of an instance, wherever it is now.
    #[must_use]
    pub fn directory(&self, instance: &str) -> PathBuf {
        self.dir.join(instance)
    }

    /// Makes an instance's directory, empty, for the container's own user (`owner`, as the host counts) to read.
    ///
    /// # Errors
    /// [`SecretFilesError`].
    pub fn prepare(&self, instance: &str, owner: (u32, u32)) -> Result<PathBuf, SecretFilesError> {
        self.mount()?;
        let dir = self.directory(instance);
        let made = fs::create_dir(&dir)
            .and_then(|()| fs::set_permissions(&dir, fs::Permissions::from_mode(0o500)))
            .and_then(|()| chown(&dir, Some(owner.0), Some(owner.1)));
        made.map_err(|e| error(&dir, e)).map(|()| dir)
    }

    /// Writes an instance's secrets, in place of those of the same names. Whoever reads meanwhile sees the one or the
    /// other.
    ///
    /// # Errors
    /// [`SecretFilesError`].
    pub fn place(
        &self,
        instance: &str,
        owner: (u32, u32),
        secrets: &[(SecretName, SecretBytes)],
    ) -> Result<(), SecretFilesError> {
        let dir = self.directory(instance);
        let unfinished = dir.join(UNFINISHED);
        for (name, value) in secrets {
            let written =
                OpenOptions::new().write(true).create_new(true).mode(0o400).open(&unfinished).and_then(
                    |mut file| {
                        file.write_all(value.as_bytes())?;
                        std::os::unix::fs::fchown(&file, Some(owner.0), Some(owner.1))?;
                        fs::rename(&unfinished, dir.join(name.as_str()))
                    },
                );
            if let Err(e) = written {
                let _ = fs::remove_file(&unfinished);
                return Err(error(&dir, e));
            }
        }
        Ok(())
    }

    /// Removes what an instance had, if it had any.
    ///
    /// # Errors
    /// Those of `unlink(2)`.
    pub fn remove(&self, instance: &str) -> io::Result<()> {
        match fs::remove_dir_all(self.directory(instance)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Removes the secrets of all instances but those that are kept: what was left by a daemon that was killed. To be
    /// called before the first start.
    ///
    /// # Errors
    /// The first one met; the rest is still removed.
    pub fn sweep(&self, kept: &BTreeSet<&str>) -> io::Result<()> {
        let mut first = Ok(());
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            if !entry.file_name().to_str().is_some_and(|id| kept.contains(id)) {
                first = first.and(fs::remove_dir_all(entry.path()));
            }
        }
        first
    }

    fn mount(&self) -> Result<(), SecretFilesError> {
        let _alone = self.mounting.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = |source| SecretFilesError::Mount { path: self.dir.clone(), source };
        if is_mounted(&self.dir).map_err(failed)? {
            return Ok(());
        }
        fs::create_dir_all(&self.dir).map_err(failed)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let mut mounted = Err(Errno::INVAL);
        for options in OPTIONS {
            mounted = mount(c"faasd-secrets", &self.dir, c"tmpfs", flags, options);
            if mounted != Err(Errno::INVAL) {
                break;
            }
        }
        mounted.map_err(|e| failed(e.into()))
    }
}

fn error(dir: &Path, source: io::Error) -> SecretFilesError {
    match source.kind() {
        io::ErrorKind::StorageFull => SecretFilesError::Full { path: dir.parent().unwrap_or(dir).to_owned() },
        _ => SecretFilesError::Write { path: dir.to_owned(), source },
    }
}

/// Whether a file system of its own is there.
fn is_mounted(dir: &Path) -> io::Result<bool> {
    let device = |dir: &Path| fs::symlink_metadata(dir).map(|m| m.dev());
    match device(dir) {
        Ok(own) => Ok(Some(own) != dir.parent().map(device).transpose()?),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Takes the file system away, with all that is in it: for a machine that is to be left as it was found.
///
/// # Errors
/// Those of `umount2(2)` and `rmdir(2)`.
pub fn unmount_all(dir: &Path) -> io::Result<()> {
    while is_mounted(dir)? {
        unmount(dir, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
    }
    match fs::remove_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(name: &str, value: &str) -> (SecretName, SecretBytes) {
        (name.parse().unwrap(), SecretBytes::new(value.as_bytes().to_vec()))
    }

    fn read(files: &SecretFiles, instance: &str, name: &str) -> String {
        fs::read_to_string(files.directory(instance).join(name)).unwrap()
    }

    #[test]
    fn secrets_are_files_in_memory_for_one_user() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mounting needs root");
            return;
        }
        let top = tempfile::tempdir().unwrap();
        let dir = top.path().join("secrets");
        let files = SecretFiles::new(dir.clone());
        files.remove("none").unwrap();
        files.sweep(&BTreeSet::new()).unwrap();
        files.prepare("a", (70_000, 70_001)).unwrap();
        files.prepare("b", (80_000, 80_001)).unwrap();
        assert!(is_mounted(&dir).unwrap());
        files.place("a", (70_000, 70_001), &[secret("x", "one"), secret("y", "two")]).unwrap();
        let (dir_meta, file) = (fs::metadata(dir.join("a")).unwrap(), fs::metadata(dir.join("a/x")).unwrap());
        assert_eq!((dir_meta.mode() & 0o7777, dir_meta.uid()), (0o500, 70_000));
        assert_eq!((file.mode() & 0o7777, file.uid(), file.gid()), (0o400, 70_000, 70_001));
        // A later daemon takes the mount for what it is.
        let later = SecretFiles::new(dir.clone());
        later.prepare("c", (90_000, 90_000)).unwrap();
        later.place("a", (70_000, 70_001), &[secret("x", "three")]).unwrap();
        assert_eq!((read(&later, "a", "x"), read(&later, "a", "y")), ("three".into(), "two".into()));
        assert_eq!(fs::read_dir(dir.join("a")).unwrap().count(), 2);
        later.sweep(&BTreeSet::from(["a"])).unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        later.remove("a").unwrap();
        let large = (SecretName::try_from("z".to_owned()).unwrap(), SecretBytes::new(vec![1; 65 << 20]));
        later.prepare("d", (1, 1)).unwrap();
        let full = later.place("d", (1, 1), &[large]).unwrap_err();
        assert!(matches!(full, SecretFilesError::Full { .. }), "{full}");
        assert_eq!(fs::read_dir(dir.join("d")).unwrap().count(), 0);
        unmount_all(&dir).unwrap();
        assert!(!dir.exists());
        unmount_all(&dir).unwrap();
    }
}
