//! The two namespaces, and running things in them.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::undo::{Part, Undo};
use crate::{bench, interrupt, run};

/// The daemon's instance, and what every name of the demo begins with.
pub const NAME: &str = "faasd-demo";
/// The client's interface.
pub const TUNNEL: &str = "faasd-demo";
/// Where the client reaches the server, outside the tunnel.
pub const ENDPOINT: &str = "[fd00:faa5:0:1::1]:51820";

const STATE: &str = "/var/tmp/faasd-demo";
const RUN: &str = "/run/faasd-demo";
/// No step of the demo takes longer, or it hangs.
const STEP_MAX: Duration = Duration::from_secs(60);
const READY_MAX: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Server,
    Client,
}

impl Side {
    pub const BOTH: [Self; 2] = [Self::Server, Self::Client];

    pub const fn netns(self) -> &'static str {
        match self {
            Self::Server => "faasd-demo-server",
            Self::Client => "faasd-demo-client",
        }
    }

    const fn prompt(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
        }
    }

    const fn address(self) -> &'static str {
        match self {
            Self::Server => "fd00:faa5:0:1::1/64",
            Self::Client => "fd00:faa5:0:1::2/64",
        }
    }

    /// What is bound over /etc for a program in the namespace.
    pub fn etc(self) -> PathBuf {
        Path::new("/etc/netns").join(self.netns())
    }

    /// A command in the namespace. The server's keeps its view of /sys, where cgroup and bpf file systems are; the
    /// client's gets its own resolv.conf.
    fn command(self, program: &Path) -> Command {
        let mut command = match self {
            Self::Server => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{}", self.netns()));
                command
            }
            Self::Client => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", self.netns()]);
                command
            }
        };
        command.arg(program).current_dir(work());
        command
    }
}

/// The namespaces, once they are there.
#[derive(Debug)]
pub struct Lab(());

impl Lab {
    pub fn build(undo: &mut Undo) -> Result<Self> {
        for side in Side::BOTH {
            if Path::new("/run/netns").join(side.netns()).exists() {
                bail!("an earlier demo is still there: end it with `cargo xtask demo --down`");
            }
        }
        undo.add(Part::Directories);
        let directories = [work(), run_directory(), Side::Client.etc()];
        for directory in directories {
            fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
        }
        // It must be there for `ip netns exec` to bind it; joining the tunnel fills it.
        fs::write(Side::Client.etc().join("resolv.conf"), "# No tunnel yet.\n")?;
        fs::write(configuration(), "")?;

        undo.add(Part::Namespaces);
        let [server, client] = Side::BOTH.map(Side::netns);
        ip(&["netns", "add", server])?;
        ip(&["netns", "add", client])?;
        ip(&[
            "link", "add", "eth0", "netns", server, "type", "veth", "peer", "name", "eth0", "netns", client,
        ])?;
        for side in Side::BOTH {
            ip(&["-n", side.netns(), "link", "set", "lo", "up"])?;
            ip(&["-n", side.netns(), "address", "add", side.address(), "dev", "eth0", "nodad"])?;
            ip(&["-n", side.netns(), "link", "set", "eth0", "up"])?;
        }
        Ok(Self(()))
    }

    /// Starts the daemon in the server's namespace and waits until its API answers.
    pub fn start_daemon(&self, undo: &mut Undo) -> Result<()> {
        undo.add(Part::Kernel);
        undo.add(Part::Daemon);
        let mut command = Side::Server.command(&faasd_program());
        command.args(["serve", "--instance", NAME, "--state"]).arg(state());
        command.arg("--run").arg(run_directory()).arg("--wireguard").arg(Path::new(STATE).join("wireguard"));
        command.arg("--config").arg(configuration());
        println!("server# {} &", typed(&command));
        let log = File::create(log())?;
        // A group of its own: Ctrl-C is for the demo, which then ends the daemon in its turn.
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let mut child = command.spawn().with_context(|| format!("cannot run `{}`", run::line(&command)))?;
        // nsenter executes the daemon in its own place, so this is the daemon's.
        fs::write(pid_file(), child.id().to_string())?;
        let start = Instant::now();
        let ready = run::wait_for("faasd's socket", READY_MAX, || {
            interrupt::check()?;
            if let Some(status) = child.try_wait()? {
                bail!("faasd ended: {status}");
            }
            Ok(UnixStream::connect(socket()).ok())
        });
        if let Err(error) = ready {
            let said = fs::read_to_string(super::lab::log()).unwrap_or_default();
            return Err(error.context(format!("faasd did not start; it said:\n{}", said.trim_end())));
        }
        println!("# It serves after {} ms.", start.elapsed().as_millis());
        Ok(())
    }

    /// Runs the real client.
    pub fn faas(&self, side: Side, arguments: &[&str]) -> Result<String> {
        let socket = socket();
        let socket = socket.to_string_lossy();
        let mut all = Vec::new();
        if side == Side::Server && arguments.first() != Some(&"new") {
            all.extend(["--socket", &socket]);
        }
        all.extend(arguments);
        self.on(side, faas_program(), &all)
    }

    /// Prints a command as it would be typed on that machine, runs it, prints and returns what it said.
    pub fn on(&self, side: Side, program: impl AsRef<Path>, arguments: &[&str]) -> Result<String> {
        let mut command = side.command(program.as_ref());
        command.args(arguments);
        println!("{}# {}", side.prompt(), typed(&command));
        execute(&mut command, STEP_MAX, false)
    }

    /// Starts what goes on until the namespace is removed, which ends all that runs in it.
    pub fn beside(&self, side: Side, program: &str, arguments: &[&str], log: &Path) -> Result<()> {
        let mut command = side.command(Path::new(program));
        command.args(arguments);
        println!("{}# {} &", side.prompt(), typed(&command));
        let log = File::create(log)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        command.spawn().with_context(|| format!("cannot run `{}`", run::line(&command)))?;
        Ok(())
    }

    /// Runs a command on that machine and returns what it said, without showing it.
    pub fn silent(&self, side: Side, program: &str, arguments: &[&str]) -> Result<String> {
        run::stdout(side.command(Path::new(program)).args(arguments))
    }

    /// As [`Lab::on`], for what reports its own progress and takes its time.
    pub fn watch(&self, side: Side, typed_command: &Command, limit: Duration) -> Result<()> {
        let mut command = side.command(Path::new(typed_command.get_program()));
        command.args(typed_command.get_args());
        println!("{}# {}", side.prompt(), typed(&command));
        execute(&mut command, limit, true).map(drop)
    }
}

/// Runs a command until it ends, the limit is reached or somebody interrupts.
fn execute(command: &mut Command, limit: Duration, live: bool) -> Result<String> {
    let line = run::line(command);
    // A file, not a pipe: what the command leaves running in the background may keep it open.
    let said = run_directory().join("said");
    let errors = run_directory().join("errors");
    command.stdin(Stdio::null());
    if !live {
        command.stdout(File::create(&said)?).stderr(File::create(&errors)?);
    }
    let mut child = command.spawn().with_context(|| format!("cannot run `{line}`"))?;
    let ended = run::wait_for(&format!("`{line}`"), limit, || {
        interrupt::check()?;
        Ok(child.try_wait()?)
    });
    let status = match ended {
        Ok(status) => status,
        Err(error) => {
            // It may have ended just now.
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
    };
    if live {
        return if status.success() { Ok(String::new()) } else { bail!("`{line}` failed: {status}") };
    }
    let (said, errors) = (read(&said)?, read(&errors)?);
    let mut out = std::io::stdout().lock();
    write!(out, "{said}{errors}")?;
    if !(said.is_empty() || said.ends_with('\n')) {
        writeln!(out)?;
    }
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(said)
}

fn read(path: &Path) -> Result<String> {
    Ok(String::from_utf8_lossy(&fs::read(path)?).into_owned())
}

/// A command as typed on the machine itself: without what leads into the namespace, programs by name alone.
fn typed(command: &Command) -> String {
    let line = run::line(command);
    let prefixes = [
        format!("nsenter --net=/run/netns/{} ", Side::Server.netns()),
        format!("ip netns exec {} ", Side::Client.netns()),
    ];
    let line = prefixes.iter().find_map(|prefix| line.strip_prefix(prefix.as_str())).unwrap_or(&line);
    let (program, rest) = line.split_once(' ').unwrap_or((line, ""));
    let name = program.rsplit('/').next().unwrap_or(program);
    format!("{name} {rest}").trim_end().to_owned()
}

fn ip(arguments: &[&str]) -> Result<()> {
    interrupt::check()?;
    let mut command = Command::new("ip");
    command.args(arguments);
    println!("host# {}", run::line(&command));
    run::run(&mut command)
}

pub fn faas_program() -> PathBuf {
    bench::built("faas")
}

fn faasd_program() -> PathBuf {
    bench::built("faasd")
}

/// Where the demo's user works.
pub fn work() -> PathBuf {
    Path::new(STATE).join("work")
}

fn state() -> PathBuf {
    Path::new(STATE).join("state")
}

pub fn run_directory() -> PathBuf {
    PathBuf::from(RUN)
}

pub fn directories() -> [PathBuf; 2] {
    [STATE, RUN].map(PathBuf::from)
}

fn configuration() -> PathBuf {
    Path::new(STATE).join("faasd.toml")
}

pub fn socket() -> PathBuf {
    Path::new(RUN).join("faasd.sock")
}

pub fn pid_file() -> PathBuf {
    Path::new(RUN).join("demo.pid")
}

pub fn daemon_pid() -> Result<u32> {
    fs::read_to_string(pid_file())?.trim().parse().context("the daemon's pid file")
}

pub fn log() -> PathBuf {
    Path::new(RUN).join("faasd.log")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_as_typed_on_the_machine() {
        let mut curl = Side::Client.command(Path::new("curl"));
        curl.arg("http://hello.faas/");
        assert_eq!(typed(&curl), "curl http://hello.faas/");
        let faasd = Side::Server.command(Path::new("/x/target/release/faasd"));
        assert_eq!(typed(&faasd), "faasd");
    }
}
