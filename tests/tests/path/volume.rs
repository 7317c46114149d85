//! Many connections: none of them costs the daemon memory or a descriptor.

use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
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

/// An allocator takes more now and then, for a thread that has had nothing to do before. What a connection costs, it costs
/// each time.
const TRIES: usize = 3;

pub fn nothing_grows() -> Result<()> {
    let bed = Bed::serving()?;
    bed.deploy_hello("hello", "[limits]\nmemory = \"512MiB\"\ncpu = 2\n")?;
    let function = bed.describe("hello")?;
    let (address, ingress) = (address(&function)?, bed.ingress()?);
    let daemon = bed.daemon();
    let finished = || until(&bed, "hello", "none left", |f| f["instances"][0]["in_flight"] == 0).map(drop);

    // Queues and buffers grow to their working size: as many at once as later.
    pass(&ingress, address, PASSING / 20)?;
    drop(idle(&ingress, address, IDLE)?);
    finished()?;

    let held = costs_nothing(daemon, "idle connections", |before| {
        let mut streams = idle(&ingress, address, IDLE)?;
        until(&bed, "hello", "all are handed over", |f| f["instances"][0]["in_flight"] == IDLE)?;
        let after = before.later(daemon)?;
        for stream in streams.iter_mut().step_by(500) {
            ensure!(get(stream, "/")?.0 == 200);
        }
        drop(streams);
        finished()?;
        Ok(after)
    })?;
    let passed = costs_nothing(daemon, "connections that pass", |before| {
        pass(&ingress, address, PASSING)?;
        finished()?;
        before.later(daemon)
    })?;
    let after = until(&bed, "hello", "all are finished", |f| f["instances"][0]["in_flight"] == 0)?;
    let connections = &after["connections"];
    let all = PASSING / 20 + IDLE + held * IDLE + passed * PASSING;
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

/// What the daemon has.
#[derive(Clone, Copy, Debug)]
struct Holds {
    heap_bytes: u64,
    descriptors: usize,
}

impl Holds {
    fn now(daemon: u32) -> Result<Self> {
        Ok(Self { heap_bytes: anonymous_bytes_of(daemon)?, descriptors: descriptors_of(daemon)? })
    }

    /// What it has later, with no more descriptors: sockets of the API's last clients may take a moment to be closed.
    fn later(self, daemon: u32) -> Result<Self> {
        let few = || descriptors_of(daemon).is_ok_and(|now| now <= self.descriptors);
        eventually("no further descriptors", few)
            .with_context(|| format!("{:?}, before {self:?}", descriptors_of(daemon)))?;
        Self::now(daemon)
    }
}

/// Does something that is to cost the daemon nothing, and returns how many times it took to show that.
fn costs_nothing(
    daemon: u32,
    what: &str,
    mut connections: impl FnMut(Holds) -> Result<Holds>,
) -> Result<usize> {
    let mut seen = Vec::new();
    for time in 1..=TRIES {
        let before = Holds::now(daemon)?;
        let after = connections(before).with_context(|| what.to_owned())?;
        eprintln!("{what}: {} KiB of heap, {} KiB before", after.heap_bytes >> 10, before.heap_bytes >> 10);
        if after.heap_bytes <= before.heap_bytes + NOISE_BYTES {
            return Ok(time);
        }
        seen.push((before, after));
    }
    bail!("{what} cost the daemon heap each time: {seen:?}")
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
