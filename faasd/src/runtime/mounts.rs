//! Root images, mounted: one read-only union for each image and each range of user ids, shared by all instances that have
//! both, made for the first of them and taken away after the last.
//!
//! The layers' files belong to a range of users that nobody has ([`roots::OWNER_BASE`]); each layer is mounted with those
//! mapped to the container's own, and the union is made of these mounts. (overlayfs cannot be mapped itself.) On top lies
//! a layer of ours with the directories that a container has mounts on.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::bundle::{self, UID_RANGE};
use super::image::RootImage;
use super::image::roots::OWNER_BASE;
use crate::core::egress::HOSTS;
use crate::sys::idmap::{self, IdMap};

/// Digits of an image's digest in its mount's name.
const DIGITS: usize = 16;

/// The topmost layer of every image.
const TOP: &str = ".top";

/// Why an image is not mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("cannot prepare {}", path.display())]
    Prepare { path: PathBuf, source: io::Error },
    #[error(
        "the files of a layer in {} cannot be given to the container's users: the kernel (5.19 or later is needed) or the \
         file system (ext4, xfs and btrfs can) does not map owners",
        path.display()
    )]
    Map { path: PathBuf, source: io::Error },
    #[error("cannot mount the image's layers on {}", path.display())]
    Overlay { path: PathBuf, source: io::Error },
}

/// The directory of all such mounts, and who uses which.
#[derive(Debug)]
pub struct Mounts {
    dir: PathBuf,
    /// Instances by the mount's name.
    users: Mutex<HashMap<String, BTreeSet<String>>>,
}

impl Mounts {
    /// Makes the directory and the topmost layer.
    ///
    /// # Errors
    /// [`MountError::Prepare`].
    pub fn new(dir: &Path) -> Result<Self, MountError> {
        let top = dir.join(TOP);
        // As the kernel names it: mounts are found again by their path.
        let dir = points(dir, &top)
            .and_then(|()| dir.canonicalize())
            .map_err(|source| MountError::Prepare { path: top, source })?;
        Ok(Self { dir, users: Mutex::default() })
    }

    /// The image's root directory, for an instance of the function whose number `slot` is. Blocks for some milliseconds
    /// if it is the first.
    ///
    /// # Errors
    /// [`MountError`]; nothing is mounted then.
    pub fn acquire(&self, image: &RootImage, slot: u32, instance: &str) -> Result<PathBuf, MountError> {
        let digits = image.digest.rsplit(':').next().unwrap_or_default();
        let name = format!("{}-{slot}", &digits[..DIGITS.min(digits.len())]);
        let path = self.dir.join(&name);
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let is_mounted = self.mounted().is_ok_and(|all| all.contains(&path));
        if !is_mounted {
            fs::create_dir_all(&path).map_err(|source| MountError::Prepare { path: path.clone(), source })?;
            if let Err(error) = self.mount(image, slot, &path) {
                let _ = fs::remove_dir(&path);
                return Err(error);
            }
        }
        users.entry(name).or_default().insert(instance.to_owned());
        Ok(path)
    }

    /// Says that an instance is gone. Its image is unmounted if nobody else has it.
    ///
    /// # Errors
    /// Those of `umount2(2)`.
    pub fn release(&self, instance: &str) -> io::Result<()> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let mut unused = Vec::new();
        users.retain(|name, instances| {
            if instances.remove(instance) && instances.is_empty() {
                unused.push(name.clone());
            }
            !instances.is_empty()
        });
        unused.into_iter().try_for_each(|name| self.remove(&self.dir.join(name)))
    }

    /// Counts an instance that an earlier daemon started, whose root directory is `path`.
    pub fn adopt(&self, path: &Path, instance: &str) {
        if let Some(name) = path.strip_prefix(&self.dir).ok().and_then(Path::to_str) {
            let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
            users.entry(name.to_owned()).or_default().insert(instance.to_owned());
        }
    }

    /// Unmounts what nobody uses: what was left by a daemon that was killed. To be called before the first start.
    ///
    /// # Errors
    /// The first one met; the rest is still unmounted.
    pub fn sweep(&self) -> io::Result<()> {
        let users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let used: HashSet<PathBuf> = users.keys().map(|name| self.dir.join(name)).collect();
        let mut first = Ok(());
        // The last one mounted may lie on an earlier one.
        for path in self.mounted()?.into_iter().rev().filter(|path| !used.contains(path)) {
            first = first.and(idmap::detach(&path));
        }
        for entry in fs::read_dir(&self.dir)?.flatten() {
            let path = entry.path();
            if !used.contains(&path) && path != self.top() {
                // What is mounted here again, or was never ours, stays.
                let _ = remove_points(&path);
            }
        }
        first
    }

    /// Whether an instance runs from the image with these digits.
    #[must_use]
    pub fn uses(&self, hex: &str) -> bool {
        let users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        users.keys().any(|name| name.split('-').next().is_some_and(|digits| hex.starts_with(digits)))
    }

    fn mounted(&self) -> io::Result<Vec<PathBuf>> {
        idmap::mounts_below(&self.dir)
    }

    fn top(&self) -> PathBuf {
        self.dir.join(TOP)
    }

    fn mount(&self, image: &RootImage, slot: u32, at: &Path) -> Result<(), MountError> {
        let map = IdMap { from: OWNER_BASE, to: bundle::uid_base(slot), count: UID_RANGE };
        let prepare = |source| MountError::Prepare { path: at.to_owned(), source };
        let namespace = idmap::user_namespace(map).map_err(prepare)?;
        // An image may have one layer twice, which overlayfs refuses: all that the lower one has is in the upper.
        let mut seen = HashSet::new();
        let top = self.top();
        let dirs = std::iter::once(&top).chain(image.layers.iter().rev()).filter(|dir| seen.insert(*dir));
        let scratch = self.dir.join(format!(".layers-{}", at.file_name().unwrap_or_default().display()));
        let mut attached = Attached { dir: scratch, count: 0 };
        let mut layers: Vec<OwnedFd> = Vec::new();
        for dir in dirs {
            let layer = idmap::mapped(dir, namespace.as_fd())
                .map_err(|source| MountError::Map { path: dir.clone(), source })?;
            // Before Linux 6.15 overlayfs takes only mounts that are attached somewhere.
            attached.add(&layer).map_err(prepare)?;
            layers.push(layer);
        }
        idmap::overlay(&layers, at).map_err(|source| MountError::Overlay { path: at.to_owned(), source })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        idmap::detach(path)?;
        fs::remove_dir(path)
    }
}

/// Mounts of layers, attached while the union of them is made: it keeps them by itself.
struct Attached {
    dir: PathBuf,
    count: usize,
}

impl Attached {
    fn add(&mut self, layer: &OwnedFd) -> io::Result<()> {
        let point = self.dir.join(self.count.to_string());
        fs::create_dir_all(&point)?;
        idmap::attach(layer, &point)?;
        self.count += 1;
        Ok(())
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        for number in (0..self.count).rev() {
            if let Err(error) = idmap::detach(&self.dir.join(number.to_string())) {
                tracing::warn!(%error, path = %self.dir.display(), "a layer stays mounted");
            }
        }
        let _ = remove_points(&self.dir);
    }
}

/// Removes a directory and the empty ones in it; never anything else, as a mount may lie on one of them.
fn remove_points(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)?.flatten() {
        fs::remove_dir(entry.path())?;
    }
    fs::remove_dir(dir)
}

/// The directories that mounts of a container lie on, and what it has of its own in `/etc`.
fn points(dir: &Path, top: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o711))?;
    for (point, mode) in [
        ("", 0o755),
        ("app", 0o755),
        ("deps", 0o755),
        ("dev", 0o755),
        ("etc", 0o755),
        ("node_modules", 0o755),
        ("proc", 0o555),
        // runc 1.1 gives a tmpfs the mode of its mount point.
        ("run", 0o1777),
        ("tmp", 0o1777),
    ] {
        let point = top.join(point);
        fs::create_dir_all(&point)?;
        lchown(&point, Some(OWNER_BASE), Some(OWNER_BASE))?;
        fs::set_permissions(&point, fs::Permissions::from_mode(mode))?;
    }
    let hosts = top.join("etc/hosts");
    fs::write(&hosts, HOSTS)?;
    lchown(&hosts, Some(OWNER_BASE), Some(OWNER_BASE))?;
    fs::set_permissions(&hosts, fs::Permissions::from_mode(0o644))
}

/// Unmounts all images, whoever uses them: for a machine that is to be left as it was found.
///
/// # Errors
/// The first one met; the rest is still unmounted.
pub fn unmount_all(dir: &Path) -> io::Result<()> {
    match dir.canonicalize() {
        Ok(dir) => {
            let mut first = Ok(());
            for path in idmap::mounts_below(&dir)?.into_iter().rev() {
                first = first.and(idmap::detach(&path));
            }
            first
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}
