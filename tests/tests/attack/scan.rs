//! A peer that may nothing, and looks for something.

use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use faasd::core::address::{FUNCTION_PREFIX, VPN_PREFIX};
use faasd_tests::{DEADLINE, address, get};

use crate::{HTTP_PORT, decided, is_refused, metric, two};

/// Addresses that are tried, and ports of the one that there is.
const ADDRESSES: usize = 2_000;
const PORTS: u16 = 2_000;

/// Who scan at the same time.
const SCANNERS: usize = 16;

pub fn refused() -> Result<()> {
    let bed = two()?;
    bed.deploy_hello("hello", "")?;
    let hello = address(&bed.describe("hello")?)?;
    bed.faas(&["policy", "default", "closed"])?.ok()?;
    bed.faas(&["allow", "client", "hello"])?.ok()?;
    let counts = || -> Result<[u64; 4]> {
        Ok([
            decided(&bed, "unknown")?,
            decided(&bed, "denied")?,
            decided(&bed, "steered")?,
            decided(&bed, "warm")?,
        ])
    };
    let before = counts()?;

    // Every third address of a stretch around the function's own, and every port of it.
    let near = (0..ADDRESSES as u128).map(|n| {
        let host = (hello.to_bits() as u64).wrapping_sub(3_000).wrapping_add(3 * n as u64) as u128;
        Ipv6Addr::from(FUNCTION_PREFIX.network().to_bits() & !u128::from(u64::MAX) | host)
    });
    let targets: Vec<SocketAddr> = near
        .filter(|address| *address != hello)
        .map(|address| (address, 80).into())
        .chain((1..=PORTS).map(|port| (hello, port).into()))
        .collect();
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let ns = bed.client_at(2).netns()?;
    std::thread::scope(|scope| {
        for _ in 0..SCANNERS {
            scope.spawn(|| {
                ns.run(|| {
                    while let Some(target) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let result = TcpStream::connect_timeout(target, DEADLINE);
                        if let Err(error) = is_refused(&target.to_string(), &result)
                            && let Ok(mut found) = found.lock()
                        {
                            found.push(error.to_string());
                        }
                    }
                    Ok(())
                })
            });
        }
    });
    let found = found.into_inner().map_err(|_| anyhow::anyhow!("a scanner failed"))?;
    ensure!(found.is_empty(), "{} of {}: {:?}", found.len(), targets.len(), &found[..found.len().min(5)]);

    // Each is counted: the one that a rule is about by name.
    let after = counts()?;
    let tried = targets.len() as u64;
    ensure!(after[0] - before[0] == tried - 1, "unknown: {before:?}, {after:?} after {tried}");
    ensure!(after[1] - before[1] == 1, "denied: {before:?}, {after:?}");
    ensure!(after[2..] == before[2..], "given to a function: {before:?}, {after:?}");
    let series = "faasd_policy_refused_total{subject=\"other\",function=\"hello\"}";
    ensure!(metric(&bed, series)? == 1, "{series}");
    ensure!(metric(&bed, "faasd_subject_refused_total{subject=\"other\"}")? == 1);
    let policy = bed.json(&["policy", "hello"])?;
    let policy = if policy["functions"].is_array() { &policy["functions"][0] } else { &policy };
    ensure!(
        policy["refused"][0]["subject"] == "other" && policy["refused"][0]["connections"] == 1,
        "{policy}"
    );
    ensure!(get(&mut bed.client().connect(hello, 80)?, "/")?.0 == 200, "who may is kept out");
    bed.finish()
}

/// Whatever a user asks for, with whatever it claims to be.
pub fn api() -> Result<()> {
    let bed = two()?;
    bed.deploy_hello("hello", "")?;
    let server = format!("http://[{}]:{HTTP_PORT}", VPN_PREFIX.server());
    let refused = || metric(&bed, "faasd_api_refused_total{reason=\"role\"}");
    let before = refused()?;
    let mut tried = 0;
    let other = bed.client_at(2);
    for (method, path) in [
        ("GET", "/v1/functions"),
        ("GET", "/v1/functions/hello"),
        ("PUT", "/v1/functions/hello"),
        ("DELETE", "/v1/functions/hello"),
        ("POST", "/v1/functions/hello/invoke"),
        ("GET", "/v1/peers"),
        ("POST", "/v1/peers"),
        ("GET", "/v1/secrets"),
        ("GET", "/v1/nothing"),
        ("GET", "/v1//functions"),
        ("GET", "/v1/join/../functions"),
        ("GET", "/metrics/../v1/functions"),
        ("GET", "/"),
    ] {
        // What a proxy would believe.
        for claim in ["X-Forwarded-For: ::1", "Forwarded: for=\"[fd00:faa5:0:100::2]\"", "Host: localhost"] {
            let curl = [
                "curl",
                "-sS",
                "--path-as-is",
                "-X",
                method,
                "-H",
                claim,
                "-w",
                "\n%{http_code} %{content_type}",
            ];
            let said = other.run(&[&curl[..], &[&format!("{server}{path}")]].concat())?.ok()?;
            tried += 1;
            let (body, status) = said.rsplit_once('\n').context("no status")?;
            ensure!(status == "403 application/problem+json", "{method} {path} with {claim}: {said}");
            ensure!(body.contains("no admin"), "{method} {path}: {body}");
        }
    }
    ensure!(refused()? == before + tried, "{} of {tried} are counted", refused()? - before);
    ensure!(bed.describe("hello").is_ok() && bed.json(&["vpn", "peers"])?["peers"][1]["role"] == "user");
    bed.finish()
}
