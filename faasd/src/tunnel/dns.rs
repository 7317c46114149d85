//! The client's resolver: names in `faas.` go to the server, and everything is as it was after a disconnect.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::keys::write_private;

/// Where resolvers without a daemon are told their servers.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Present while systemd-resolved runs.
const RESOLVED_DIR: &str = "/run/systemd/resolve";

/// Which services the C library asks for names.
const NSSWITCH_CONF: &str = "/etc/nsswitch.conf";

/// The largest `resolv.conf` that is edited, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// What to do about the client's resolver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum DnsMode {
    /// Only `faas.` through the tunnel where systemd-resolved runs; else every name, by `/etc/resolv.conf`.
    #[default]
    Auto,
    /// Nothing.
    None,
}

/// What was done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dns {
    /// systemd-resolved asks the server for `faas.` alone.
    Split,
    /// The server is the first in `/etc/resolv.conf`.
    File,
    Untouched,
}

#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    #[error("cannot {operation} {}; `--no-dns` leaves names alone", path.display())]
    File { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("`resolvectl {command}` failed: {said}; `--no-dns` leaves names alone")]
    Resolved { command: String, said: String },
}

/// Points the resolver at `server`, through the interface `name`.
///
/// # Errors
/// If the resolver's configuration cannot be changed. It is then as it was.
pub fn point(mode: DnsMode, name: &str, server: Ipv6Addr, state_dir: &Path) -> Result<Dns, DnsError> {
    if mode == DnsMode::None {
        return Ok(Dns::Untouched);
    }
    if Path::new(RESOLVED_DIR).exists()
        && leads_to_resolved(&read(Path::new(RESOLV_CONF))?, &read(Path::new(NSSWITCH_CONF))?)
    {
        let server = server.to_string();
        for arguments in [
            &["dns", name, &server][..],
            &["domain", name, "~faas"],
            &["default-route", name, "false"],
            &["dnssec", name, "no"],
            &["llmnr", name, "no"],
            &["mdns", name, "no"],
        ] {
            if let Err(error) = resolvectl(arguments) {
                let _ = resolvectl(&["revert", name]);
                return Err(error);
            }
        }
        return Ok(Dns::Split);
    }
    point_file(Path::new(RESOLV_CONF), &saved(state_dir, name), name, server)?;
    Ok(Dns::File)
}

/// Undoes [`point`]. Nothing to undo is success.
///
/// # Errors
/// If the resolver's configuration cannot be changed.
pub fn restore(name: &str, state_dir: &Path) -> Result<(), DnsError> {
    if Path::new(RESOLVED_DIR).exists() {
        // It fails if the interface is gone, and then there is nothing to revert.
        let _ = resolvectl(&["revert", name]);
    }
    restore_file(Path::new(RESOLV_CONF), &saved(state_dir, name), name)
}

/// Whether programs here ask systemd-resolved, going by the content of the two files. It may run and serve others alone:
/// those of another network namespace, whose links are not ours.
fn leads_to_resolved(resolv_conf: &str, nsswitch_conf: &str) -> bool {
    let is_stub = |line: &str| line.starts_with("nameserver") && line.ends_with("127.0.0.53");
    let asks =
        |line: &str| line.starts_with("hosts:") && line.split_whitespace().any(|word| word == "resolve");
    resolv_conf
        .lines()
        .any(|line| is_stub(line.trim()) || (line.starts_with('#') && line.contains("systemd-resolved")))
        || nsswitch_conf.lines().any(asks)
}

fn saved(state_dir: &Path, name: &str) -> PathBuf {
    state_dir.join(format!("{name}.resolv.conf"))
}

fn resolvectl(arguments: &[&str]) -> Result<(), DnsError> {
    let failed = |said: String| DnsError::Resolved { command: arguments.join(" "), said };
    let output = Command::new("resolvectl")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| failed(e.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// Puts the server first. The file is written in place: it may be a bind mount, which cannot be renamed over.
fn point_file(path: &Path, saved: &Path, name: &str, server: Ipv6Addr) -> Result<(), DnsError> {
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

fn restore_file(path: &Path, saved: &Path, name: &str) -> Result<(), DnsError> {
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
    match fs::File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(DnsError::File { operation: "read", path: path.to_owned(), source }),
        Ok(_) => Ok(text),
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
    fn a_resolver_that_nobody_here_asks_is_not_told() {
        let files = "hosts: files dns\n";
        assert!(leads_to_resolved("# comment\nnameserver 127.0.0.53\noptions edns0 trust-ad\n", files));
        assert!(leads_to_resolved("# managed by man:systemd-resolved(8)\nnameserver 192.0.2.1\n", files));
        assert!(leads_to_resolved(
            "",
            "passwd: files\nhosts: mymachines resolve [!UNAVAIL=return] files dns\n"
        ));
        assert!(!leads_to_resolved("nameserver 192.0.2.1\n", files));
        assert!(!leads_to_resolved("", "# hosts: resolve\n"));
    }

    #[test]
    fn the_file_is_edited_in_place_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let (path, saved) = (dir.path().join("resolv.conf"), dir.path().join("saved"));
        let old = "search example.org\nnameserver 192.0.2.1\n";
        fs::write(&path, old).unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        point_file(&path, &saved, "faas0", SERVER).unwrap();
        // Twice is once.
        point_file(&path, &saved, "faas0", SERVER).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let servers: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("nameserver ")).collect();
        assert_eq!(servers, [&SERVER.to_string(), "192.0.2.1"]);
        restore_file(&path, &saved, "faas0").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), old);
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
        assert!(!saved.exists());
        restore_file(&path, &saved, "faas0").unwrap();
    }

    #[test]
    fn what_others_wrote_stays_and_a_crash_is_mended() {
        let dir = tempfile::tempdir().unwrap();
        let (path, saved) = (dir.path().join("resolv.conf"), dir.path().join("saved"));
        fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        point_file(&path, &saved, "faas0", SERVER).unwrap();
        let changed = fs::read_to_string(&path).unwrap().replace("192.0.2.1", "192.0.2.2");
        fs::write(&path, changed).unwrap();
        restore_file(&path, &saved, "faas0").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "nameserver 192.0.2.2\n");

        point_file(&path, &saved, "faas0", SERVER).unwrap();
        fs::write(&path, format!("{}\nnameser", begin("faas0"))).unwrap();
        restore_file(&path, &saved, "faas0").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "nameserver 192.0.2.2\n");
    }
}
