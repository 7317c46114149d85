//! What `faas doctor` prints: whether this machine has what faasd needs, and what to do where it has not. It changes
//! nothing and takes milliseconds.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use rustix::process::{Resource, geteuid, getrlimit};

use super::runc;
use super::runners::PYTHON;
use crate::sys::cgroup::{Cgroups, Mode};

/// How serious a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Ok,
    /// It works, with less.
    Warn,
    /// faasd does not work.
    Fail,
}

impl Verdict {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub name: &'static str,
    pub verdict: Verdict,
    /// What was found.
    pub detail: String,
    /// What to do about it: a command, where there is one.
    pub remedy: Option<String>,
}

impl Check {
    fn new(name: &'static str, verdict: Verdict, detail: impl Into<String>, remedy: &str) -> Self {
        let remedy = (verdict != Verdict::Ok).then(|| remedy.to_owned());
        Self { name, verdict, detail: detail.into(), remedy }
    }

    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self::new(name, Verdict::Ok, detail, "")
    }
}

/// Controllers that limits are set with.
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// Below this many descriptors a busy machine would notice.
const FILES_MIN: u64 = 65_536;

/// The first kernel with everything: sk_lookup is from 5.9, multishot accept from 5.19.
const KERNEL_OLDEST: (u32, u32) = (5, 19);

/// The capabilities used, with their numbers (linux/capability.h).
const CAPABILITIES: [(&str, u32); 8] = [
    ("CAP_CHOWN", 0),
    ("CAP_DAC_OVERRIDE", 1),
    ("CAP_KILL", 5),
    ("CAP_SETGID", 6),
    ("CAP_SETUID", 7),
    ("CAP_NET_ADMIN", 12),
    ("CAP_SYS_ADMIN", 21),
    ("CAP_BPF", 39),
];

/// The magic numbers of bpffs (linux/magic.h).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// All findings, in the order of how much depends on them.
pub async fn checks() -> Vec<Check> {
    vec![
        privilege(),
        kernel(),
        runc_version().await,
        python(),
        cgroups(),
        user_namespaces(),
        root_mount(),
        usr(),
        io_uring(),
        bpffs(),
        wireguard(),
        tun(),
        files(),
    ]
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn privilege() -> Check {
    const NAME: &str = "privilege";
    let status = read("/proc/self/status").unwrap_or_default();
    let held =
        status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok());
    let missing = missing_capabilities(held.unwrap_or(0));
    match (geteuid().is_root(), missing.is_empty()) {
        (true, true) => Check::ok(NAME, "root, with the capabilities that are needed"),
        (true, false) => Check::new(
            NAME,
            Verdict::Fail,
            format!("root, without {}", missing.join(", ")),
            "start faasd outside of a container, or grant them",
        ),
        (false, _) => Check::new(
            NAME,
            Verdict::Warn,
            "not root: what only root can see was not looked at",
            "run `sudo faas doctor`",
        ),
    }
}

fn missing_capabilities(held: u64) -> Vec<&'static str> {
    CAPABILITIES.iter().filter(|(_, bit)| held & 1 << bit == 0).map(|(name, _)| *name).collect()
}

fn kernel() -> Check {
    const NAME: &str = "kernel";
    let release = read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let (verdict, oldest) = match version >= KERNEL_OLDEST {
        true => (Verdict::Ok, KERNEL_OLDEST),
        false => (Verdict::Fail, KERNEL_OLDEST),
    };
    Check::new(NAME, verdict, release, &format!("Linux {}.{} or later is needed", oldest.0, oldest.1))
}

async fn runc_version() -> Check {
    const NAME: &str = "runc";
    match runc::version().await {
        Ok(version) => match version.warning() {
            None => Check::ok(NAME, version.to_string()),
            Some(warning) => Check::new(NAME, Verdict::Warn, version.to_string(), &warning),
        },
        Err(e) => Check::new(NAME, Verdict::Fail, e.to_string(), "apt install runc"),
    }
}

fn python() -> Check {
    const NAME: &str = "python";
    let is_there = fs::metadata(PYTHON).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    let target = fs::canonicalize(PYTHON).map(|p| p.display().to_string()).unwrap_or_default();
    match is_there {
        true => Check::ok(NAME, target),
        false => Check::new(
            NAME,
            Verdict::Warn,
            format!("no {PYTHON}: handlers cannot be served, programs can"),
            "apt install python3",
        ),
    }
}

fn cgroups() -> Check {
    const NAME: &str = "control groups";
    let cgroups = match Cgroups::discover() {
        Ok(cgroups) => cgroups,
        Err(e) => {
            return Check::new(NAME, Verdict::Fail, e.to_string(), "mount -t cgroup2 none /sys/fs/cgroup");
        }
    };
    let mode = cgroups.mode();
    let missing: Vec<_> = CONTROLLERS.into_iter().filter(|c| !cgroups.has(c)).collect();
    if !missing.is_empty() {
        return Check::new(
            NAME,
            Verdict::Fail,
            format!("{mode}, without {}", missing.join(", ")),
            "boot with `cgroup_enable=memory`, and outside of a container",
        );
    }
    match (mode, cgroups.has_swap_limit()) {
        (_, false) => Check::new(
            NAME,
            Verdict::Warn,
            format!("{mode}; swap is not accounted, so that a function may use it past its limit"),
            "boot with `swapaccount=1`, or use no swap",
        ),
        (Mode::V2, true) => Check::ok(NAME, mode.to_string()),
        (_, true) => Check::ok(NAME, format!("{mode}; every controller that is needed is there")),
    }
}

fn user_namespaces() -> Check {
    const NAME: &str = "user namespaces";
    match read("/proc/sys/user/max_user_namespaces").and_then(|text| text.parse::<u64>().ok()) {
        None => Check::new(
            NAME,
            Verdict::Fail,
            "the kernel has none",
            "use a kernel with CONFIG_USER_NS, as those of all distributions",
        ),
        Some(0) => {
            Check::new(NAME, Verdict::Fail, "the limit is 0", "sysctl -w user.max_user_namespaces=15000")
        }
        Some(max) => Check::ok(NAME, format!("up to {max}")),
    }
}

/// A mount on top of `/` makes the kernel believe that we are in a chroot, where it refuses user namespaces.
fn root_mount() -> Check {
    const NAME: &str = "root mount";
    let stacked =
        read("/proc/self/mountinfo").unwrap_or_default().lines().filter(|l| is_root_mount(l)).count();
    match stacked {
        0 => Check::new(
            NAME,
            Verdict::Fail,
            "`/` is no mount point: this is a chroot, where user namespaces are refused (EPERM)",
            "start faasd outside of the chroot, or enter the tree by pivot_root",
        ),
        1 => Check::ok(NAME, "one file system on /"),
        more => Check::new(
            NAME,
            Verdict::Fail,
            format!("{more} mounts are stacked on /, so that user namespaces are refused (EPERM)"),
            "umount what was mounted over /, or enter the tree by pivot_root",
        ),
    }
}

fn is_root_mount(line: &str) -> bool {
    line.split(' ').nth(4) == Some("/")
}

/// Containers see the host's `/usr` and links to it, which needs the merged layout.
fn usr() -> Check {
    let merged = ["/bin", "/lib"].iter().all(|dir| fs::read_link(dir).is_ok());
    let (verdict, detail) = match merged {
        true => (Verdict::Ok, "/bin and /lib are links into /usr"),
        false => (Verdict::Fail, "/bin or /lib is a directory of its own, which containers would not see"),
    };
    Check::new("/usr", verdict, detail, "apt install usrmerge")
}

fn io_uring() -> Check {
    const NAME: &str = "io_uring";
    match io_uring::IoUring::new(2) {
        Ok(_) => Check::ok(NAME, "enabled"),
        Err(e) => {
            let remedy = match read("/proc/sys/kernel/io_uring_disabled").as_deref() {
                Some("1" | "2") => "sysctl -w kernel.io_uring_disabled=0",
                _ => "use a kernel with CONFIG_IO_URING, and no seccomp filter that refuses it",
            };
            Check::new(NAME, Verdict::Fail, format!("cannot be set up: {e}"), remedy)
        }
    }
}

fn bpffs() -> Check {
    const NAME: &str = "bpf file system";
    let is_mounted = rustix::fs::statfs("/sys/fs/bpf").is_ok_and(|s| s.f_type as u64 == BPF_FS_MAGIC);
    let is_known = read("/proc/filesystems").is_some_and(|text| text.lines().any(|l| l.ends_with("\tbpf")));
    match (is_mounted, is_known) {
        (true, _) => Check::ok(NAME, "mounted at /sys/fs/bpf"),
        (false, true) => Check::ok(NAME, "not mounted at /sys/fs/bpf yet; faasd does it"),
        (false, false) => Check::new(
            NAME,
            Verdict::Fail,
            "the kernel has none",
            "use a kernel with CONFIG_BPF_SYSCALL, as those of all distributions",
        ),
    }
}

fn wireguard() -> Check {
    const NAME: &str = "kernel WireGuard";
    let release = read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let listed = ["modules.builtin", "modules.dep"].iter().any(|list| {
        read(&format!("/lib/modules/{release}/{list}")).is_some_and(|text| text.contains("/wireguard.ko"))
    });
    match Path::new("/sys/module/wireguard").exists() || listed {
        true => Check::ok(NAME, "there"),
        false => Check::new(
            NAME,
            Verdict::Warn,
            "not there; faasd serves the tunnel itself, at some cost in throughput",
            "modprobe wireguard, or a kernel with CONFIG_WIREGUARD",
        ),
    }
}

/// Only needed where the kernel has no WireGuard.
fn tun() -> Check {
    const NAME: &str = "/dev/net/tun";
    match fs::metadata(NAME) {
        Ok(m) if m.file_type().is_char_device() => Check::ok(NAME, "there"),
        _ => Check::new(
            NAME,
            Verdict::Warn,
            "not there; without kernel WireGuard there is no tunnel then",
            "modprobe tun; mkdir -p /dev/net; mknod /dev/net/tun c 10 200",
        ),
    }
}

fn files() -> Check {
    const NAME: &str = "open files";
    match getrlimit(Resource::Nofile).maximum {
        Some(max) if max < FILES_MIN => Check::new(
            NAME,
            Verdict::Warn,
            format!("at most {max}; a function's `limits.files` is cut down to that"),
            "set LimitNOFILE=1048576 in the unit, or `ulimit -Hn 1048576` before the start",
        ),
        Some(max) => Check::ok(NAME, format!("at most {max}")),
        None => Check::ok(NAME, "no limit"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_finding_that_is_not_ok_has_a_remedy() {
        let checks = checks().await;
        assert_eq!(checks.len(), 13);
        for check in &checks {
            assert_eq!(check.remedy.is_some(), check.verdict != Verdict::Ok, "{check:?}");
            assert!(!check.detail.is_empty(), "{check:?}");
        }
    }

    #[test]
    fn stacked_root_mounts_are_counted() {
        let stacked = "22 1 8:1 / / rw - ext4 /dev/vda rw\n30 22 0:5 / /proc rw - proc proc rw\n31 22 0:9 / / rw - overlay x rw";
        assert_eq!(stacked.lines().filter(|l| is_root_mount(l)).count(), 2);
    }

    #[test]
    fn capabilities_are_read_from_their_bits() {
        assert_eq!(missing_capabilities(u64::MAX), Vec::<&str>::new());
        assert_eq!(missing_capabilities(!(1 << 39)), ["CAP_BPF"]);
        assert_eq!(missing_capabilities(0).len(), CAPABILITIES.len());
    }
}
