//! Many connections: none of them costs the daemon memory or a descriptor.

use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use faasd::sys::netns::NetNs;
use faasd_tests::{Bed, anonymous_bytes_of, descriptors_of, eventually, get};
use socket2::{Domain, Socket, Type};

use crate::{address, until};

const IDLE: usize = 10_000;
const PASSING: usize = 100_000;
const THREADS: usize = 4;

/// The daemon's heap may grow by a page here and there, with the size of its answers and its allocator's habits. A
/// connection that cost it anything at all, were it one pointer in a list, would cost 16 bytes: 1.6 MB for those that
/// pass and 160 KB for those that stay.
const NOISE_BYTES: u64 = 128 << 10;

pub fn nothing_grows() -> Result<()> {
    let bed = Bed::serving()?;
    bed.deploy_hello("hello", "[limits]\nmemory = \"512MiB\"\ncpu = 2\n")?;
    let function = bed.describe("hello")?;
    let (address, ingress) = (address(&function)?, bed.ingress()?);
    let daemon = bed.daemon();
    let holds = |what: &str, memory: u64, descriptors: usize| -> Result<()> {
        // Sockets of the API's last clients may still be open.
        eventually("no further descriptors", || descriptors_of(daemon).is_ok_and(|n| n <= descriptors))
            .with_context(|| format!("{what}: {:?}, were {descriptors}", descriptors_of(daemon)))?;
        let now = anonymous_bytes_of(daemon)?;
        eprintln!("{what}: {} KiB of heap, {} KiB before", now >> 10, memory >> 10);
        ensure!(now <= memory + NOISE_BYTES, "{what}: {now} bytes of heap, {memory} before");
        Ok(())
    };

    // Queues and buffers grow to their working size.
    pass(&ingress, address, PASSING / 20)?;
    // As many at once as later, so that queues have their working size before anything is measured.
    drop(idle(&ingress, address, IDLE)?);
    until(&bed, "hello", "none left", |f| f["instances"][0]["in_flight"] == 0)?;
    let (memory, descriptors) = (anonymous_bytes_of(daemon)?, descriptors_of(daemon)?);

    let mut streams = idle(&ingress, address, IDLE)?;
    until(&bed, "hello", "all are handed over", |f| f["instances"][0]["in_flight"] == IDLE)?;
    holds("with idle connections", memory, descriptors)?;
    for stream in streams.iter_mut().step_by(500) {
        ensure!(get(stream, "/")?.0 == 200);
    }
    drop(streams);
    until(&bed, "hello", "none left", |f| f["instances"][0]["in_flight"] == 0)?;

    pass(&ingress, address, PASSING)?;
    holds("after many connections", memory, descriptors)?;
    let after = until(&bed, "hello", "all are finished", |f| f["instances"][0]["in_flight"] == 0)?;
    let connections = &after["connections"];
    let all = PASSING + PASSING / 20 + IDLE + IDLE;
    for lane in ["accepted", "handed_off"] {
        ensure!(connections[lane] == all, "{lane} should be {all}: {connections}");
    }
    // A SYN that was lost in the crowd is steered again when it comes again.
    ensure!(connections["steered"].as_u64() >= Some(all as u64), "fewer than {all}: {connections}");
    ensure!(
        after["instances"][0]["pid"] == function["instances"][0]["pid"],
        "its instance did not live: {after}"
    );
    bed.finish()
}

/// Connections that are opened and left alone.
fn idle(ingress: &NetNs, address: Ipv6Addr, count: usize) -> io::Result<Vec<TcpStream>> {
    ingress.run(|| (0..count).map(|_| connect(address)).collect())
}

/// Connections with one request each, from several threads, one after the other in each.
fn pass(ingress: &NetNs, address: Ipv6Addr, count: usize) -> io::Result<()> {
    let share = || ingress.run(|| (0..count / THREADS).try_for_each(|_| once(address)));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(share)).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|_| Err(io::Error::other("panic"))))
    })
}

/// The function closes first, so that the client's port is free again.
fn once(address: Ipv6Addr) -> io::Result<()> {
    let mut stream = connect(address)?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
    let mut answer = [0; 1024];
    let mut length = 0;
    loop {
        match stream.read(&mut answer[length..])? {
            0 => break,
            n => length += n,
        }
    }
    if answer[..length].starts_with(b"HTTP/1.1 200 ") {
        Ok(())
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

fn connect(address: Ipv6Addr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
    // With the daemon's own mark the egress guard lets a connection be made from inside the ingress. That saves
    // encrypting 100,000 of them; all else on their path is as it is for clients.
    socket.set_mark(faasd_common::DAEMON_MARK)?;
    socket.connect(&SocketAddr::from((address, 80)).into())?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok(stream)
}
