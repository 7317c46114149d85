//! A root image as a container will see it, looked at without mounting it: the layers' directories, merged by the rules of
//! overlayfs, with links followed within the image.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use super::layer::OPAQUE_XATTR;

/// Links that one path may lead through: the kernel's own limit.
const HOPS_MAX: usize = 40;

/// Of a file that is read here: `/etc/passwd` and the like.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The directories of an image's layers, the lowest first.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    pub layers: &'a [PathBuf],
}

/// Something in an image.
#[derive(Debug)]
pub(super) struct Seen {
    /// Where it is on the host: in a directory whose parents are no links. It may be a link itself.
    pub on_host: PathBuf,
    pub metadata: Metadata,
}

impl View<'_> {
    /// What a path leads to, through links.
    pub fn find(self, path: &Path) -> Option<Seen> {
        self.walk(path, true)
    }

    /// What stands at a path, a link included.
    pub fn find_last(self, path: &Path) -> Option<Seen> {
        self.walk(path, false)
    }

    /// A file's text, unless it is too long or absent.
    pub fn text(self, path: &str) -> Option<String> {
        let seen = self.find(Path::new(path)).filter(|seen| seen.metadata.is_file())?;
        let mut text = Vec::new();
        let file = fs::File::open(seen.on_host).ok()?;
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut text).ok()?;
        (text.len() as u64 <= FILE_BYTES_MAX).then(|| String::from_utf8_lossy(&text).into_owned())
    }

    fn walk(self, path: &Path, follow_last: bool) -> Option<Seen> {
        // Each directory on the way, as the layers' directories that make it up, the topmost first.
        let root: Vec<PathBuf> = self.layers.iter().rev().cloned().collect();
        let top = root.first()?;
        let mut seen = Seen { on_host: top.clone(), metadata: fs::symlink_metadata(top).ok()? };
        let mut stack = vec![root];
        let mut left: VecDeque<OsString> = VecDeque::new();
        push(&mut left, path);
        let mut hops = 0;
        while let Some(name) = left.pop_front() {
            if name == ".." {
                if stack.len() > 1 {
                    stack.pop();
                }
                let here = stack.last()?.first()?;
                seen = Seen { on_host: here.clone(), metadata: fs::symlink_metadata(here).ok()? };
                continue;
            }
            let (found, merged) = lookup(stack.last()?, &name)?;
            if found.metadata.is_symlink() && (follow_last || !left.is_empty()) {
                hops += 1;
                if hops > HOPS_MAX {
                    return None;
                }
                let target = fs::read_link(&found.on_host).ok()?;
                if target.is_absolute() {
                    stack.truncate(1);
                }
                push(&mut left, &target);
                let here = stack.last()?.first()?;
                seen = Seen { on_host: here.clone(), metadata: fs::symlink_metadata(here).ok()? };
                continue;
            }
            if found.metadata.is_dir() {
                stack.push(merged);
            } else if !left.is_empty() {
                return None;
            }
            seen = found;
        }
        Some(seen)
    }
}

/// Puts a path's parts before what is still to be walked.
fn push(left: &mut VecDeque<OsString>, path: &Path) {
    for component in path.components().rev() {
        match component {
            Component::Normal(name) => left.push_front(name.to_owned()),
            Component::ParentDir => left.push_front("..".into()),
            _ => {}
        }
    }
}

/// One name in a merged directory; if it is a directory, with all that it consists of.
fn lookup(dirs: &[PathBuf], name: &OsString) -> Option<(Seen, Vec<PathBuf>)> {
    let mut found: Option<Seen> = None;
    let mut merged = Vec::new();
    for dir in dirs {
        let path = dir.join(name);
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        let is_whiteout = metadata.file_type().is_char_device() && metadata.rdev() == 0;
        if is_whiteout || (found.is_some() && !metadata.is_dir()) {
            break;
        }
        let is_dir = metadata.is_dir();
        let is_opaque = is_dir && is_opaque(&path);
        if is_dir {
            merged.push(path.clone());
        }
        found.get_or_insert(Seen { on_host: path, metadata });
        if !is_dir || is_opaque {
            break;
        }
    }
    found.map(|seen| (seen, merged))
}

fn is_opaque(path: &Path) -> bool {
    let mut value = [0u8; 1];
    rustix::fs::lgetxattr(path, OPAQUE_XATTR, &mut value[..]).is_ok_and(|bytes| bytes == 1) && value == *b"y"
}
