//! Metrics, gathered when they are asked for: nothing is counted twice, and nothing costs while nobody scrapes.

mod families;

use std::sync::Arc;
use std::time::Instant;

use faasd_common::{Decision, LAYOUT, RTT_BOUNDS_US};

use self::families::Families;
use super::access::NamedCounts;
use super::dns::DnsCounts;
use super::flows::Seen;
use super::instances::START_BOUNDS_US;
use super::owner::Listed;
use super::steering::Following;
use super::used::UsedBy;
use crate::api::types::{Peer, Phase};
use crate::core::zone::Zone;
use crate::dataplane::{LATENCY_BOUNDS_NS, Stats};
use crate::telemetry::names as n;
use crate::tunnel::dropped::Dropped;

/// The text format's media type.
pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the connections of functions are called that no subject has opened: the daemon did.
const DAEMON: &str = "faasd";

/// What one scrape shows.
#[derive(Debug)]
pub struct Snapshot {
    /// When it was begun.
    pub began: Instant,
    pub functions: Arc<Vec<Listed>>,
    pub used: UsedBy,
    pub flows: Arc<Seen>,
    pub decisions: [u64; Decision::COUNT as usize],
    pub unroutable_packets: u64,
    pub dns: DnsCounts,
    pub zone: Arc<Zone>,
    pub peers: Vec<Peer>,
    pub tunnel_dropped: Option<Dropped>,
    pub access: NamedCounts,
    /// Requests through the tunnel that were turned away, by reason.
    pub api_refused: [(&'static str, u64); 3],
    /// How well the kernel's maps follow, by what they hold.
    pub following: [(&'static str, Following); 2],
    /// Who does WireGuard.
    pub wireguard: String,
}

/// A snapshot in Prometheus's text format.
///
/// # Errors
/// If the text cannot be made of it.
pub fn render(snapshot: &Snapshot) -> Result<String, prometheus::Error> {
    let mut all = Families::default();
    let layout = LAYOUT.to_string();
    all.set(&n::BUILD, &[env!("CARGO_PKG_VERSION"), &layout], 1.0);
    all.set(&n::WIREGUARD, &[&snapshot.wireguard], 1.0);
    all.set(&n::FUNCTIONS, &[], snapshot.functions.len() as f64);
    snapshot.functions.iter().for_each(|listed| function(&mut all, listed));
    for (name, used) in &snapshot.used {
        all.set(&n::CPU, &[name.as_str()], used.cpu.as_secs_f64());
        all.set(&n::MEMORY, &[name.as_str()], used.memory_bytes as f64);
    }
    flows(&mut all, &snapshot.flows);
    kernel(&mut all, snapshot);
    peers(&mut all, &snapshot.peers);
    for (reason, packets) in snapshot.tunnel_dropped.iter().flat_map(Dropped::iter) {
        all.count(&n::TUNNEL_DROPPED, &[reason.as_str()], packets);
    }
    let dns = &snapshot.dns;
    for (outcome, value) in dns.outcomes() {
        all.count(&n::DNS_QUERIES, &[outcome], value);
    }
    all.count(&n::DNS_REBINDS, &[], dns.rebinds);
    all.count(&n::DNS_UNCONFIRMED, &[], dns.unconfirmed);
    all.set(&n::DNS_NAMES, &[], snapshot.zone.len() as f64);
    all.set(&n::DNS_SERIAL, &[], snapshot.zone.serial().into());
    all.add_process();
    all.set(&n::GATHERED, &[], snapshot.began.elapsed().as_secs_f64());
    all.text()
}

fn function(all: &mut Families, Listed { function, stats, lives, queues }: &Listed) {
    let name = function.name.as_str();
    let c = &function.connections;
    all.count(&n::CONNECTIONS, &[name, "warm"], c.warm);
    all.count(&n::CONNECTIONS, &[name, "handoff"], c.steered.saturating_sub(c.warm));
    // Instances write half of these numbers, and may write anything.
    let sum = |of: fn(&crate::api::types::Instance) -> u64| {
        function.instances.iter().map(of).fold(0, u64::saturating_add)
    };
    all.set(&n::IN_FLIGHT, &[name], sum(|instance| instance.in_flight) as f64);
    for (queue, waiting) in
        [("listener", queues.listener), ("acceptor", queues.acceptor), ("instance", queues.instance)]
    {
        all.set(&n::QUEUED, &[name, queue], waiting as f64);
    }
    all.count(&n::ACCEPTED, &[name], c.accepted);
    all.count(&n::HANDED_OFF, &[name], c.handed_off);
    all.count(&n::REQUEUED, &[name], c.requeued);
    all.count(&n::FORWARDED, &[name], c.forwarded);
    all.count(&n::REFUSED_LATE, &[name], c.refused);
    all.count(&n::KEPT_BACK, &[name], lives.kept_back);
    let (sum_ns, buckets) = latency(stats);
    let bounds = LATENCY_BOUNDS_NS.map(|ns| ns as f64 / 1e9);
    all.observe(&n::HANDOFF, &[name], &bounds, &buckets, sum_ns as f64 / 1e9);
    all.count(&n::REQUESTS, &[name], lives.requests.saturating_add(sum(|instance| instance.requests)));
    all.count(&n::REQUEST_ERRORS, &[name], lives.errors.saturating_add(sum(|instance| instance.errors)));
    for phase in Phase::ALL {
        let instances = function.instances.iter().filter(|i| i.phase == phase).count();
        all.set(&n::INSTANCES, &[name, phase.as_str()], instances as f64);
    }
    all.count(&n::STARTS, &[name], lives.starts);
    all.count(&n::FAILURES, &[name], lives.failures);
    let bounds = START_BOUNDS_US.map(|us| us as f64 / 1e6);
    for (part, seen) in lives.parts() {
        all.observe(&n::START, &[name, part], &bounds, &seen.buckets, seen.sum_us as f64 / 1e6);
    }
    let made = &function.egress;
    for (outcome, value) in [
        ("inside", made.inside),
        ("outside", made.outside),
        ("refused", made.refused),
        ("failed", made.failed),
    ] {
        all.count(&n::EGRESS, &[name, outcome], value);
    }
}

fn flows(all: &mut Families, seen: &Seen) {
    let bounds = RTT_BOUNDS_US.map(|us| f64::from(us) / 1e6);
    for ((subject, function), flow) in &seen.flows {
        let subject = subject.as_ref().map_or_else(|| DAEMON.to_owned(), ToString::to_string);
        let labels = [function.as_str(), &subject];
        all.count(&n::FLOW_CONNECTIONS, &labels, flow.connections);
        all.set(&n::FLOW_OPEN, &labels, flow.open as f64);
        all.count(&n::FLOW_RECEIVED, &labels, flow.received_bytes);
        all.count(&n::FLOW_SENT, &labels, flow.sent_bytes);
        all.count(&n::FLOW_RETRANSMITS, &labels, flow.retransmits);
        all.observe(&n::FLOW_RTT, &labels, &bounds, &flow.rtt, flow.rtt_sum_us as f64 / 1e6);
    }
    all.set(&n::FLOWS_COMPLETE, &[], f64::from(u8::from(seen.complete)));
}

fn kernel(all: &mut Families, snapshot: &Snapshot) {
    for (decision, value) in Decision::NAMES.into_iter().zip(snapshot.decisions) {
        all.count(&n::DECISIONS, &[decision], value);
    }
    all.count(&n::UNROUTABLE, &[], snapshot.unroutable_packets);
    for (subject, admitted, refused) in &snapshot.access.subjects {
        let subject = subject.to_string();
        all.count(&n::ADMITTED, &[&subject], *admitted);
        all.count(&n::REFUSED, &[&subject], *refused);
    }
    // One series for each pair that the kernel keeps, and no more than that.
    for (subject, function, value) in &snapshot.access.refusals {
        all.count(&n::REFUSALS, &[&subject.to_string(), function.as_str()], *value);
    }
    for (maps, following) in snapshot.following {
        all.set(&n::ENTRIES_BEHIND, &[maps], following.behind as f64);
        all.count(&n::ENTRIES_REPAIRED, &[maps], following.repaired);
    }
    for (reason, value) in snapshot.api_refused {
        all.count(&n::API_REFUSED, &[reason], value);
    }
}

fn peers(all: &mut Families, peers: &[Peer]) {
    for (joined, state) in [(true, "joined"), (false, "invited")] {
        let peers = peers.iter().filter(|p| p.invited_until.is_none() == joined).count();
        all.set(&n::PEERS, &[state], peers as f64);
    }
    for peer in peers {
        let name = peer.name.as_str();
        all.count(&n::PEER_RECEIVED, &[name], peer.received_bytes);
        all.count(&n::PEER_SENT, &[name], peer.sent_bytes);
        if let Some(at) = peer.last_handshake {
            all.set(&n::PEER_HANDSHAKE, &[name], at.as_second() as f64);
        }
    }
}

/// Of all branches together.
fn latency(all: &[Arc<Stats>]) -> (u64, [u64; LATENCY_BOUNDS_NS.len() + 1]) {
    all.iter().map(|stats| stats.latency()).fold((0, [0; _]), |(sum, mut counts), (more_sum, more)| {
        counts.iter_mut().zip(more).for_each(|(count, more)| *count += more);
        (sum + more_sum, counts)
    })
}
