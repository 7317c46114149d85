//! What `cargo xtask bench` and the demo have in common: deploy one program to a daemon that runs, and measure it there
//! and bare.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::built;
use crate::run;

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
pub const NICE: &str = "-20";

/// A daemon that serves.
pub struct Server<'a> {
    /// Runs `faas` against it and returns what it printed.
    pub faas: &'a dyn Fn(&[&str]) -> Result<String>,
    /// Its run directory, where its ingress is.
    pub run: &'a Path,
    pub pid: u32,
    /// Where the function's files can be written.
    pub work: &'a Path,
}

/// Deploys the SDK's example, once for each lane; returns them as the harness's `--target`s.
pub fn deploy(server: &Server<'_>) -> Result<Vec<String>> {
    FUNCTIONS.iter().map(|(name, head)| deploy_one(server, name, &format!("{head}{LIMITS}"))).collect()
}

fn deploy_one(server: &Server<'_>, name: &str, file: &str) -> Result<String> {
    let directory = server.work.join(name);
    fs::create_dir_all(&directory)?;
    let program = built("examples/hello");
    fs::copy(&program, directory.join("hello")).with_context(|| format!("copying {}", program.display()))?;
    fs::write(directory.join("faas.toml"), file)?;
    (server.faas)(&["deploy", name, &directory.to_string_lossy()])?;

    let described = (server.faas)(&["describe", name, "--output", "json"])?;
    let described: Value = serde_json::from_str(&described).context("`faas describe` in JSON")?;
    let address = described.pointer("/address").and_then(Value::as_str);
    let address = address.context("`faas describe` names no address")?;
    let instances = described.pointer("/instances").and_then(Value::as_array);
    let pids: Vec<String> = instances
        .into_iter()
        .flatten()
        .filter_map(|instance| Some(instance.get("pid")?.as_u64()?.to_string()))
        .collect();
    if pids.is_empty() {
        bail!("`faas describe` names no process of {name}");
    }
    let (netns, gateway) = (server.run.join("ingress"), server.pid);
    let (netns, pids) = (netns.display(), pids.join("+"));
    Ok(format!("{name}=[{address}]:80,netns={netns},pids={pids},gateway={gateway}"))
}

/// The harness's run, at the head of the queue for the CPU.
pub fn command(targets: &[String], arguments: &[OsString]) -> Command {
    let mut command = Command::new("nice");
    command
        .args(["-n", NICE])
        .arg(built("faasd-bench"))
        .arg("run")
        .arg("--hello")
        .arg(built("examples/hello"));
    for target in targets {
        command.arg("--target").arg(target);
    }
    command.args(arguments);
    command
}

/// Measures deployed functions beside what else there is.
pub fn run(targets: &[String], arguments: &[OsString]) -> Result<()> {
    run::run(&mut command(targets, arguments))
}

/// Measures subjects and rules, which takes no daemon.
pub fn access(out: Option<&Path>, arguments: &[OsString]) -> Result<()> {
    let mut command = Command::new("nice");
    command.args(["-n", NICE]).arg(built("faasd-bench")).arg("access").args(arguments);
    if let Some(file) = out {
        command.arg("--out").arg(file);
    }
    run::run(&mut command)
}
