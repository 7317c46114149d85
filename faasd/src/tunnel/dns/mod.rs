//! The client's resolver: names in `faas.` go to the server, and everything is as it was after a disconnect.

mod file;
mod program;

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::keys::write_private;

/// Where resolvers without a daemon are told their servers.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Present while systemd-resolved runs.
const RESOLVED_DIR: &str = "/run/systemd/resolve";

/// Which services the C library asks for names.
const NSSWITCH_CONF: &str = "/etc/nsswitch.conf";

/// A name that every server of ours knows: its own.
const PROBE: &str = "ns.faas";

/// How long an answer to it is waited for.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);

/// What to do about the client's resolver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum DnsMode {
    /// Only `faas.` through the tunnel where systemd-resolved runs; else every name, by resolvconf or
    /// `/etc/resolv.conf`.
    #[default]
    Auto,
    /// Nothing.
    None,
}

/// What was done about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dns {
    /// systemd-resolved asks the server for `faas.` alone.
    Split,
    /// The server is the first that resolvconf writes down.
    Resolvconf,
    /// The server is the first in `/etc/resolv.conf`.
    File,
    /// Nothing could be done, for this reason.
    ByHand(String),
    Untouched,
}

impl Dns {
    /// In a few words.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Split => "NAME.faas through the tunnel, all others as before (systemd-resolved)".to_owned(),
            Self::Resolvconf => "all through the tunnel first (resolvconf)".to_owned(),
            Self::File => format!("all through the tunnel first ({RESOLV_CONF})"),
            Self::ByHand(why) => format!("not set: {why}"),
            Self::Untouched => "left alone".to_owned(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    #[error("cannot {operation} {}", path.display())]
    File { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("`{command}` failed: {said}")]
    Program { command: String, said: String },
}

/// Points the resolver at `server`, through the interface `name`. Where that cannot be done, the tunnel serves all the
/// same, and it is said why.
///
/// # Errors
/// If it cannot be noted down what there is to undo. The resolver's configuration is then as it was.
pub fn point(mode: DnsMode, name: &str, server: Ipv6Addr, state_dir: &Path) -> Result<Dns, DnsError> {
    let (wanted, done) = match mode {
        DnsMode::None => return Ok(Dns::Untouched),
        DnsMode::Auto if is_resolved_asked() => {
            (Dns::Split, note(state_dir, name, &Dns::Split).map(|()| program::point_resolved(name, server)))
        }
        DnsMode::Auto if program::has_resolvconf() => {
            let noted = note(state_dir, name, &Dns::Resolvconf);
            (Dns::Resolvconf, noted.map(|()| program::point_resolvconf(name, server)))
        }
        DnsMode::Auto => {
            let noted = note(state_dir, name, &Dns::File);
            let path = Path::new(RESOLV_CONF);
            (Dns::File, noted.map(|()| file::point(path, &saved(state_dir, name), name, server)))
        }
    };
    match done? {
        Ok(()) => Ok(wanted),
        Err(error) => {
            let _ = restore(name, state_dir);
            let reason = std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source());
            Ok(Dns::ByHand(reason.map(ToString::to_string).collect::<Vec<_>>().join(": ")))
        }
    }
}

/// Undoes [`point`]. Nothing to undo is success.
///
/// # Errors
/// If the resolver's configuration cannot be changed.
pub fn restore(name: &str, state_dir: &Path) -> Result<(), DnsError> {
    match state(name, state_dir) {
        // It fails if the interface is gone, and then there is nothing to revert.
        Some(Dns::Split) => drop(program::restore_resolved(name)),
        Some(Dns::Resolvconf) => program::restore_resolvconf(name)?,
        _ => file::restore(Path::new(RESOLV_CONF), &saved(state_dir, name), name)?,
    }
    let path = noted(state_dir, name);
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(DnsError::File { operation: "remove", path, source })
        }
        _ => Ok(()),
    }
}

/// What was done for the interface, as noted down.
#[must_use]
pub fn state(name: &str, state_dir: &Path) -> Option<Dns> {
    serde_json::from_slice(&fs::read(noted(state_dir, name)).ok()?).ok()
}

/// Whether what was done is still in effect: others change a resolver's configuration too.
#[must_use]
pub fn is_in_effect(dns: &Dns, name: &str) -> bool {
    match dns {
        Dns::Split => program::is_resolved_pointed(name),
        Dns::File => file::is_pointed(Path::new(RESOLV_CONF), name),
        Dns::Resolvconf => program::is_resolvconf_pointed(name),
        Dns::ByHand(_) | Dns::Untouched => false,
    }
}

/// What this machine's resolver, asked as every program asks it, says the server's address is; none if it does not know
/// the name, or does not answer.
#[must_use]
pub fn probe() -> Option<IpAddr> {
    let (sender, answer) = mpsc::sync_channel(1);
    // There is no way to end a look-up early: it is left to itself.
    std::thread::Builder::new()
        .name("resolve".into())
        .spawn(move || {
            let found = (PROBE, 53).to_socket_addrs().ok().and_then(|mut found| found.next());
            let _ = sender.send(found.map(|found| found.ip()));
        })
        .ok()?;
    answer.recv_timeout(PROBE_DEADLINE).ok()?
}

/// Whether systemd-resolved runs, and programs here ask it. It may run and serve others alone: those of another network
/// namespace, whose links are not ours.
fn is_resolved_asked() -> bool {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    Path::new(RESOLVED_DIR).exists() && leads_to_resolved(&text(RESOLV_CONF), &text(NSSWITCH_CONF))
}

/// Whether programs are led to systemd-resolved, going by the content of the two files.
fn leads_to_resolved(resolv_conf: &str, nsswitch_conf: &str) -> bool {
    let is_stub = |line: &str| line.starts_with("nameserver") && line.ends_with("127.0.0.53");
    let asks =
        |line: &str| line.starts_with("hosts:") && line.split_whitespace().any(|word| word == "resolve");
    resolv_conf
        .lines()
        .any(|line| is_stub(line.trim()) || (line.starts_with('#') && line.contains("systemd-resolved")))
        || nsswitch_conf.lines().any(asks)
}

fn noted(state_dir: &Path, name: &str) -> PathBuf {
    state_dir.join(format!("{name}.dns"))
}

fn note(state_dir: &Path, name: &str, dns: &Dns) -> Result<(), DnsError> {
    let path = noted(state_dir, name);
    let text = serde_json::to_vec(dns).unwrap_or_default();
    write_private(&path, &text).map_err(|source| DnsError::File { operation: "write", path, source })
}

fn saved(state_dir: &Path, name: &str) -> PathBuf {
    state_dir.join(format!("{name}.resolv.conf"))
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn what_was_done_is_noted_down() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(state("faas0", dir.path()), None);
        for dns in [Dns::Split, Dns::Resolvconf, Dns::File] {
            note(dir.path(), "faas0", &dns).unwrap();
            assert_eq!(state("faas0", dir.path()), Some(dns));
        }
    }
}
