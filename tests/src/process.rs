//! What a process holds, as the kernel counts it.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use faasd::sys::netns::NetNs;
use rustix::process::{Pid, Signal, kill_process};

use crate::Bed;

/// Inodes of the sockets that a process has open.
///
/// # Errors
/// If there is no such process.
pub fn sockets_of(pid: u32) -> io::Result<BTreeSet<u64>> {
    let mut sockets = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // It may close one while we read.
        let Ok(target) = fs::read_link(entry?.path()) else { continue };
        let target = target.to_string_lossy().into_owned();
        let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
        sockets.extend(inode.and_then(|inode| inode.parse::<u64>().ok()));
    }
    Ok(sockets)
}

/// How many descriptors a process has open.
///
/// # Errors
/// If there is no such process.
pub fn descriptors_of(pid: u32) -> io::Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// Anonymous memory of a process in bytes: its heap and stacks, without files that it maps.
///
/// # Errors
/// If there is no such process.
pub fn anonymous_bytes_of(pid: u32) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib =
        status.lines().find_map(|l| l.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.parse().ok());
    kib.map(|kib: u64| kib << 10).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Sends a signal.
///
/// # Errors
/// Those of `kill(2)`.
pub fn signal(pid: u32, signal: Signal) -> io::Result<()> {
    let pid = Pid::from_raw(pid.cast_signed()).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(kill_process(pid, signal)?)
}

/// Inodes of the established TCP sockets of a namespace whose own port is this one.
///
/// # Errors
/// If the kernel's table cannot be read.
pub fn established(ns: &NetNs, port: u16) -> io::Result<BTreeSet<u64>> {
    let table = ns.run(|| fs::read_to_string("/proc/thread-self/net/tcp6"))?;
    let wanted = format!(":{port:04X}");
    let inode = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let matches = fields.get(1)?.ends_with(&wanted) && *fields.get(3)? == "01";
        if matches { fields.get(9)?.parse().ok() } else { None }
    };
    Ok(table.lines().filter_map(inode).collect())
}

impl Bed {
    /// The process of the daemon's with this verb (`fdstore`, `tunnel`), if it runs.
    #[must_use]
    pub fn helper(&self, verb: &str) -> Option<u32> {
        let run = self.path("run").display().to_string();
        fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
            let pid = entry.file_name().to_string_lossy().parse().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).into_owned();
            let mut arguments = line.split('\0');
            (arguments.nth(1) == Some(verb) && arguments.any(|a| a.starts_with(&run))).then_some(pid)
        })
    }
}
