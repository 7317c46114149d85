//! The kernel's maps while somebody else writes into them, and policy where the kernel program has no say.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use faasd_common::maps;
use faasd_tests::{Bed, address, eventually, program};

use crate::{refused, served, two};

fn pinned(bed: &Bed, map: &str) -> Result<Map> {
    let pins = PathBuf::from("/sys/fs/bpf").join(bed.name());
    Ok(Map::HashMap(MapData::from_pin(pins.join(map))?))
}

fn metric(bed: &Bed, name: &str) -> Result<u64> {
    let metrics = bed.client().curl("http://[fd00:faa5:0:100::1]:9464/metrics")?;
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    Ok(line.with_context(|| format!("there is no {name}"))?.trim().parse()?)
}

pub fn put_right() -> Result<()> {
    let bed = two()?;
    bed.deploy_hello("hello", "")?;
    bed.deploy_hello("orders", "")?;
    let (hello, orders) = (address(&bed.describe("hello")?)?, address(&bed.describe("orders")?)?);
    bed.faas(&["deny", "other", "hello"])?.ok()?;
    bed.faas(&["policy", "default", "closed", "orders"])?.ok()?;
    bed.faas(&["allow", "client", "orders"])?.ok()?;
    let policy = "faasd_kernel_entries_repaired_total{maps=\"policy\"}";
    let steering = "faasd_kernel_entries_repaired_total{maps=\"steering\"}";
    ensure!((metric(&bed, policy)?, metric(&bed, steering)?) == (0, 0), "something was put right already");

    // Rules that are gone, a stranger who is let in everywhere, a function without a route, and one whose route asks for
    // no rules.
    let mut rules: HashMap<MapData, [u32; 5], u32> = pinned(&bed, maps::RULES)?.try_into()?;
    for key in rules.keys().collect::<Result<Vec<_>, _>>()? {
        rules.remove(&key)?;
    }
    let mut subjects: HashMap<MapData, [u32; 4], [u32; 9]> = pinned(&bed, maps::SUBJECTS)?.try_into()?;
    let stranger = [1, 2, 3, 4];
    subjects.insert(stranger, [4711, 0, 0, 0, 0, 0, 0, 0, 0], 0)?;
    let mut routes: HashMap<MapData, [u32; 5], [u32; 2]> = pinned(&bed, maps::ROUTES)?.try_into()?;
    let port = |key: &[u32; 5]| key[4] == 80;
    let of = |address: std::net::Ipv6Addr| {
        let [a, b, c, d] = faasd::sys::bpf::words(address);
        move |key: &[u32; 5]| key[..4] == [a, b, c, d]
    };
    let keys: Vec<[u32; 5]> = routes.keys().collect::<Result<_, _>>()?;
    let find = |address| keys.iter().find(|key| port(key) && of(address)(key)).copied();
    let (gone, bare) = (find(hello).context("no route")?, find(orders).context("no route")?);
    let [slot, flags] = routes.get(&bare, 0)?;
    ensure!(flags != 0, "the route asks for rules");
    routes.insert(bare, [slot, 0], 0)?;
    routes.remove(&gone)?;

    eventually("the maps are as they were", || {
        rules.keys().count() == 2 && routes.get(&bare, 0).is_ok_and(|route| route == [slot, flags])
    })?;
    eventually("the last of it is counted", || {
        metric(&bed, policy).is_ok_and(|n| n == 3) && metric(&bed, steering).is_ok_and(|n| n == 2)
    })?;
    ensure!(subjects.get(&stranger, 0).is_err(), "a stranger stays");
    let (client, other) = (bed.client(), bed.client_at(2));
    for to in [hello, orders] {
        refused(&other, to)?;
        served(&client, to)?;
    }
    ensure!(metric(&bed, "faasd_kernel_entries_behind{maps=\"policy\"}")? == 0);
    bed.finish()
}

/// What comes back of a request: nothing, if the connection was reset.
fn answer(mut stream: TcpStream, path: &str) -> String {
    let mut all = String::new();
    let asked = write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    let _ = asked.and_then(|()| stream.read_to_string(&mut all));
    all
}

pub fn passed_on() -> Result<()> {
    const WHO: &[u8] = b"def handle(event, context):\n    return context.function\n";
    let bed = two()?;
    bed.deploy("hello", &[("handler.py", WHO)])?.ok()?;
    bed.deploy_program("router", &program("examples/router"), "forward = ['hello']")?.ok()?;
    let router = address(&bed.describe("router")?)?;
    let (client, other) = (bed.client(), bed.client_at(2));
    bed.faas(&["deny", "other", "hello"])?.ok()?;
    ensure!(answer(client.connect(router, 80)?, "/hello").ends_with("hello"));
    ensure!(answer(other.connect(router, 80)?, "/hello").is_empty(), "it got where it may not");
    ensure!(metric(&bed, "faasd_forward_refused_connections_total{function=\"router\"}")? == 1);
    ensure!(bed.describe("hello")?["connections"]["forwarded"] == 1);
    bed.faas(&["allow", "other", "hello"])?.ok()?;
    ensure!(answer(other.connect(router, 80)?, "/hello").ends_with("hello"));
    bed.finish()
}
