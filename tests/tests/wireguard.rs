//! Whoever encrypts, the kernel or a process of ours: what a user sees of the tunnel is alike, and says who it is.

use anyhow::{Context, Result, ensure};
use faasd_tests::{Bed, program, run, shared, wireguard};
use serde_json::Value;

fn main() {
    run(vec![shared("two_commands_on_a_client_that_has_never_seen_the_server", two_commands)])
}

/// `faas vpn connect INVITATION`, `curl http://hello.faas/`.
fn two_commands() -> Result<()> {
    let mut bed = Bed::serving()?;
    bed.deploy_hello("hello", "")?;
    bed.join()?;
    let answer = bed.client().curl("http://hello.faas/")?;
    ensure!(answer == "hello from faasd\n", "{answer}");

    let version = bed.json(&["version"])?;
    ensure!(version["daemon"]["wireguard"] == wireguard::expected(), "{version}");
    let status = status(&bed)?;
    ensure!(status["wireguard"] == wireguard::expected() && status["connected"] == true, "{status}");
    ensure!(status["received_bytes"].as_u64() > Some(0), "{status}");
    let doctor: Value = serde_json::from_str(&bed.faas(&["doctor", "-o", "json"])?.out)?;
    let kernel = doctor["checks"]
        .as_array()
        .and_then(|checks| checks.iter().find(|check| check["name"] == "kernel WireGuard"));
    let kernel = kernel.with_context(|| format!("doctor says nothing of it: {doctor}"))?;
    let verdict = if wireguard::expected() == "kernel" { "ok" } else { "warning" };
    ensure!(kernel["verdict"] == verdict || wireguard::choice() == "userspace", "{kernel}");
    bed.finish()
}

/// `faas vpn status` on the client.
fn status(bed: &Bed) -> Result<Value> {
    let faas = program("faas").display().to_string();
    let directory = bed.path("client").display().to_string();
    let interface = format!("{}t", bed.name());
    let arguments = ["vpn", "status", "-o", "json", "--state-dir", &directory, "--interface", &interface];
    let said = bed.client().run(&[&[&*faas], &arguments[..]].concat())?.ok()?;
    serde_json::from_str(&said).with_context(|| format!("no JSON: {said}"))
}
