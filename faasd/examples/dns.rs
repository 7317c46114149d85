//! The daemon's name server alone, on the loopback interface, with as many functions as are wanted: for
//! `cargo xtask bench dns`, which measures it beside other servers with the same zone.

use std::net::{Ipv6Addr, SocketAddrV6, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use faasd::control::dns::{Dns, DnsConfig, DnsSockets, Names, ZoneFiles};
use faasd::core::address::{FUNCTION_PREFIX, VPN_PREFIX};
use faasd::core::name::FunctionName;
use faasd::core::zone::{FunctionNames, Zone, ZoneSettings};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Serves `f0.faas.` and so on
#[derive(Parser)]
struct Arguments {
    /// The port on `[::1]`
    #[arg(long)]
    port: u16,
    /// How many functions there are
    #[arg(long)]
    functions: u64,
    /// Write the zones here first, for other servers
    #[arg(long)]
    files: Option<PathBuf>,
    /// Time as many changes, from the call to the answer that shows them, print that and end
    #[arg(long)]
    updates: Option<usize>,
}

/// No answer takes longer.
const PATIENCE: Duration = Duration::from_secs(5);

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let names = Arc::new(Names::new(Zone::new(ZoneSettings::new(VPN_PREFIX, FUNCTION_PREFIX), 1)));
    for i in 0..arguments.functions {
        names.publish_function(function(&format!("f{i}"))?);
    }
    if let Some(dir) = &arguments.files {
        let (mut files, _) = ZoneFiles::open(dir, 1)?;
        files.write(&names.load())?;
    }
    let address = SocketAddrV6::new(Ipv6Addr::LOCALHOST, arguments.port, 0, 0);
    let sockets = DnsSockets {
        // One, like the others' one worker.
        udp: vec![UdpSocket::bind(address)?],
        tcp: vec![TcpListener::bind(address)?],
        ..DnsSockets::default()
    };
    // The limit is looked at with every query, and never reached.
    let config = DnsConfig { rate_limit: 100_000_000, upstreams: Vec::new(), ..DnsConfig::default() };
    let (_written, told) = watch::channel(0);
    let dns = Dns::start(sockets, &config, &names, &told)?;
    match arguments.updates {
        Some(count) => {
            let took = tokio::task::spawn_blocking(move || updates(&names, address, count)).await??;
            let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
            println!("{{\"p50_us\": {:.1}, \"p99_us\": {:.1}}}", at(0.5), at(0.99));
        }
        None => drop(signal(SignalKind::terminate())?.recv().await),
    }
    dns.shutdown().await?;
    Ok(())
}

fn function(name: &str) -> Result<FunctionNames> {
    let name: FunctionName = name.parse()?;
    let address = FUNCTION_PREFIX.function(&name);
    Ok(FunctionNames::new(name, address, Some(80)))
}

/// How long each change took, in order.
fn updates(names: &Names, server: SocketAddrV6, count: usize) -> Result<Vec<Duration>> {
    let socket = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut took = Vec::new();
    let mut buffer = [0; 512];
    for i in 0..count {
        let function = function(&format!("new{i}"))?;
        let query = query(function.name.as_str());
        let began = Instant::now();
        names.publish_function(function);
        socket.send(&query)?;
        let length = socket.recv(&mut buffer).context("no answer")?;
        took.push(began.elapsed());
        ensure!(length > query.len() && buffer[7] == 1, "the change is not answered");
    }
    took.sort();
    Ok(took)
}

/// A question for the address of `NAME.faas.`
fn query(name: &str) -> Vec<u8> {
    let mut query = vec![0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, name.len() as u8];
    query.extend_from_slice(name.as_bytes());
    query.extend_from_slice(b"\x04faas\0\0\x1c\0\x01");
    query
}
