//! Unpacking one layer of a root image into a directory that overlayfs can use as it is.
//!
//! As for code, everything unpacked so far is known, and paths are resolved against that knowledge. Here links may lead
//! anywhere, as the container's own root is what they are relative to: a path whose parent is a link is followed within
//! the tree, as the kernel would within that root.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, FileType, Mode, XattrFlags};
use tar::{Archive, EntryType};

use super::archive::{self, normal, show};
use super::roots::{ImportError, OWNER_BASE, OWNERS};
use super::{PATH_BYTES_MAX, UnpackError};

/// Of an image's layers together.
pub const ENTRIES_MAX: usize = 1 << 18;

/// A link's target may be longer than a name that is in the archive itself.
const TARGET_BYTES_MAX: usize = 4095;

/// Links that one path may lead through: the kernel's own limit.
const HOPS_MAX: usize = 40;

/// Notes that are kept; the rest is counted by nobody.
const NOTES_MAX: usize = 16;

const WHITEOUT: &[u8] = b".wh.";
/// What follows [`WHITEOUT`] twice is for the union file system itself; one such name means something.
const OPAQUE: &[u8] = b".wh..wh..opq";
const META: &[u8] = b".wh..wh.";

/// How overlayfs marks a directory that hides what is below it.
pub(super) const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

/// Who things belong to that nobody has said anything about, and what is not in the range.
const ROOT: u32 = 0;
const NOBODY: u32 = 65_534;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Directory,
    File,
    Link(PathBuf),
    /// Hides what layers below have there.
    Whiteout,
}

/// What an unpacked layer is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Unpacked {
    /// Of all files together.
    pub bytes: u64,
    pub entries: usize,
    /// What was left out.
    pub notes: Vec<String>,
}

struct Layer<'a> {
    root: &'a Path,
    nodes: HashMap<PathBuf, Node>,
    entries_max: usize,
    bytes: u64,
    notes: Vec<String>,
}

/// Unpacks into an empty directory. `entries_max` is what the layers before it have left. How many bytes are read is for
/// the reader to bound.
pub(super) fn unpack(archive: impl Read, root: &Path, entries_max: usize) -> Result<Unpacked, ImportError> {
    let mut layer = Layer { root, nodes: HashMap::new(), entries_max, bytes: 0, notes: Vec::new() };
    own(root, ROOT, ROOT, 0o755).map_err(|source| write_error(Path::new("/"), source))?;
    let mut archive = Archive::new(archive);
    let entries = archive.entries().map_err(UnpackError::Read)?;
    archive::read(entries, entries_max, |entry| layer.take(entry))?;
    let Layer { nodes, bytes, notes, .. } = layer;
    Ok(Unpacked { bytes, entries: nodes.len(), notes })
}

/// Sets the owner, as it is recorded on disk, and the mode, which the first may have changed. Not for links.
fn own(path: &Path, uid: u32, gid: u32, mode: u32) -> io::Result<()> {
    lchown(path, Some(OWNER_BASE + uid), Some(OWNER_BASE + gid))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn write_error(path: &Path, source: io::Error) -> ImportError {
    UnpackError::Write { path: show(path), source }.into()
}

/// An id that no container has is nobody's.
fn owner(id: u64) -> u32 {
    u32::try_from(id).ok().filter(|id| *id < OWNERS).unwrap_or(NOBODY)
}

impl Layer<'_> {
    fn take<R: Read>(&mut self, mut entry: archive::Entry<'_, R>) -> Result<(), ImportError> {
        let path = normal(&entry.path)?;
        let (uid, gid) = entry.owner()?;
        let (uid, gid) = (owner(uid), owner(gid));
        // Set-uid and set-gid would mean nothing (no_new_privs), and are not kept.
        let mode = entry.mode()? & 0o1777;
        let Some(name) = path.file_name() else {
            return match entry.kind() {
                EntryType::Directory => {
                    own(self.root, uid, gid, mode).map_err(|source| write_error(&path, source))
                }
                _ => Err(UnpackError::Kind("/".to_owned(), "the root, and no directory").into()),
            };
        };
        let parent = self.resolve(path.parent().unwrap_or(Path::new("")))?;
        if name.as_bytes().starts_with(WHITEOUT) {
            return self.whiteout(&parent, name.as_bytes(), &path);
        }
        let at = parent.join(name);
        match entry.kind() {
            EntryType::Directory => self.directory(&at, Some((uid, gid, mode))),
            EntryType::Regular | EntryType::Continuous => {
                let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(entry.modified().min(1 << 40));
                self.file(&at, &mut entry.content, (uid, gid, mode), modified)
            }
            EntryType::Symlink => self.link(&at, &entry.target, uid, gid),
            EntryType::Link => self.hard_link(&at, &entry.target),
            kind => {
                let what = match kind {
                    EntryType::Char | EntryType::Block => "a device",
                    EntryType::Fifo => "a fifo",
                    EntryType::GNUSparse => "a sparse file",
                    _ => "of a kind that tar files seldom hold",
                };
                // A container's /dev is made for it: whatever an image has there is hidden.
                if at.starts_with("dev") && kind != EntryType::GNUSparse {
                    if self.notes.len() < NOTES_MAX {
                        self.notes.push(format!("left out: /{} ({what})", show(&at)));
                    }
                    return Ok(());
                }
                Err(UnpackError::Kind(show(&path), what).into())
            }
        }
    }

    /// The path without links, as the kernel would find it with this layer for a root. What is not there yet is taken for
    /// directories to be.
    fn resolve(&self, path: &Path) -> Result<PathBuf, ImportError> {
        let mut left: VecDeque<OsString> = path.iter().map(OsString::from).collect();
        let (mut at, mut hops) = (PathBuf::new(), 0);
        while let Some(name) = left.pop_front() {
            if name == ".." {
                at.pop();
                continue;
            }
            let next = at.join(&name);
            let Some(Node::Link(target)) = self.nodes.get(&next) else {
                at = next;
                continue;
            };
            hops += 1;
            if hops > HOPS_MAX {
                return Err(ImportError::Loop(show(path)));
            }
            if target.is_absolute() {
                at = PathBuf::new();
            }
            for component in target.components().rev() {
                match component {
                    Component::Normal(name) => left.push_front(name.to_owned()),
                    Component::ParentDir => left.push_front("..".into()),
                    _ => {}
                }
            }
        }
        match at.as_os_str().len() > PATH_BYTES_MAX {
            true => Err(UnpackError::Long(show(path).chars().take(64).collect()).into()),
            false => Ok(at),
        }
    }

    /// Makes a directory and all above it. One that only was implied gets its own owner and mode later, if at all.
    fn directory(&mut self, path: &Path, set: Option<(u32, u32, u32)>) -> Result<(), ImportError> {
        let mut walked = PathBuf::new();
        let depth = path.iter().count();
        for (number, name) in path.iter().enumerate() {
            walked.push(name);
            let is_last = number + 1 == depth;
            let mut is_opaque = false;
            match self.nodes.get(&walked) {
                Some(Node::Directory) => continue,
                // It replaces what the layers below have, all of it.
                Some(Node::Whiteout) => is_opaque = true,
                Some(Node::Link(_) | Node::File) if is_last && set.is_some() => {}
                Some(_) => return Err(UnpackError::Twice(show(path)).into()),
                None => {}
            }
            self.clear(&walked)?;
            let full = self.root.join(&walked);
            fs::create_dir(&full)
                .and_then(|()| own(&full, ROOT, ROOT, 0o755))
                .map_err(|source| write_error(path, source))?;
            self.insert(walked.clone(), Node::Directory)?;
            if is_opaque {
                self.opaque(&walked)?;
            }
        }
        match set {
            Some((uid, gid, mode)) => {
                own(&self.root.join(path), uid, gid, mode).map_err(|source| write_error(path, source))
            }
            None => Ok(()),
        }
    }

    fn file(
        &mut self,
        path: &Path,
        content: &mut impl Read,
        (uid, gid, mode): (u32, u32, u32),
        modified: SystemTime,
    ) -> Result<(), ImportError> {
        self.replace(path)?;
        let write = |source| write_error(path, source);
        let mut out = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.root.join(path))
            .map_err(write)?;
        let mut buffer = vec![0; 64 << 10];
        loop {
            let bytes = content.read(&mut buffer).map_err(UnpackError::Read)?;
            if bytes == 0 {
                break;
            }
            self.bytes += bytes as u64;
            out.write_all(&buffer[..bytes]).map_err(write)?;
        }
        rustix::fs::fchown(
            &out,
            Some(rustix::process::Uid::from_raw(OWNER_BASE + uid)),
            Some(rustix::process::Gid::from_raw(OWNER_BASE + gid)),
        )
        .map_err(|e| write(e.into()))?;
        out.set_permissions(fs::Permissions::from_mode(mode & 0o777)).map_err(write)?;
        // Interpreters compare the times of what they have compiled.
        out.set_modified(modified).map_err(write)?;
        self.insert(path.to_owned(), Node::File)
    }

    fn link(&mut self, path: &Path, target: &[u8], uid: u32, gid: u32) -> Result<(), ImportError> {
        let to = PathBuf::from(OsString::from_vec(target.to_vec()));
        if target.is_empty() || target.len() > TARGET_BYTES_MAX || target.contains(&0) {
            return Err(UnpackError::Link { path: show(path), target: show(&to) }.into());
        }
        self.replace(path)?;
        let full = self.root.join(path);
        symlink(&to, &full)
            .and_then(|()| lchown(&full, Some(OWNER_BASE + uid), Some(OWNER_BASE + gid)))
            .map_err(|source| write_error(path, source))?;
        self.insert(path.to_owned(), Node::Link(to))
    }

    fn hard_link(&mut self, path: &Path, target: &[u8]) -> Result<(), ImportError> {
        let named = normal(target)?;
        let missing = || UnpackError::HardLink { path: show(path), target: show(&named) };
        let name = named.file_name().ok_or_else(missing)?;
        let to = self.resolve(named.parent().unwrap_or(Path::new("")))?.join(name);
        let node = self.nodes.get(&to).cloned();
        let Some(node @ (Node::File | Node::Link(_))) = node else { return Err(missing().into()) };
        if to == path {
            return Err(missing().into());
        }
        self.replace(path)?;
        // link(2) does not follow `to` if that is a link itself.
        fs::hard_link(self.root.join(&to), self.root.join(path))
            .map_err(|source| write_error(path, source))?;
        self.insert(path.to_owned(), node)
    }

    fn whiteout(&mut self, parent: &Path, name: &[u8], shown: &Path) -> Result<(), ImportError> {
        if name == OPAQUE {
            if parent.as_os_str().is_empty() {
                return Err(ImportError::Whiteout(show(shown)));
            }
            self.directory(parent, None)?;
            return self.opaque(parent);
        }
        if name.starts_with(META) {
            return Ok(());
        }
        let hidden = &name[WHITEOUT.len()..];
        if hidden.is_empty() || hidden == b"." || hidden == b".." {
            return Err(ImportError::Whiteout(show(shown)));
        }
        let at = parent.join(OsString::from_vec(hidden.to_vec()));
        match self.nodes.get(&at) {
            // A whiteout is for the layers below, wherever it stands in the archive.
            Some(Node::Directory) => return self.opaque(&at),
            Some(_) => return Ok(()),
            None => {}
        }
        self.directory(parent, None)?;
        // What overlayfs takes for one.
        rustix::fs::mknodat(CWD, self.root.join(&at), FileType::CharacterDevice, Mode::empty(), 0)
            .map_err(|e| write_error(shown, e.into()))?;
        self.insert(at, Node::Whiteout)
    }

    fn opaque(&self, path: &Path) -> Result<(), ImportError> {
        rustix::fs::lsetxattr(self.root.join(path), OPAQUE_XATTR, b"y", XattrFlags::empty())
            .map_err(|e| write_error(path, e.into()))
    }

    /// Makes room for what is no directory: all above it is, and what is there goes, as later entries count.
    fn replace(&mut self, path: &Path) -> Result<(), ImportError> {
        if self.nodes.get(path) == Some(&Node::Directory) {
            return Err(UnpackError::Twice(show(path)).into());
        }
        self.directory(path.parent().unwrap_or(Path::new("")), None)?;
        self.clear(path)
    }

    /// Removes what is no directory.
    fn clear(&mut self, path: &Path) -> Result<(), ImportError> {
        match self.nodes.remove(path) {
            None => Ok(()),
            Some(_) => fs::remove_file(self.root.join(path)).map_err(|source| write_error(path, source)),
        }
    }

    fn insert(&mut self, path: PathBuf, node: Node) -> Result<(), ImportError> {
        if self.nodes.len() >= self.entries_max {
            return Err(UnpackError::Entries(ENTRIES_MAX).into());
        }
        self.nodes.insert(path, node);
        Ok(())
    }
}

/// After a power cut, what has its final name is whole.
pub(super) fn sync(dir: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(dir)?)?)
}
