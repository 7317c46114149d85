//! The same conditions for what ran before us: a target's processes get the servers' CPUs and our priority, be it by
//! `nice` or by `chrt`, for the time of the measurement.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use nix::unistd::Pid;
use rustix::process::{getpriority_process, setpriority_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Gives everything back when dropped.
#[derive(Debug, Default)]
pub(crate) struct Adopted {
    cpus: Vec<(rustix::process::Pid, CpuSet)>,
    nice: Vec<(rustix::process::Pid, i32)>,
    realtime: Vec<Pid>,
    /// Files of cgroups and what stood in them.
    weights: Vec<(PathBuf, String)>,
    /// A cgroup of ours, empty by the time that this is dropped.
    group: Option<PathBuf>,
}

impl Adopted {
    /// Changes all threads of `pids`.
    ///
    /// # Errors
    /// If a process does not exist or may not be changed.
    pub(super) fn new(pids: &[Pid], cpus: Option<&CpuSet>) -> anyhow::Result<Self> {
        let mut adopted = Self::default();
        adopted.add(pids, cpus)?;
        Ok(adopted)
    }

    /// Changes more of them.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub(super) fn add(&mut self, pids: &[Pid], cpus: Option<&CpuSet>) -> anyhow::Result<()> {
        for pid in pids {
            for task in tasks(*pid)? {
                // A thread may end while we look, and the kernel's own helpers in a process cannot be moved.
                if let (Some(cpus), Ok(before)) = (cpus, sched_getaffinity(Some(task)))
                    && sched_setaffinity(Some(task), cpus).is_ok()
                {
                    self.cpus.push((task, before));
                }
                // To the kernel a thread's niceness is its own.
                if let Ok(before) = getpriority_process(Some(task))
                    && before != niceness()
                    && setpriority_process(Some(task), niceness()).is_ok()
                {
                    self.nice.push((task, before));
                }
            }
            self.weigh(*pid)?;
            if let Some((policy, priority)) = realtime_policy() {
                self.realtime.push(*pid);
                chrt(policy, &priority.to_string(), *pid)?;
            }
        }
        Ok(())
    }

    /// Between a task in a cgroup and one outside, the cgroups' weights count rather than the tasks' niceness: they
    /// get the weight of ours.
    fn weigh(&mut self, pid: Pid) -> anyhow::Result<()> {
        let groups = |pid: &str| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        // Where we are in a cgroup ourselves, bare's weight is that cgroup's, whatever its niceness.
        let we_are_free = cpu_group(&groups("self")).is_none_or(|group| group.path.parent().is_none());
        if niceness() == 0 || !we_are_free {
            return Ok(());
        }
        let Some(group) = cpu_group(&groups(&pid.to_string())) else { return Ok(()) };
        for file in group.files(Path::new(CGROUPS)) {
            let before =
                fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            if before.trim() == group.weight(niceness()) {
                continue;
            }
            fs::write(&file, group.weight(niceness()))
                .with_context(|| format!("cannot write {}", file.display()))?;
            self.weights.push((file, before));
        }
        Ok(())
    }
}

impl Adopted {
    /// Puts a process of ours under a CPU limit like that of `like`, in a cgroup beside its own. Gives `None` where
    /// `like` has no such cgroup.
    ///
    /// # Errors
    /// If the cgroup cannot be made.
    pub(super) fn limited(pid: Pid, like: Pid) -> anyhow::Result<Option<Self>> {
        let text = fs::read_to_string(format!("/proc/{like}/cgroup"))
            .with_context(|| format!("there is no process {like}"))?;
        let Some(model) = cpu_group(&text).map(|group| group.directory(Path::new(CGROUPS))) else {
            return Ok(None);
        };
        let Some(beside) = model.parent().filter(|_| model.join("cgroup.procs").exists()) else {
            return Ok(None);
        };
        let group = beside.join(format!("faasd-bench-{pid}"));
        fs::create_dir(&group).with_context(|| format!("cannot make {}", group.display()))?;
        let mut adopted = Self::default();
        adopted.group = Some(group.clone());
        // Version 1 has the first two, version 2 the third.
        for file in ["cpu.cfs_period_us", "cpu.cfs_quota_us", "cpu.max"] {
            if let Ok(limit) = fs::read_to_string(model.join(file)) {
                fs::write(group.join(file), limit.trim())
                    .with_context(|| format!("cannot write {file} in {}", group.display()))?;
            }
        }
        let procs = group.join("cgroup.procs");
        fs::write(&procs, pid.to_string()).with_context(|| format!("cannot write {}", procs.display()))?;
        adopted.weigh(pid)?;
        Ok(Some(adopted))
    }
}

/// Where cgroups are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";

/// A process's place among the cgroups that share out the CPU.
#[derive(Debug, PartialEq, Eq)]
struct CpuGroup {
    /// Version 2 takes a niceness, version 1 only shares.
    unified: bool,
    path: PathBuf,
}

/// Reads `/proc/PID/cgroup`.
fn cpu_group(text: &str) -> Option<CpuGroup> {
    let lines = || text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let found = |unified| move |(_, path): (&str, &str)| CpuGroup { unified, path: path.into() };
    let old = lines().find(|(controllers, _)| controllers.split(',').any(|one| one == "cpu"));
    old.map(found(false)).or_else(|| lines().find(|(controllers, _)| controllers.is_empty()).map(found(true)))
}

impl CpuGroup {
    fn directory(&self, mount: &Path) -> PathBuf {
        let hierarchy = if self.unified { "" } else { "cpu" };
        mount.join(hierarchy).join(self.path.strip_prefix("/").unwrap_or(&self.path))
    }

    /// The files with the weights of the group and of those around it, the root excepted, which has none.
    fn files(&self, mount: &Path) -> Vec<PathBuf> {
        let file = if self.unified { "cpu.weight.nice" } else { "cpu.shares" };
        let depth = self.path.components().count().saturating_sub(1);
        let directory = self.directory(mount);
        directory.ancestors().take(depth).map(|group| group.join(file)).filter(|file| file.exists()).collect()
    }

    fn weight(&self, nice: i32) -> String {
        // A step of niceness is a quarter, as in the kernel's own table.
        if self.unified { nice.to_string() } else { format!("{:.0}", 1024.0 * 1.25f64.powi(-nice)) }
    }
}

impl Drop for Adopted {
    fn drop(&mut self) {
        // Threads that have ended meanwhile need nothing back.
        for (task, cpus) in &self.cpus {
            let _ = sched_setaffinity(Some(*task), cpus);
        }
        for (task, nice) in &self.nice {
            let _ = setpriority_process(Some(*task), *nice);
        }
        for (file, before) in &self.weights {
            let _ = fs::write(file, before.trim());
        }
        if let Some(group) = &self.group
            && let Err(error) = fs::remove_dir(group)
        {
            eprintln!("{} is left over: {error}", group.display());
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

/// The niceness of this process, which those that it starts inherit.
#[must_use]
pub fn niceness() -> i32 {
    getpriority_process(None).unwrap_or_default()
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
    fn the_cpu_group_is_found_in_both_versions() {
        let hybrid = "12:pids:/x\n4:cpu,cpuacct:/faasd/a\n0::/faasd\n";
        assert_eq!(cpu_group(hybrid), Some(CpuGroup { unified: false, path: "/faasd/a".into() }));
        let unified = cpu_group("0::/faasd/a\n").unwrap();
        assert_eq!(unified, CpuGroup { unified: true, path: "/faasd/a".into() });
        assert_eq!(unified.weight(-20), "-20");
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("faasd/a")).unwrap();
        let files = ["faasd/a/cpu.weight.nice", "faasd/cpu.weight.nice"].map(|file| dir.path().join(file));
        files.iter().for_each(|file| fs::write(file, "0").unwrap());
        fs::write(dir.path().join("cpu.weight.nice"), "0").unwrap();
        assert_eq!(unified.files(dir.path()), files);
        assert_eq!(CpuGroup { unified: false, ..unified }.weight(-20), "88818");
    }

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
