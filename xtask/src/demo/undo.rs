//! Undoing the demo: by the names of things alone, so that a later run can undo what an earlier one left.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::lab::{self, NAME, Side};
use crate::run;

const STOP_MAX: Duration = Duration::from_secs(15);

/// What the demo makes, in the order in which it does. Undoing any of them is harmless where it is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Directories,
    /// With them go the processes that outlive the daemon on purpose, and only then is its cgroup empty.
    Namespaces,
    /// What else the daemon leaves on purpose when it stops: containers and pins.
    Kernel,
    Daemon,
    Client,
}

impl Part {
    const ALL: [Self; 5] = [Self::Directories, Self::Namespaces, Self::Kernel, Self::Daemon, Self::Client];

    fn undo(self) -> Result<()> {
        match self {
            Self::Client => disconnect(),
            Self::Daemon => stop_daemon(),
            Self::Kernel => all([remove_containers, remove_pins]),
            Self::Namespaces => {
                all([|| remove_namespace(Side::Client), || remove_namespace(Side::Server), remove_cgroups])
            }
            Self::Directories => all([unmount_all, remove_directories]),
        }
    }
}

/// What is to be undone, last thing first.
#[derive(Debug, Default)]
pub struct Undo(Vec<Part>);

impl Undo {
    pub fn everything() -> Self {
        Self(Part::ALL.to_vec())
    }

    /// To be called before the part is made: half of it may be there if that fails.
    pub fn add(&mut self, part: Part) {
        self.0.push(part);
    }

    pub fn forget(&mut self) {
        self.0.clear();
    }

    /// Undoes all of it, whatever fails, and then says what did.
    pub fn finish(mut self) -> Result<()> {
        self.unwind()
    }

    fn unwind(&mut self) -> Result<()> {
        let mut errors = Vec::new();
        while let Some(part) = self.0.pop() {
            if let Err(error) = part.undo() {
                errors.push(format!("{part:?}: {error:#}"));
            }
        }
        if errors.is_empty() { Ok(()) } else { bail!("cleaning up:\n  {}", errors.join("\n  ")) }
    }
}

/// For a panic; elsewhere [`Undo::finish`] has been called.
impl Drop for Undo {
    fn drop(&mut self) {
        if let Err(error) = self.unwind() {
            eprintln!("error: {error:#}");
        }
    }
}

/// Does every step, whatever fails.
fn all<const N: usize>(steps: [fn() -> Result<()>; N]) -> Result<()> {
    let errors: Vec<String> =
        steps.into_iter().filter_map(|step| step().err()).map(|error| format!("{error:#}")).collect();
    if errors.is_empty() { Ok(()) } else { bail!("{}", errors.join("; ")) }
}

fn disconnect() -> Result<()> {
    if !netns(Side::Client).exists() || !lab::faas_program().exists() {
        return Ok(());
    }
    let mut command = Command::new("ip");
    command.args(["netns", "exec", Side::Client.netns()]).arg(lab::faas_program());
    command.args(["vpn", "disconnect", "--interface", lab::TUNNEL]);
    run::quiet(&mut command).map(drop)
}

fn stop_daemon() -> Result<()> {
    let Some(pid) = daemon()? else { return Ok(()) };
    kill_process(pid, Signal::TERM).context("stopping faasd")?;
    let ended = run::wait_for("faasd to end", STOP_MAX, || Ok((!is_running(pid)).then_some(())));
    if ended.is_err() {
        kill_process(pid, Signal::KILL).context("killing faasd")?;
    }
    ended
}

/// The daemon's process, if the one of that number is still it.
fn daemon() -> Result<Option<Pid>> {
    let Some(text) = read_if_there(&lab::pid_file())? else { return Ok(None) };
    let number: i32 = text.trim().parse().context("the daemon's pid file")?;
    let command_line = read_if_there(&PathBuf::from(format!("/proc/{number}/cmdline")))?.unwrap_or_default();
    let ours = command_line.split('\0').any(|word| word == NAME);
    Ok(Pid::from_raw(number).filter(|_| ours))
}

/// A zombie (the daemon is our child, and nobody waits for it) has ended.
fn is_running(pid: Pid) -> bool {
    let state = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    state.is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'))
        && test_kill_process(pid).is_ok()
}

fn remove_containers() -> Result<()> {
    let runc_state = lab::run_directory().join("runc");
    if !runc_state.exists() {
        return Ok(());
    }
    let runc = || {
        let mut command = Command::new("runc");
        command.arg("--root").arg(&runc_state);
        command
    };
    for container in run::stdout(runc().args(["list", "--quiet"]))?.lines() {
        run::quiet(runc().args(["delete", "--force", container]))?;
    }
    Ok(())
}

fn remove_pins() -> Result<()> {
    gone(fs::remove_dir_all(Path::new("/sys/fs/bpf").join(NAME)), "the pins in /sys/fs/bpf")
}

/// The cgroups of that name, in version 2 and in every hierarchy of version 1.
fn remove_cgroups() -> Result<()> {
    let mount = Path::new("/sys/fs/cgroup");
    // The containers', and the daemon's own.
    let names = [NAME.to_owned(), format!("{NAME}-daemon")];
    let mut places: Vec<_> = names.iter().map(|name| mount.join(name)).collect();
    for hierarchy in fs::read_dir(mount)? {
        let hierarchy = hierarchy?;
        // cpu and cpuacct are links to one hierarchy of both.
        if hierarchy.file_type()?.is_dir() {
            places.extend(names.iter().map(|name| hierarchy.path().join(name)));
        }
    }
    places.iter().filter(|place| place.is_dir()).try_for_each(|place| remove_cgroup(place))
}

fn remove_cgroup(place: &Path) -> Result<()> {
    for entry in fs::read_dir(place).with_context(|| format!("reading {}", place.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    // The last process may be on its way out.
    run::wait_for(
        &format!("{} to be empty", place.display()),
        Duration::from_secs(5),
        || match fs::remove_dir(place) {
            Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => Ok(None),
            other => gone(other, "a cgroup").map(Some),
        },
    )
}

fn remove_namespace(side: Side) -> Result<()> {
    if !netns(side).exists() {
        return Ok(());
    }
    // All that runs in it was started by the demo. A namespace whose name goes while processes are in it lives on.
    for pid in run::stdout(Command::new("ip").args(["netns", "pids", side.netns()]))?.split_whitespace() {
        if let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) {
            match kill_process(pid, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(error) => return Err(error).context("ending what runs in the namespace"),
            }
        }
    }
    run::quiet(Command::new("ip").args(["netns", "del", side.netns()])).map(drop)
}

fn netns(side: Side) -> PathBuf {
    Path::new("/run/netns").join(side.netns())
}

/// Unmounts what is mounted in the demo's directories, the last mounted first.
fn unmount_all() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    for point in mount_points(&mounts, &lab::directories()).iter().rev() {
        run::quiet(Command::new("umount").arg("--lazy").arg(point))?;
    }
    Ok(())
}

fn mount_points(mountinfo: &str, directories: &[PathBuf]) -> Vec<PathBuf> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    points.filter(|point| directories.iter().any(|directory| point.starts_with(directory))).collect()
}

fn remove_directories() -> Result<()> {
    for directory in lab::directories().into_iter().chain(Side::BOTH.map(Side::etc)) {
        gone(fs::remove_dir_all(&directory), &directory.display().to_string())?;
    }
    Ok(())
}

/// What is not there need not be removed.
fn gone(removed: io::Result<()>, what: &str) -> Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.with_context(|| format!("removing {what}")),
    }
}

fn read_if_there(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some).with_context(|| format!("reading {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_of_the_demo_are_found() {
        let mountinfo = "30 1 8:1 / / rw - ext4 /dev/sda rw\n\
                         31 30 0:4 net:[1] /run/faasd-demo/ingress rw - nsfs nsfs rw\n\
                         32 30 0:5 / /run/faasd-demo-other rw - tmpfs tmpfs rw\n";
        let found = mount_points(mountinfo, &lab::directories());
        assert_eq!(found, [PathBuf::from("/run/faasd-demo/ingress")]);
    }

    #[test]
    fn every_step_is_done_and_every_failure_told() {
        let error = all([|| bail!("one"), || Ok(()), || bail!("two")]).unwrap_err();
        assert_eq!(error.to_string(), "one; two");
    }

    #[test]
    fn a_process_of_another_is_never_the_daemon() {
        assert!(is_running(rustix::process::getpid()));
    }
}
