//! Resolvers that are told by a program: systemd-resolved and resolvconf.

use std::io::Write;
use std::net::Ipv6Addr;
use std::process::{Command, Stdio};

use super::DnsError;

/// Names in `faas.`, and no others, are asked of `server`.
pub(super) fn point_resolved(name: &str, server: Ipv6Addr) -> Result<(), DnsError> {
    let server = server.to_string();
    for arguments in [
        &["dns", name, &server][..],
        &["domain", name, "~faas"],
        &["default-route", name, "false"],
        &["dnssec", name, "no"],
        &["llmnr", name, "no"],
        &["mdns", name, "no"],
    ] {
        run("resolvectl", arguments, None)?;
    }
    Ok(())
}

pub(super) fn restore_resolved(name: &str) -> Result<(), DnsError> {
    run("resolvectl", &["revert", name], None).map(drop)
}

pub(super) fn is_resolved_pointed(name: &str) -> bool {
    run("resolvectl", &["domain", name], None).is_ok_and(|said| said.contains("~faas"))
}

/// Debian's resolvconf or openresolv. resolvectl goes by that name too, but speaks for systemd-resolved alone.
pub(super) fn has_resolvconf() -> bool {
    let is_there = Command::new("resolvconf")
        .arg("-l")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok();
    is_there && !run("resolvconf", &["--version"], None).is_ok_and(|said| said.starts_with("systemd"))
}

/// The first of all servers. resolvconf itself knows no servers for some names alone; which of them it serves would
/// depend on what resolver runs behind it.
pub(super) fn point_resolvconf(name: &str, server: Ipv6Addr) -> Result<(), DnsError> {
    let record = record(name);
    let is_openresolv = run("resolvconf", &["--version"], None).is_ok_and(|said| said.contains("openresolv"));
    // Debian's own knows no metric, and puts tunnels first by their names.
    let arguments: &[&str] = if is_openresolv { &["-a", &record, "-m", "0"] } else { &["-a", &record] };
    run("resolvconf", arguments, Some(&format!("nameserver {server}\n"))).map(drop)
}

pub(super) fn restore_resolvconf(name: &str) -> Result<(), DnsError> {
    run("resolvconf", &["-d", &record(name)], None).map(drop)
}

pub(super) fn is_resolvconf_pointed(name: &str) -> bool {
    run("resolvconf", &["-l", &record(name)], None).is_ok_and(|said| said.contains("nameserver"))
}

fn record(name: &str) -> String {
    format!("tun.{name}")
}

/// Runs a program with that input, and returns what it printed.
fn run(program: &str, arguments: &[&str], input: Option<&str>) -> Result<String, DnsError> {
    let failed =
        |said: String| DnsError::Program { command: format!("{program} {}", arguments.join(" ")), said };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed(e.to_string()))?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        stdin.write_all(input.as_bytes()).map_err(|e| failed(e.to_string()))?;
    }
    let output = child.wait_with_output().map_err(|e| failed(e.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}
