//! A daemon for the time of a measurement, in a network namespace of its own, so that it meets no other on this machine.

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::measure::Server;
use super::peer::Client;
use crate::{interrupt, run};

const READY_MAX: Duration = Duration::from_secs(60);
const STOP_MAX: Duration = Duration::from_secs(30);

/// Which daemon, and where everything of it is.
#[derive(Clone, Debug)]
pub struct Place {
    /// Of the daemon's instance and of its network namespace.
    name: &'static str,
    /// Where `faasd`, `faas` and the examples are.
    programs: PathBuf,
}

impl Place {
    /// As built from what is checked out.
    pub fn here() -> Self {
        Self { name: "faasd-bench", programs: super::programs() }
    }

    /// A second daemon beside the first.
    pub fn beside(self) -> Self {
        Self { name: "faasd-bench-beside", ..self }
    }

    /// As built from something else.
    pub fn of(self, programs: PathBuf) -> Self {
        Self { programs, ..self }
    }

    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    pub const fn name(&self) -> &'static str {
        self.name
    }

    fn state(&self) -> PathBuf {
        Path::new("/var/tmp").join(self.name)
    }

    fn run(&self) -> PathBuf {
        Path::new("/run").join(self.name)
    }

    fn configuration(&self) -> PathBuf {
        self.state().join("faasd.toml")
    }

    /// Not in the run directory, which the daemon's teardown removes.
    fn log(&self) -> PathBuf {
        self.state().join("faasd.log")
    }

    fn socket(&self) -> PathBuf {
        self.run().join("faasd.sock")
    }

    pub fn netns(&self) -> PathBuf {
        Path::new("/run/netns").join(self.name)
    }

    /// Where the daemon makes its bundles.
    pub fn bundles(&self) -> PathBuf {
        self.state().join("state/bundles")
    }

    /// What is declared.
    pub fn store(&self) -> PathBuf {
        self.state().join("state/faasd.redb")
    }

    pub fn faas(&self, arguments: &[&str]) -> Result<String> {
        run::stdout(Command::new(self.program("faas")).arg("--socket").arg(self.socket()).args(arguments))
    }

    fn arguments(&self) -> Vec<PathBuf> {
        let places = [
            ("--config", self.configuration()),
            ("--state", self.state().join("state")),
            ("--run", self.run()),
            ("--wireguard", self.state().join("wireguard")),
            ("--instance", self.name.into()),
        ];
        places.into_iter().flat_map(|(flag, place)| [flag.into(), place]).collect()
    }

    /// What the daemon leaves on purpose when it stops, then the namespace and the directories. Harmless where there is
    /// nothing.
    fn remove(&self) -> Result<()> {
        Client::remove(self)?;
        if self.netns().exists() {
            let mut teardown = Command::new("nsenter");
            teardown.arg(format!("--net={}", self.netns().display())).arg(self.program("faasd"));
            run::quiet(teardown.arg("teardown").args(self.arguments()))?;
            run::quiet(Command::new("ip").args(["netns", "del", self.name]))?;
        }
        for directory in [self.state(), self.run()] {
            match fs::remove_dir_all(&directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).context(format!("removing {}", directory.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The daemon. It ends, and everything of it goes, when this is dropped; if this program is killed the daemon ends
/// with it, and the next run removes the rest.
pub struct Platform {
    place: Place,
    daemon: Option<Child>,
    client: Option<Client>,
}

impl Platform {
    pub fn start(place: Place) -> Result<Self> {
        Self::started(place, false)
    }

    /// With somebody who has joined its tunnel, and is the one who dials.
    pub fn with_client(place: Place) -> Result<Self> {
        Self::started(place, true)
    }

    fn started(place: Place, joined: bool) -> Result<Self> {
        place.remove().context("removing what an earlier run left")?;
        let mut platform = Self { place, daemon: None, client: None };
        let place = &platform.place;
        for directory in [place.state().join("work"), place.run()] {
            fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
        }
        // In a tunnel that is compared with another, nobody but us encrypts.
        fs::write(place.configuration(), if joined { "wireguard = \"userspace\"\n" } else { "" })?;
        run::quiet(Command::new("ip").args(["netns", "add", place.name]))?;
        run::quiet(Command::new("ip").args(["-n", place.name, "link", "set", "lo", "up"]))?;
        if joined {
            platform.client = Some(Client::beside(place)?);
        }
        platform.serve()?;
        if let Some(client) = &platform.client {
            client.join(&platform.place)?;
        }
        Ok(platform)
    }

    fn serve(&mut self) -> Result<()> {
        let place = &self.place;
        let log = File::create(place.log())?;
        let mut command = Command::new("nsenter");
        // Not `ip netns exec`, which mounts a new /sys over the cgroups.
        command.arg(format!("--net={}", place.netns().display()));
        command.args(["setpriv", "--pdeathsig", "TERM", "--"]).arg(place.program("faasd")).arg("serve");
        command.args(place.arguments()).args(["--endpoint", "[::1]:51820"]);
        // A group of its own: Ctrl-C is for the harness and for us.
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        self.daemon = Some(command.spawn().with_context(|| format!("cannot run `{}`", run::line(&command)))?);
        self.await_ready()
    }

    fn await_ready(&mut self) -> Result<()> {
        let (socket, log) = (self.place.socket(), self.place.log());
        let ready = run::wait_for("faasd's socket", READY_MAX, || {
            interrupt::check()?;
            if let Some(daemon) = &mut self.daemon
                && let Some(status) = daemon.try_wait()?
            {
                bail!("faasd ended: {status}");
            }
            Ok(UnixStream::connect(&socket).ok())
        });
        ready.map(drop).map_err(|error| {
            let said = fs::read_to_string(log).unwrap_or_default();
            error.context(format!("faasd did not start; it said:\n{}", said.trim_end()))
        })
    }

    pub fn server(&self) -> Server<'_> {
        let run = self.place.run();
        Server {
            faas: Box::new(|arguments| self.place.faas(arguments)),
            from: self.client.as_ref().map_or_else(|| run.join("ingress"), Client::netns),
            run,
            pid: self.daemon.as_ref().map_or(0, Child::id),
            tunnel: self.client.as_ref().map(|_| Client::tunnels(&self.place)).unwrap_or_default(),
            work: self.place.state().join("work"),
            hello: self.place.program("examples/hello"),
        }
    }

    /// Does something to what is declared, while no daemon has it open.
    pub fn between(&mut self, work: impl FnOnce(&Place) -> Result<()>) -> Result<()> {
        self.stop()?;
        work(&self.place)?;
        self.serve()
    }

    /// Ends the daemon and removes everything of it.
    pub fn end(mut self) -> Result<()> {
        let ended = self.stop();
        let removed = self.place.remove();
        ended.and(removed)
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
        ended.map(drop)
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        // `end` has been called unless the start failed half-way or something panicked.
        if !self.place.state().exists() {
            return;
        }
        if let Err(error) = self.stop().and_then(|()| self.place.remove()) {
            eprintln!("error: {error:#}");
        }
    }
}
