//! A daemon for the time of a measurement, in a network namespace of its own, so that it meets no other on this machine.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::{built, measure::Server};
use crate::{interrupt, run};

/// The daemon's instance and its network namespace.
const NAME: &str = "faasd-bench";
const STATE: &str = "/var/tmp/faasd-bench";
const RUN: &str = "/run/faasd-bench";
const LOCK: &str = "/run/faasd-bench.lock";
const READY_MAX: Duration = Duration::from_secs(30);
const STOP_MAX: Duration = Duration::from_secs(15);

/// The daemon. It ends, and everything of it goes, when this is dropped; if this program is killed the daemon ends
/// with it, and the next run removes the rest.
pub struct Platform {
    daemon: Option<Child>,
    work: PathBuf,
    /// Two measurements at a time would measure each other.
    _lock: File,
}

impl Platform {
    pub fn start() -> Result<Self> {
        let lock = File::create(LOCK).with_context(|| format!("making {LOCK}"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("another `cargo xtask bench` runs on this machine"),
            Err(TryLockError::Error(error)) => return Err(error).context(format!("locking {LOCK}")),
        }
        remove().context("removing what an earlier run left")?;
        let mut platform = Self { daemon: None, work: Path::new(STATE).join("work"), _lock: lock };
        for directory in [&platform.work, Path::new(RUN)] {
            fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        }
        fs::write(configuration(), "")?;
        run::quiet(Command::new("ip").args(["netns", "add", NAME]))?;
        run::quiet(Command::new("ip").args(["-n", NAME, "link", "set", "lo", "up"]))?;

        let log = File::create(log())?;
        let mut command = Command::new("nsenter");
        // Not `ip netns exec`, which mounts a new /sys over the cgroups.
        command.arg(format!("--net=/run/netns/{NAME}")).args(["setpriv", "--pdeathsig", "TERM", "--"]);
        command.arg(built("faasd")).arg("serve").args(places()).args(["--endpoint", "[::1]:51820"]);
        // A group of its own: Ctrl-C is for the harness and for us.
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        platform.daemon =
            Some(command.spawn().with_context(|| format!("cannot run `{}`", run::line(&command)))?);
        platform.await_ready()?;
        Ok(platform)
    }

    fn await_ready(&mut self) -> Result<()> {
        let ready = run::wait_for("faasd's socket", READY_MAX, || {
            interrupt::check()?;
            if let Some(daemon) = &mut self.daemon
                && let Some(status) = daemon.try_wait()?
            {
                bail!("faasd ended: {status}");
            }
            Ok(UnixStream::connect(socket()).ok())
        });
        ready.map(drop).map_err(|error| {
            let said = fs::read_to_string(log()).unwrap_or_default();
            error.context(format!("faasd did not start; it said:\n{}", said.trim_end()))
        })
    }

    pub fn server(&self) -> Server<'_> {
        Server {
            faas: &faas,
            run: Path::new(RUN),
            pid: self.daemon.as_ref().map_or(0, Child::id),
            work: &self.work,
        }
    }

    /// Ends the daemon and removes everything of it.
    pub fn end(mut self) -> Result<()> {
        self.stop()
    }

    fn stop(&mut self) -> Result<()> {
        let Some(mut daemon) = self.daemon.take() else { return Ok(()) };
        // It may have ended by itself.
        let _ = kill_process(Pid::from_child(&daemon), Signal::TERM);
        let ended = run::wait_for("faasd to end", STOP_MAX, || Ok(daemon.try_wait()?));
        if ended.is_err() {
            daemon.kill()?;
            daemon.wait()?;
        }
        let removed = remove();
        ended.map(drop).and(removed)
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        // `stop` has been called unless the start failed half-way or something panicked.
        let stopped = self.stop().and_then(|()| remove());
        if let Err(error) = stopped {
            eprintln!("error: {error:#}");
        }
    }
}

fn faas(arguments: &[&str]) -> Result<String> {
    run::stdout(Command::new(built("faas")).arg("--socket").arg(socket()).args(arguments))
}

/// What the daemon leaves on purpose when it stops, then the namespace and the directories. Harmless where there is
/// nothing.
fn remove() -> Result<()> {
    let netns = Path::new("/run/netns").join(NAME);
    if netns.exists() {
        let mut teardown = Command::new("nsenter");
        teardown.arg(format!("--net={}", netns.display())).arg(built("faasd")).arg("teardown").args(places());
        run::quiet(&mut teardown)?;
        run::quiet(Command::new("ip").args(["netns", "del", NAME]))?;
    }
    for directory in [STATE, RUN] {
        match fs::remove_dir_all(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).context(format!("removing {directory}"));
            }
            _ => {}
        }
    }
    Ok(())
}

fn places() -> Vec<PathBuf> {
    let state = Path::new(STATE);
    let places = [
        ("--config", configuration()),
        ("--state", state.join("state")),
        ("--run", RUN.into()),
        ("--wireguard", state.join("wireguard")),
        ("--instance", NAME.into()),
    ];
    places.into_iter().flat_map(|(flag, place)| [flag.into(), place]).collect()
}

/// Where the daemon makes its bundles.
pub fn bundles() -> PathBuf {
    Path::new(STATE).join("state/bundles")
}

fn configuration() -> PathBuf {
    Path::new(STATE).join("faasd.toml")
}

/// Not in the run directory, which the daemon's teardown removes.
fn log() -> PathBuf {
    Path::new(STATE).join("faasd.log")
}

fn socket() -> PathBuf {
    Path::new(RUN).join("faasd.sock")
}
