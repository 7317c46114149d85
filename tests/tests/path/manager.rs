//! What the service manager is told: the daemon of a unit with `Type=notify` and a watchdog.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use faasd_tests::{Bed, DEADLINE, signal};
use rustix::process::Signal;

pub fn told() -> Result<()> {
    let mut bed = Bed::new()?;
    let path = bed.path("notify");
    let socket = UnixDatagram::bind(&path)?;
    let variables = [format!("NOTIFY_SOCKET={}", path.display()), "WATCHDOG_USEC=30000000".to_owned()];
    bed.wrapper.extend(["env".to_owned()].into_iter().chain(variables));
    bed.serve()?;
    let ready = hear(&socket, "READY=1")?;
    ensure!(ready.contains("\nSTATUS=serves; WireGuard: "), "{ready}");
    hear(&socket, "WATCHDOG=1")?;
    // runc passes such a socket on into containers, and waits there for what nobody says.
    bed.deploy_hello("hello", "")?;
    let environment = fs::read(format!("/proc/{}/environ", faasd_tests::only(&bed.describe("hello")?)?))?;
    ensure!(!String::from_utf8_lossy(&environment).contains("NOTIFY_SOCKET"));

    let file = bed.path("faasd.toml");
    let before = fs::read_to_string(&file)?;
    let again = |more: &str| {
        fs::write(&file, format!("{more}\n{before}"))?;
        signal(bed.daemon(), Signal::HUP)?;
        hear(&socket, "RELOADING=1")?;
        hear(&socket, "READY=1")
    };
    let said = again("dns_query_log = true\nmtu_bytes = 1400")?;
    ensure!(said.contains("a restart is needed for: mtu_bytes"), "{said}");
    ensure!(bed.log().contains("settings read again; changed: dns_query_log"), "{}", bed.log());
    let said = again("dns_querylog = true")?;
    ensure!(said.contains("the settings stay as they are") && said.contains("dns_query_log"), "{said}");
    let said = again("")?;
    ensure!(said.contains("serves; settings read again"), "{said}");

    bed.end_daemon(Signal::TERM)?;
    hear(&socket, "STOPPING=1")?;
    bed.finish()
}

/// The next message that says so. The manager is told on and on that the daemon lives.
fn hear(socket: &UnixDatagram, what: &str) -> Result<String> {
    let deadline = Instant::now() + DEADLINE;
    let mut bytes = [0; 4096];
    loop {
        let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
        socket.set_read_timeout(Some(left.with_context(|| format!("never told: {what}"))?))?;
        let length = socket.recv(&mut bytes).with_context(|| format!("not told: {what}"))?;
        let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
        if text.lines().any(|line| line == what) {
            return Ok(text);
        }
    }
}
