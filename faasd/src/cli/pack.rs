//! Packs a directory: the same tree gives the same bytes, whoever packs it and whenever.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ignore::WalkBuilder;
use tar::{Builder, EntryType, Header};

use super::{Exit, Failure};
use crate::api::types::ARCHIVE_BYTES_MAX;

/// Names what is not deployed, in gitignore's syntax.
pub const IGNORE_FILE: &str = ".faasignore";

/// Never deployed as code: they are large, of this machine, or of no use to a running function; or, as packages, in an
/// archive of their own.
const NEVER: [&str; 4] = [".git", "__pycache__", "node_modules", ".venv"];

/// What makes a directory a virtual environment of Python's, whatever it is called.
const VENV_MARK: &str = "pyvenv.cfg";

/// The most entries of an archive.
const ENTRIES_MAX: usize = 50_000;

/// A packed directory.
#[derive(Debug)]
pub struct Packed {
    /// At its beginning, and without a name in the file system.
    pub archive: File,
    pub bytes: u64,
    /// How many files.
    pub files: usize,
}

/// Packs `dir`. `program` goes in whatever the ignore files say.
///
/// # Errors
/// [`Failure`], naming the file.
pub fn pack(dir: &Path, program: Option<&Path>) -> Result<Packed, Failure> {
    pack_paths(dir, &walk(dir, program)?)
}

/// Packs what a function depends on: everything that is there.
///
/// # Errors
/// [`Failure`], naming the file.
pub fn pack_all(dir: &Path) -> Result<Packed, Failure> {
    let mut walk = WalkBuilder::new(dir);
    walk.standard_filters(false).sort_by_file_name(Ord::cmp);
    pack_paths(dir, &collect(dir, &walk, "depend on less")?)
}

fn pack_paths(dir: &Path, paths: &[PathBuf]) -> Result<Packed, Failure> {
    let archive = tempfile::tempfile()
        .map_err(|e| Failure::new(Exit::CannotCreate, format!("cannot make a temporary file: {e}")))?;
    let mut tar = Builder::new(io::BufWriter::new(archive));
    let (mut bytes, mut files) = (0u64, 0);
    for relative in paths {
        let path = dir.join(relative);
        let failed = |e: io::Error| Failure::file("pack", &path, &e);
        let metadata = fs::symlink_metadata(&path).map_err(failed)?;
        bytes = bytes.saturating_add(metadata.len());
        if bytes > ARCHIVE_BYTES_MAX {
            let text = format!("{} holds more than {} MiB", dir.display(), ARCHIVE_BYTES_MAX >> 20);
            return Err(
                Failure::new(Exit::Data, text).hint(format!("list what is not needed in {IGNORE_FILE}"))
            );
        }
        files += usize::from(!metadata.is_dir());
        append(&mut tar, relative, &path, &metadata).map_err(failed)?;
    }
    let mut archive =
        tar.into_inner().and_then(|buffer| buffer.into_inner().map_err(io::IntoInnerError::into_error));
    let measured =
        archive.as_mut().map_err(|e| io::Error::new(e.kind(), e.to_string())).and_then(|archive| {
            archive.flush()?;
            let bytes = archive.stream_position()?;
            archive.rewind()?;
            Ok(bytes)
        });
    let written = |e: io::Error| Failure::new(Exit::Io, format!("cannot write the archive: {e}"));
    let bytes = measured.map_err(written)?;
    Ok(Packed { archive: archive.map_err(written)?, bytes, files })
}

/// Relative paths in a fixed order, each directory before what it holds.
fn walk(dir: &Path, program: Option<&Path>) -> Result<Vec<PathBuf>, Failure> {
    // cargo's own directory is known by the manifest beside it; another "target" may be part of a function.
    let rust = dir.join("Cargo.toml").exists();
    let mut walk = WalkBuilder::new(dir);
    walk.standard_filters(false)
        .add_custom_ignore_filename(IGNORE_FILE)
        .sort_by_file_name(Ord::cmp)
        .filter_entry(move |entry| {
            let name = entry.file_name();
            let never = NEVER.iter().any(|never| name == *never);
            entry.depth() == 0
                || !(never
                    || rust && entry.depth() == 1 && name == "target"
                    || entry.path().join(VENV_MARK).exists())
        });
    let mut paths = collect(dir, &walk, &format!("list what is not needed in {IGNORE_FILE}"))?;
    if let Some(program) = program {
        // With the directories that lead to it.
        let ancestors = program.ancestors().filter(|path| !path.as_os_str().is_empty());
        paths.extend(ancestors.map(Path::to_owned));
        paths.sort();
        paths.dedup();
    }
    Ok(paths)
}

fn collect(dir: &Path, walk: &WalkBuilder, remedy: &str) -> Result<Vec<PathBuf>, Failure> {
    let mut paths = Vec::new();
    for entry in walk.build() {
        let entry =
            entry.map_err(|e| Failure::new(Exit::Io, format!("cannot read {}: {e}", dir.display())))?;
        if let Some(e) = entry.error() {
            return Err(Failure::new(Exit::Data, e.to_string()));
        }
        // Sockets, pipes and devices are no code.
        let kind = entry.file_type();
        if entry.depth() == 0
            || !kind.is_some_and(|kind| kind.is_file() || kind.is_dir() || kind.is_symlink())
        {
            continue;
        }
        if let Ok(path) = entry.path().strip_prefix(dir) {
            paths.push(path.to_owned());
        }
        if paths.len() > ENTRIES_MAX {
            let text = format!("{} holds more than {ENTRIES_MAX} files and directories", dir.display());
            return Err(Failure::new(Exit::Data, text).hint(remedy));
        }
    }
    Ok(paths)
}

/// Writes one entry. Owner, time and the finer mode bits are left out: they differ between machines and mean nothing
/// in the container.
fn append<W: Write>(
    tar: &mut Builder<W>,
    name: &Path,
    path: &Path,
    metadata: &fs::Metadata,
) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    let executable = metadata.permissions().mode() & 0o111 != 0;
    header.set_mode(if executable || metadata.is_dir() { 0o755 } else { 0o644 });
    header.set_size(0);
    if metadata.is_dir() {
        header.set_entry_type(EntryType::Directory);
        return tar.append_data(&mut header, name, io::empty());
    }
    if metadata.is_symlink() {
        header.set_entry_type(EntryType::Symlink);
        return tar.append_link(&mut header, name, fs::read_link(path)?);
    }
    header.set_entry_type(EntryType::Regular);
    header.set_size(metadata.len());
    let mut content = Counted { reader: File::open(path)?.take(metadata.len()), bytes: 0 };
    tar.append_data(&mut header, name, &mut content)?;
    if content.bytes < metadata.len() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter meanwhile"));
    }
    Ok(())
}

/// Counts what is read, so that a file that shrinks cannot shift everything after it.
struct Counted<R> {
    reader: R,
    bytes: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.bytes += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for path in files {
            let file = dir.path().join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, path).unwrap();
        }
        dir
    }

    fn bytes(packed: &Packed) -> Vec<u8> {
        let mut bytes = Vec::new();
        (&packed.archive).read_to_end(&mut bytes).unwrap();
        (&packed.archive).rewind().unwrap();
        bytes
    }

    fn names(packed: &Packed) -> Vec<String> {
        let bytes = bytes(packed);
        let mut tar = tar::Archive::new(bytes.as_slice());
        tar.entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().to_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn what_is_of_no_use_stays_behind() {
        let dir = tree(&[
            "handler.py",
            ".env",
            ".git/config",
            "__pycache__/x.pyc",
            "lib/__pycache__/y.pyc",
            "lib/y.py",
            "node_modules/z/z.js",
            ".venv/bin/python",
            "myenv/pyvenv.cfg",
            "target/notes.txt",
            "big.bin",
            ".faasignore",
        ]);
        fs::write(dir.path().join(".faasignore"), "*.bin\n").unwrap();
        let packed = pack(dir.path(), None).unwrap();
        let found = names(&packed);
        assert_eq!(
            found,
            [".env", ".faasignore", "handler.py", "lib", "lib/y.py", "target", "target/notes.txt"]
        );
        assert_eq!(packed.files, 5);
        assert_eq!(packed.bytes, bytes(&packed).len() as u64);
    }

    #[test]
    fn the_program_goes_in_and_the_rest_of_target_does_not() {
        let dir = tree(&["Cargo.toml", "target/release/hello", "target/release/hello.d", "src/main.rs"]);
        let packed = pack(dir.path(), Some(Path::new("target/release/hello"))).unwrap();
        assert_eq!(
            names(&packed),
            ["Cargo.toml", "src", "src/main.rs", "target", "target/release", "target/release/hello"]
        );
    }

    #[test]
    fn the_same_tree_gives_the_same_bytes() {
        let files = ["b/c", "a", "b-c"];
        let long = "d/".repeat(80) + "deep";
        let one = tree(&[files[0], files[1], files[2], &long]);
        let two = tree(&[&long, files[2], files[1], files[0]]);
        let file = File::open(two.path().join("a")).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        fs::set_permissions(two.path().join("a"), fs::Permissions::from_mode(0o600)).unwrap();
        let one = pack(one.path(), None).unwrap();
        assert_eq!(bytes(&one), bytes(&pack(two.path(), None).unwrap()));
        assert!(names(&one).contains(&long));
    }

    #[test]
    fn links_stay_links() {
        let dir = tree(&["a"]);
        std::os::unix::fs::symlink("a", dir.path().join("b")).unwrap();
        let bytes = bytes(&pack(dir.path(), None).unwrap());
        let mut tar = tar::Archive::new(bytes.as_slice());
        let link =
            tar.entries().unwrap().map(Result::unwrap).find(|e| e.path().unwrap() == Path::new("b")).unwrap();
        assert_eq!(link.link_name().unwrap().unwrap(), Path::new("a"));
    }
}
