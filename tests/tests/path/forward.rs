//! Connections that a function passes on, and those that wait for a function's limit.

use std::io::Write;

use anyhow::{Context, Result, ensure};
use faasd_tests::{Bed, eventually, program, signal};
use rustix::process::Signal;

use crate::{address, ask, has_ended, only, until};

fn is_without_instances(function: &serde_json::Value) -> bool {
    faasd_tests::started(function) == 0
}

/// A handler that says who it is and who asked.
const HELLO: &[u8] =
    b"def handle(event, context):\n    return f'{context.function} {event.path} {context.client[0]}'\n";

pub fn passed_on() -> Result<()> {
    let bed = Bed::joined()?;
    let router = program("examples/router");
    bed.deploy("hello", &[("handler.py", HELLO), ("faas.toml", b"[scale]\nmin = 0\n")])?.ok()?;
    bed.deploy("secret", &[("handler.py", HELLO)])?.ok()?;
    bed.deploy_program("router", &router, "forward = ['hello', 'nobody']")?.ok()?;
    let router = address(&bed.describe("router")?)?;
    let connect = || Ok::<_, anyhow::Error>(bed.client().connect(router, 80)?);

    // The other function's answer comes by the connection that was dialled, which stays open for further ones, and the
    // caller is who called.
    let mut stream = connect()?;
    let own = stream.local_addr()?.ip().to_string();
    for path in ["/hello/a", "/hello/b", "/other"] {
        let answer = String::from_utf8(ask(&mut stream, path)?)?;
        ensure!(answer == format!("hello {path} {own}"), "{answer}");
    }
    ensure!(bed.describe("hello")?["connections"]["forwarded"] == 1);

    // From nothing.
    signal(only(&bed.describe("hello")?)?, Signal::KILL)?;
    until(&bed, "hello", "its instance is gone", is_without_instances)?;
    ensure!(ask(&mut connect()?, "/hello/c")?.starts_with(b"hello /hello/c"));

    // What is not declared, and what is not there, is reset, and the router goes on.
    let before = only(&bed.describe("router")?)?;
    for path in ["/secret", "/nobody", "/ROUTER", "/router"] {
        let mut stream = connect()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\n\r\n")?;
        eventually(path, || has_ended(&stream)).context("a connection that nobody may take stays")?;
        if path == "/ROUTER" {
            // No name at all: that breaks the protocol.
            until(&bed, "router", "it is replaced", |f| only(f).is_ok_and(|pid| pid != before))?;
        }
    }
    ensure!(bed.describe("secret")?["connections"]["forwarded"] == 0);
    ensure!(ask(&mut connect()?, "/hello/d")?.starts_with(b"hello /hello/d"));
    bed.finish()
}

pub fn limited() -> Result<()> {
    let bed = Bed::joined()?;
    bed.deploy("hello", &[("handler.py", HELLO)])?.ok()?;
    bed.deploy_program("router", &program("examples/router"), "forward = ['hello']")?.ok()?;
    let router = address(&bed.describe("router")?)?;
    // It takes one at a time, and this one says nothing for now: the others wait where they can still go elsewhere.
    let mut first = bed.client().connect(router, 80)?;
    until(&bed, "router", "it has the first", |f| f["connections"]["handed_off"] == 1)?;
    let mut others = (0..5).map(|_| Ok(bed.client().connect(router, 80)?)).collect::<Result<Vec<_>>>()?;
    for stream in &mut others {
        write!(stream, "GET /hello HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
    }
    until(&bed, "router", "the others have come", |f| f["connections"]["steered"] == 6)?;
    let waiting = bed.describe("router")?;
    ensure!(waiting["connections"]["handed_off"] == 1, "{waiting}");
    ensure!(ask(&mut first, "/hello")?.starts_with(b"hello"));
    for (n, stream) in others.iter_mut().enumerate() {
        let mut answer = String::new();
        std::io::Read::read_to_string(stream, &mut answer).with_context(|| format!("connection {n}"))?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "connection {n}: {answer}");
    }
    ensure!(bed.describe("router")?["connections"]["handed_off"] == 6);
    bed.finish()
}
