//! What `cargo xtask bench` and the demo have in common: deploy one program to a daemon that runs, and measure it there
//! and bare.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::built;
use crate::{repo, run};

/// One lane each, by the same program: the function's name, which is the subject's, and how its file begins.
const FUNCTIONS: [(&str, &str); 2] = [
    ("handoff", "contract = \"fd\"\ncommand = [\"./hello\"]\n"),
    // The very server that is measured bare, binding its port by itself.
    ("warm", "contract = \"port\"\ncommand = [\"./hello\"]\nenv = { FAAS_LISTEN = \"[::]:8080\" }\n"),
];

/// More of everything than the load can use, so that the limits are there and never met: what is compared is the
/// platform, not a quota.
const LIMITS: &str = "\n[scale]\nmin = 1\n\n[limits]\ncpu = 2\nmemory = \"512MiB\"\n";

/// The weight of everything that is measured among what else the machine does. `chrt` would be stronger, but a task
/// in a cpu cgroup cannot have a real-time policy, and the function is in one.
const NICE: &str = "-20";

/// Runs `faas` and returns what it printed.
type Faas<'a> = Box<dyn Fn(&[&str]) -> Result<String> + 'a>;

/// A daemon that serves.
pub struct Server<'a> {
    /// Of this daemon.
    pub faas: Faas<'a>,
    pub run: PathBuf,
    pub pid: u32,
    /// The network namespace that functions are dialled from.
    pub from: PathBuf,
    /// Processes of the tunnel that they are dialled through.
    pub tunnel: Vec<u32>,
    /// Where the function's files can be written.
    pub work: PathBuf,
    /// The SDK's example.
    pub hello: PathBuf,
}

/// How long a function may be without an instance after its deploy.
const INSTANCE_MAX: Duration = Duration::from_secs(30);

/// A function, as the harness is told of it.
#[derive(Clone, Debug)]
pub struct Target {
    pub name: String,
    place: String,
}

impl Target {
    /// The same under another name, with something more said of it.
    pub fn also(&self, name: &str, more: &str) -> Self {
        Self { name: name.to_owned(), place: format!("{},{more}", self.place) }
    }

    /// The same under another name, against another.
    pub fn against(&self, name: &str, base: &str) -> Self {
        self.also(name, &format!("base={base}"))
    }

    pub fn argument(&self) -> String {
        format!("{}={}", self.name, self.place)
    }
}

/// Deploys the SDK's example, once for each lane.
pub fn deploy(server: &Server<'_>) -> Result<Vec<Target>> {
    for (name, head) in FUNCTIONS {
        deploy_one(server, name, &format!("{head}{LIMITS}"))?;
    }
    targets(server)
}

/// What [`deploy`] has deployed, as it is now.
pub fn targets(server: &Server<'_>) -> Result<Vec<Target>> {
    FUNCTIONS.iter().map(|(name, _)| target(server, name)).collect()
}

/// Deploys the example under a name, by a function file.
pub fn deploy_one(server: &Server<'_>, name: &str, file: &str) -> Result<()> {
    let directory = server.work.join(name);
    fs::create_dir_all(&directory)?;
    let program = &server.hello;
    fs::copy(program, directory.join("hello")).with_context(|| format!("copying {}", program.display()))?;
    fs::write(directory.join("faas.toml"), file)?;
    (server.faas)(&["deploy", name, &directory.to_string_lossy()]).map(drop)
}

fn target(server: &Server<'_>, name: &str) -> Result<Target> {
    // A daemon that has just started may have taken over an instance, or start one.
    let (address, pids) = run::wait_for(&format!("an instance of {name}"), INSTANCE_MAX, || {
        let described = (server.faas)(&["describe", name, "--output", "json"])?;
        let described: Value = serde_json::from_str(&described).context("`faas describe` in JSON")?;
        let address = described["address"].as_str().context("`faas describe` names no address")?;
        let instances = described["instances"].as_array().map_or(&[][..], Vec::as_slice);
        let ready = instances.iter().filter(|instance| instance["phase"] == "ready");
        let pids: Vec<u64> = ready.filter_map(|instance| instance["pid"].as_u64()).collect();
        Ok((!pids.is_empty()).then(|| (address.to_owned(), pids)))
    })?;
    let list = |pids: Vec<String>| pids.join("+");
    let pids = list(pids.iter().map(u64::to_string).collect());
    let (netns, gateway) = (server.from.display(), server.pid);
    let mut place = format!("[{address}]:80,netns={netns},pids={pids},gateway={gateway}");
    if !server.tunnel.is_empty() {
        place.push_str(&format!(",tunnel={}", list(server.tunnel.iter().map(u32::to_string).collect())));
    }
    Ok(Target { name: name.to_owned(), place })
}

/// The harness's run, at the head of the queue for the CPU.
pub fn command(targets: &[Target], arguments: &[OsString]) -> Command {
    let mut command = harness("run");
    command.arg("--hello").arg(built("examples/hello"));
    for target in targets {
        command.arg("--target").arg(target.argument());
    }
    command.args(arguments);
    command
}

/// The harness. It names the commit that it finds where it runs.
pub fn harness(what: &str) -> Command {
    let mut command = Command::new("nice");
    command.args(["-n", NICE]).arg(built("faasd-bench")).arg(what).current_dir(repo::root());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_told_under_other_names() {
        let target = Target { name: "warm".to_owned(), place: "[::1]:80,pids=7".to_owned() };
        assert_eq!(target.argument(), "warm=[::1]:80,pids=7");
        assert_eq!(target.against("warm-after", "warm").argument(), "warm-after=[::1]:80,pids=7,base=warm");
    }
}
