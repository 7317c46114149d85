//! Attacks on the network, by those who are in it and by those who are not. Nothing may get through, and what the platform
//! has refused must be there to be seen: in the metrics, in the policy, among the events.
//!
//! What a function may try is `escape`'s business.

mod dns;
mod invitations;
mod outside;
mod revoked;
mod scan;
mod spoof;

use std::io::{self, ErrorKind};
use std::net::Ipv6Addr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use faasd::core::address::VPN_PREFIX;
use faasd_tests::{Bed, Client, run, shared};

fn main() {
    run(vec![
        shared("another_peers_address_is_of_no_use_in_the_tunnel", spoof::through_the_tunnel),
        shared("a_peers_address_is_of_no_use_outside_the_tunnel", spoof::beside_the_tunnel),
        shared("a_revoked_peer_is_cut_off_at_once", revoked::cut_off),
        shared("who_may_nothing_finds_nothing", scan::refused),
        shared("a_user_gets_nothing_of_the_api", scan::api),
        shared("an_invitation_admits_once_and_in_time", invitations::once),
        shared("malformed_queries_do_no_harm", dns::malformed),
        shared("dns_does_not_amplify", dns::amplification),
        shared("junk_from_outside_is_not_answered", outside::junk),
        shared("a_recorded_handshake_is_of_no_use", outside::replay),
    ])
}

/// The port of the metrics and of the API in the tunnel.
const HTTP_PORT: u16 = 9464;

/// How long what is to be dropped is given to arrive all the same.
const SILENCE: Duration = Duration::from_millis(700);

/// A bed with two clients that have joined: `client` and `other`, who is the attacker.
fn two() -> Result<Bed> {
    let mut bed = Bed::joined()?;
    let number = bed.add_client()?;
    bed.join_as(number, "other", &[])?;
    Ok(bed)
}

/// A metric's value now, as the first client sees it; 0 for one that was never counted.
fn metric(bed: &Bed, series: &str) -> Result<u64> {
    metric_at(&bed.client(), series)
}

/// A metric's value, as another client sees it.
fn metric_at(client: &Client<'_>, series: &str) -> Result<u64> {
    let metrics = client.curl(&format!("http://[{}]:{HTTP_PORT}/metrics", VPN_PREFIX.server()))?;
    let family = series.split('{').next().unwrap_or_default();
    ensure!(metrics.contains(&format!("# TYPE {family} ")) || series != family, "no {family} in\n{metrics}");
    let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map_or(Ok(0), |value| value.trim().parse().context("no number"))
}

/// A decision of the kernel program, counted.
fn decided(bed: &Bed, decision: &str) -> Result<u64> {
    metric(bed, &format!("faasd_kernel_decisions_total{{decision=\"{decision}\"}}"))
}

/// Packets that the tunnel dropped for one of these reasons.
fn dropped(client: &Client<'_>, reasons: &[&str]) -> Result<u64> {
    let one =
        |reason| metric_at(client, &format!("faasd_tunnel_dropped_packets_total{{reason=\"{reason}\"}}"));
    reasons.iter().map(one).sum()
}

/// Whether what comes from outside is counted: the kernel's WireGuard says nothing of it.
fn counts_outside(client: &Client<'_>) -> Result<bool> {
    Ok(metric_at(client, "faasd_wireguard_info{backend=\"userspace\"}")? == 1)
}

/// The address of a peer in the tunnel.
fn peer_address(bed: &Bed, name: &str) -> Result<Ipv6Addr> {
    peer(bed, name)?["address"].as_str().context("no address")?.parse().context("no address")
}

/// What `faas vpn peers` says of a peer.
fn peer(bed: &Bed, name: &str) -> Result<serde_json::Value> {
    let peers = bed.json(&["vpn", "peers"])?;
    let found = peers["peers"].as_array().into_iter().flatten().find(|peer| peer["name"] == name);
    found.cloned().with_context(|| format!("no peer {name} in {peers}"))
}

/// How often an event was recorded.
fn events(bed: &Bed, kind: &str) -> Result<usize> {
    let all = bed.json(&["events"])?;
    let all = all["events"].as_array().or(all.as_array()).context("no events")?;
    Ok(all.iter().filter(|event| event["kind"] == kind).count())
}

/// Fails unless the answer was a refusal: neither a connection nor silence.
fn is_refused<T>(what: &str, result: &io::Result<T>) -> Result<()> {
    match result {
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(e) => bail!("{what}: {e}, not refused"),
        Ok(_) => bail!("{what}: it was let in"),
    }
}
