//! Functions that wake, crash, are replaced and go.

use std::io::Write;

use anyhow::{Result, ensure};
use faasd_tests::{Bed, get, signal, started};
use rustix::process::Signal;
use serde_json::Value;

use crate::{address, ask, has_ended, only, ready, until};

fn is_without_instances(function: &Value) -> bool {
    started(function) == 0
}

pub fn cold() -> Result<()> {
    let bed = Bed::joined()?;
    let handler = b"def handle(event, context):\n    return 'awake'\n";
    bed.deploy("sleeper", &[("handler.py", handler), ("faas.toml", b"[scale]\nmin = 0\n")])?.ok()?;
    let address = address(&bed.describe("sleeper")?)?;
    for connections in [1, 8] {
        signal(only(&bed.describe("sleeper")?)?, Signal::KILL)?;
        let cold = until(&bed, "sleeper", "its instance is gone", is_without_instances)?;
        let mut streams =
            (0..connections).map(|_| Ok(bed.client().connect(address, 80)?)).collect::<Result<Vec<_>>>()?;
        for stream in &mut streams {
            ensure!(ask(stream, "/")? == b"awake");
        }
        let warm = bed.describe("sleeper")?;
        only(&warm)?;
        ensure!(warm["state"] == "warm", "{warm}");
        let count = |f: &Value, lane: &str| f["connections"][lane].as_u64().unwrap_or_default();
        for lane in ["steered", "accepted", "handed_off"] {
            ensure!(count(&warm, lane) == count(&cold, lane) + connections, "{lane}: {warm}");
        }
        ensure!(count(&warm, "refused") == 0, "{warm}");
    }
    bed.finish()
}

pub fn mended() -> Result<()> {
    let bed = Bed::joined()?;
    bed.deploy_hello("hello", "")?;
    for path in [None, Some("/crash")] {
        let before = bed.describe("hello")?;
        let crashed = only(&before)?;
        match path {
            None => signal(crashed, Signal::KILL)?,
            // From within, by a request that is never answered.
            Some(path) => {
                let mut stream = bed.client().connect(address(&before)?, 80)?;
                ensure!(get(&mut stream, path).is_err(), "a crashed function answered");
            }
        }
        // Whoever comes now waits for the next instance.
        ensure!(bed.client().curl("http://hello.faas/")? == "hello from faasd\n");
        until(&bed, "hello", "another instance", |f| only(f).is_ok_and(|pid| pid != crashed))?;
    }
    bed.finish()
}

pub fn redeploy() -> Result<()> {
    let bed = Bed::joined()?;
    let code = |text: &str| {
        format!(
            "import time\ndef handle(event, context):\n    \
             time.sleep(float(event.query.get('s', '0')))\n    return '{text}'\n"
        )
    };
    bed.deploy("change", &[("handler.py", code("one").as_bytes())])?.ok()?;
    let before = bed.describe("change")?;
    let address = address(&before)?;
    let mut busy = bed.client().connect(address, 80)?;
    ensure!(ask(&mut busy, "/")? == b"one");
    // Under way when the next revision comes.
    write!(busy, "GET /?s=3 HTTP/1.1\r\nHost: test\r\n\r\n")?;
    let mut idle = bed.client().connect(address, 80)?;
    ensure!(ask(&mut idle, "/")? == b"one");
    bed.deploy("change", &[("handler.py", code("two").as_bytes())])?.ok()?;
    ensure!(bed.client().curl("http://change.faas/")? == "two");
    let during = bed.describe("change")?;
    ensure!(during["revision"] == 2 && ready(&during).len() == 1, "{during}");
    ensure!(during["instances"].as_array().is_some_and(|all| all.len() == 2), "it did not wait: {during}");
    let head = answer(&mut busy)?;
    ensure!(head.starts_with("http/1.1 200 ") && head.ends_with("one"), "{head}");
    let after = until(&bed, "change", "the old instance is gone", |f| only(f).is_ok())?;
    ensure!(only(&after)? != only(&before)?, "{after}");
    ensure!(has_ended(&idle) && has_ended(&busy), "the old instance is gone, its connections are not");
    bed.finish()
}

/// What comes until the connection ends or the body is complete, in lower case.
fn answer(stream: &mut std::net::TcpStream) -> Result<String> {
    use std::io::Read;
    let mut text = String::new();
    stream.take(64 << 10).read_to_string(&mut text)?;
    Ok(text.to_ascii_lowercase())
}

pub fn bad_revision() -> Result<()> {
    let bed = Bed::joined()?;
    let good = b"def handle(event, context):\n    return 'good'\n";
    bed.deploy("steady", &[("handler.py", good)])?.ok()?;
    let before = bed.describe("steady")?;
    let mut kept = bed.client().connect(address(&before)?, 80)?;
    ensure!(ask(&mut kept, "/")? == b"good");
    let bad = b"print('the setting is missing')\nraise SystemExit(3)\n";
    let why = bed.deploy("steady", &[("handler.py", bad)])?.failed()?;
    for part in ["steady", "the setting is missing", "3"] {
        ensure!(why.contains(part), "it does not say '{part}': {why}");
    }
    let after = bed.describe("steady")?;
    ensure!(only(&after)? == only(&before)? && after["revision"] == 1 && after["state"] == "warm", "{after}");
    ensure!(ask(&mut kept, "/")? == b"good");
    ensure!(bed.client().curl("http://steady.faas/")? == "good");
    // Nor is a function there that was bad from the start.
    let why = bed.deploy("never", &[("handler.py", bad)])?.failed()?;
    ensure!(why.contains("the setting is missing"), "{why}");
    bed.faas(&["describe", "never"])?.failed()?;
    bed.finish()
}

pub fn removal() -> Result<()> {
    let bed = Bed::joined()?;
    bed.deploy_hello("stays", "")?;
    bed.deploy_hello("goes", "")?;
    let address = |name: &str| address(&bed.describe(name)?);
    let (stays, goes) = (address("stays")?, address("goes")?);
    let mut kept = bed.client().connect(stays, 80)?;
    let mut ended = bed.client().connect(goes, 80)?;
    ask(&mut kept, "/")?;
    ask(&mut ended, "/")?;
    bed.faas(&["rm", "goes", "--yes"])?.ok()?;
    ensure!(has_ended(&ended), "a removed function's connection is still open");
    ensure!(bed.client().connect(goes, 80).is_err(), "a removed function takes connections");
    ask(&mut kept, "/")?;
    ask(&mut bed.client().connect(stays, 80)?, "/")?;
    bed.finish()
}
