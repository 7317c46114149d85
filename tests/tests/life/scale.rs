//! From zero, out, in, and to zero.

use std::net::{Ipv6Addr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use faasd_tests::{Bed, address, get, ready, signal, started, until};
use rustix::process::Signal;
use serde_json::Value;

use crate::code::{KINDS, Kind, deploy};

fn is_cold(function: &Value) -> bool {
    started(function) == 0
}

fn come_and_go(kind: Kind) -> Result<()> {
    let bed = Bed::joined()?;
    let scale = "[scale]\nmin = 0\nmax = 3\nconcurrency = 2\nidle = '1s'";
    deploy(&bed, kind, "hello", "hi", scale, &[])?;
    let address = address(&bed.describe("hello")?)?;
    let cold = until(&bed, "hello", "it sleeps", is_cold)?;
    ensure!(cold["state"] == "cold", "{cold}");
    // From zero, and out: five connections are for three instances.
    let mut streams = (0..5)
        .map(|_| {
            let mut stream = bed.client().connect(address, 80)?;
            let (status, _) = get(&mut stream, "/")?;
            ensure!(status == 200, "status {status}");
            Ok(stream)
        })
        .collect::<Result<Vec<_>>>()?;
    until(&bed, "hello", "three instances", |f| ready(f).len() == 3)?;
    // In: one connection is for one.
    streams.truncate(1);
    until(&bed, "hello", "one instance that takes connections", |f| ready(f).len() == 1)?;
    let (status, _) = get(&mut streams[0], "/")?;
    ensure!(status == 200);
    // And to zero, once it is closed.
    drop(streams);
    let cold = until(&bed, "hello", "it sleeps again", is_cold)?;
    ensure!(cold["state"] == "cold" && cold["connections"]["refused"] == 0, "{cold}");
    ensure!(bed.client().curl("http://hello.faas/")? == "hi");
    bed.finish()
}

pub fn handlers() -> Result<()> {
    come_and_go(Kind::Handler)
}

pub fn servers() -> Result<()> {
    come_and_go(Kind::Server)
}

pub fn kept_alive() -> Result<()> {
    let mut bed = Bed::joined()?;
    for (kind, name) in KINDS.into_iter().zip(["handler", "server"]) {
        deploy(&bed, kind, name, "hi", "[scale]\nmin = 0\nidle = '1s'", &[])?;
        let mut stream = bed.client().connect(address(&bed.describe(name)?)?, 80)?;
        get(&mut stream, "/")?;
        let before = ready(&bed.describe(name)?);
        // Longer than it is kept when it is not needed; and the next daemon knows of it, too.
        std::thread::sleep(Duration::from_millis(2500));
        ensure!(ready(&bed.describe(name)?) == before, "{name} was put to sleep with an open connection");
        bed.end_daemon(Signal::KILL)?;
        bed.serve()?;
        let after = bed.describe(name)?;
        ensure!(after["instances"][0]["in_flight"] == 1, "{after}");
        std::thread::sleep(Duration::from_millis(2500));
        ensure!(ready(&bed.describe(name)?) == before, "{name} was put to sleep by the next daemon");
        let (status, _) = get(&mut stream, "/")?;
        ensure!(status == 200);
        drop(stream);
        until(&bed, name, "it sleeps", is_cold)?;
    }
    bed.finish()
}

pub fn prepared() -> Result<()> {
    let bed = Bed::joined()?;
    for (kind, name) in KINDS.into_iter().zip(["handler", "server"]) {
        deploy(&bed, kind, name, "hi", "[scale]\nmin = 0\nidle = '1s'\nprepared = 1", &[])?;
        let has_one = |f: &Value| {
            let mut prepared =
                f["instances"].as_array().into_iter().flatten().filter(|i| i["phase"] == "prepared");
            is_cold(f) && prepared.next().is_some_and(|i| i["pid"].is_u64()) && prepared.next().is_none()
        };
        let cold = until(&bed, name, "a container is prepared", has_one)?;
        let id = cold["instances"][0]["id"].clone();
        ensure!(bed.client().curl(&format!("http://{name}.faas/"))? == "hi");
        let warm = bed.describe(name)?;
        let took = warm["instances"].as_array().into_iter().flatten().find(|i| i["phase"] == "ready");
        ensure!(took.is_some_and(|i| i["id"] == id), "another instance took it: {warm}");
        // The next one is prepared when this one sleeps; one that dies is replaced.
        let cold = until(&bed, name, "the next one is prepared", has_one)?;
        ensure!(cold["instances"][0]["id"] != id, "{cold}");
        let pid = cold["instances"][0]["pid"].as_u64().context("no pid")?;
        signal(u32::try_from(pid)?, Signal::KILL)?;
        until(&bed, name, "it is replaced", |f| has_one(f) && f["instances"][0]["pid"] != pid)?;
    }
    // With nothing to prepare for, nothing is.
    deploy(&bed, Kind::Handler, "none", "hi", "[scale]\nmin = 0\nidle = '1s'\nprepared = 0", &[])?;
    until(&bed, "none", "nothing is there", |f| f["instances"].as_array().is_some_and(Vec::is_empty))?;
    ensure!(bed.client().curl("http://none.faas/")? == "hi");
    bed.finish()
}

pub fn crash_loop() -> Result<()> {
    let bed = Bed::joined()?;
    // It starts, and then it does not: what it needs is gone after a while.
    let code = "import os, threading, time
def die():
    time.sleep(0.3)
    print('the database is gone', flush=True)
    os._exit(3)
threading.Thread(target=die).start()
def handle(event, context):
    return 'hi'
";
    bed.deploy("crashes", &[("handler.py", code.as_bytes())])?.ok()?;
    let failing = until(&bed, "crashes", "it fails again and again", |f| {
        f["failures"].as_u64().is_some_and(|n| n >= 3) && f["state"] == "failing"
    })?;
    ensure!(failing["reason"].as_str().is_some_and(|why| why.contains("the database is gone")), "{failing}");
    ensure!(failing["retry_in_ms"].as_u64().is_some_and(|ms| ms > 300), "{failing}");
    let listed = bed.faas(&["ls"])?.ok()?;
    ensure!(listed.contains("failing") && listed.contains("the database is gone"), "{listed}");
    bed.finish()
}

/// More connections than one instance and a queue of 20 take, or as many as are let in: the last ones may be refused already.
fn crowd(bed: &Bed, address: Ipv6Addr) -> Result<Vec<TcpStream>> {
    let mut held = Vec::new();
    for _ in 0..40 {
        match bed.client().connect(address, 80) {
            Ok(stream) => held.push(stream),
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => break,
            Err(e) => return Err(e.into()),
        }
    }
    ensure!(held.len() > 20, "only {} were let in", held.len());
    Ok(held)
}

pub fn overload() -> Result<()> {
    let bed = Bed::joined()?;
    // It takes one connection at a time.
    let program = faasd_tests::program("examples/router");
    bed.deploy_program("busy", &program, "[scale]\nmax = 1\nqueue = 20\n")?.ok()?;
    let address = address(&bed.describe("busy")?)?;
    let open = || bed.client().connect(address, 80);
    // It waits for what the first has to say.
    let held = crowd(&bed, address)?;
    until(&bed, "busy", "it is overloaded", |f| f["state"] == "overloaded")?;
    let began = Instant::now();
    let refused = open();
    ensure!(
        refused.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused),
        "it was not refused: {refused:?}"
    );
    ensure!(began.elapsed() < Duration::from_secs(1), "it was refused after {:?}", began.elapsed());
    // Room, and it takes connections again.
    drop(held);
    until(&bed, "busy", "it takes connections again", |f| f["state"] == "warm")?;
    let (status, _) = get(&mut open()?, "/")?;
    ensure!(status == 404, "status {status}");
    bed.finish()
}

pub fn relieved_by_a_deploy() -> Result<()> {
    let bed = Bed::joined()?;
    let program = faasd_tests::program("examples/router");
    bed.deploy_program("busy", &program, "[scale]\nmax = 1\nqueue = 20\n")?.ok()?;
    let address = address(&bed.describe("busy")?)?;
    let held = crowd(&bed, address)?;
    until(&bed, "busy", "it is overloaded", |f| f["state"] == "overloaded")?;
    bed.deploy_hello("busy", "")?;
    ensure!(bed.client().curl("http://busy.faas/")? == "hello from faasd\n");
    // What waited is answered by the new one.
    let mut waited = held.into_iter().next_back().context("nobody waits")?;
    let (status, _) = get(&mut waited, "/")?;
    ensure!(status == 200, "status {status}");
    bed.finish()
}
