//! A peer that is revoked while it is at work.

use std::io::Read;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Result, ensure};
use faasd::core::address::VPN_PREFIX;
use faasd_tests::{address, established, eventually, get};

use crate::{HTTP_PORT, SILENCE, counts_outside, dropped, events, metric, two};

pub fn cut_off() -> Result<()> {
    let bed = two()?;
    bed.deploy_hello("hello", "")?;
    let hello = address(&bed.describe("hello")?)?;
    let (client, other) = (bed.client(), bed.client_at(2));
    let mut kept = client.connect(hello, 80)?;
    let mut open = (0..20).map(|_| other.connect(hello, 80)).collect::<Result<Vec<_>, _>>()?;
    for stream in open.iter_mut().chain([&mut kept]) {
        ensure!(get(stream, "/")?.0 == 200);
    }
    let mut scraping = other.connect(VPN_PREFIX.server(), HTTP_PORT)?;
    ensure!(get(&mut scraping, "/metrics").is_ok());
    let ingress = bed.ingress()?;
    ensure!(established(&ingress, 80)?.len() == 21, "they are not open");

    bed.faas(&["vpn", "revoke", "other", "--yes"])?.ok()?;
    // When the command has returned it is done: nothing of it is at the function any more.
    eventually("its connections are gone from the function", || {
        established(&ingress, 80).is_ok_and(|sockets| sockets.len() == 1)
    })?;
    ensure!(get(&mut kept, "/")?.0 == 200, "another peer's connection");
    ensure!(events(&bed, "peer-revoked")? == 1, "it is not among the events");
    let told = bed.faas(&["events"])?.ok()?;
    ensure!(told.contains("21 connections"), "{told}");

    // Whatever it sends from now on arrives nowhere.
    let admitted = || metric(&bed, "faasd_kernel_decisions_total{decision=\"steered\"}");
    let before = admitted()?;
    open[0].set_read_timeout(Some(SILENCE))?;
    ensure!(get(&mut open[0], "/").is_err(), "an open connection goes on");
    let dialled = other.within(|| TcpStream::connect_timeout(&SocketAddr::from((hello, 80)), SILENCE));
    ensure!(dialled.is_err(), "{dialled:?}");
    let asked = other.within(|| {
        let socket = UdpSocket::bind("[::]:0")?;
        socket.set_read_timeout(Some(Duration::from_millis(300)))?;
        socket.send_to(
            b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04faas\x00\x00\x06\x00\x01",
            (VPN_PREFIX.server(), 53),
        )?;
        socket.recv(&mut [0; 512])
    });
    ensure!(asked.is_err(), "{asked:?}");
    scraping.set_read_timeout(Some(SILENCE))?;
    ensure!(get(&mut scraping, "/metrics").is_err() || scraping.read(&mut [0]).is_err());
    ensure!(admitted()? == before);
    if counts_outside(&bed.client())? {
        ensure!(dropped(&bed.client(), &["unknown_session"])? > 0, "what it sends is not counted");
    }
    let peers = bed.json(&["vpn", "peers"])?;
    ensure!(peers["peers"].as_array().is_some_and(|all| all.len() == 1), "{peers}");
    bed.finish()
}
