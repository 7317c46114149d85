//! Control groups, on v1, v2 and both at once (hybrid): where the hierarchies are, who is in a group, and its removal.
//! Limits are set by runc; this is for what must be true when runc is not asked or has failed.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often a removal is tried again while the kernel still lets go of the last process.
const RETRY: Duration = Duration::from_millis(2);

/// The deepest nesting that a removal follows. A container without a cgroup mount makes none at all.
const DEPTH_MAX: u32 = 8;

/// How long a group may take to come to a halt.
const FREEZE_DEADLINE: Duration = Duration::from_secs(1);

/// Which generation of control groups a machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    V1,
    /// Controllers on v1, and a v2 hierarchy beside them.
    Hybrid,
    V2,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "v1",
            Self::Hybrid => "v1 with v2 beside it (hybrid)",
            Self::V2 => "v2",
        })
    }
}

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    v2: bool,
    /// v1: `memory`, `cpu`, `name=systemd`, …
    controllers: Vec<String>,
}

/// What the processes of a group have used, and use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// CPU time so far, also of those that have ended.
    pub cpu: Duration,
    /// Memory now, as a limit on it counts it.
    pub memory_bytes: u64,
}

/// All hierarchies of the machine.
#[derive(Clone, Debug)]
pub struct Cgroups {
    hierarchies: Vec<Hierarchy>,
}

impl Cgroups {
    /// Finds the mounted hierarchies.
    ///
    /// # Errors
    /// Those of reading `/proc`, and `NotFound` when there is none.
    pub fn discover() -> io::Result<Self> {
        let mut hierarchies = parse(&fs::read_to_string("/proc/self/mountinfo")?);
        for hierarchy in hierarchies.iter_mut().filter(|h| h.v2) {
            let controllers =
                fs::read_to_string(hierarchy.mount.join("cgroup.controllers")).unwrap_or_default();
            hierarchy.controllers = controllers.split_whitespace().map(str::to_owned).collect();
        }
        if hierarchies.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "no control groups are mounted: run `mount -t cgroup2 none /sys/fs/cgroup`",
            ));
        }
        Ok(Self { hierarchies })
    }

    #[must_use]
    pub fn mode(&self) -> Mode {
        match (self.hierarchies.iter().any(|h| h.v2), self.hierarchies.iter().any(|h| !h.v2)) {
            (true, true) => Mode::Hybrid,
            (true, false) => Mode::V2,
            _ => Mode::V1,
        }
    }

    /// Whether a controller can be used.
    #[must_use]
    pub fn has(&self, controller: &str) -> bool {
        self.hierarchies.iter().any(|h| h.controllers.iter().any(|c| c == controller))
    }

    /// Whether swap is accounted, so that a limit on it can be set.
    #[must_use]
    pub fn has_swap_limit(&self) -> bool {
        self.hierarchies.iter().filter(|h| h.controllers.iter().any(|c| c == "memory")).any(|h| {
            // A v2 root has no such file; runc itself passes over a missing one there.
            h.v2 || h.mount.join("memory.memsw.limit_in_bytes").exists()
        })
    }

    /// Whether the group is there in any hierarchy.
    #[must_use]
    pub fn exists(&self, group: &str) -> bool {
        self.directories(group).any(|dir| dir.exists())
    }

    /// The processes in a group, in any hierarchy.
    #[must_use]
    pub fn processes(&self, group: &str) -> Vec<u32> {
        let mut pids: Vec<u32> = self
            .directories(group)
            .filter_map(|dir| fs::read_to_string(dir.join("cgroup.procs")).ok())
            .flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<u32>>())
            .collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Puts a process into a group, in every hierarchy that has it.
    ///
    /// # Errors
    /// Those of writing `cgroup.procs`.
    pub fn add(&self, group: &str, pid: u32) -> io::Result<()> {
        let mut groups = self.directories(group).filter(|dir| dir.exists());
        groups.try_for_each(|dir| fs::write(dir.join("cgroup.procs"), pid.to_string()))
    }

    /// Makes a group in every hierarchy that has the one above it, and puts a process into it.
    ///
    /// # Errors
    /// `NotFound` if no hierarchy has the group above, and those of `mkdir(2)` and of writing `cgroup.procs`.
    pub fn add_below(&self, group: &str, pid: u32) -> io::Result<()> {
        let is_below = |dir: &PathBuf| dir.parent().is_some_and(Path::exists);
        let mut found = false;
        for dir in self.directories(group).filter(is_below) {
            found = true;
            match fs::create_dir(&dir) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
        }
        if found { self.add(group, pid) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    /// The names of the groups within a group, in any hierarchy.
    #[must_use]
    pub fn children(&self, group: &str) -> Vec<String> {
        let mut names: Vec<String> = self
            .directories(group)
            .filter_map(|dir| fs::read_dir(dir).ok())
            .flatten()
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// What a group uses. What is not accounted on this machine is 0.
    #[must_use]
    pub fn used(&self, group: &str) -> Used {
        let texts = |v1: &'static str, v2: &'static str| {
            let files = self.directories(group).flat_map(move |dir| [dir.join(v1), dir.join(v2)]);
            files.filter_map(|file| fs::read_to_string(file).ok())
        };
        let number = |text: &str| text.trim().parse().ok();
        // In nanoseconds, as a number alone; in microseconds, after its name.
        let cpu = texts("cpuacct.usage", "cpu.stat").find_map(|text| {
            let usec = || text.lines().find_map(|line| number(line.strip_prefix("usage_usec ")?));
            number(&text).map(Duration::from_nanos).or_else(|| usec().map(Duration::from_micros))
        });
        let memory = texts("memory.usage_in_bytes", "memory.current").find_map(|text| number(&text));
        Used { cpu: cpu.unwrap_or_default(), memory_bytes: memory.unwrap_or_default() }
    }

    /// How many processes the kernel has killed in this group because the group's memory limit was reached.
    #[must_use]
    pub fn oom_kills(&self, group: &str) -> u64 {
        self.directories(group)
            .flat_map(|dir| ["memory.events", "memory.oom_control"].map(|file| dir.join(file)))
            .filter_map(|file| fs::read_to_string(file).ok())
            .filter_map(|text| text.lines().find_map(|l| l.strip_prefix("oom_kill ")?.trim().parse().ok()))
            .max()
            .unwrap_or(0)
    }

    /// Has every process of a group leave the call that it waits in and make it again: freezes the group for a moment.
    /// The programs see nothing of it, but that calls which a stop interrupts fail with `EINTR` (signal(7)).
    ///
    /// # Errors
    /// `NotFound` where groups cannot be frozen, `TimedOut` if it does not come to a halt, and those of the file system. The
    /// group is never left frozen.
    pub fn interrupt(&self, group: &str) -> io::Result<()> {
        let v1 = self.hierarchies.iter().filter(|h| h.controllers.iter().any(|c| c == "freezer"));
        let v2 = self.hierarchies.iter().filter(|h| h.v2);
        let group = group.trim_start_matches('/');
        let place = v1.chain(v2).map(|h| (h.v2, h.mount.join(group))).find(|(_, dir)| dir.exists());
        let (is_v2, dir) = place.ok_or(io::ErrorKind::NotFound)?;
        let (file, freeze, thaw) = match is_v2 {
            true => (dir.join("cgroup.freeze"), "1", "0"),
            false => (dir.join("freezer.state"), "FROZEN", "THAWED"),
        };
        let is_frozen = || match is_v2 {
            true => fs::read_to_string(dir.join("cgroup.events")).map(|text| text.contains("frozen 1")),
            false => fs::read_to_string(&file).map(|text| text.trim() == "FROZEN"),
        };
        let end = Instant::now() + FREEZE_DEADLINE;
        let frozen = fs::write(&file, freeze).and_then(|()| {
            while !is_frozen()? {
                if Instant::now() > end {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                std::thread::sleep(RETRY);
            }
            Ok(())
        });
        fs::write(&file, thaw).and(frozen)
    }

    /// Removes a group and those within it from every hierarchy. A group that is not there is no error. While a process
    /// is still on its way out the kernel says `EBUSY`; that is tried again until the deadline.
    ///
    /// # Errors
    /// The first one met; the other hierarchies are still cleared.
    pub fn remove(&self, group: &str, deadline: Duration) -> io::Result<()> {
        let end = Instant::now() + deadline;
        let mut first = Ok(());
        for dir in self.directories(group) {
            let removed = remove_tree(&dir, end, 0);
            first = first.and(removed);
        }
        first
    }

    fn directories(&self, group: &str) -> impl Iterator<Item = PathBuf> + '_ {
        let group = group.trim_start_matches('/').to_owned();
        // An empty name would be the hierarchy's root.
        let some = !group.is_empty();
        self.hierarchies.iter().filter(move |_| some).map(move |h| h.mount.join(&group))
    }
}

/// Puts a process that serves without us where our end does not reach it, making the group if need be. Where that fails it
/// stays beside us, which is said.
pub fn set_apart(group: &str, pid: u32) {
    if let Err(error) = Cgroups::discover().and_then(|all| all.add_below(group, pid)) {
        tracing::warn!(group, pid, %error, "a process stays in the daemon's control group, and may end with it");
    }
}

fn remove_tree(dir: &Path, end: Instant, depth: u32) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() && depth < DEPTH_MAX {
            remove_tree(&entry.path(), end, depth + 1)?;
        }
    }
    loop {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy && Instant::now() < end => {
                std::thread::sleep(RETRY);
            }
            Err(e) => {
                return Err(io::Error::new(
                    e.kind(),
                    format!("cannot remove the cgroup {}: {e}", dir.display()),
                ));
            }
        }
    }
}

/// Reads the hierarchies from the text of a mountinfo file (proc(5)).
fn parse(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let mut right = right.split(' ');
        let (Some(kind), Some(mount)) = (right.next(), left.split(' ').nth(4)) else { continue };
        let options = right.nth(1).unwrap_or_default();
        let v2 = match kind {
            "cgroup2" => true,
            "cgroup" => false,
            _ => continue,
        };
        let controllers = match v2 {
            true => Vec::new(),
            false => {
                let flags = ["rw", "ro", "xattr", "clone_children", "noprefix", "favordynmods"];
                let not_flag = |o: &&str| !flags.contains(o) && !o.starts_with("release_agent=");
                options.split(',').filter(not_flag).map(str::to_owned).collect()
            }
        };
        // The same hierarchy may be mounted at several places; the first is as good as any.
        if !found.iter().any(|h| h.v2 == v2 && h.controllers == controllers) {
            found.push(Hierarchy { mount: PathBuf::from(mount), v2, controllers });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
27 24 0:24 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
28 27 0:25 / /sys/fs/cgroup/cpu rw,relatime shared:5 - cgroup cgroup rw,cpu,cpuacct
29 27 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
30 27 0:27 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
31 27 0:28 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
32 27 0:26 / /mnt/again rw,relatime - cgroup cgroup rw,memory";

    #[test]
    fn hybrid_and_v2_are_told_apart() {
        let hybrid = Cgroups { hierarchies: parse(HYBRID) };
        assert_eq!(hybrid.mode(), Mode::Hybrid);
        assert!(
            hybrid.has("memory")
                && hybrid.has("cpuacct")
                && hybrid.has("name=systemd")
                && !hybrid.has("pids")
        );
        let group: Vec<_> = hybrid.directories("/faasd/a-1-ff").collect();
        assert_eq!(group.len(), 4);
        assert_eq!(group[0], Path::new("/sys/fs/cgroup/cpu/faasd/a-1-ff"));

        let v2 = "31 27 0:28 / /sys/fs/cgroup rw,relatime shared:3 - cgroup2 none rw,nsdelegate";
        assert_eq!(Cgroups { hierarchies: parse(v2) }.mode(), Mode::V2);
        assert!(parse("1 0 8:1 / / rw - ext4 /dev/vda rw").is_empty());
    }

    #[test]
    fn what_a_group_uses_is_read_from_either_version() {
        let dir = tempfile::tempdir().unwrap();
        let hierarchy = |name: &str, files: &[(&str, &str)]| {
            let mount = dir.path().join(name);
            fs::create_dir_all(mount.join("g")).unwrap();
            files.iter().for_each(|(file, text)| fs::write(mount.join("g").join(file), text).unwrap());
            Hierarchy { mount, v2: false, controllers: Vec::new() }
        };
        let v1 = [
            hierarchy("cpu", &[("cpuacct.usage", "1500000\n")]),
            hierarchy("memory", &[("memory.usage_in_bytes", "4096\n")]),
        ];
        let expected = Used { cpu: Duration::from_micros(1500), memory_bytes: 4096 };
        assert_eq!(Cgroups { hierarchies: v1.into() }.used("g"), expected);
        let stat = "usage_usec 1500\nuser_usec 1000\n";
        let v2 = hierarchy("v2", &[("cpu.stat", stat), ("memory.current", "4096\n")]);
        let v2 = Cgroups { hierarchies: vec![v2] };
        assert_eq!((v2.used("g"), v2.used("gone")), (expected, Used::default()));
    }

    #[test]
    fn the_root_of_a_hierarchy_is_never_touched() {
        let all = Cgroups { hierarchies: parse(HYBRID) };
        assert_eq!(all.directories("/").count(), 0);
        assert_eq!(all.directories("").count(), 0);
    }
}
