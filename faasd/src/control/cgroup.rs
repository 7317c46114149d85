//! The daemon's own cgroup. The guards on passed sockets go by the cgroup in which a socket was made, so that all
//! listeners must be made in one that the guards are attached to, and that nobody else uses.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The cgroup (v2) that this process is in; out of the root, where everything else may be, it moves itself first.
///
/// # Errors
/// If there is no cgroup2 file system, or no right to make a group.
pub fn own(instance: &str) -> io::Result<PathBuf> {
    let mount = mount_point(&fs::read_to_string("/proc/self/mountinfo")?).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            "no cgroup2 file system is mounted: `mount -t cgroup2 none /sys/fs/cgroup/unified`",
        )
    })?;
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or("");
    if !path.is_empty() {
        return Ok(mount.join(path));
    }
    let group = mount.join(format!("{instance}-daemon"));
    match fs::create_dir(&group) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    fs::write(group.join("cgroup.procs"), "0")?;
    Ok(group)
}

/// Where cgroup2 is mounted: field 5 of the line whose file system type, after the separator, is `cgroup2`.
fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let is_cgroup2 = file_system.split(' ').next() == Some("cgroup2");
        is_cgroup2.then(|| mount.split(' ').nth(4).map(|path| Path::new(path).to_owned())).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_point_is_found() {
        let hybrid = "25 24 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      34 25 0:30 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw";
        assert_eq!(mount_point(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(mount_point("25 24 0:22 / /sys rw - sysfs sysfs rw"), None);
    }
}
