//! What may die, by force or in order, while clients are at work.

use std::io;
use std::net::{Ipv6Addr, TcpStream};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use faasd_tests::{Bed, Load, descriptors_of, eventually, signal};
use rustix::process::Signal;
use serde_json::Value;

use crate::{address, ask, only, until};

/// Clients with a connection each that must not notice anything.
const CLIENTS: usize = 32;

/// Connections that are opened while no daemon runs.
const LATECOMERS: usize = 8;

pub fn daemon_killed() -> Result<()> {
    let mut bed = Bed::joined()?;
    let before = deploy(&bed)?;
    let load = Load::start(&bed.client(), address(&before)?, 80, CLIENTS)?;
    for round in 0..4 {
        // A moment that nobody chose.
        load.more(random(500))?;
        bed.end_daemon(Signal::KILL)?;
        without_a_daemon(&mut bed, &before, &load).with_context(|| format!("round {round}"))?;
    }
    load.finish()?;
    bed.finish()
}

pub fn daemon_stopped() -> Result<()> {
    let mut bed = Bed::joined()?;
    let before = deploy(&bed)?;
    let load = Load::start(&bed.client(), address(&before)?, 80, CLIENTS)?;
    for round in 0..2 {
        load.more(random(500))?;
        let status = bed.end_daemon(Signal::TERM)?;
        ensure!(status == Some(0), "the daemon ended with {status:?}:\n{}", bed.log());
        without_a_daemon(&mut bed, &before, &load).with_context(|| format!("round {round}"))?;
    }
    load.finish()?;
    bed.finish()
}

/// While no daemon runs, clients at work go on and new ones wait; the next daemon finds all as it was.
fn without_a_daemon(bed: &mut Bed, before: &Value, load: &Load) -> Result<()> {
    load.more(200).context("while no daemon runs")?;
    let mut waiting = late(bed, address(before)?)?;
    bed.serve()?;
    for stream in &mut waiting {
        ask(stream, "/").context("opened while no daemon ran")?;
    }
    load.more(200).context("with the next daemon")?;
    let after = bed.describe("hello")?;
    ensure!(only(&after)? == only(before)?, "another instance serves: {after}");
    let (was, is) = (&before["instances"][0], &after["instances"][0]);
    ensure!(is["id"] == was["id"] && is["adopted"] == true, "not adopted: {after}");
    // It is counted from zero: these are all that the new daemon has seen.
    ensure!(after["connections"]["handed_off"] == LATECOMERS, "{after}");
    ask(&mut bed.client().connect(address(before)?, 80)?, "/").context("a new connection")?;
    Ok(())
}

/// Connections that are made while nobody accepts them. The kernel completes them; their requests wait.
fn late(bed: &Bed, address: Ipv6Addr) -> Result<Vec<TcpStream>> {
    let open = || bed.client().connect(address, 80);
    let streams: io::Result<Vec<_>> = (0..LATECOMERS).map(|_| open()).collect();
    let streams = streams.context("a connection is refused while no daemon runs")?;
    for stream in &streams {
        stream.set_nonblocking(true)?;
        let nothing = stream.peek(&mut [0]).map_err(|e| e.kind());
        ensure!(nothing == Err(io::ErrorKind::WouldBlock), "it did not wait: {nothing:?}");
        stream.set_nonblocking(false)?;
    }
    Ok(streams)
}

pub fn killed_during_deploy() -> Result<()> {
    let mut bed = Bed::joined()?;
    let before = deploy(&bed)?;
    let load = Load::start(&bed.client(), address(&before)?, 80, CLIENTS / 4)?;
    let handler = |text: &str| format!("def handle(event, context):\n    return '{text}'\n");
    bed.deploy("other", &[("handler.py", handler("0").as_bytes())])?.ok()?;
    for round in 1..=4 {
        let new = round.to_string();
        let files = [("handler.py", handler(&new))];
        let files = files.each_ref().map(|(name, code)| (*name, code.as_bytes()));
        let daemon = bed.daemon();
        let deployed = std::thread::scope(|scope| {
            let deploying = scope.spawn(|| bed.deploy("other", &files));
            // Anywhere between the upload and the old revision's end.
            let (began, wait) = (Instant::now(), Duration::from_millis(random(500)));
            while began.elapsed() < wait && !deploying.is_finished() {
                std::thread::yield_now();
            }
            signal(daemon, Signal::KILL)?;
            deploying.join().map_err(|_| anyhow::anyhow!("the deploy panicked"))?
        })?;
        bed.end_daemon(Signal::KILL)?;
        bed.serve()?;
        let answer = bed.client().curl("http://other.faas/").with_context(|| format!("round {round}"))?;
        // An acknowledged deploy stays. One that was not may have come to be or not.
        let known = answer == new || (deployed.status != Some(0) && !answer.is_empty());
        ensure!(known, "round {round}: {answer:?} after {deployed:?}");
        // What the dead daemon had begun is cleared away.
        until(&bed, "other", "one instance of one revision", |f| {
            only(f).is_ok() && f["instances"][0]["revision"] == f["revision"]
        })?;
        bed.deploy("other", &files)?.ok().with_context(|| format!("round {round}, again"))?;
        ensure!(bed.client().curl("http://other.faas/")? == new);
        load.more(100)?;
    }
    ensure!(only(&bed.describe("hello")?)? == only(&before)?);
    load.finish()?;
    bed.finish()
}

pub fn tunnel_killed() -> Result<()> {
    let bed = Bed::joined()?;
    let before = deploy(&bed)?;
    let tunnel = bed.helper("tunnel").context("no tunnel process: is the kernel's WireGuard in use?")?;
    let load = Load::start(&bed.client(), address(&before)?, 80, CLIENTS)?;
    load.more(500)?;
    signal(tunnel, Signal::KILL)?;
    eventually("another tunnel process", || bed.helper("tunnel").is_some_and(|pid| pid != tunnel))?;
    // Packets get lost meanwhile, which TCP repeats; connections are not.
    load.more(2000)?;
    ask(&mut bed.client().connect(address(&before)?, 80)?, "/")?;
    ensure!(bed.client().curl("http://hello.faas/")? == "hello from faasd\n");
    load.finish()?;
    bed.finish()
}

pub fn store_killed() -> Result<()> {
    let mut bed = Bed::joined()?;
    let before = deploy(&bed)?;
    let load = Load::start(&bed.client(), address(&before)?, 80, CLIENTS)?;
    let store = bed.helper("fdstore").context("no descriptor store")?;
    let held = descriptors_of(store)?;
    signal(store, Signal::KILL)?;
    eventually("another store that holds as much", || {
        let next = bed.helper("fdstore").filter(|pid| *pid != store);
        next.is_some_and(|pid| descriptors_of(pid).is_ok_and(|holds| holds == held))
    })?;
    load.more(200)?;
    // All hangs on what the new one holds.
    bed.end_daemon(Signal::KILL)?;
    without_a_daemon(&mut bed, &before, &load)?;
    // It is the next daemon's to look after, too; and a change finds out at once that it is dead.
    let store = bed.helper("fdstore").context("no descriptor store")?;
    signal(store, Signal::KILL)?;
    bed.deploy_hello("another", "")?;
    ensure!(bed.client().curl("http://another.faas/")? == "hello from faasd\n");
    load.finish()?;
    bed.finish()
}

fn deploy(bed: &Bed) -> Result<Value> {
    bed.deploy_hello("hello", "")?;
    bed.describe("hello")
}

/// A number below `end`, another each time.
fn random(end: u64) -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::from(now.subsec_nanos()) / 64 % end
}
