//! The same program without faasd: by `runc run`, and by nothing but namespaces and `execve`. The measurement stands in
//! for the daemon, so that the program starts as it does under faasd and is given its connection in the same way.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use command_fds::{CommandFdExt, FdMapping};
use faasd_sdk::wire::{SOCKET_FD, STATUS_FD};
use nix::sched::CloneFlags;
use serde_json::{Value, json};

use super::dial;
use crate::load::Destination;
use crate::wire::{self, Sender};

/// A bundle like that of an instance, for containers of our own.
#[derive(Debug)]
pub struct Bundle {
    dir: tempfile::TempDir,
    config: Value,
}

/// Where a program finds its connection, and where that comes from.
struct Place {
    listener: TcpListener,
    /// The daemon's end of its socket.
    socket: OwnedFd,
    /// The program's.
    descriptors: [OwnedFd; 2],
    /// The program accepts by itself.
    accepts: bool,
}

impl Place {
    fn new(accepts: bool) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("[::1]:0")?;
        let (socket, theirs) = wire::pair()?;
        let descriptors = match accepts {
            true => [listener.try_clone()?.into(), theirs],
            false => [theirs, wire::status_page()?],
        };
        Ok(Self { listener, socket, descriptors, accepts })
    }

    /// Has the descriptors mapped to where programs look for them, and returns what is left.
    fn give(self, command: &mut Command) -> anyhow::Result<(TcpListener, OwnedFd, bool)> {
        let mappings = self.descriptors.into_iter().zip([SOCKET_FD, STATUS_FD]);
        let mappings = mappings.map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd }).collect();
        command.fd_mappings(mappings)?;
        Ok((self.listener, self.socket, self.accepts))
    }
}

/// Times a client from its `connect`, which `start` gives somebody to answer to.
fn timed(
    listener: &TcpListener,
    socket: OwnedFd,
    accepts: bool,
    start: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Duration> {
    let to = Destination { address: listener.local_addr()?, netns: None, mark: None };
    let mut sender = Sender::new(socket);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| dial(&to));
        if !accepts {
            let (connection, _) = listener.accept()?;
            sender.send(&[connection.as_fd()])?;
        }
        start()?;
        client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

impl Bundle {
    /// A copy of the bundle in `of`, with a cgroup of its own.
    pub fn like(of: &Path, program: &str) -> anyhow::Result<Self> {
        let file = of.join("config.json");
        let text = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let mut config: Value = serde_json::from_slice(&text)?;
        config["linux"]["cgroupsPath"] = json!(format!("/faasd-bench-cold-{program}"));
        let dir = tempfile::Builder::new().prefix("faasd-bench-cold-").tempdir()?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711))?;
        fs::write(dir.path().join("config.json"), serde_json::to_vec(&config)?)?;
        Ok(Self { dir, config })
    }

    fn accepts(&self) -> bool {
        self.strings("env").contains(&"LISTEN_FDS=1")
    }

    fn strings(&self, key: &str) -> Vec<&str> {
        self.config["process"][key].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// What of the host is mounted at a place.
    fn source(&self, inside: &str) -> Option<&str> {
        let mounts = self.config["mounts"].as_array()?;
        mounts.iter().find(|mount| mount["destination"] == inside)?["source"].as_str()
    }

    /// The program's words, as they are outside.
    fn outside(&self) -> anyhow::Result<(Vec<String>, PathBuf)> {
        let code = self.source("/app").context("the bundle has no code")?;
        let places = [("./", Some(code)), ("/app/", Some(code)), ("/run/faasd/", self.source("/run/faasd"))];
        let word = |word: &str| {
            let place =
                places.iter().find_map(|(inside, source)| Some((word.strip_prefix(inside)?, (*source)?)));
            place.map_or_else(|| word.to_owned(), |(file, source)| format!("{source}/{file}"))
        };
        Ok((self.strings("args").into_iter().map(word).collect(), code.into()))
    }

    /// By namespaces and `execve` alone, from a process that is there already.
    pub fn floor(&self) -> anyhow::Result<Duration> {
        let place = Place::new(self.accepts())?;
        let (words, code) = self.outside()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("floor").args(words).current_dir(code).env_clear();
        command.envs(self.strings("env").into_iter().filter_map(|pair| pair.split_once('=')));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let (listener, socket, accepts) = place.give(&mut command)?;
        let mut launcher = command.spawn().context("cannot start the floor")?;
        drop(command);
        let (mut orders, mut said) = (launcher.stdin.take(), launcher.stdout.take());
        said.as_mut()
            .context("it has an output")?
            .read_exact(&mut [0])
            .context("the floor did not come up")?;
        let taken = timed(&listener, socket, accepts, || {
            Ok(orders.as_mut().context("it has an input")?.write_all(b"g")?)
        });
        drop(orders);
        launcher.wait()?;
        taken
    }

    /// By `runc run`.
    pub fn runc(&self, program: &str) -> anyhow::Result<Duration> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let id = format!("{program}-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let place = Place::new(self.accepts())?;
        let runc = || {
            let mut command = Command::new("runc");
            command.arg("--root").arg(self.dir.path().join("runc"));
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        let mut command = runc();
        command.args(["run", "--preserve-fds", "2", "--bundle"]).arg(self.dir.path()).arg(&id);
        let (listener, socket, accepts) = place.give(&mut command)?;
        let mut container = None;
        let taken = timed(&listener, socket, accepts, || {
            container = Some(command.spawn().context("cannot run runc")?);
            Ok(())
        });
        drop(command);
        let deleted = runc().args(["delete", "--force", &id]).status();
        if let Some(mut container) = container {
            container.wait()?;
        }
        let taken = taken?;
        ensure!(deleted?.success(), "`runc delete --force {id}` failed");
        Ok(taken)
    }
}

/// The floor's own life: says that it is there, waits for a byte, and starts the program in namespaces of its own. The
/// program ends when nobody gives orders any longer.
///
/// # Errors
/// Those of `unshare(2)` and of starting the program.
pub fn floor(words: &[String]) -> anyhow::Result<()> {
    let (program, arguments) = words.split_first().context("the floor needs a program")?;
    std::io::stdout().write_all(b"u")?;
    std::io::stdout().flush()?;
    std::io::stdin().read_exact(&mut [0])?;
    nix::sched::unshare(
        CloneFlags::CLONE_NEWUSER
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWNET,
    )
    .context("cannot make namespaces")?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", "0 0 1")?;
    fs::write("/proc/self/gid_map", "0 0 1")?;
    let mut child =
        Command::new(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    let _ = std::io::stdin().read(&mut [0]);
    child.kill()?;
    child.wait()?;
    Ok(())
}
