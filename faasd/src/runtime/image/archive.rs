//! Reading tar archives that nobody vouches for: entries with their long names, within limits.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use tar::{Entries, EntryType, PaxExtensions};

use super::{NAME_BYTES_MAX, PATH_BYTES_MAX, UnpackError};

/// What an archive may spend on a header of variable length: long names, pax records.
const HEADER_BYTES_MAX: u64 = 64 << 10;

/// One entry, under its whole name.
pub(super) struct Entry<'a, R: Read> {
    /// As written: not checked yet.
    pub path: Vec<u8>,
    /// Of a link; as written.
    pub target: Vec<u8>,
    pub content: tar::Entry<'a, R>,
    owner: (Option<u64>, Option<u64>),
}

impl<R: Read> Entry<'_, R> {
    pub fn kind(&self) -> EntryType {
        self.content.header().entry_type()
    }

    pub fn mode(&self) -> Result<u32, UnpackError> {
        self.content.header().mode().map_err(UnpackError::Read)
    }

    /// The user and the group.
    pub fn owner(&self) -> Result<(u64, u64), UnpackError> {
        let header = self.content.header();
        let uid = self.owner.0.map_or_else(|| header.uid(), Ok).map_err(UnpackError::Read)?;
        let gid = self.owner.1.map_or_else(|| header.gid(), Ok).map_err(UnpackError::Read)?;
        Ok((uid, gid))
    }

    /// In seconds since 1970.
    pub fn modified(&self) -> u64 {
        self.content.header().mtime().unwrap_or(0)
    }
}

/// Long names and the like, which an archive has before the entry that they belong to.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    owner: (Option<u64>, Option<u64>),
}

/// Shows every entry to `visit`. The headers of variable length are read here rather than by the `tar` crate, which would
/// read one of any length into memory.
pub(super) fn read<'a, R: Read + 'a, E: From<UnpackError>>(
    entries: Entries<'a, R>,
    entries_max: usize,
    mut visit: impl FnMut(Entry<'a, R>) -> Result<(), E>,
) -> Result<(), E> {
    let mut extension = Extension::default();
    for (count, entry) in entries.raw(true).enumerate() {
        let mut entry = entry.map_err(UnpackError::Read)?;
        if count >= entries_max {
            return Err(UnpackError::Entries(entries_max).into());
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
        let Extension { path, target, owner } = std::mem::take(&mut extension);
        let path = path.unwrap_or_else(|| entry.header().path_bytes().into_owned());
        let target = target
            .or_else(|| entry.header().link_name_bytes().map(|name| name.into_owned()))
            .unwrap_or_default();
        visit(Entry { path, target, content: entry, owner })?;
    }
    Ok(())
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
        let number = || -> Result<Option<u64>, UnpackError> {
            let text = record.value().map_err(|e| UnpackError::Read(io::Error::other(e)))?;
            text.parse().map(Some).map_err(|e| UnpackError::Read(io::Error::other(e)))
        };
        match record.key_bytes() {
            b"path" => extension.path = Some(record.value_bytes().to_owned()),
            b"linkpath" => extension.target = Some(record.value_bytes().to_owned()),
            b"uid" => extension.owner.0 = number()?,
            b"gid" => extension.owner.1 = number()?,
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
pub(super) fn normal(bytes: &[u8]) -> Result<PathBuf, UnpackError> {
    let path = Path::new(OsStr::from_bytes(bytes));
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

pub(super) fn show(path: &Path) -> String {
    path.to_string_lossy().chars().take(PATH_BYTES_MAX).collect()
}
