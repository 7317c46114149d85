//! Getting in and out: what a person types on a machine that has never seen the server.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, ensure};
use faasd_tests::{Bed, get};

use crate::address;

/// One command on each side, and the name works by the machine's own resolver; a new key in place; and everything as it
/// was after the last.
pub fn two_commands() -> Result<()> {
    let mut bed = Bed::serving()?;
    bed.deploy_hello("hello", "")?;
    let number = bed.add_client()?;
    let resolv = bed.path(&format!("resolv.conf{number}"));
    let before = "# this machine's own\nnameserver 192.0.2.1\noptions timeout:1 attempts:1\n";
    fs::write(&resolv, before)?;
    let file = bed.path("laptop.faas").display().to_string();
    let endpoint = format!("[fd00:{number}::1]:51820");

    let said = bed.faas(&["vpn", "invite", "laptop", "--endpoint", &endpoint, "--out", &file])?.ok()?;
    ensure!(!said.contains("faas1-"), "the invitation is printed as well: {said}");
    ensure!(fs::metadata(&file)?.permissions().mode() & 0o777 == 0o600);
    let machine = bed.client_at(number);
    machine.vpn(&["connect", &file])?.ok()?;
    let hello = machine.curl("http://hello.faas/")?;
    ensure!(!hello.is_empty());

    let status: serde_json::Value = serde_json::from_str(&machine.vpn(&["status", "-o", "json"])?.ok()?)?;
    ensure!(status["resolves"] == true, "{status}");
    let wireguard = bed.path("wireguard/peers/laptop.conf");
    ensure!(fs::read_to_string(&wireguard)?.contains("[Peer]"));
    let keys = bed.path("wireguard");
    ensure!(fs::metadata(&keys)?.permissions().mode() & 0o777 == 0o700, "others may look at the keys' names");

    let mut open = machine.connect(address(&bed.describe("hello")?)?, 80)?;
    get(&mut open, "/")?;
    let key = fs::read_to_string(&wireguard)?;
    machine.vpn(&["rotate"])?.ok()?;
    ensure!(fs::read_to_string(&wireguard)? != key, "the key is the same");
    ensure!(get(&mut open, "/")?.0 == 200);
    drop(open);

    machine.vpn(&["disconnect"])?.ok()?;
    ensure!(fs::read_to_string(&resolv)? == before, "the resolver's file is not what it was");
    machine.run(&["curl", "-sS", "--max-time", "5", "http://hello.faas/"])?.failed()?;
    machine.vpn(&["connect"])?.ok()?;
    ensure!(machine.curl("http://hello.faas/")? == hello);
    machine.vpn(&["disconnect"])?.ok()?;

    // An invitation is good once, and is taken back like a peer.
    let second = bed.add_client()?;
    bed.client_at(second).vpn(&["connect", &file])?.failed()?;
    let endpoint = format!("[fd00:{second}::1]:51820");
    let invitation = bed.faas(&["vpn", "invite", "other", "--endpoint", &endpoint])?.ok()?;
    bed.faas(&["vpn", "revoke", "other", "--yes"])?.ok()?;
    bed.client_at(second).vpn(&["connect", invitation.trim()])?.failed()?;

    // A plain configuration says where its key is from, and that of a peer that has joined is made for nobody.
    let plain = bed.faas(&["vpn", "export", "phone", "--endpoint", &endpoint])?.ok()?;
    ensure!(plain.contains("made on the server") && plain.contains("[Interface]"), "{plain}");
    bed.faas(&["vpn", "export", "laptop", "--endpoint", &endpoint])?.failed()?;
    bed.finish()
}
