//! The same conditions for what ran before us: a target's processes get the servers' CPUs and, under `chrt`, our
//! scheduling policy for the time of the measurement.

use std::fs;
use std::process::Command;

use anyhow::{Context, ensure};
use nix::unistd::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Gives everything back when dropped.
#[derive(Debug, Default)]
pub(crate) struct Adopted {
    tasks: Vec<(rustix::process::Pid, CpuSet)>,
    realtime: Vec<Pid>,
}

impl Adopted {
    /// Changes all threads of `pids`.
    ///
    /// # Errors
    /// If a process does not exist or may not be changed.
    pub(super) fn new(pids: &[Pid], cpus: Option<&CpuSet>) -> anyhow::Result<Self> {
        let mut adopted = Self::default();
        for pid in pids {
            if let Some(cpus) = cpus {
                for task in tasks(*pid)? {
                    // A thread may end while we look, and the kernel's own helpers in a process cannot be moved.
                    let Ok(before) = sched_getaffinity(Some(task)) else { continue };
                    if sched_setaffinity(Some(task), cpus).is_ok() {
                        adopted.tasks.push((task, before));
                    }
                }
            }
            if let Some((policy, priority)) = realtime_policy() {
                adopted.realtime.push(*pid);
                chrt(policy, &priority.to_string(), *pid)?;
            }
        }
        Ok(adopted)
    }
}

impl Drop for Adopted {
    fn drop(&mut self) {
        // Threads that have ended meanwhile need nothing back.
        for (task, cpus) in &self.tasks {
            let _ = sched_setaffinity(Some(*task), cpus);
        }
        for pid in &self.realtime {
            if let Err(error) = chrt("--other", "0", *pid) {
                eprintln!("process {pid} still has a real-time policy: {error:#}");
            }
        }
    }
}

fn tasks(pid: Pid) -> anyhow::Result<Vec<rustix::process::Pid>> {
    let path = format!("/proc/{pid}/task");
    let entries =
        fs::read_dir(&path).with_context(|| format!("there is no process {pid} (cannot read {path})"))?;
    let task = |entry: fs::DirEntry| {
        entry.file_name().to_str()?.parse().ok().and_then(rustix::process::Pid::from_raw)
    };
    Ok(entries.flatten().filter_map(task).collect())
}

fn chrt(policy: &str, priority: &str, pid: Pid) -> anyhow::Result<()> {
    let output = Command::new("chrt")
        .args(["--all-tasks", policy, "--pid", priority, &pid.to_string()])
        .output()
        .context("cannot run chrt (util-linux)")?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "chrt {policy} on process {pid}: {}", words.trim());
    Ok(())
}

/// The real-time policy that this process runs with, as `chrt` calls it, and its priority.
#[must_use]
pub fn realtime_policy() -> Option<(&'static str, u8)> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // Field 40 and 41 of the line; the name, field 2, may hold spaces and ends with the last parenthesis.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(37);
    let (priority, policy) = (fields.next()?.parse().ok()?, fields.next()?);
    match policy {
        "1" => Some(("--fifo", priority)),
        "2" => Some(("--rr", priority)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_adopted_is_given_back() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_raw(child.id() as i32);
        let raw = rustix::process::Pid::from_child(&child);
        let before = sched_getaffinity(Some(raw)).unwrap();
        let mut one = CpuSet::new();
        one.set((0..CpuSet::MAX_CPU).find(|cpu| before.is_set(*cpu)).unwrap());
        let adopted = Adopted::new(&[pid], Some(&one)).unwrap();
        assert_eq!(sched_getaffinity(Some(raw)).unwrap(), one);
        drop(adopted);
        assert_eq!(sched_getaffinity(Some(raw)).unwrap(), before);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(Adopted::new(&[pid], Some(&one)).is_err());
    }
}
