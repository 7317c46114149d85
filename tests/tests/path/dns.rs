//! Names as `dig` on a client sees them, through the tunnel.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use faasd_tests::{Bed, address};

/// The client is the first peer.
const CLIENT: &str = "fd00:faa5:0:100::2";
const SERVER: &str = "fd00:faa5:0:100::1";
/// Where the server asks for other names, in its own namespace.
const UPSTREAM: &str = "[::1]:5300";

/// What dig prints, every section of it.
fn dig(bed: &Bed, arguments: &[&str]) -> Result<String> {
    let command = ["dig", "+tries=1", "+time=5", &format!("@{SERVER}")];
    let said = bed.client().run(&[&command, arguments].concat())?;
    Ok(said.out)
}

fn has(said: &str, all: &[&str]) -> Result<()> {
    // As one line, with one space wherever there is space.
    let flat = said.split_whitespace().collect::<Vec<_>>().join(" ");
    let missing = all.iter().find(|text| !flat.contains(*text));
    ensure!(missing.is_none(), "no `{}` in\n{said}", missing.unwrap_or(&""));
    Ok(())
}

pub fn every_kind() -> Result<()> {
    let bed = Bed::joined()?;
    bed.deploy_hello("hello", "port = 8080")?;
    let hello = address(&bed.describe("hello")?)?.to_string();
    let soa = "faas. 1 IN SOA ns.faas. admin.faas.";
    let aaaa = format!("HeLLo.FaaS. 60 IN AAAA {hello}");
    for (arguments, expected) in [
        (&["HeLLo.FaaS", "AAAA"][..], &["status: NOERROR", "flags: qr aa rd ra;", &aaaa, "udp: 1232"][..]),
        (&["+tcp", "+noedns", "HeLLo.FaaS", "AAAA"], &["status: NOERROR", &aaaa, "ADDITIONAL: 0"]),
        (&["hello.faas", "A"], &["status: NOERROR", "ANSWER: 0, AUTHORITY: 1", soa]),
        (&["_tcp.hello.faas", "SRV"], &["status: NOERROR", "ANSWER: 0, AUTHORITY: 1", soa]),
        (&["_http._tcp.hello.faas", "SRV"], &["IN SRV 0 0 8080 hello.faas."]),
        (&["x.hello.faas", "AAAA"], &["status: NXDOMAIN", "AUTHORITY: 1", soa]),
        (&["hello.faas", "ANY"], &["ANSWER: 1,"]),
        (&["faas", "NS"], &["faas. 60 IN NS ns.faas.", "ns.faas. 60 IN AAAA fd00:faa5:0:100::1"]),
        (&["-x", &hello], &["IN PTR hello.faas."]),
        (&["-x", CLIENT], &["IN PTR client.peers.faas."]),
        (&["-x", SERVER], &["IN PTR ns.faas."]),
        (&["client.peers.faas", "AAAA"], &["client.peers.faas. 60 IN AAAA fd00:faa5:0:100::2"]),
        (&["+edns=1", "+noednsnegotiation", "hello.faas", "AAAA"], &["status: BADVERS", "version: 0"]),
        (&["+dnssec", "hello.faas", "AAAA"], &["flags: do; udp: 1232", "ANSWER: 1,"]),
        (&["+opcode=UPDATE", "hello.faas", "AAAA"], &["status: NOTIMP"]),
        (&["version.bind", "CH", "TXT"], &["status: REFUSED"]),
        (&["hello.faas", "AXFR", "+tcp"], &["Transfer failed"]),
        (&["faas", "AXFR"], &["Transfer failed"]),
    ] {
        has(&dig(&bed, arguments)?, expected).with_context(|| format!("dig {arguments:?}"))?;
    }
    bed.faas(&["vpn", "invite", "other"])?.ok()?;
    has(&dig(&bed, &["other.peers.faas", "AAAA"])?, &["status: NXDOMAIN"])?;
    bed.finish()
}

/// Answers over UDP what is asked, until `ended`: four long texts for a name that begins with `b`, and for any other the
/// address of a function.
fn upstream(socket: &UdpSocket, ended: &AtomicBool) {
    let mut buffer = [0; 512];
    while !ended.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        let Some(end) = buffer[12..length].iter().position(|byte| *byte == 0).map(|end| 12 + end + 5) else {
            continue;
        };
        let mut answer = buffer[..end].to_vec();
        let is_long = answer[13] == b'b';
        answer[2] |= 0x80;
        // Recursion is available, and nothing was checked.
        answer[3] = 0x80;
        answer[4..12].copy_from_slice(&[0, 1, 0, if is_long { 4 } else { 1 }, 0, 0, 0, 0]);
        if is_long {
            for letter in b'a'..b'e' {
                answer.extend_from_slice(&[0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 60, 0, 201, 200]);
                answer.extend_from_slice(&[letter; 200]);
            }
        } else {
            answer.extend_from_slice(&[0xc0, 12, 0, 28, 0, 1, 0, 0, 0, 60, 0, 16]);
            answer.extend_from_slice(&[0xfd, 0, 0xfa, 0xa5, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
        }
        let _ = socket.send_to(&answer, from);
    }
}

pub fn elsewhere() -> Result<()> {
    let mut bed = Bed::new()?;
    bed.config = format!("dns_upstreams = [\"{UPSTREAM}\"]\ndns_query_log = true\n");
    let socket = bed.server()?.run(|| {
        let socket = UdpSocket::bind(UPSTREAM)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        Ok(socket)
    })?;
    let ended = Arc::new(AtomicBool::new(false));
    let thread = std::thread::spawn({
        let ended = Arc::clone(&ended);
        move || upstream(&socket, &ended)
    });
    bed.serve()?;
    bed.join()?;
    // What does not fit is marked, and then comes whole, from what was kept.
    let asked = dig(&bed, &["+ignore", "+noedns", "big.example", "TXT"])?;
    has(&asked, &["flags: qr tc rd ra;", "ANSWER: 0"])?;
    has(&dig(&bed, &["+bufsize=1232", "big.example", "TXT"])?, &["ANSWER: 4"])?;
    has(&dig(&bed, &["+tcp", "big.example", "TXT"])?, &["ANSWER: 4"])?;
    // Somebody else's name for one of our addresses is not passed on.
    has(&dig(&bed, &["evil.example", "AAAA"])?, &["status: NOERROR", "ANSWER: 0"])?;
    let metrics = bed.client().curl(&format!("http://[{SERVER}]:9464/metrics"))?;
    has(&metrics, &["faasd_dns_rebinds_total 1", "outcome=\"forwarded\"} 2", "outcome=\"cached\"} 2"])?;
    ensure!(bed.log().contains("big.example."), "the query is not logged:\n{}", bed.log());
    ended.store(true, Ordering::Relaxed);
    ensure!(thread.join().is_ok(), "the upstream failed");
    bed.finish()
}

pub fn secondary() -> Result<()> {
    let mut bed = Bed::new()?;
    bed.config = format!("dns_secondaries = [\"[{CLIENT}]:5353\"]\n");
    bed.serve()?;
    bed.join()?;
    let socket = bed.client().within(|| {
        let socket = UdpSocket::bind("[::]:5353")?;
        socket.set_read_timeout(Some(faasd_tests::DEADLINE))?;
        Ok(socket)
    })?;
    bed.deploy_hello("hello", "")?;
    // By a socket of the daemon's in the ingress, from where nothing else gets out.
    let mut buffer = [0; 512];
    let (length, from) = socket.recv_from(&mut buffer).context("no notification")?;
    ensure!(from.ip().to_string() == SERVER && buffer[2] & 0x78 == 4 << 3, "{from} {:?}", &buffer[..length]);
    buffer[2] |= 0x80;
    socket.send_to(&buffer[..length], from)?;

    let zone = dig(&bed, &["faas", "AXFR"])?;
    let hello = format!("hello.faas. 60 IN AAAA {}", address(&bed.describe("hello")?)?);
    has(
        &zone,
        &[&hello, "client.peers.faas. 60 IN AAAA", "_http._tcp.hello.faas. 60 IN SRV 0 0 80 hello.faas."],
    )?;
    has(&dig(&bed, &["0.0.2.0.0.0.0.0.5.a.a.f.0.0.d.f.ip6.arpa", "AXFR"])?, &["IN PTR hello.faas."])?;
    // It is on disk as well, under a serial that goes on after a restart.
    let before = serial_of(&bed)?;
    let file = bed.path("state/dns/faas.db");
    faasd_tests::eventually("the zone is on disk", || {
        std::fs::read_to_string(&file).is_ok_and(|text| text.contains(&format!("\t{before} ; serial")))
    })?;
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::KILL] {
        let before = serial_of(&bed)?;
        bed.end_daemon(signal)?;
        bed.serve()?;
        let after = serial_of(&bed)?;
        ensure!(after > before, "{after} follows {before} after {signal:?}");
    }
    bed.finish()
}

fn serial_of(bed: &Bed) -> Result<u32> {
    let said = dig(bed, &["+short", "faas", "SOA"])?;
    Ok(said.split_whitespace().nth(2).with_context(|| format!("no serial: {said}"))?.parse()?)
}
