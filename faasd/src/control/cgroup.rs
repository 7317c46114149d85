//! The daemon's own cgroup. The guards on passed sockets go by the cgroup in which a socket was made, so that all
//! listeners must be made in one that the guards are attached to, and that nobody else uses.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long processes that were told to end may take to leave their group.
const EMPTY_DEADLINE: Duration = Duration::from_secs(2);

/// The cgroup (v2) that the guards are attached to: the one that this process is in. Out of the root, where everything else may
/// be, it moves itself first. A unit's group is removed when the unit stops, and what is attached with it, while sockets that
/// were made in it live on: where the containers' group is beside it, it is the slice around both.
///
/// # Errors
/// If there is no cgroup2 file system, or no right to make a group.
pub fn own(instance: &str, delegated: Option<&str>) -> io::Result<PathBuf> {
    let mount = mount_point(&fs::read_to_string("/proc/self/mountinfo")?).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            "no cgroup2 file system is mounted: `mount -t cgroup2 none /sys/fs/cgroup/unified`",
        )
    })?;
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or("");
    if !path.is_empty() {
        let around = delegated.and_then(|group| common(path, group.trim_start_matches('/')));
        return Ok(mount.join(around.as_deref().unwrap_or(Path::new(path))));
    }
    let group = mount.join(format!("{instance}-daemon"));
    match fs::create_dir(&group) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    fs::write(group.join("cgroup.procs"), "0")?;
    Ok(group)
}

/// The innermost group that two are in, if it is not the root.
fn common(one: &str, other: &str) -> Option<PathBuf> {
    let (one, other) = (Path::new(one).components(), Path::new(other).components());
    let path: PathBuf = one.zip(other).take_while(|(a, b)| a == b).map(|(a, _)| a).collect();
    (!path.as_os_str().is_empty()).then_some(path)
}

/// Removes the group that [`own`] made, and others, such as the containers', wherever they are empty.
///
/// # Errors
/// Those of `rmdir(2)`; groups that are not there are none.
pub fn remove(instance: &str, others: &[String]) -> io::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    leave(instance, &mounts)?;
    let mut result = Ok(());
    for mount in cgroup_mounts(&mounts) {
        let own = format!("{instance}-daemon");
        for group in others.iter().chain([&own]) {
            match remove_soon(&mount.join(group.trim_start_matches('/'))) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => result = Err(e),
                _ => {}
            }
        }
    }
    result
}

/// Moves this process back out of the group that [`own`] made: nobody can remove the group that they are in.
fn leave(instance: &str, mounts: &str) -> io::Result<()> {
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let group = format!("0::/{instance}-daemon");
    match mount_point(mounts).filter(|_| own.lines().any(|line| line == group)) {
        Some(mount) => fs::write(mount.join("cgroup.procs"), "0"),
        None => Ok(()),
    }
}

/// Removes a group once it is empty: a process that was told to end leaves its group as the last thing it does.
fn remove_soon(group: &Path) -> io::Result<()> {
    let deadline = Instant::now() + EMPTY_DEADLINE;
    loop {
        match fs::remove_dir(group) {
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            done => return done,
        }
    }
}

/// Where cgroup hierarchies of either version are mounted.
fn cgroup_mounts(mountinfo: &str) -> Vec<PathBuf> {
    let is_cgroup = |kind: &str| matches!(kind, "cgroup" | "cgroup2");
    mountinfo.lines().filter_map(|line| mount_of(line, is_cgroup)).collect()
}

/// Where cgroup2 is mounted: field 5 of the line whose file system type, after the separator, is `cgroup2`.
fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| mount_of(line, |kind| kind == "cgroup2"))
}

fn mount_of(line: &str, wanted: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let (mount, file_system) = line.split_once(" - ")?;
    let path = mount.split(' ').nth(4)?;
    wanted(file_system.split(' ').next()?).then(|| Path::new(path).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_are_around_the_daemon_and_its_containers() {
        let units = ("faasd.slice/faasd.service", "faasd.slice/faasd-functions.service");
        assert_eq!(common(units.0, units.1), Some(PathBuf::from("faasd.slice")));
        assert_eq!(common("faasd.slice/faasd.service", "faasd.slice2/x"), None);
        assert_eq!(common("system.slice/faasd.service", "faasd"), None);
    }

    #[test]
    fn the_mount_point_is_found() {
        let hybrid = "25 24 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      34 25 0:30 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw";
        assert_eq!(mount_point(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(mount_point("25 24 0:22 / /sys rw - sysfs sysfs rw"), None);
    }
}
