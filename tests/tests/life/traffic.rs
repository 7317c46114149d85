//! Revisions and their shares.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use faasd::core::address::FUNCTION_PREFIX;
use faasd_tests::{Bed, Load, address, get, ready, until};

use crate::code::{KINDS, Kind, deploy};

/// How often each answer came, each by a connection of its own.
fn answers(bed: &Bed, name: &str, connections: usize) -> Result<BTreeMap<String, usize>> {
    let address = address(&bed.describe(name)?)?;
    let mut counts = BTreeMap::new();
    bed.client().within(|| {
        for _ in 0..connections {
            let mut stream = std::net::TcpStream::connect((address, 80))?;
            let (_, body) = get(&mut stream, "/")?;
            *counts.entry(String::from_utf8_lossy(&body).into_owned()).or_default() += 1;
        }
        Ok(())
    })?;
    Ok(counts)
}

pub fn split() -> Result<()> {
    let bed = Bed::joined()?;
    for (kind, name) in KINDS.into_iter().zip(["handler", "server"]) {
        deploy(&bed, kind, name, "one", "", &[])?;
        deploy(&bed, kind, name, "two", "", &["--no-traffic"])?;
        deploy(&bed, kind, name, "three", "", &["--no-traffic"])?;
        ensure!(answers(&bed, name, 40)? == BTreeMap::from([("one".to_owned(), 40)]));
        bed.faas(&["traffic", name, "v1=80", "v2=15", "v3=5"])?.ok()?;
        let shares = bed.describe(name)?["traffic"].clone();
        ensure!(shares.as_array().is_some_and(|all| all.len() == 3), "{shares}");
        let counts = answers(&bed, name, 1000)?;
        let count = |text: &str| counts.get(text).copied().unwrap_or_default();
        // Five standard deviations.
        ensure!((737..=863).contains(&count("one")), "{counts:?}");
        ensure!((94..=206).contains(&count("two")), "{counts:?}");
        ensure!((16..=84).contains(&count("three")), "{counts:?}");
        // A share whose instance is gone wakes by its first connection; nobody else is given it.
        bed.faas(&["promote", name, "v3"])?.ok()?;
        ensure!(answers(&bed, name, 40)? == BTreeMap::from([("three".to_owned(), 40)]));
        until(&bed, name, "the others have finished", |f| {
            f["instances"].as_array().is_some_and(|all| all.len() == 1)
        })?;
    }
    bed.finish()
}

pub fn canary() -> Result<()> {
    let bed = Bed::joined()?;
    deploy(&bed, Kind::Handler, "hello", "one", "", &[])?;
    deploy(&bed, Kind::Handler, "hello", "two", "", &["--no-traffic"])?;
    ensure!(bed.client().curl("http://hello.faas/")? == "one");
    let revisions = bed.json(&["revisions", "hello"])?;
    let weights: Vec<_> =
        revisions["revisions"].as_array().into_iter().flatten().map(|r| r["weight"].as_u64()).collect();
    ensure!(weights == [Some(0), Some(100)], "{revisions}");
    until(&bed, "hello", "what only showed that it can has ended", |f| {
        f["instances"].as_array().is_some_and(|all| all.len() == 1)
    })?;
    bed.faas(&["alias", "hello", "canary", "v2"])?.ok()?;
    bed.faas(&["traffic", "hello", "canary=10", "v1=90"])?.ok()?;
    bed.faas(&["promote", "hello", "canary"])?.ok()?;
    ensure!(bed.client().curl("http://hello.faas/")? == "two");
    // What cannot become ready is told, and serves nobody.
    let bad = [("handler.py", b"raise SystemExit('no')\n".as_slice())];
    let why = bed.deploy_with("hello", &bad, &["--no-traffic"])?.failed()?;
    ensure!(why.contains("did not become ready"), "{why}");
    ensure!(bed.client().curl("http://hello.faas/")? == "two");
    bed.finish()
}

pub fn by_name() -> Result<()> {
    let mut bed = Bed::joined()?;
    for (kind, name) in KINDS.into_iter().zip(["handler", "server"]) {
        deploy(&bed, kind, name, "one", "", &[])?;
        deploy(&bed, kind, name, "two", "port = 81\n", &["--no-traffic"])?;
        ensure!(refused(&bed, name, "v2", 81)?, "{name}: v2 is reached without a name or a share");
        // With a name it is reached by that and by its number, from nothing, at its own port; and nobody else is.
        bed.faas(&["alias", name, "next", "v2"])?.ok()?;
        for host in ["next", "v2"] {
            ensure!(bed.client().curl(&format!("http://{host}.{name}.faas:81/"))? == "two");
        }
        ensure!(bed.client().curl(&format!("http://v1.{name}.faas/"))? == "one");
        ensure!(answers(&bed, name, 40)? == BTreeMap::from([("one".to_owned(), 40)]));
        // Whoever serves no more and has no name is out of reach; one that has, is not.
        deploy(&bed, kind, name, "three", "", &[])?;
        ensure!(refused(&bed, name, "v1", 80)?, "{name}: v1 serves no more");
        ensure!(answers(&bed, name, 40)? == BTreeMap::from([("three".to_owned(), 40)]));
        ensure!(bed.client().curl(&format!("http://next.{name}.faas:81/"))? == "two");
        until(&bed, name, "what served before has ended", |f| ready(f).len() <= 2)?;
    }
    // So it is on record.
    bed.end_daemon(rustix::process::Signal::KILL)?;
    bed.serve()?;
    for name in ["handler", "server"] {
        ensure!(bed.client().curl(&format!("http://next.{name}.faas:81/"))? == "two");
        ensure!(bed.client().curl(&format!("http://{name}.faas/"))? == "three");
        bed.faas(&["alias", name, "next", "--rm"])?.ok()?;
        ensure!(refused(&bed, name, "v2", 81)?, "{name}: v2 has no name any more");
    }
    bed.finish()
}

/// Whether nobody is there at a revision's own address.
fn refused(bed: &Bed, name: &str, revision: &str, port: u16) -> Result<bool> {
    let revision: u64 = revision.trim_start_matches('v').parse()?;
    let address = FUNCTION_PREFIX.revision(&name.parse()?, revision);
    let dialled = bed.client().within(|| Ok(std::net::TcpStream::connect((address, port))))?;
    Ok(dialled.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused))
}

pub fn rollback() -> Result<()> {
    let mut bed = Bed::joined()?;
    deploy(&bed, Kind::Server, "hello", "one", "", &[])?;
    bed.faas(&["rollback", "hello"])?.failed()?;
    deploy(&bed, Kind::Handler, "hello", "two", "", &[])?;
    for answer in ["one", "two", "one"] {
        bed.faas(&["rollback", "hello"])?.ok()?;
        ensure!(bed.client().curl("http://hello.faas/")? == answer);
    }
    // What is on record is what serves, whichever daemon reads it.
    bed.end_daemon(rustix::process::Signal::KILL)?;
    bed.serve()?;
    ensure!(bed.client().curl("http://hello.faas/")? == "one");
    bed.faas(&["rollback", "hello", "--to", "v2"])?.ok()?;
    ensure!(bed.client().curl("http://hello.faas/")? == "two");
    bed.finish()
}

pub fn refusals() -> Result<()> {
    let bed = Bed::joined()?;
    deploy(&bed, Kind::Handler, "hello", "one", "", &[])?;
    deploy(&bed, Kind::Handler, "hello", "two", "port = 81", &[])?;
    bed.faas(&["alias", "hello", "stable", "v1"])?.ok()?;
    for (arguments, why) in [
        (&["traffic", "hello", "v1=50"][..], "add up to 100"),
        (&["traffic", "hello", "v1=50", "1=50"], "named twice"),
        (&["traffic", "hello", "v7=100"], "no revision v7"),
        (&["traffic", "hello", "stabel=100"], "did you mean 'stable'"),
        (&["traffic", "hello", "v1"], "REVISION=PERCENT"),
        (&["traffic", "hello", "v1=50", "v2=50"], "same port"),
        (&["promote", "helo", "v1"], "did you mean 'hello'"),
        (&["alias", "hello", "v3", "v1"], "an alias is another name"),
        (&["revisions", "other"], "no function 'other'"),
    ] {
        let said = bed.faas(arguments)?.failed()?;
        ensure!(said.contains(why), "{arguments:?}: {said}");
    }
    ensure!(bed.client().curl("http://hello.faas:81/")? == "two");
    bed.finish()
}

pub fn kept() -> Result<()> {
    let bed = Bed::joined()?;
    deploy(&bed, Kind::Handler, "hello", "0", "", &[])?;
    bed.faas(&["alias", "hello", "first", "v1"])?.ok()?;
    for n in 1..=12 {
        deploy(&bed, Kind::Handler, "hello", &n.to_string(), "", &[])?;
    }
    let revisions = bed.json(&["revisions", "hello"])?;
    let numbers: Vec<_> = revisions["revisions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|r| r["revision"].as_u64())
        .collect();
    ensure!(numbers.len() <= 12 && numbers.first() == Some(&13) && numbers.last() == Some(&1), "{numbers:?}");
    ensure!(!numbers.contains(&2), "{numbers:?}");
    bed.faas(&["promote", "hello", "first"])?.ok()?;
    ensure!(bed.client().curl("http://hello.faas/")? == "0");
    bed.finish()
}

pub fn under_load() -> Result<()> {
    let bed = Bed::joined()?;
    let scale = "[scale]\nmin = 1\nmax = 4\nconcurrency = 4\nidle = '2s'\n";
    for (kind, name) in KINDS.into_iter().zip(["handler", "server"]) {
        deploy(&bed, kind, name, "1", scale, &[])?;
        let address = address(&bed.describe(name)?)?;
        let kept = Load::keeping(&bed.client(), address, 80, 6)?;
        let new = Load::reconnecting(&bed.client(), address, 80, 4)?;
        until(&bed, name, "more instances", |f| ready(f).len() > 1)?;
        for n in 2..=4 {
            deploy(&bed, kind, name, &n.to_string(), scale, &[])?;
            kept.more(200).with_context(|| format!("{name}, deploy {n}"))?;
            new.more(50).with_context(|| format!("{name}, deploy {n}"))?;
        }
        for _ in 0..3 {
            bed.faas(&["rollback", name])?.ok()?;
            kept.more(200).with_context(|| format!("{name}, rollback"))?;
            new.more(50).with_context(|| format!("{name}, rollback"))?;
        }
        bed.faas(&["traffic", name, "v3=50", "v4=50"])?.ok()?;
        kept.more(200)?;
        new.more(100)?;
        bed.faas(&["promote", name, "v4"])?.ok()?;
        // Scaled in while they go on: most leave, and what they leave is not needed.
        kept.finish().with_context(|| format!("{name}: kept alive"))?;
        let slow = Load::reconnecting(&bed.client(), address, 80, 1)?;
        new.finish().with_context(|| format!("{name}: new connections"))?;
        until(&bed, name, "scaled in", |f| ready(f).len() == 1)?;
        slow.more(50)?;
        std::thread::sleep(Duration::from_millis(500));
        slow.finish().with_context(|| format!("{name}: while it was scaled in"))?;
    }
    bed.finish()
}
