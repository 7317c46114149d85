//! Who holds a connection, and who gets it.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result, ensure};
use faasd_tests::{Bed, established, eventually, signal, sockets_of};
use rustix::process::Signal;
use serde_json::Value;

use crate::{address, ask, only, ready, until};

pub fn descriptors() -> Result<()> {
    const CONNECTIONS: usize = 50;
    let bed = Bed::joined()?;
    bed.deploy_hello("hello", "")?;
    let address = address(&bed.describe("hello")?)?;
    let mut streams = (0..CONNECTIONS)
        .map(|_| Ok(bed.client().connect(address, 80)?))
        .collect::<Result<Vec<TcpStream>>>()?;
    for stream in &mut streams {
        ask(stream, "/")?;
    }
    let function = bed.describe("hello")?;
    let connections = established(&bed.ingress()?, 80)?;
    ensure!(connections.len() == CONNECTIONS, "{} sockets", connections.len());
    let container = sockets_of(only(&function)?)?;
    ensure!(
        container.is_superset(&connections),
        "the container lacks {:?}",
        connections.difference(&container)
    );
    let store = bed.helper("fdstore").context("no descriptor store")?;
    for (who, pid) in [("the daemon", bed.daemon()), ("the descriptor store", store)] {
        let own = sockets_of(pid)?;
        // What it does hold shows that we would see it.
        ensure!(!own.is_empty(), "{who} has no sockets at all");
        let kept: Vec<_> = own.intersection(&connections).collect();
        ensure!(kept.is_empty(), "{who} holds connections: {kept:?}");
    }
    let lanes = &function["connections"];
    for lane in ["steered", "accepted", "handed_off"] {
        ensure!(lanes[lane] == CONNECTIONS, "{lane}: {lanes}");
    }
    // With nobody else to hold it, the function's close is the client's end, and the client's the function's.
    drop(streams);
    until(&bed, "hello", "the function sees all clients leave", |f| f["instances"][0]["in_flight"] == 0)?;
    ensure!(
        sockets_of(only(&function)?)?.is_disjoint(&connections),
        "the container keeps closed connections"
    );
    bed.finish()
}

pub fn spread() -> Result<()> {
    let bed = Bed::joined()?;
    bed.deploy_hello("hello", "[scale]\nmin = 3\n")?;
    let function = until(&bed, "hello", "three instances", |f| ready(f).len() == 3)?;
    let address = address(&function)?;
    let idle = (0..30).map(|_| Ok(bed.client().connect(address, 80)?)).collect::<Result<Vec<_>>>()?;
    until(&bed, "hello", "ten connections each", |f| in_flight(f) == [10, 10, 10])?;
    // Those that leave make room where they were: what comes next fills it.
    drop(idle);
    until(&bed, "hello", "none left", |f| in_flight(f) == [0, 0, 0])?;
    let _again = (0..9).map(|_| Ok(bed.client().connect(address, 80)?)).collect::<Result<Vec<_>>>()?;
    until(&bed, "hello", "three connections each", |f| in_flight(f) == [3, 3, 3])?;
    bed.finish()
}

pub fn requeue() -> Result<()> {
    let bed = Bed::joined()?;
    bed.deploy_hello("hello", "[scale]\nmin = 3\n")?;
    let function = until(&bed, "hello", "three instances", |f| ready(f).len() == 3)?;
    let (address, victim) = (address(&function)?, ready(&function)[0]);
    // Stopped, it receives nothing, while its socket goes on taking connections.
    signal(victim, Signal::STOP)?;
    let mut streams = (0..30).map(|_| Ok(bed.client().connect(address, 80)?)).collect::<Result<Vec<_>>>()?;
    until(&bed, "hello", "ten connections each", |f| in_flight(f) == [10, 10, 10])?;
    for stream in &mut streams {
        write!(stream, "GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
    }
    let queued = |f: &Value| {
        let instances = f["instances"].as_array().into_iter().flatten();
        instances.filter(|i| i["pid"] == victim).filter_map(|i| i["in_flight"].as_u64()).sum::<u64>()
    };
    let before = until(&bed, "hello", "only the stopped one keeps clients waiting", |f| {
        in_flight(f).iter().sum::<u64>() == 10 && queued(f) == 10
    })?;
    ensure!(before["connections"]["requeued"] == 0, "{before}");
    signal(victim, Signal::KILL)?;
    for mut stream in streams {
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("hello from faasd\n"), "{answer:?}");
    }
    let after =
        until(&bed, "hello", "it is replaced", |f| ready(f).len() == 3 && !ready(f).contains(&victim))?;
    ensure!(after["connections"]["requeued"] == queued(&before), "{after}");
    ensure!(after["connections"]["accepted"] == 30, "{after}");
    let stayed: BTreeSet<_> = ready(&function).into_iter().filter(|pid| *pid != victim).collect();
    ensure!(stayed.is_subset(&ready(&after).into_iter().collect()), "others were replaced too: {after}");
    eventually("no connection is left", || {
        bed.ingress().is_ok_and(|ns| established(&ns, 80).is_ok_and(|all| all.is_empty()))
    })?;
    bed.finish()
}

/// Connections of each instance.
fn in_flight(function: &Value) -> Vec<u64> {
    let instances = function["instances"].as_array().into_iter().flatten();
    instances.filter_map(|i| i["in_flight"].as_u64()).collect()
}
