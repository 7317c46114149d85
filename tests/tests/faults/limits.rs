//! The API's limits.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use faasd::api::types::ARCHIVE_BYTES_MAX;
use faasd_tests::Bed;

use crate::check::is_idle;

fn open(bed: &Bed) -> Result<UnixStream> {
    let stream = UnixStream::connect(bed.path("run/faasd.sock"))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.set_write_timeout(Some(Duration::from_secs(20)))?;
    Ok(stream)
}

fn status(stream: &mut UnixStream) -> Result<(u16, String)> {
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    while !answer.windows(4).any(|w| w == b"\r\n\r\n") {
        let read = stream.read(&mut piece)?;
        ensure!(read > 0, "no answer: {}", String::from_utf8_lossy(&answer));
        answer.extend(&piece[..read]);
    }
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, text))
}

pub fn archive() -> Result<()> {
    let bed = Bed::serving()?;
    // One that says so is not even read.
    let mut stream = open(&bed)?;
    write!(
        stream,
        "POST /v1/images HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        ARCHIVE_BYTES_MAX + 1
    )?;
    let (code, text) = status(&mut stream)?;
    ensure!(code == 413, "{text}");
    // What is no archive is refused as well, and not kept.
    let mut stream = open(&bed)?;
    let rubbish = "this is no tar archive".repeat(100);
    write!(
        stream,
        "POST /v1/images HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{rubbish}",
        rubbish.len()
    )?;
    let (code, text) = status(&mut stream)?;
    ensure!(code == 400 || code == 422, "{text}");
    // One that hangs up half-way leaves nothing.
    let mut stream = open(&bed)?;
    write!(stream, "POST /v1/images HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{rubbish}")?;
    drop(stream);
    is_idle(&bed)?;
    bed.finish()
}

pub fn connections() -> Result<()> {
    let bed = Bed::serving()?;
    // More than are served at a time: the last ones wait until one of the first is done.
    let mut all = (0..300).map(|_| open(&bed)).collect::<Result<Vec<_>>>()?;
    for stream in &mut all {
        write!(stream, "GET /v1/version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    }
    for (n, stream) in all.iter_mut().enumerate() {
        let (code, text) = status(stream).with_context(|| format!("connection {n}"))?;
        ensure!(code == 200, "{text}");
    }
    drop(all);
    bed.faas(&["ls"])?.ok()?;
    bed.finish()
}
