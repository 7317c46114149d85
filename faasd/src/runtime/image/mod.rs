//! Uploaded code: an archive is unpacked, checked and kept under the digest of its content, and found again by it.
//!
//! Nothing in an archive is believed. What has been unpacked so far is known in full (the directory was fresh), so that
//! every path is resolved against that knowledge and never against the file system: no symbolic link is ever followed.

mod archive;
mod blob;
mod entry;
mod layer;
mod oci;
mod process;
pub mod roots;
#[cfg(test)]
mod roots_tests;
#[cfg(test)]
mod tests;
mod view;

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use tar::{Archive, EntryType};

use archive::{normal, show};
pub use entry::{EntryError, entry_point};
pub use process::{Process, process};
pub use roots::{ImportError, RootImage, Roots};

use super::runners::HexDigest;

/// Limits of one archive.
pub const BYTES_MAX: u64 = 256 << 20;
pub const ENTRIES_MAX: usize = 65_536;
const PATH_BYTES_MAX: usize = 1024;
const NAME_BYTES_MAX: usize = 255;

/// Of the digest: it stands before it, and names the directory.
const ALGORITHM: &str = "sha256";
const DRAFT_PREFIX: &str = ".draft-";

/// Why an archive is refused.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("the archive cannot be read; a plain tar file is expected")]
    Read(#[source] io::Error),
    #[error("cannot write '{path}'")]
    Write { path: String, source: io::Error },
    #[error("cannot use {}", path.display())]
    Store { path: PathBuf, source: io::Error },
    #[error("the archive has more than {} MiB of content", BYTES_MAX >> 20)]
    Bytes,
    #[error("the archive has more than {0} entries")]
    Entries(usize),
    #[error("the archive is empty")]
    Empty,
    #[error(
        "the path '{0}…' is longer than {PATH_BYTES_MAX} bytes, or a name in it longer than {NAME_BYTES_MAX}"
    )]
    Long(String),
    #[error("the path '{0}' leads out of the archive, or is none; use relative paths without '..'")]
    Outside(String),
    #[error("'{0}' is {1}; only files, directories and links are taken")]
    Kind(String, &'static str),
    #[error(
        "the link '{path}' leads out of the archive, to '{target}'; only relative targets inside are taken"
    )]
    Link { path: String, target: String },
    #[error("the hard link '{path}' is to '{target}', which is no file that came before it")]
    HardLink { path: String, target: String },
    #[error("'{0}' is in the archive twice, or is below something that is no directory")]
    Twice(String),
}

/// Code that has been unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// `sha256:` and 64 hexadecimal digits, over the tree: paths, kinds, executable bits and contents.
    pub digest: String,
    /// Of all files together.
    pub bytes: u64,
    pub directory: PathBuf,
}

/// The directory of all images.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
    roots: Roots,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Directory,
    File { is_executable: bool, sha256: [u8; 32] },
    Link(PathBuf),
}

/// What has been unpacked, by its path in the archive.
#[derive(Debug, Default)]
struct Tree {
    nodes: BTreeMap<PathBuf, Node>,
    bytes: u64,
}

impl Store {
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        let roots = Roots::new(dir.join("roots"));
        Self { dir, roots }
    }

    /// The root images, which are kept beside the code.
    #[must_use]
    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    /// Unpacks an archive. The same code is kept once. Blocks: not for an asynchronous task's own thread.
    ///
    /// # Errors
    /// [`UnpackError`]; nothing of the archive is left then.
    pub fn unpack(&self, archive: impl Read) -> Result<Unpacked, UnpackError> {
        let store = |path: &Path| {
            let path = path.to_owned();
            move |source| UnpackError::Store { path, source }
        };
        let all = self.dir.join(ALGORITHM);
        fs::create_dir_all(&all).map_err(store(&all))?;
        // Containers pass through as users that own nothing here.
        for dir in [&self.dir, &all] {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o711)).map_err(store(dir))?;
        }
        let draft = Draft::new(&self.dir).map_err(store(&self.dir))?;
        let tree = unpack_into(archive, &draft.0)?;
        let digest = tree.digest();
        let directory = all.join(&digest);
        let unpacked = Unpacked {
            digest: format!("{ALGORITHM}:{digest}"),
            bytes: tree.bytes,
            directory: directory.clone(),
        };
        if directory.is_dir() {
            // It counts as new again.
            let touched = File::open(&directory).and_then(|dir| dir.set_modified(SystemTime::now()));
            return touched.map(|()| unpacked).map_err(store(&directory));
        }
        fs::set_permissions(&draft.0, fs::Permissions::from_mode(0o755)).map_err(store(&draft.0))?;
        // After a power cut, what has its final name is whole.
        let synced = File::open(&draft.0).and_then(|dir| Ok(rustix::fs::syncfs(dir)?));
        synced.map_err(store(&draft.0))?;
        match fs::rename(&draft.0, &directory) {
            // Somebody else was faster with the same code.
            Err(_) if directory.is_dir() => Ok(unpacked),
            other => other.map(|()| unpacked).map_err(store(&directory)),
        }
    }

    /// Where the code of a digest is, if it is there.
    #[must_use]
    pub fn directory(&self, digest: &str) -> Option<PathBuf> {
        let hex = digest.strip_prefix(ALGORITHM)?.strip_prefix(':')?;
        let is_digest = hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let dir = self.dir.join(ALGORITHM).join(hex);
        (is_digest && dir.is_dir()).then_some(dir)
    }

    /// Removes all images but those in `keep`, and what interrupted uploads have left; returns how many images. Whatever
    /// was uploaded less than `age_min` ago stays: it may be about to be deployed, or still be on its way.
    ///
    /// # Errors
    /// The first one met; the rest is still removed.
    pub fn gc(&self, keep: &HashSet<String>, age_min: Duration) -> io::Result<usize> {
        let (mut removed, mut first) = (0, Ok(()));
        let is_old = |entry: &fs::DirEntry| {
            let modified = entry.metadata().and_then(|m| m.modified()).ok();
            modified.and_then(|time| time.elapsed().ok()).is_some_and(|age| age >= age_min)
        };
        for entry in entries(&self.dir.join(ALGORITHM))? {
            let name = entry.file_name();
            let is_kept = name.to_str().is_some_and(|hex| keep.contains(&format!("{ALGORITHM}:{hex}")));
            if is_kept || !is_old(&entry) {
                continue;
            }
            match fs::remove_dir_all(entry.path()) {
                Ok(()) => removed += 1,
                Err(e) => first = first.and(Err(e)),
            }
        }
        for entry in entries(&self.dir)? {
            if entry.file_name().as_bytes().starts_with(DRAFT_PREFIX.as_bytes()) && is_old(&entry) {
                first = first.and(fs::remove_dir_all(entry.path()));
            }
        }
        first.map(|()| removed)
    }
}

fn entries(dir: &Path) -> io::Result<Vec<fs::DirEntry>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// A directory that goes with its variable, unless it was renamed.
struct Draft(PathBuf);

impl Draft {
    fn new(dir: &Path) -> io::Result<Self> {
        use std::hash::{BuildHasher, RandomState};
        let path = dir.join(format!("{DRAFT_PREFIX}{:016x}", RandomState::new().hash_one(0)));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The digest that an archive's code would be kept under, found out without keeping it.
///
/// # Errors
/// [`UnpackError`], as if it were to be kept.
pub fn digest(archive: impl Read) -> Result<String, UnpackError> {
    let store = |source| UnpackError::Store { path: std::env::temp_dir(), source };
    let dir = tempfile::tempdir().map_err(store)?;
    let tree = unpack_into(archive, dir.path())?;
    Ok(format!("{ALGORITHM}:{}", tree.digest()))
}

/// Unpacks into an empty directory.
fn unpack_into(archive: impl Read, root: &Path) -> Result<Tree, UnpackError> {
    let mut tree = Tree::default();
    let mut archive = Archive::new(archive);
    archive::read(archive.entries().map_err(UnpackError::Read)?, ENTRIES_MAX, |mut entry| {
        let path = normal(&entry.path)?;
        let kind = match entry.kind() {
            EntryType::Regular | EntryType::Continuous => {
                return tree.file(root, &path, entry.mode()? & 0o111 != 0, &mut entry.content);
            }
            EntryType::Directory => return tree.directory(root, &path),
            EntryType::Symlink => return tree.link(root, &path, &entry.target),
            EntryType::Link => return tree.hard_link(root, &path, &entry.target),
            EntryType::Char | EntryType::Block => "a device",
            EntryType::Fifo => "a fifo",
            EntryType::GNUSparse => "a sparse file",
            _ => "of a kind that tar files seldom hold",
        };
        Err(UnpackError::Kind(show(&path), kind))
    })?;
    if tree.nodes.is_empty() { Err(UnpackError::Empty) } else { Ok(tree) }
}

impl Tree {
    /// Makes sure that all above `path` are directories.
    fn parents(&mut self, root: &Path, path: &Path) -> Result<(), UnpackError> {
        match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => self.directory(root, parent),
            _ => Ok(()),
        }
    }

    fn directory(&mut self, root: &Path, path: &Path) -> Result<(), UnpackError> {
        let mut walked = PathBuf::new();
        for name in path.components() {
            walked.push(name);
            match self.nodes.get(&walked) {
                Some(Node::Directory) => continue,
                Some(_) => return Err(UnpackError::Twice(show(path))),
                None => {}
            }
            let full = root.join(&walked);
            fs::create_dir(&full)
                .and_then(|()| fs::set_permissions(&full, fs::Permissions::from_mode(0o755)))
                .map_err(|source| UnpackError::Write { path: show(path), source })?;
            self.insert(walked.clone(), Node::Directory)?;
        }
        Ok(())
    }

    fn file(
        &mut self,
        root: &Path,
        path: &Path,
        is_executable: bool,
        content: &mut impl Read,
    ) -> Result<(), UnpackError> {
        self.vacant(path)?;
        self.parents(root, path)?;
        let write = |source| UnpackError::Write { path: show(path), source };
        let mode = if is_executable { 0o755 } else { 0o644 };
        let mut out = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(root.join(path))
            .map_err(write)?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let bytes = content.read(&mut buffer).map_err(UnpackError::Read)?;
            if bytes == 0 {
                break;
            }
            self.bytes += bytes as u64;
            if self.bytes > BYTES_MAX {
                return Err(UnpackError::Bytes);
            }
            hash.update(&buffer[..bytes]);
            out.write_all(&buffer[..bytes]).map_err(write)?;
        }
        // Whatever the umask: no more and no less, and in particular nothing above 0777.
        out.set_permissions(fs::Permissions::from_mode(mode)).map_err(write)?;
        self.insert(path.to_owned(), Node::File { is_executable, sha256: hash.finalize().into() })
    }

    /// A symbolic link, with a target that cannot lead out: some `..`, no more than there are directories above the
    /// link, then plain names. As parents are real directories and every other link obeys the same rule, wherever the
    /// plain names lead is inside, too.
    fn link(&mut self, root: &Path, path: &Path, target: &[u8]) -> Result<(), UnpackError> {
        let to = Path::new(std::ffi::OsStr::from_bytes(target));
        let mut depth = path.components().count().saturating_sub(1);
        let mut is_down = false;
        let is_inside = to.components().all(|component| match component {
            Component::Normal(_) => {
                is_down = true;
                true
            }
            Component::CurDir => true,
            Component::ParentDir if !is_down && depth > 0 => {
                depth -= 1;
                true
            }
            _ => false,
        });
        if !is_inside || target.is_empty() || target.len() > PATH_BYTES_MAX || target.contains(&0) {
            return Err(UnpackError::Link { path: show(path), target: show(to) });
        }
        self.vacant(path)?;
        self.parents(root, path)?;
        symlink(to, root.join(path)).map_err(|source| UnpackError::Write { path: show(path), source })?;
        self.insert(path.to_owned(), Node::Link(to.to_owned()))
    }

    fn hard_link(&mut self, root: &Path, path: &Path, target: &[u8]) -> Result<(), UnpackError> {
        let to = normal(target)?;
        let Some(node @ Node::File { .. }) = self.nodes.get(&to).cloned() else {
            return Err(UnpackError::HardLink { path: show(path), target: show(&to) });
        };
        self.vacant(path)?;
        self.parents(root, path)?;
        fs::hard_link(root.join(&to), root.join(path))
            .map_err(|source| UnpackError::Write { path: show(path), source })?;
        self.insert(path.to_owned(), node)
    }

    fn vacant(&self, path: &Path) -> Result<(), UnpackError> {
        match path.as_os_str().is_empty() || self.nodes.contains_key(path) {
            true => Err(UnpackError::Twice(show(path))),
            false => Ok(()),
        }
    }

    /// Also counts what an entry implies: the directories above it.
    fn insert(&mut self, path: PathBuf, node: Node) -> Result<(), UnpackError> {
        if self.nodes.len() >= ENTRIES_MAX {
            return Err(UnpackError::Entries(ENTRIES_MAX));
        }
        self.nodes.insert(path, node);
        Ok(())
    }

    /// The digest of the tree, whatever the order, times and owners in the archive. Every part has its length before
    /// it, so that no two trees have the same text.
    fn digest(&self) -> String {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        for (path, node) in &self.nodes {
            part(path.as_os_str().as_bytes());
            match node {
                Node::Directory => part(b"directory"),
                Node::File { is_executable, sha256 } => {
                    part(if *is_executable { b"program" } else { b"file" });
                    part(sha256);
                }
                Node::Link(target) => {
                    part(b"link");
                    part(target.as_os_str().as_bytes());
                }
            }
        }
        format!("{:x}", HexDigest(hash.finalize().as_slice()))
    }
}
