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

/// The function's name, and the subject's.
const FUNCTION: &str = "handoff";

/// More of everything than the load can use, so that the limits are there and never met: what is compared is the
/// platform, not a quota.
const FUNCTION_FILE: &str = "contract = \"fd\"\ncommand = [\"./hello\"]\n\n[scale]\nmin = 1\n\n\
                             [limits]\ncpu = 2\nmemory = \"512MiB\"\n";

/// The weight of everything that is measured among what else the machine does. `chrt` would be stronger, but a task
/// in a cpu cgroup cannot have a real-time policy, and the function is in one.
const NICE: &str = "-20";

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

/// Deploys the SDK's example; returns it as the harness's `--target`.
pub fn deploy(server: &Server<'_>) -> Result<String> {
    let directory = server.work.join(FUNCTION);
    fs::create_dir_all(&directory)?;
    let program = built("examples/hello");
    fs::copy(&program, directory.join("hello")).with_context(|| format!("copying {}", program.display()))?;
    fs::write(directory.join("faas.toml"), FUNCTION_FILE)?;
    (server.faas)(&["deploy", FUNCTION, &directory.to_string_lossy()])?;

    let described = (server.faas)(&["describe", FUNCTION, "--output", "json"])?;
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
        bail!("`faas describe` names no process of {FUNCTION}");
    }
    let (netns, gateway) = (server.run.join("ingress"), server.pid);
    let (netns, pids) = (netns.display(), pids.join("+"));
    Ok(format!("{FUNCTION}=[{address}]:80,netns={netns},pids={pids},gateway={gateway}"))
}

/// The harness's run, at the head of the queue for the CPU.
pub fn command(target: &str, arguments: &[OsString]) -> Command {
    let mut command = Command::new("nice");
    command
        .args(["-n", NICE])
        .arg(built("faasd-bench"))
        .arg("run")
        .arg("--hello")
        .arg(built("examples/hello"));
    command.args(["--target", target]).args(arguments);
    command
}

/// Measures a deployed function beside what else there is.
pub fn run(target: &str, arguments: &[OsString]) -> Result<()> {
    run::run(&mut command(target, arguments))
}
