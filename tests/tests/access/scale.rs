//! Ten thousand peers and a hundred thousand rules: what one of them costs is what it costs among ten.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use faasd::control::records::PeerRecord;
use faasd::control::store::{Embedded, Store, json_write};
use faasd::core::access::Role;
use faasd::core::address::VPN_PREFIX;
use faasd::core::paths::Paths;
use faasd::tunnel::keys::PrivateKey;
use faasd_tests::{Bed, address};
use rustix::process::Signal;
use serde_json::json;

const FUNCTIONS: usize = 10;
const ROUNDS: usize = 15;

/// Subjects of one command.
const AT_ONCE: usize = 1000;

/// What may be lost to whatever else this machine does.
const NOISE: Duration = Duration::from_millis(25);

pub fn flat() -> Result<()> {
    let few = medians(10)?;
    let many = medians(10_000)?;
    for ((what, few), (_, many)) in few.into_iter().zip(many) {
        println!("{what}: {few:?} among 10 peers, {many:?} among 10,000");
        ensure!(many < few * 2 + NOISE, "{what} takes {many:?} among 10,000 peers, and {few:?} among 10");
    }
    Ok(())
}

fn peer(number: usize) -> String {
    format!("peer-{number}")
}

/// How long changes and connections take with so many peers, each with a rule for each function.
fn medians(peers: usize) -> Result<Vec<(&'static str, Duration)>> {
    let mut bed = Bed::joined()?;
    let functions: Vec<String> = (0..FUNCTIONS).map(|n| format!("hello-{n}")).collect();
    for name in &functions {
        bed.deploy_hello(name, "")?;
    }
    bed.end_daemon(Signal::TERM)?;
    add_peers(&bed, peers)?;
    bed.serve()?;
    let names: Vec<String> = (0..peers).map(peer).collect();
    for subjects in names.chunks(AT_ONCE) {
        let allow = json!({ "action": "allow", "subjects": subjects, "functions": functions });
        ask(&bed, "POST", "/v1/policy", &allow.to_string())?;
    }
    let to = address(&bed.describe(&functions[0])?)?;
    let client = bed.client();
    let invite = |n| json!({ "name": format!("new-{n}"), "expires_in_ms": 60_000 }).to_string();
    let deny = |n| {
        let action = if n % 2 == 0 { "deny" } else { "allow" };
        json!({ "action": action, "subjects": [peer(0)], "functions": [functions[0]] }).to_string()
    };
    let medians = vec![
        ("inviting", median(|n| ask(&bed, "POST", "/v1/peers", &invite(n)))?),
        ("changing a rule", median(|n| ask(&bed, "POST", "/v1/policy", &deny(n)))?),
        (
            "revoking who has joined",
            median(|n| match n < peers / 2 {
                // With its ten rules.
                true => ask(&bed, "DELETE", &format!("/v1/peers/{}", peer(n)), ""),
                false => ask(&bed, "DELETE", &format!("/v1/peers/new-{n}"), ""),
            })?,
        ),
        ("connecting", median(|_| client.connect(to, 80).map(drop).map_err(Into::into))?),
    ];
    bed.finish()?;
    Ok(medians)
}

/// As if they had joined: each would take a handshake.
fn add_peers(bed: &Bed, peers: usize) -> Result<()> {
    let paths = Paths {
        state: bed.path("state"),
        run: bed.path("run"),
        wireguard: bed.path("wireguard"),
        instance: bed.name().to_owned(),
        cgroup: None,
    };
    let store = Embedded::open(&paths.store())?;
    let writes = (0..peers).map(|number| {
        let name = peer(number).parse()?;
        let record = PeerRecord {
            number: 100 + number as u32,
            address: VPN_PREFIX.host(1000 + number as u64),
            role: Role::User,
            public_key: PrivateKey::generate().public().to_string(),
            invited_until: None,
            endpoint: None,
            name,
        };
        Ok(json_write(PeerRecord::key(&record.name), &record)?)
    });
    Ok(store.write_all(&writes.collect::<Result<Vec<_>>>()?)?)
}

fn median(mut work: impl FnMut(usize) -> Result<()>) -> Result<Duration> {
    let mut all = Vec::new();
    for n in 0..ROUNDS {
        let began = Instant::now();
        work(n)?;
        all.push(began.elapsed());
    }
    all.sort();
    Ok(all[ROUNDS / 2])
}

/// A request to the API, without the time that a program takes to start.
fn ask(bed: &Bed, method: &str, path: &str, body: &str) -> Result<()> {
    let mut stream = UnixStream::connect(bed.path("run/faasd.sock"))?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: faasd\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).context("no status")?;
    ensure!(status.starts_with('2'), "{method} {path}: {answer}");
    Ok(())
}
