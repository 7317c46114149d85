//! What clients see: answers, refusals, names.

use std::io;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use faasd_tests::{Bed, eventually};

use crate::address;

/// A refusal comes within a round trip; a timeout takes seconds.
const AT_ONCE: Duration = Duration::from_secs(2);

pub fn both_kinds() -> Result<()> {
    let bed = Bed::joined()?;
    let handler = b"def handle(event, context):\n    \
        print('asked for', event.path)\n    \
        return event.body if event.method == 'POST' else 'hello from a handler'\n";
    bed.deploy("script", &[("handler.py", handler)])?.ok()?;
    bed.deploy_hello("compiled", "")?;
    let client = bed.client();
    ensure!(client.curl("http://script.faas/some/path")? == "hello from a handler");
    ensure!(client.curl("http://compiled.faas/")? == "hello from faasd\n");
    let long = "a body of more than one segment; ".repeat(1000);
    for name in ["script", "compiled"] {
        let url = format!("http://{name}.faas/echo");
        let echo = client.run(&["curl", "-sS", "--max-time", "20", "--data-binary", &long, &url])?.ok()?;
        ensure!(echo == long, "{name}: {} bytes came back", echo.len());
    }
    ensure!(bed.faas(&["invoke", "script"])?.ok()?.trim_end() == "hello from a handler");
    ensure!(bed.faas(&["invoke", "compiled", "/echo", "-d", "there and back"])?.ok()? == "there and back");
    let failed = bed.faas(&["invoke", "compiled", "/nowhere"])?;
    ensure!(failed.status == Some(1), "{failed:?}");
    let logged = |line: &str| bed.faas(&["logs", "script"]).is_ok_and(|logs| logs.out.contains(line));
    eventually("what the handler printed is in its log", || logged("asked for /some/path"))?;
    for name in ["script", "compiled"] {
        let connections = &bed.describe(name)?["connections"];
        for lane in ["accepted", "handed_off"] {
            ensure!(connections[lane] == connections["steered"], "{name}: {connections}");
        }
        ensure!(connections["refused"] == 0, "{name}: {connections}");
    }
    bed.finish()
}

pub fn refusals() -> Result<()> {
    let bed = Bed::joined()?;
    bed.deploy_hello("hello", "")?;
    let hello = address(&bed.describe("hello")?)?;
    // Another function's address, and that of a revision that there is not.
    let (mut nobody, mut no_revision) = (hello.octets(), hello.octets());
    nobody[13] ^= 1;
    no_revision[15] = 9;
    for (address, port) in [(hello, 81), (hello, 22), (nobody.into(), 80), (no_revision.into(), 80)] {
        let began = Instant::now();
        let refused = bed.client().connect(address, port).map(drop);
        let kind = refused.map_err(|e| e.kind());
        ensure!(kind == Err(io::ErrorKind::ConnectionRefused), "[{address}]:{port}: {kind:?}");
        ensure!(began.elapsed() < AT_ONCE, "[{address}]:{port} took {:?}", began.elapsed());
    }
    let began = Instant::now();
    let unknown = bed.client().run(&["curl", "-sS", "http://nobody.faas/"])?;
    // 6: could not resolve host.
    ensure!(unknown.status == Some(6), "{unknown:?}");
    ensure!(began.elapsed() < AT_ONCE, "an unknown name took {:?}", began.elapsed());
    bed.finish()
}

pub fn names() -> Result<()> {
    let bed = Bed::joined()?;
    // Asked for before it is there: the next answer must not be remembered from this one.
    ensure!(dig(&bed, "AAAA", "hello.faas")? == ("NXDOMAIN".to_owned(), Vec::new()));
    for round in 0..3 {
        bed.deploy_hello("hello", "")?;
        let address = address(&bed.describe("hello")?)?.to_string();
        let answer = dig(&bed, "AAAA", "hello.faas")?;
        ensure!(answer == ("NOERROR".to_owned(), vec![address]), "round {round}: {answer:?}");
        let answer = dig(&bed, "A", "hello.faas")?;
        ensure!(answer == ("NOERROR".to_owned(), Vec::new()), "round {round}: {answer:?}");
        bed.faas(&["rm", "hello", "--yes"])?.ok()?;
        let answer = dig(&bed, "AAAA", "hello.faas")?;
        ensure!(answer == ("NXDOMAIN".to_owned(), Vec::new()), "round {round}: {answer:?}");
    }
    bed.finish()
}

/// The status of a DNS answer, and the data of its records.
fn dig(bed: &Bed, kind: &str, name: &str) -> Result<(String, Vec<String>)> {
    let command = ["dig", "+noall", "+comments", "+answer", "+tries=1", "+time=5", kind, name];
    let out = bed.client().run(&command)?.ok()?;
    let status = out.lines().find_map(|line| line.split_once("status: ")?.1.split(',').next());
    let records = out.lines().filter(|line| line.starts_with(name));
    let data = records.filter_map(|line| line.split_whitespace().last()).map(str::to_owned).collect();
    Ok((status.unwrap_or_default().to_owned(), data))
}
