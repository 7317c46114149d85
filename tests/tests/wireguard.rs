//! Whoever encrypts, the kernel or a process of ours: what a user sees of the tunnel is alike, and says who it is.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use faasd_tests::{Bed, eventually, program, run, shared, wireguard};
use serde_json::Value;

fn main() {
    // It changes how the machine itself resolves names, so only where the machine is the tests' own.
    let ours = std::env::var_os("FAASD_TEST_MACHINE").is_some();
    run(vec![
        shared("two_commands_on_a_client_that_has_never_seen_the_server", two_commands),
        shared("a_client_with_systemd_resolved_asks_the_tunnel_for_its_names_alone", resolved)
            .with_ignored_flag(!ours),
    ])
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
    // The operator's own tool, on both sides. A process of ours shows itself to it only in the standard directory.
    if wireguard::expected() == "kernel" {
        let tunnel = format!("{}t", bed.name());
        let client = bed.client().run(&["wg", "show", &tunnel, "latest-handshakes"])?.ok()?;
        let mut server = Command::new("wg");
        let server = bed.ingress()?.run(|| server.args(["show", "all", "latest-handshakes"]).output())?;
        for said in [client, String::from_utf8_lossy(&server.stdout).into_owned()] {
            let at = said.split_whitespace().next_back().and_then(|at| at.parse::<u64>().ok());
            ensure!(at > Some(0), "wg shows no handshake: {said:?}");
        }
    }
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

/// The client is the machine itself: systemd-resolved knows the links of its own namespace.
fn resolved() -> Result<()> {
    let bed = Bed::serving()?;
    bed.deploy_hello("hello", "")?;
    let cable = Cable::new(&bed)?;
    let endpoint = "[fd00:77::1]:51820";
    let invitation = bed.faas(&["vpn", "invite", "machine", "--endpoint", endpoint])?.ok()?;
    let faas = program("faas").display().to_string();
    let directory = bed.path("client").display().to_string();
    let tunnel = format!("{}t", bed.name());
    let vpn = |verb: &[&str]| {
        let place = ["--state-dir", &directory, "--interface", &tunnel];
        here(&faas, &[&["vpn"], verb, &place].concat())
    };
    let said = vpn(&["connect", invitation.trim()])?;
    ensure!(said.contains("all others as before"), "{said}");

    // By the C library, by the service, and no other name goes there.
    ensure!(here("curl", &["-sS", "--max-time", "20", "http://hello.faas/"])? == "hello from faasd\n");
    let address = bed.describe("hello")?["address"].as_str().context("no address")?.to_owned();
    let answer = here("resolvectl", &["query", "hello.faas"])?;
    ensure!(answer.contains(&address) && answer.contains(&tunnel), "{answer}");
    let domains = here("resolvectl", &["domain", &tunnel])?;
    ensure!(domains.trim_end().ends_with(": ~faas"), "{domains}");
    ensure!(here("resolvectl", &["default-route", &tunnel])?.trim_end().ends_with(": no"));

    // A name that was asked for too early is found soon after its deploy.
    let is_there = || here("resolvectl", &["query", "later.faas"]).is_ok();
    ensure!(!is_there());
    bed.deploy_hello("later", "")?;
    eventually("the name is found", is_there)?;

    vpn(&["disconnect"])?;
    ensure!(here("resolvectl", &["query", "hello.faas"]).is_err());
    drop(cable);
    bed.finish()
}

/// A cable from the machine itself to the bed's server.
struct Cable {
    name: String,
}

impl Cable {
    fn new(bed: &Bed) -> Result<Self> {
        let (name, server) = (format!("{}m", bed.name()), format!("{}s", bed.name()));
        let far = format!("{}n", bed.name());
        here("ip", &["link", "add", &name, "type", "veth", "peer", "name", &far, "netns", &server])?;
        let cable = Self { name };
        let near = cable.name.as_str();
        here("ip", &["-n", &server, "addr", "add", "fd00:77::1/64", "dev", &far, "nodad"])?;
        here("ip", &["-n", &server, "link", "set", &far, "up"])?;
        here("ip", &["addr", "add", "fd00:77::2/64", "dev", near, "nodad"])?;
        here("ip", &["link", "set", near, "up"])?;
        Ok(cable)
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        if let Err(e) = here("ip", &["link", "del", &self.name]) {
            eprintln!("{e:#}");
        }
    }
}

/// What a program prints that runs on the machine itself.
fn here(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| program.to_owned())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(output.status.success(), "{program} {arguments:?}: {}", text(&output.stderr));
    Ok(text(&output.stdout))
}
