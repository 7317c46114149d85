//! No way out through a passed socket: an attacker that runs as a function tries, and each attempt must fail, and be
//! counted where the kernel program is what refuses it. `docs/SECURITY.md` says which lock each test is about.

mod agent;
mod container;
mod peer;
mod sockets;

use std::io::{self, ErrorKind};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use faasd::core::address::{FUNCTION_PREFIX, VPN_PREFIX};
use faasd_tests::{Bed, program, run, shared};

use agent::Agent;

/// The port of everything that an attacker must not reach.
const PORT: u16 = 7777;

/// How long a packet that is to be dropped is given to arrive all the same.
const SILENCE: Duration = Duration::from_millis(700);

const HTTP_PORT: u16 = 9464;

/// The descriptors that the attacker's program has besides its connections.
const SOCKET_FD: i64 = 3;
const PAGE_FD: i64 = 100;

fn main() {
    run(vec![
        shared("a_passed_connection_leads_nowhere", sockets::a_passed_connection_leads_nowhere),
        shared("an_inherited_listener_leads_nowhere", sockets::an_inherited_listener_leads_nowhere),
        shared("a_socket_made_to_listen_is_not_reachable", sockets::a_socket_made_to_listen_is_not_reachable),
        shared("each_lock_holds_alone", sockets::each_lock_holds_alone),
        shared("options_and_interfaces_are_out_of_reach", sockets::options_and_interfaces_are_out_of_reach),
        shared("a_descriptor_cannot_be_sent_on", sockets::a_descriptor_cannot_be_sent_on),
        shared("a_removed_function_keeps_nothing", sockets::a_removed_function_keeps_nothing),
        shared("the_container_is_closed", container::the_container_is_closed),
        shared("a_malicious_instance_harms_itself_alone", container::a_malicious_instance_harms_itself_alone),
        shared(
            "a_close_that_lingers_does_not_stop_the_daemon",
            container::a_close_that_lingers_does_not_stop_the_daemon,
        ),
        shared("runtimes_work_under_the_filter", container::runtimes_work_under_the_filter),
        shared("a_peer_reaches_what_is_declared_alone", peer::a_peer_reaches_what_is_declared_alone),
    ])
}

/// A new connection to the attacker that is his alone to take apart: its descriptor on his side, the client's end.
fn victim(bed: &Bed) -> Result<(i64, TcpStream)> {
    Agent::connect(bed, "attacker")?.keep()
}

fn attacked_bed() -> Result<(Bed, Agent)> {
    let bed = Bed::joined()?;
    bed.deploy_program("attacker", &program("escape-function"), "")?.ok()?;
    let agent = Agent::connect(&bed, "attacker")?;
    Ok((bed, agent))
}

fn address_of(function: &str) -> Result<Ipv6Addr> {
    Ok(FUNCTION_PREFIX.function(&function.parse()?))
}

fn metrics(bed: &Bed) -> Result<String> {
    bed.client().curl(&format!("http://[{}]:{HTTP_PORT}/metrics", VPN_PREFIX.server()))
}

/// How often the kernel program took a decision.
fn decided(bed: &Bed, decision: &str) -> Result<u64> {
    let metrics = metrics(bed)?;
    let name = format!("faasd_kernel_decisions_total{{decision=\"{decision}\"}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
    line.with_context(|| format!("no {name} in\n{metrics}"))?.trim().parse().context("no number")
}

/// The client's address in the tunnel.
fn client_address(bed: &Bed) -> Result<Ipv6Addr> {
    let stream = bed.client().connect(VPN_PREFIX.server(), HTTP_PORT)?;
    match stream.local_addr()? {
        SocketAddr::V6(address) => Ok(*address.ip()),
        SocketAddr::V4(_) => bail!("an IPv4 connection"),
    }
}

/// Listeners that nobody is to reach.
struct Lures(Vec<TcpListener>);

impl Lures {
    /// One on each address of the client and of the server's own namespace.
    fn set(bed: &Bed) -> Result<Self> {
        let listen = || {
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        Ok(Self(vec![bed.client().within(listen)?, bed.server()?.run(listen)?]))
    }

    fn caught(&self) -> bool {
        self.0.iter().any(|listener| listener.accept().is_ok())
    }

    fn untouched(&self) -> Result<()> {
        ensure!(!self.caught(), "somebody came to a listener that nobody can reach");
        Ok(())
    }
}

fn is_refused<T>(what: &str, result: &io::Result<T>) -> Result<()> {
    match result {
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(e) => bail!("{what}: {e}, not refused"),
        Ok(_) => bail!("{what}: it was let in"),
    }
}

/// Where an attacker would go.
fn targets(bed: &Bed) -> Result<[(&'static str, Ipv6Addr, u16); 8]> {
    Ok([
        ("the ingress's loopback", Ipv6Addr::LOCALHOST, PORT),
        ("IPv4 loopback", "::ffff:127.0.0.1".parse()?, PORT),
        ("DNS", VPN_PREFIX.server(), 53),
        ("the metrics", VPN_PREFIX.server(), HTTP_PORT),
        ("another function", address_of("other")?, 80),
        ("itself", address_of("attacker")?, 80),
        ("a peer", client_address(bed)?, PORT),
        ("the host", "fd00:1::1".parse()?, PORT),
    ])
}
