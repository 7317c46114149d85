//! `/etc/resolv.conf`, where nobody keeps it: the server goes first, and leaves no trace when it goes.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Ipv6Addr;
use std::path::Path;

use super::DnsError;
use crate::tunnel::keys::write_private;

/// The largest `resolv.conf` that is edited, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Puts the server first. The file is written in place: it may be a bind mount, which cannot be renamed over.
pub(super) fn point(path: &Path, saved: &Path, name: &str, server: Ipv6Addr) -> Result<(), DnsError> {
    let now = read(path)?;
    let old = match strip(&now, name) {
        Stripped::Whole(rest) => rest,
        Stripped::Absent => now,
        Stripped::Cut => read(saved)?,
    };
    write_private(saved, old.as_bytes()).map_err(|source| DnsError::File {
        operation: "save the resolver's configuration as",
        path: saved.to_owned(),
        source,
    })?;
    let ours = format!("{}\nnameserver {server}\n{}\n", begin(name), end(name));
    write(path, &(ours + &old))
}

pub(super) fn restore(path: &Path, saved: &Path, name: &str) -> Result<(), DnsError> {
    if !saved.exists() {
        return Ok(());
    }
    let now = read(path)?;
    match strip(&now, name) {
        // Others may have changed the rest in the meantime, such as a DHCP client: what they wrote stays.
        Stripped::Whole(rest) => write(path, &rest)?,
        Stripped::Absent => {}
        // A crash came in between.
        Stripped::Cut => write(path, &read(saved)?)?,
    }
    let _ = fs::remove_file(saved);
    Ok(())
}

/// Whether our lines are there.
pub(super) fn is_pointed(path: &Path, name: &str) -> bool {
    read(path).is_ok_and(|text| matches!(strip(&text, name), Stripped::Whole(_)))
}

fn begin(name: &str) -> String {
    format!("# begin {name}: `faas vpn disconnect` removes this")
}

fn end(name: &str) -> String {
    format!("# end {name}")
}

#[derive(Debug, PartialEq, Eq)]
enum Stripped {
    /// Our lines were there, and this is the rest.
    Whole(String),
    Absent,
    /// Our lines begin and do not end.
    Cut,
}

fn strip(text: &str, name: &str) -> Stripped {
    let (begin, end) = (begin(name) + "\n", end(name) + "\n");
    let Some((before, after)) = text.split_once(&begin) else { return Stripped::Absent };
    match after.split_once(&end) {
        Some((_, after)) => Stripped::Whole(format!("{before}{after}")),
        None => Stripped::Cut,
    }
}

fn read(path: &Path) -> Result<String, DnsError> {
    let mut text = String::new();
    let read = fs::File::open(path).and_then(|file| {
        // Of a longer one the rest would be lost when it is written back.
        match file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)? as u64 {
            ..=FILE_BYTES_MAX => Ok(()),
            _ => Err(io::ErrorKind::FileTooLarge.into()),
        }
    });
    match read {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(DnsError::File { operation: "read", path: path.to_owned(), source }),
        Ok(()) => Ok(text),
    }
}

fn write(path: &Path, text: &str) -> Result<(), DnsError> {
    // Overwritten, then cut: at no moment is the file empty.
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        file.write_all(text.as_bytes())?;
        file.set_len(text.len() as u64)?;
        file.sync_all()
    })();
    written.map_err(|source| DnsError::File { operation: "write", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const SERVER: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xfaa5, 0, 0x100, 0, 0, 0, 1);

    #[test]
    fn the_file_is_edited_in_place_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let (path, saved) = (dir.path().join("resolv.conf"), dir.path().join("saved"));
        let old = "search example.org\nnameserver 192.0.2.1\n";
        fs::write(&path, old).unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        point(&path, &saved, "faas0", SERVER).unwrap();
        // Twice is once.
        point(&path, &saved, "faas0", SERVER).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let servers: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("nameserver ")).collect();
        assert_eq!(servers, [&SERVER.to_string(), "192.0.2.1"]);
        restore(&path, &saved, "faas0").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), old);
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
        assert!(!saved.exists());
        restore(&path, &saved, "faas0").unwrap();
    }

    #[test]
    fn a_file_that_is_too_large_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (path, saved) = (dir.path().join("resolv.conf"), dir.path().join("saved"));
        let line = "# as long as it takes\n";
        let old = line.repeat(FILE_BYTES_MAX as usize / line.len() + 1);
        fs::write(&path, &old).unwrap();
        point(&path, &saved, "faas0", SERVER).unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), old);
        fs::write(&path, &old[..FILE_BYTES_MAX as usize]).unwrap();
        point(&path, &saved, "faas0", SERVER).unwrap();
    }

    #[test]
    fn what_others_wrote_stays_and_a_crash_is_mended() {
        let dir = tempfile::tempdir().unwrap();
        let (path, saved) = (dir.path().join("resolv.conf"), dir.path().join("saved"));
        fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        point(&path, &saved, "faas0", SERVER).unwrap();
        let changed = fs::read_to_string(&path).unwrap().replace("192.0.2.1", "192.0.2.2");
        fs::write(&path, changed).unwrap();
        restore(&path, &saved, "faas0").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "nameserver 192.0.2.2\n");

        point(&path, &saved, "faas0", SERVER).unwrap();
        fs::write(&path, format!("{}\nnameser", begin("faas0"))).unwrap();
        restore(&path, &saved, "faas0").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "nameserver 192.0.2.2\n");
    }
}
