//! Uploaded code: an archive is unpacked, checked and kept under the digest of its content, and found again by it.
//!
//! Nothing in an archive is believed. What has been unpacked so far is known in full (the directory was fresh), so that
//! every path is resolved against that knowledge and never against the file system: no symbolic link is ever followed.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use sha2::{Digest, Sha256};
use tar::{Archive, EntryType, PaxExtensions};

use super::bundle;
use super::runners::HexDigest;
use crate::core::spec::{Contract, FunctionSpec};

/// Limits of one archive.
pub const BYTES_MAX: u64 = 256 << 20;
pub const ENTRIES_MAX: usize = 65_536;
const PATH_BYTES_MAX: usize = 1024;
const NAME_BYTES_MAX: usize = 255;

/// What an archive may spend on a header of variable length: long names, pax records.
const HEADER_BYTES_MAX: u64 = 64 << 10;

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
    #[error("the archive has more than {ENTRIES_MAX} entries")]
    Entries,
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

/// Why code cannot be run as declared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    #[error("there is no '{file}' in the code{hint}")]
    Missing { file: String, hint: String },
    #[error("'{0}' is no regular file")]
    NoFile(String),
    #[error("'{0}' is not executable: `chmod +x {0}`, then deploy again")]
    NotExecutable(String),
    #[error("'{0}' is not there inside a container, which has the code at /app and the host's /usr alone")]
    NotInside(String),
    #[error("the code at {0} is gone; deploy it again")]
    Gone(String),
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
        Self { dir }
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

/// Long names and the like, which an archive has before the entry that they belong to.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
}

/// Unpacks into an empty directory. The headers of variable length are read here rather than by the `tar` crate, which
/// would read one of any length into memory.
fn unpack_into(archive: impl Read, root: &Path) -> Result<Tree, UnpackError> {
    let mut tree = Tree::default();
    let mut extension = Extension::default();
    let mut archive = Archive::new(archive);
    let entries = archive.entries().map_err(UnpackError::Read)?.raw(true);
    for (count, entry) in entries.enumerate() {
        let mut entry = entry.map_err(UnpackError::Read)?;
        if count >= ENTRIES_MAX {
            return Err(UnpackError::Entries);
        }
        match entry.header().entry_type() {
            EntryType::XGlobalHeader => continue,
            EntryType::GNULongName => {
                extension.path = Some(without_nul(read_header(&mut entry)?));
                continue;
            }
            EntryType::GNULongLink => {
                extension.target = Some(without_nul(read_header(&mut entry)?));
                continue;
            }
            EntryType::XHeader => {
                read_pax(&read_header(&mut entry)?, &mut extension)?;
                continue;
            }
            _ => {}
        }
        let Extension { path, target } = std::mem::take(&mut extension);
        let path = normal(&path.unwrap_or_else(|| entry.header().path_bytes().into_owned()))?;
        let target = target
            .or_else(|| entry.header().link_name_bytes().map(|name| name.into_owned()))
            .unwrap_or_default();
        let kind = match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => "file",
            EntryType::Directory => {
                tree.directory(root, &path)?;
                continue;
            }
            EntryType::Symlink => {
                tree.link(root, &path, &target)?;
                continue;
            }
            EntryType::Link => {
                tree.hard_link(root, &path, &target)?;
                continue;
            }
            EntryType::Char | EntryType::Block => "a device",
            EntryType::Fifo => "a fifo",
            EntryType::GNUSparse => "a sparse file",
            _ => "of a kind that tar files seldom hold",
        };
        if kind != "file" {
            return Err(UnpackError::Kind(show(&path), kind));
        }
        let is_executable = entry.header().mode().map_err(UnpackError::Read)? & 0o111 != 0;
        tree.file(root, &path, is_executable, &mut entry)?;
    }
    if tree.nodes.is_empty() { Err(UnpackError::Empty) } else { Ok(tree) }
}

fn read_header(entry: &mut impl Read) -> Result<Vec<u8>, UnpackError> {
    let mut bytes = Vec::new();
    entry.take(HEADER_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(UnpackError::Read)?;
    match bytes.len() as u64 > HEADER_BYTES_MAX {
        true => Err(UnpackError::Long(String::from_utf8_lossy(&bytes[..64]).into_owned())),
        false => Ok(bytes),
    }
}

fn without_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.last() == Some(&0) {
        bytes.pop();
    }
    bytes
}

/// The records that matter. A size or a sparse map in one would contradict the header that the content is read by.
fn read_pax(bytes: &[u8], extension: &mut Extension) -> Result<(), UnpackError> {
    for record in PaxExtensions::new(bytes) {
        let record = record.map_err(UnpackError::Read)?;
        match record.key_bytes() {
            b"path" => extension.path = Some(record.value_bytes().to_owned()),
            b"linkpath" => extension.target = Some(record.value_bytes().to_owned()),
            b"size" => return Err(UnpackError::Bytes),
            key if key.starts_with(b"GNU.sparse.") => {
                return Err(UnpackError::Kind("an entry".to_owned(), "a sparse file"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// A path of plain names; empty for the archive's own root.
fn normal(bytes: &[u8]) -> Result<PathBuf, UnpackError> {
    let path = Path::new(std::ffi::OsStr::from_bytes(bytes));
    if bytes.len() > PATH_BYTES_MAX {
        return Err(UnpackError::Long(String::from_utf8_lossy(&bytes[..64]).into_owned()));
    }
    if bytes.is_empty() || bytes.contains(&0) {
        return Err(UnpackError::Outside(show(path)));
    }
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) if name.len() > NAME_BYTES_MAX => {
                return Err(UnpackError::Long(String::from_utf8_lossy(&name.as_bytes()[..64]).into_owned()));
            }
            Component::Normal(name) => plain.push(name),
            Component::CurDir => {}
            _ => return Err(UnpackError::Outside(show(path))),
        }
    }
    Ok(plain)
}

fn show(path: &Path) -> String {
    path.to_string_lossy().chars().take(PATH_BYTES_MAX).collect()
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
            return Err(UnpackError::Entries);
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

/// Checks that the code has what the declaration runs. For an `fd` function it returns the argument vector as it is
/// inside a container; for a handler, whose runner is not its own, an empty one.
///
/// # Errors
/// [`EntryError`], which names the file and, if there is one like it, the one that may be meant.
pub fn entry_point(image: &Path, spec: &FunctionSpec) -> Result<Vec<String>, EntryError> {
    let root = rustix::fs::open(image, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|_| EntryError::Gone(image.display().to_string()))?;
    match (spec.contract, spec.command.split_first()) {
        (Contract::Handler, _) => {
            let (file, _) = spec.handler_parts();
            match find(&root, Path::new(file)) {
                None => Err(missing(image, file)),
                Some(stat) if !is_file(&stat) => Err(EntryError::NoFile(file.to_owned())),
                Some(_) => Ok(Vec::new()),
            }
        }
        (Contract::Fd, None) => Err(missing(image, "")),
        (Contract::Fd, Some((program, rest))) => {
            let program = resolve(image, &root, program)?;
            Ok([&[program], rest].concat())
        }
    }
}

/// A program's path inside: relative ones and plain names are looked for in the code, then plain names on the search
/// path.
fn resolve(image: &Path, root: &impl AsFd, program: &str) -> Result<String, EntryError> {
    let path = Path::new(program);
    let in_code = match path.strip_prefix(bundle::APP) {
        Ok(path) => Some(path),
        Err(_) if path.is_relative() => Some(path),
        Err(_) => None,
    };
    if let Some(in_code) = in_code {
        if let Some(stat) = find(root, in_code) {
            return executable(&stat, program)
                .map(|()| Path::new(bundle::APP).join(in_code.strip_prefix(".").unwrap_or(in_code)))
                .map(|path| path.to_string_lossy().into_owned());
        }
        if program.contains('/') {
            return Err(missing(image, program));
        }
    }
    // The host's /usr is the container's; /bin, /sbin and /lib are links into it there.
    let inside = match path.is_absolute() {
        true => path.to_owned(),
        false => Path::new("/usr/bin").join(path),
    };
    let on_host = match ["/bin", "/sbin", "/lib", "/lib64"].iter().find(|dir| inside.starts_with(dir)) {
        Some(_) => Path::new("/usr").join(inside.strip_prefix("/").unwrap_or(&inside)),
        None => inside.clone(),
    };
    let is_seen = on_host.starts_with("/usr") && !on_host.starts_with("/usr/local");
    match rustix::fs::stat(&on_host) {
        Ok(stat) if is_seen => executable(&stat, program).map(|()| inside.to_string_lossy().into_owned()),
        _ if path.is_absolute() => Err(EntryError::NotInside(program.to_owned())),
        _ => Err(missing(image, program)),
    }
}

/// A file in the code, through links, as a container sees it.
fn find(root: &impl AsFd, path: &Path) -> Option<Stat> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let file = rustix::fs::openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT).ok()?;
    rustix::fs::fstat(file).ok()
}

fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

fn executable(stat: &Stat, program: &str) -> Result<(), EntryError> {
    match (is_file(stat), stat.st_mode & 0o111 != 0) {
        (false, _) => Err(EntryError::NoFile(program.to_owned())),
        (true, false) => Err(EntryError::NotExecutable(program.to_owned())),
        (true, true) => Ok(()),
    }
}

/// Names what is there instead: the nearest name in the same directory, or else the first few.
fn missing(image: &Path, file: &str) -> EntryError {
    const SHOWN_MAX: usize = 5;
    let wanted = Path::new(file);
    let name = wanted.file_name().unwrap_or_default().to_string_lossy();
    // Only within the code: the file may be declared with any path.
    let in_code = wanted.strip_prefix(bundle::APP).unwrap_or(wanted);
    let parent = in_code
        .parent()
        .filter(|p| p.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)));
    let mut names: Vec<String> = fs::read_dir(image.join(parent.unwrap_or(Path::new(""))))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .take(ENTRIES_MAX)
        .collect();
    names.sort();
    let nearest = names
        .iter()
        .map(|known| (strsim::damerau_levenshtein(&name, known), known))
        .filter(|(distance, known)| *distance <= known.len().div_ceil(3))
        .min();
    let hint = match nearest {
        Some((_, known)) => format!("; did you mean '{known}'?"),
        None if names.is_empty() => "; its directory is empty".to_owned(),
        None => {
            let more = if names.len() > SHOWN_MAX { ", …" } else { "" };
            format!("; it has {}{more}", names[..names.len().min(SHOWN_MAX)].join(", "))
        }
    };
    EntryError::Missing { file: file.to_owned(), hint }
}

#[cfg(test)]
mod tests {
    use tar::{Builder, Header};

    use super::*;

    /// One entry of a hostile or friendly archive, with names written as they are, past all checks of the tar crate.
    fn entry(
        tar: &mut Builder<Vec<u8>>,
        kind: EntryType,
        name: &str,
        target: &str,
        mode: u32,
        content: &[u8],
    ) {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append(&header, content).unwrap();
    }

    fn file(name: &str, content: &[u8]) -> Vec<u8> {
        let mut tar = Builder::new(Vec::new());
        entry(&mut tar, EntryType::Regular, name, "", 0o644, content);
        tar.into_inner().unwrap()
    }

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path().join("images"));
        (dir, store)
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_tree_is_kept_once_under_its_digest() {
        let (_dir, store) = store();
        let mut tar = Builder::new(Vec::new());
        entry(&mut tar, EntryType::Directory, "./", "", 0o700, b"");
        entry(&mut tar, EntryType::Regular, "./handler.py", "", 0o600, b"code");
        entry(&mut tar, EntryType::Regular, "bin/tool", "", 0o6711, b"tool");
        entry(&mut tar, EntryType::Symlink, "bin/link", "../handler.py", 0o777, b"");
        entry(&mut tar, EntryType::Link, "again", "bin/tool", 0o644, b"");
        let unpacked = store.unpack(&tar.into_inner().unwrap()[..]).unwrap();
        assert_eq!((unpacked.bytes, unpacked.digest.len()), (8, 71));
        let dir = store.directory(&unpacked.digest).unwrap();
        assert_eq!(fs::read_to_string(dir.join("bin/link")).unwrap(), "code");
        assert_eq!(mode(&dir), 0o755);
        assert_eq!(mode(&dir.join("bin")), 0o755);
        assert_eq!(mode(&dir.join("handler.py")), 0o644);
        // Neither set-uid nor set-gid is left.
        assert_eq!(mode(&dir.join("bin/tool")), 0o755);

        // The same tree in another order, by another writer of archives.
        let mut tar = Builder::new(Vec::new());
        entry(&mut tar, EntryType::Regular, "again", "", 0o755, b"tool");
        entry(&mut tar, EntryType::Link, "bin/tool", "again", 0o755, b"");
        entry(&mut tar, EntryType::Symlink, "bin/link", "../handler.py", 0o777, b"");
        entry(&mut tar, EntryType::Regular, "handler.py", "", 0o644, b"code");
        assert_eq!(store.unpack(&tar.into_inner().unwrap()[..]).unwrap(), unpacked);
        let other = store.unpack(&file("handler.py", b"other")[..]).unwrap();
        assert_ne!(other.digest, unpacked.digest);

        let keep = [other.digest.clone()].into();
        assert_eq!(store.gc(&keep, Duration::from_secs(3600)).unwrap(), 0);
        assert_eq!(store.gc(&keep, Duration::ZERO).unwrap(), 1);
        assert!(store.directory(&unpacked.digest).is_none() && store.directory(&other.digest).is_some());
    }

    #[test]
    fn attacks_are_refused_and_leave_nothing() {
        use EntryType as T;
        type Entry<'a> = (T, &'a str, &'a str, &'a [u8]);
        let attacks: &[(&[Entry<'_>], &str)] = &[
            (&[(T::Regular, "../x", "", b"x")], "leads out"),
            (&[(T::Regular, "a/../../x", "", b"x")], "leads out"),
            (&[(T::Regular, "/etc/x", "", b"x")], "leads out"),
            (&[(T::Symlink, "a", "/etc", b"")], "leads out"),
            (&[(T::Symlink, "a", "..", b"")], "leads out"),
            (&[(T::Symlink, "d/a", "../../x", b"")], "leads out"),
            // Down and up again may lead anywhere, if what is gone down is a link.
            (&[(T::Symlink, "d/e/a", "x/../../..", b"")], "leads out"),
            (&[(T::Symlink, "a", "b", b""), (T::Regular, "a/x", "", b"x")], "no directory"),
            (&[(T::Symlink, "a", "b", b""), (T::Regular, "a", "", b"x")], "twice"),
            (&[(T::Regular, "a", "", b"x"), (T::Directory, "a", "", b"")], "twice"),
            (&[(T::Regular, "a", "", b"x"), (T::Regular, "./a", "", b"y")], "twice"),
            (&[(T::Link, "a", "/etc/passwd", b"")], "leads out"),
            (&[(T::Link, "a", "../x", b"")], "leads out"),
            (&[(T::Link, "a", "later", b""), (T::Regular, "later", "", b"")], "no file that came before"),
            (&[(T::Symlink, "s", "t", b""), (T::Link, "a", "s", b"")], "no file that came before"),
            (&[(T::Char, "null", "", b"")], "a device"),
            (&[(T::Block, "disk", "", b"")], "a device"),
            (&[(T::Fifo, "fifo", "", b"")], "a fifo"),
            (&[(T::GNULongName, "x", "", &[b'a'; 2000]), (T::Regular, "x", "", b"")], "longer than"),
            (&[(T::GNULongName, "x", "", &[b'a'; 300]), (T::Regular, "x", "", b"")], "longer than"),
            (&[(T::GNULongName, "x", "", &[b'a'; 70_000]), (T::Regular, "x", "", b"")], "longer than"),
            (&[(T::GNULongName, "x", "", b"../y\0"), (T::Regular, "x", "", b"")], "leads out"),
            (&[(T::XHeader, "x", "", b"13 path=../y\n"), (T::Regular, "x", "", b"")], "leads out"),
            (&[(T::XHeader, "x", "", b"10 size=9\n"), (T::Regular, "x", "", b"")], "content"),
            (&[], "empty"),
        ];
        for (number, (entries, why)) in attacks.iter().enumerate() {
            let (dir, store) = store();
            let mut tar = Builder::new(Vec::new());
            entries.iter().for_each(|(kind, name, target, content)| {
                entry(&mut tar, *kind, name, target, 0o755, content);
            });
            let error = store.unpack(&tar.into_inner().unwrap()[..]).unwrap_err().to_string();
            assert!(error.contains(why), "attack {number}: {error}");
            // The directory of images, in it the one of digests, and in that nothing.
            let images = dir.path().join("images");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "attack {number}");
            assert_eq!(fs::read_dir(&images).unwrap().count(), 1, "attack {number}");
            assert_eq!(fs::read_dir(images.join(ALGORITHM)).unwrap().count(), 0, "attack {number}");
        }
    }

    #[test]
    fn long_names_of_both_kinds_are_read() {
        let long = "d/".repeat(60) + "file";
        for (kind, header) in [
            (EntryType::GNULongName, format!("{long}\0")),
            (EntryType::XHeader, format!("134 path={long}\n")),
        ] {
            let (_dir, store) = store();
            let mut tar = Builder::new(Vec::new());
            entry(&mut tar, kind, "x", "", 0o644, header.as_bytes());
            entry(&mut tar, EntryType::Regular, "short", "", 0o644, b"content");
            let unpacked = store.unpack(&tar.into_inner().unwrap()[..]).unwrap();
            assert_eq!(fs::read_to_string(unpacked.directory.join(&long)).unwrap(), "content");
        }
    }

    #[test]
    fn sizes_and_numbers_have_limits() {
        let (_dir, store) = store();
        // A header that announces more than is allowed, and an endless reader behind it.
        let mut header = Header::new_gnu();
        header.set_path("big").unwrap();
        header.set_mode(0o644);
        header.set_size(BYTES_MAX + 1);
        header.set_cksum();
        let archive = header.as_bytes().chain(io::repeat(0));
        assert!(matches!(store.unpack(archive), Err(UnpackError::Bytes)));
        let truncated = &file("a", &[0; 4096])[..1024];
        assert!(matches!(store.unpack(truncated), Err(UnpackError::Read(_))));

        let mut tree = Tree::default();
        for n in 0..ENTRIES_MAX {
            tree.insert(PathBuf::from(n.to_string()), Node::Directory).unwrap();
        }
        assert!(matches!(tree.insert("more".into(), Node::Directory), Err(UnpackError::Entries)));
    }

    #[test]
    fn what_is_declared_must_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path();
        fs::create_dir(image.join("bin")).unwrap();
        fs::write(image.join("handler.py"), "").unwrap();
        fs::write(image.join("bin/hello"), "").unwrap();
        fs::write(image.join("tool"), "").unwrap();
        fs::set_permissions(image.join("tool"), fs::Permissions::from_mode(0o755)).unwrap();
        // Inside a container this leads to nothing; on the host it would.
        symlink("/usr/bin/true", image.join("absolute")).unwrap();
        let handler =
            |name: &str| FunctionSpec { handler: Some(format!("{name}:f")), ..FunctionSpec::default() };
        let command = |program: &str| FunctionSpec {
            contract: Contract::Fd,
            command: vec![program.to_owned(), "x".to_owned()],
            ..FunctionSpec::default()
        };
        let check = |spec: FunctionSpec| entry_point(image, &spec).map_err(|e| e.to_string());
        assert_eq!(check(handler("handler.py")), Ok(vec![]));
        for (program, inside) in [
            ("./tool", "/app/tool"),
            ("tool", "/app/tool"),
            ("/app/tool", "/app/tool"),
            ("true", "/usr/bin/true"),
            ("/bin/true", "/bin/true"),
        ] {
            assert_eq!(check(command(program)), Ok(vec![inside.to_owned(), "x".to_owned()]), "{program}");
        }
        for (spec, why) in [
            (handler("handlr.py"), "did you mean 'handler.py'?"),
            (handler("x.py"), "it has absolute, bin, handler.py, tool"),
            (command("./hello"), "no './hello'"),
            (command("bin/hello"), "chmod +x bin/hello"),
            (command("bin/helo"), "did you mean 'hello'?"),
            (command("bin"), "no regular file"),
            (command("absolute"), "no 'absolute'"),
            (command("../../etc/passwd"), "no '../../etc/passwd'"),
            (command("/etc/passwd"), "not there inside"),
            (command("/usr/local/bin/x"), "not there inside"),
            (command("no-such-program"), "no 'no-such-program'"),
        ] {
            let error = check(spec).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        assert!(
            entry_point(&image.join("gone"), &handler("x.py")).unwrap_err().to_string().contains("deploy it")
        );
    }
}
