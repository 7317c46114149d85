//! What a result must say about the machine.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, bail, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::CpuSet;
use serde::Serialize;

/// A set of CPUs in the form of `taskset -c`: `1`, `1,3`, `2-5`. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpus(Vec<usize>);

impl Cpus {
    /// The first of them.
    #[must_use]
    pub fn first(&self) -> usize {
        self.0[0]
    }

    /// For the kernel.
    #[must_use]
    pub fn set(&self) -> CpuSet {
        let mut set = CpuSet::new();
        self.0.iter().for_each(|cpu| set.set(*cpu));
        set
    }
}

impl From<usize> for Cpus {
    fn from(cpu: usize) -> Self {
        Self(vec![cpu])
    }
}

impl FromStr for Cpus {
    type Err = anyhow::Error;

    fn from_str(list: &str) -> anyhow::Result<Self> {
        let mut cpus = Vec::new();
        for part in list.split(',') {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| text.parse().ok().filter(|cpu: &usize| *cpu < CpuSet::MAX_CPU);
            match number(from).zip(number(to)) {
                Some((from, to)) if from <= to => cpus.extend(from..=to),
                _ => bail!("`{list}` is no list of CPUs such as 1 or 1,3 or 2-5"),
            }
        }
        Ok(Self(cpus))
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<_> = self.0.iter().map(usize::to_string).collect();
        f.write_str(&numbers.join(","))
    }
}

/// The machine.
#[derive(Clone, Debug, Serialize)]
pub struct Host {
    pub kernel: String,
    pub cpu: String,
    pub cores: usize,
    pub memory_mib: u64,
    /// Seldom known on a virtual machine.
    pub governor: Option<String>,
    /// What the kernel does against faults of the CPU, by their names.
    pub mitigations: BTreeMap<String, String>,
    /// Of the last minute, before the run.
    pub load_average: Option<f64>,
    pub runc: Option<String>,
    pub debug_build: bool,
}

/// Asks the kernel.
#[must_use]
pub fn describe() -> Host {
    let field = |path: &str, key: &str| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let uname = rustix::system::uname();
    let memory_kib =
        field("/proc/meminfo", "MemTotal").and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
    let governor = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
    Host {
        kernel: uname.release().to_string_lossy().into_owned(),
        cpu: field("/proc/cpuinfo", "model name")
            .unwrap_or_else(|| uname.machine().to_string_lossy().into_owned()),
        cores: std::thread::available_parallelism().map_or(0, usize::from),
        memory_mib: memory_kib.unwrap_or_default() / 1024,
        governor: governor.ok().map(|text| text.trim().to_owned()),
        mitigations: mitigations(),
        load_average: std::fs::read_to_string("/proc/loadavg")
            .ok()
            .and_then(|text| text.split_whitespace().next()?.parse().ok()),
        runc: first_line(Command::new("runc").arg("--version")),
        debug_build: cfg!(debug_assertions),
    }
}

fn mitigations() -> BTreeMap<String, String> {
    let files = std::fs::read_dir("/sys/devices/system/cpu/vulnerabilities").into_iter().flatten().flatten();
    let read = |file: std::fs::DirEntry| {
        let text = std::fs::read_to_string(file.path()).ok()?;
        Some((file.file_name().into_string().ok()?, text.trim().to_owned()))
    };
    files.filter_map(read).collect()
}

fn first_line(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).lines().next()?.to_owned())
}

/// The commit that is checked out where we run, marked if it was changed since.
#[must_use]
pub fn commit() -> Option<String> {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "HEAD"])?;
    let changed =
        git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|list| !list.is_empty());
    Some(if changed { commit + "-dirty" } else { commit })
}

/// Now, in UTC.
#[must_use]
pub fn date() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A network namespace with loopback and nothing else. It goes with the last descriptor and process in it.
///
/// # Errors
/// Those of `unshare(2)`, and of `ip link set lo up`.
pub fn fresh_netns() -> anyhow::Result<File> {
    let make = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
            .context("cannot make a network namespace: run as root (CAP_SYS_ADMIN)")?;
        // A child is in the namespace of the thread that started it.
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).output();
        let up = up.context("cannot run `ip` (iproute2)")?;
        ensure!(up.status.success(), "ip link set lo up: {}", String::from_utf8_lossy(&up.stderr).trim());
        File::open("/proc/thread-self/ns/net").context("cannot open the new network namespace")
    };
    // On a thread of its own, which takes the change with it when it ends.
    std::thread::spawn(make).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Lets this process, and those that it starts, open as many descriptors as the hard limit allows.
///
/// # Errors
/// Those of `setrlimit(2)`.
pub fn raise_descriptor_limit() -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
    Ok(())
}

/// How many descriptors a process may have.
#[must_use]
pub fn descriptor_limit() -> usize {
    getrlimit(Resource::Nofile).current.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_read_and_written() {
        for (list, written) in [("1", "1"), ("1,3", "1,3"), ("2-4,0", "2,3,4,0")] {
            let cpus: Cpus = list.parse().unwrap();
            assert_eq!(cpus.to_string(), written);
            assert_eq!(cpus.set().count() as usize, written.split(',').count());
        }
        assert_eq!("2-4,0".parse::<Cpus>().unwrap().first(), 2);
        for wrong in ["", "one", "3-1", "1,", "99999999"] {
            assert!(wrong.parse::<Cpus>().is_err(), "{wrong}");
        }
    }
}
