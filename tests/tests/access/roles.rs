//! Users and admins.

use anyhow::{Result, ensure};
use faasd_tests::{address, eventually};

use crate::{served, two};

const SERVER: &str = "http://[fd00:faa5:0:100::1]:9464";

pub fn users() -> Result<()> {
    let bed = two()?;
    bed.deploy_hello("hello", "")?;
    let client = bed.client();
    for arguments in [
        &["ls"][..],
        &["rm", "hello", "--yes"],
        &["invoke", "hello"],
        &["vpn", "role", "client", "admin"],
        &["allow", "client", "hello"],
        &["secret", "ls"],
    ] {
        let said = client.faas(&[&["--server", SERVER], arguments].concat())?;
        ensure!(said.status == Some(77), "{arguments:?}: {said:?}");
        ensure!(
            said.err.contains("'client' is no admin") && said.err.contains("faas vpn role client admin"),
            "{said:?}"
        );
    }
    // It calls functions, and sees metrics.
    served(&client, address(&bed.describe("hello")?)?)?;
    let metrics = client.curl(&format!("{SERVER}/metrics"))?;
    ensure!(metrics.contains("faasd_api_refused_total{reason=\"role\"} 6"), "{metrics}");
    bed.finish()
}

pub fn admins() -> Result<()> {
    let mut bed = faasd_tests::Bed::serving()?;
    bed.join_as(1, "client", &["--role", "admin"])?;
    let number = bed.add_client()?;
    bed.join_as(number, "other", &[])?;
    let (client, other) = (bed.client(), bed.client_at(2));
    let faas = |arguments: &[&str]| client.faas(&[&["--server", SERVER], arguments].concat());
    let code = bed.path("remote");
    std::fs::create_dir_all(&code)?;
    std::fs::write(code.join("handler.py"), "def handle(event, context):\n    return 'from afar'\n")?;
    faas(&["deploy", "remote", &code.display().to_string()])?.ok()?;
    ensure!(
        client.curl("http://remote.faas/").is_ok()
            || faas(&["invoke", "remote"])?.ok()?.contains("from afar")
    );
    let invoked = faas(&["invoke", "remote"])?.ok()?;
    ensure!(invoked.contains("from afar"), "{invoked}");
    faas(&["deny", "other", "remote"])?.ok()?;
    crate::refused(&other, address(&bed.describe("remote")?)?)?;
    let logs = faas(&["logs", "remote"])?;
    ensure!(logs.status == Some(0), "{logs:?}");
    // A stream that has no end of its own, as over the socket.
    let mut events = client.beside(&[
        &faasd_tests::program("faas").display().to_string(),
        "--server",
        SERVER,
        "events",
        "-f",
    ])?;
    let invited = faas(&["vpn", "invite", "third", "-o", "json"])?.ok()?;
    ensure!(invited.contains("invitation"), "{invited}");
    faas(&["vpn", "role", "other", "admin"])?.ok()?;
    ensure!(other.faas(&["--server", SERVER, "ls"])?.ok()?.contains("remote"));
    // Whoever is none any more is none from the next request on.
    other.faas(&["--server", SERVER, "vpn", "role", "client", "user"])?.ok()?;
    let said = faas(&["ls"])?.failed()?;
    ensure!(said.contains("no admin"), "{said}");
    events.kill()?;
    let seen = events.wait_with_output()?;
    let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
    ensure!(seen.contains("peer-invited") && seen.contains("role-changed"), "{seen}");
    let roles = bed.json(&["vpn", "peers"])?;
    ensure!(roles["peers"][0]["role"] == "user" && roles["peers"][1]["role"] == "admin", "{roles}");
    // One that is revoked is nobody.
    bed.faas(&["vpn", "revoke", "other", "--yes"])?.ok()?;
    eventually("it does not get through", || {
        other
            .run(&["curl", "-sS", "--max-time", "1", &format!("{SERVER}/metrics")])
            .is_ok_and(|o| o.status != Some(0))
    })?;
    bed.finish()
}
