//! Who is not in the network, at the one port that the world sees.

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use faasd_tests::{Bed, address, get};
use jiff::Timestamp;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{SILENCE, counts_outside, dropped, events, peer};

/// Every protocol, as a packet socket wants it.
const ALL_PROTOCOLS: i32 = (libc::ETH_P_ALL as u16).to_be() as i32;

/// The first message of a handshake, and its length.
const INITIATION: u8 = 1;
const INITIATION_BYTES: usize = 148;

/// Answers to it.
const RESPONSE: u8 = 2;
const COOKIE: u8 = 3;

/// Ethernet, IPv6 and UDP before it.
const HEADERS_BYTES: usize = 14 + 40 + 8;

/// Sends these to the server's port, and returns what comes back.
fn send(bed: &Bed, number: usize, messages: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
    let server: SocketAddr = format!("[fd00:{number}::1]:51820").parse()?;
    Ok(bed.client_at(number).within(|| {
        let socket = UdpSocket::bind("[::]:0")?;
        for message in messages {
            // Refused is what the port said of an earlier one: nobody there would be as good.
            match socket.send_to(message, server) {
                Err(e) if e.kind() != ErrorKind::ConnectionRefused => return Err(e),
                _ => {}
            }
        }
        socket.set_read_timeout(Some(SILENCE))?;
        let mut answers = Vec::new();
        let mut bytes = [0; 2048];
        while let Ok(length) = socket.recv(&mut bytes) {
            answers.push(bytes[..length].to_vec());
        }
        Ok(answers)
    })?)
}

pub fn junk() -> Result<()> {
    let mut bed = Bed::joined()?;
    let attacker = bed.add_client()?;
    bed.deploy_hello("hello", "")?;
    let mut open = bed.client().connect(address(&bed.describe("hello")?)?, 80)?;
    ensure!(get(&mut open, "/")?.0 == 200);
    let before = peer(&bed, "client")?;
    let mut seed = 0xdead_u64;
    let mut random = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as u8
    };
    // Of every kind, some as long as the kind has to be: handshakes that decrypt to nothing, data of no session.
    let messages: Vec<Vec<u8>> = (0..4_000_usize)
        .map(|n| {
            let kind = (n % 6) as u8;
            let length = match kind {
                INITIATION => INITIATION_BYTES,
                RESPONSE => 92,
                COOKIE => 64,
                _ => 1 + usize::from(random()) * 5,
            };
            let mut message: Vec<u8> = (0..length).map(|_| random()).collect();
            let header = [kind, 0, 0, 0];
            let known = length.min(4);
            message[..known].copy_from_slice(&header[..known]);
            message
        })
        .collect();
    let sent: usize = messages.iter().map(Vec::len).sum();
    let answers = send(&bed, attacker, &messages)?;
    let received: usize = answers.iter().map(Vec::len).sum();
    ensure!(answers.is_empty(), "{received} bytes came back for {sent}");
    if counts_outside(&bed.client())? {
        let dropped = dropped(&bed.client(), &["malformed", "handshake", "unknown_session"])?;
        ensure!(dropped == messages.len() as u64, "{dropped} of {} are counted", messages.len());
    }
    // Nobody noticed.
    ensure!(get(&mut open, "/")?.0 == 200);
    let after = peer(&bed, "client")?;
    ensure!(after["endpoint"] == before["endpoint"], "{after}");
    ensure!(bed.json(&["vpn", "peers"])?["peers"].as_array().is_some_and(|all| all.len() == 1));
    bed.finish()
}

/// Records what a client says on its cable while `work` is done.
fn recorded(bed: &mut Bed, number: usize, work: impl FnOnce(&mut Bed) -> Result<()>) -> Result<Vec<Vec<u8>>> {
    let ns = bed.client_at(number).netns()?;
    let socket = ns.run(|| Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(ALL_PROTOCOLS))))?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let listening = scope.spawn(|| {
            let mut messages = Vec::new();
            let mut bytes = [0; 2048];
            loop {
                match (&socket).read(&mut bytes) {
                    Ok(length) => {
                        let udp = bytes[..length].get(HEADERS_BYTES..).unwrap_or_default();
                        if udp.len() == INITIATION_BYTES && udp[..4] == [INITIATION, 0, 0, 0] {
                            messages.push(udp.to_vec());
                        }
                    }
                    Err(_) if done.load(Ordering::Relaxed) => return messages,
                    Err(_) => {}
                }
            }
        });
        let worked = work(bed);
        done.store(true, Ordering::Relaxed);
        let messages = listening.join().map_err(|_| anyhow::anyhow!("the recorder failed"))?;
        worked.map(|()| messages)
    })
}

pub fn replay() -> Result<()> {
    let mut bed = Bed::serving()?;
    let victim = bed.add_client()?;
    bed.deploy_hello("hello", "")?;
    let to = address(&bed.describe("hello")?)?;
    let handshakes = recorded(&mut bed, victim, |bed| bed.join_as(victim, "laptop", &[]))?;
    // The invitation's key, and then its own.
    ensure!(handshakes.len() >= 2, "{} handshakes were recorded", handshakes.len());
    let mut open = bed.client_at(victim).connect(to, 80)?;
    ensure!(get(&mut open, "/")?.0 == 200);
    let before = peer(&bed, "laptop")?;
    let endpoint = before["endpoint"].as_str().context("no endpoint")?.to_owned();

    // From elsewhere, again and again: a handshake has a time in it, and none is taken that is not newer.
    let many: Vec<_> = handshakes.iter().cycle().take(200).cloned().collect();
    let reasons = ["replayed_handshake", "unknown_peer", "overload"];
    let counted = counts_outside(&bed.client_at(victim))?
        .then(|| dropped(&bed.client_at(victim), &reasons))
        .transpose()?;
    let answers = send(&bed, 1, &many)?;
    let responses = answers.iter().filter(|answer| answer.first() == Some(&RESPONSE)).count();
    ensure!(responses == 0, "{responses} replayed handshakes were answered");
    // Under load it asks who is there, with less than it was sent.
    ensure!(answers.iter().all(|answer| answer.first() == Some(&COOKIE) && answer.len() < INITIATION_BYTES));
    if let Some(before) = counted {
        let counted = dropped(&bed.client_at(victim), &reasons)? - before;
        ensure!(counted == many.len() as u64, "{counted} of {} are counted", many.len());
    }
    let after = peer(&bed, "laptop")?;
    ensure!(after["endpoint"] == endpoint.as_str(), "it moved to {}", after["endpoint"]);
    // Told as how long ago it was, and therefore not to the nanosecond; the replays took longer than this.
    let shaken = |peer: &serde_json::Value| -> Result<Timestamp> {
        Ok(peer["last_handshake"].as_str().context("no handshake")?.parse()?)
    };
    let moved = shaken(&after)?.duration_since(shaken(&before)?).unsigned_abs();
    ensure!(moved < SILENCE / 2, "a handshake was taken: {before}, {after}");
    let began = Instant::now();
    ensure!(get(&mut open, "/")?.0 == 200, "the connection");
    ensure!(began.elapsed() < Duration::from_secs(5), "it had to wait");
    ensure!(events(&bed, "peer-joined")? == 1);
    bed.finish()
}
