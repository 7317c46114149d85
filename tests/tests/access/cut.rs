//! Connections that are open when what let them in is so no longer.

use std::io::Read;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use faasd_tests::{address, eventually, get};

use crate::{deploy_server, refused, served, two};

/// Fails unless the connection is cut, and soon.
fn is_cut(mut stream: TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let read = stream.read(&mut [0]);
    let cut = matches!(&read, Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset);
    ensure!(cut, "not reset: {read:?}");
    Ok(())
}

pub fn denied() -> Result<()> {
    let bed = two()?;
    deploy_server(&bed, "warm")?;
    bed.deploy_hello("hello", "")?;
    // By either lane: the daemon has not even seen the one of them.
    for function in ["hello", "warm"] {
        let to = address(&bed.describe(function)?)?;
        let (client, other) = (bed.client(), bed.client_at(2));
        let mut keeps = client.connect(to, 80)?;
        let (mut first, mut second) = (other.connect(to, 80)?, other.connect(to, 80)?);
        for stream in [&mut keeps, &mut first, &mut second] {
            ensure!(get(stream, "/")?.0 == 200);
        }
        bed.faas(&["deny", "other", function, "--keep"])?.ok()?;
        refused(&other, to)?;
        ensure!(get(&mut first, "/")?.0 == 200, "it was to be kept");
        let changed = bed.json(&["deny", "other", function])?;
        ensure!(changed["changed"] == 0 && changed["cut"] == 2, "{changed}");
        is_cut(first)?;
        is_cut(second)?;
        ensure!(get(&mut keeps, "/")?.0 == 200, "another's connection");
        // Its instance is as before.
        served(&client, to)?;
    }
    bed.finish()
}

pub fn closed() -> Result<()> {
    let bed = two()?;
    bed.deploy_hello("hello", "")?;
    let to = address(&bed.describe("hello")?)?;
    let (client, other) = (bed.client(), bed.client_at(2));
    bed.faas(&["group", "add", "ops", "client"])?.ok()?;
    bed.faas(&["allow", "@ops", "hello"])?.ok()?;
    let (mut allowed, mut stranger) = (client.connect(to, 80)?, other.connect(to, 80)?);
    ensure!(get(&mut allowed, "/")?.0 == 200 && get(&mut stranger, "/")?.0 == 200);
    let changed = bed.json(&["policy", "default", "closed"])?;
    ensure!(changed["cut"] == 1, "{changed}");
    is_cut(stranger)?;
    ensure!(get(&mut allowed, "/")?.0 == 200);
    // Who leaves the group that let it in goes as well.
    let changed = bed.json(&["group", "rm", "ops", "client"])?;
    ensure!(changed["cut"] == 1, "{changed}");
    is_cut(allowed)?;
    bed.finish()
}

pub fn revoked() -> Result<()> {
    let bed = two()?;
    bed.deploy_hello("hello", "")?;
    let to = address(&bed.describe("hello")?)?;
    let (client, other) = (bed.client(), bed.client_at(2));
    bed.faas(&["group", "add", "ops", "other"])?.ok()?;
    bed.faas(&["allow", "other", "hello"])?.ok()?;
    let mut open = other.connect(to, 80)?;
    ensure!(get(&mut open, "/")?.0 == 200);
    let pid = faasd_tests::ready(&bed.describe("hello")?)[0];
    let sockets = || faasd_tests::sockets_of(pid).map(|all| all.len()).unwrap_or_default();
    let before = sockets();
    let began = Instant::now();
    bed.faas(&["vpn", "revoke", "other", "--yes"])?.ok()?;
    // The tunnel has taken its key away, so that no RST gets through to it: what tells is the server's side.
    eventually("its connection is over", || sockets() < before)?;
    ensure!(began.elapsed() < Duration::from_secs(5), "after {:?}", began.elapsed());
    let policy = bed.json(&["policy", "hello"])?;
    ensure!(policy["rules"] == serde_json::json!([]), "{policy}");
    let groups = bed.json(&["group", "ls"])?;
    ensure!(groups["groups"][0]["members"] == serde_json::json!([]), "{groups}");
    served(&client, to)?;
    // Who comes after it has its name, and nothing else of it.
    let invited = bed.json(&["vpn", "invite", "other"])?;
    let peers = bed.json(&["vpn", "peers"])?;
    ensure!(invited["address"] == "fd00:faa5:0:100::4", "{peers}");
    let events = bed.json(&["events"])?.to_string();
    ensure!(events.contains("peer-revoked") && events.contains("peer-joined"), "{events}");
    bed.finish()
}
