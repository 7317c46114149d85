//! The zone's server as a target, and as a weapon.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use faasd::core::address::VPN_PREFIX;
use faasd_tests::{Bed, eventually};

use crate::{SILENCE, metric};

/// What is promised to fit (RFC 9715, and the first DNS flag day).
const ANSWER_BYTES_MAX: usize = 1232;

fn server() -> SocketAddr {
    (VPN_PREFIX.server(), 53).into()
}

/// Numbers that look like chance, and are the same each time.
fn random(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

/// A question, with EDNS if `edns`.
fn query(name: &str, kind: u16, edns: Option<u16>) -> Vec<u8> {
    let mut out = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns.is_some())];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        out.push(label.len() as u8);
        out.extend(label.as_bytes());
    }
    out.push(0);
    out.extend([kind.to_be_bytes(), [0, 1]].concat());
    if let Some(size) = edns {
        out.extend([&[0, 0, 41][..], &size.to_be_bytes(), &[0, 0, 0, 0, 0, 0]].concat());
    }
    out
}

/// Asks by UDP. `None` if nothing comes back.
fn ask(bed: &Bed, question: &[u8]) -> Result<Option<Vec<u8>>> {
    Ok(bed.client().within(|| {
        let socket = UdpSocket::bind("[::]:0")?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.send_to(question, server())?;
        let mut answer = vec![0; 65_535];
        match socket.recv(&mut answer) {
            Ok(length) => Ok(Some(answer[..length].to_vec())),
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    })?)
}

pub fn malformed() -> Result<()> {
    let bed = Bed::joined()?;
    bed.deploy_hello("hello", "")?;
    let good = query("hello.faas", 28, Some(1232));
    let failed = || -> Result<u64> {
        let of = |outcome: &str| metric(&bed, &format!("faasd_dns_queries_total{{outcome=\"{outcome}\"}}"));
        Ok(of("failed")? + of("limited")?)
    };
    let before = failed()?;
    // Slowly enough for none to be dropped for its number: it is the reader that is attacked.
    let mut seed = 0x5eed;
    bed.client().within(|| {
        let socket = UdpSocket::bind("[::]:0")?;
        for round in 0..600 {
            let mut bytes = good.clone();
            match round % 6 {
                0 => bytes.truncate(random(&mut seed) as usize % bytes.len()),
                1 => bytes = (0..random(&mut seed) % 600).map(|_| random(&mut seed) as u8).collect(),
                // A name that points at itself, and one that points beyond the end.
                2 => bytes[12..14].copy_from_slice(&[0xc0, 12]),
                3 => bytes[12..14].copy_from_slice(&[0xff, 0xff]),
                // More of everything than there is.
                4 => bytes[4..12].fill(0xff),
                _ => {
                    let at = random(&mut seed) as usize % bytes.len();
                    bytes[at] ^= 1 << (random(&mut seed) % 8);
                }
            }
            socket.send_to(&bytes, server())?;
            if round % 50 == 49 {
                std::thread::sleep(Duration::from_millis(60));
            }
        }
        Ok(())
    })?;
    // By TCP as well: lengths that lie, and a connection that says nothing more.
    for prefix in [&[0, 0][..], &[0, 1, 0xff], &[0xff, 0xff, 1, 2, 3], &[0, 12, 0]] {
        let mut stream = bed.client().connect(VPN_PREFIX.server(), 53)?;
        stream.write_all(prefix)?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        ensure!(rest.len() <= 64, "{} bytes for {prefix:?}", rest.len());
    }
    eventually("they are counted", || failed().is_ok_and(|now| now >= before + 100))?;
    // It answers as ever.
    eventually("it answers", || ask(&bed, &good).is_ok_and(|answer| answer.is_some()))?;
    let answer = ask(&bed, &good)?.context("no answer")?;
    ensure!(answer[3] & 15 == 0 && answer[7] == 1, "{answer:?}");
    ensure!(!bed.log().contains("panic"), "{}", bed.log());
    bed.finish()
}

pub fn amplification() -> Result<()> {
    let mut bed = Bed::new()?;
    bed.config = "dns_upstreams = []\ndns_rate_limit = 200\n".to_owned();
    bed.serve()?;
    bed.join()?;
    bed.deploy_hello("hello", "")?;
    // What a forged source could have sent somewhere: every type that is asked for to that end.
    for (name, kind) in [
        ("hello.faas", 255),
        ("faas", 255),
        ("faas", 48),
        ("faas", 16),
        ("faas", 6),
        ("faas", 2),
        ("hello.faas", 28),
    ] {
        for edns in [None, Some(512), Some(1232), Some(65_535)] {
            let question = query(name, kind, edns);
            let Some(answer) = ask(&bed, &question)? else { continue };
            let most = if edns.is_none_or(|size| size <= 512) { 512 } else { ANSWER_BYTES_MAX };
            ensure!(answer.len() <= most, "{name} {kind} {edns:?}: {} bytes", answer.len());
            ensure!(
                answer.len() <= 8 * question.len(),
                "{name} {kind} {edns:?}: {} for {}",
                answer.len(),
                question.len()
            );
        }
    }
    // A whole zone is for those who are named alone, by whichever way it is asked for.
    let refused = || metric(&bed, "faasd_dns_queries_total{outcome=\"refused\"}");
    let before = refused()?;
    for kind in [251, 252] {
        let question = query("faas", kind, None);
        let answer = ask(&bed, &question)?.context("no answer")?;
        ensure!(answer.len() <= 64 && answer[3] & 15 == 5, "{kind}: {answer:?}");
        let mut stream = bed.client().connect(VPN_PREFIX.server(), 53)?;
        stream.write_all(&(question.len() as u16).to_be_bytes())?;
        stream.write_all(&question)?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut answer)?;
        ensure!(answer.len() <= 64 && answer[3] & 15 == 5, "{kind} by TCP: {answer:?}");
    }
    ensure!(refused()? >= before + 4, "they are not counted");

    // Many at once: most are not answered, or by a word that is no longer than the question.
    let limited = || metric(&bed, "faasd_dns_queries_total{outcome=\"limited\"}");
    let before = limited()?;
    let question = query("hello.faas", 28, None);
    let burst = || -> io::Result<(usize, usize)> {
        let socket = UdpSocket::bind("[::]:0")?;
        let (mut sent, mut received) = (0, 0);
        let mut answer = [0; 2048];
        socket.set_nonblocking(true)?;
        for _ in 0..4_000 {
            sent += socket.send_to(&question, server()).unwrap_or(0);
            while let Ok(length) = socket.recv(&mut answer) {
                received += length;
            }
        }
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(SILENCE))?;
        while let Ok(length) = socket.recv(&mut answer) {
            received += length;
        }
        Ok((sent, received))
    };
    // The tunnel loses of a burst what the machine is too busy to carry: again, then, until enough has come.
    for _ in 0..5 {
        let (sent, received) = bed.client().within(burst)?;
        ensure!(received > 0 && received < sent, "{received} bytes came back for {sent}");
        if limited()? >= before + 500 {
            break;
        }
    }
    ensure!(limited()? >= before + 500, "{} were limited", limited()? - before);
    bed.finish()
}
