//! Metrics, gathered when they are asked for: nothing is counted twice, and nothing costs while nobody scrapes.

use std::sync::Arc;

use faasd_common::Decision;
use metrics::{Counter, Gauge, Key, KeyName, Label, Level, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::PrometheusBuilder;

use super::access::NamedCounts;
use super::dns::DnsCounts;
use super::owner::Listed;
use crate::api::types::{Peer, Phase};
use crate::core::zone::Zone;
use crate::dataplane::{LATENCY_BOUNDS_NS, Stats};
use crate::telemetry::names::{self, Metric};

/// What one scrape shows.
#[derive(Debug)]
pub struct Snapshot {
    /// With the counters of those who serve: one for each revision.
    pub functions: Vec<Listed>,
    pub decisions: [u64; Decision::COUNT as usize],
    pub unroutable_packets: u64,
    pub dns: DnsCounts,
    pub zone: Arc<Zone>,
    pub peers: Vec<Peer>,
    pub access: NamedCounts,
    /// Requests through the tunnel that were turned away, by reason.
    pub api_refused: [(&'static str, u64); 2],
}

/// How a function's instances have fared under this daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lives {
    pub starts: u64,
    pub failures: u64,
}

static METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

/// A snapshot in Prometheus's text format.
#[must_use]
pub fn render(snapshot: &Snapshot) -> String {
    let recorder = PrometheusBuilder::new().build_recorder();
    for metric in names::ALL {
        let unit = if metric.name.contains("_bytes") { Unit::Bytes } else { Unit::Count };
        let name = KeyName::from_const_str(metric.name);
        if metric.name.ends_with("_total") {
            recorder.describe_counter(name, Some(unit), metric.help.into());
        } else {
            recorder.describe_gauge(name, Some(unit), metric.help.into());
        }
    }
    let count = |metric: Metric, labels: &[(&'static str, &str)], value: u64| {
        let counter: Counter = recorder.register_counter(&key(metric, labels), &METADATA);
        counter.absolute(value);
    };
    let gauge = |metric: Metric, labels: &[(&'static str, &str)], value: f64| {
        let gauge: Gauge = recorder.register_gauge(&key(metric, labels), &METADATA);
        gauge.set(value);
    };
    gauge(names::BUILD, &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    gauge(names::FUNCTIONS, &[], snapshot.functions.len() as f64);
    for (function, stats, lives) in &snapshot.functions {
        let name = function.name.as_str();
        let c = &function.connections;
        for (lane, value) in [
            ("steered", c.steered),
            ("warm", c.warm),
            ("accepted", c.accepted),
            ("handed_off", c.handed_off),
            ("requeued", c.requeued),
            ("forwarded", c.forwarded),
            ("refused", c.refused),
        ] {
            count(names::CONNECTIONS, &[("function", name), ("lane", lane)], value);
        }
        let made = &function.egress;
        for (outcome, value) in [
            ("inside", made.inside),
            ("outside", made.outside),
            ("refused", made.refused),
            ("failed", made.failed),
        ] {
            count(names::EGRESS, &[("function", name), ("outcome", outcome)], value);
        }
        gauge(names::WAITING, &[("function", name)], c.waiting as f64);
        // Instances write half of these numbers, and may write anything.
        let in_flight = function.instances.iter().fold(0, |sum: u64, i| sum.saturating_add(i.in_flight));
        gauge(names::IN_FLIGHT, &[("function", name)], in_flight as f64);
        for phase in Phase::ALL {
            let instances = function.instances.iter().filter(|i| i.phase == phase).count();
            gauge(names::INSTANCES, &[("function", name), ("phase", phase.as_str())], instances as f64);
        }
        count(names::STARTS, &[("function", name)], lives.starts);
        count(names::FAILURES, &[("function", name)], lives.failures);
        let (sum_ns, buckets) = latency(stats);
        let mut below = 0;
        for (i, bucket) in buckets.iter().enumerate() {
            below += bucket;
            let bound =
                LATENCY_BOUNDS_NS.get(i).map_or("+Inf".to_owned(), |ns| (*ns as f64 / 1e9).to_string());
            count(names::HANDOFF_BUCKET, &[("function", name), ("le", &bound)], below);
        }
        gauge(names::HANDOFF_SUM, &[("function", name)], sum_ns as f64 / 1e9);
        count(names::HANDOFF_COUNT, &[("function", name)], below);
    }
    for (decision, value) in Decision::NAMES.into_iter().zip(snapshot.decisions) {
        count(names::DECISIONS, &[("decision", decision)], value);
    }
    count(names::UNROUTABLE, &[], snapshot.unroutable_packets);
    for (joined, label) in [(true, "joined"), (false, "invited")] {
        let peers = snapshot.peers.iter().filter(|p| p.invited_until.is_none() == joined).count();
        gauge(names::PEERS, &[("state", label)], peers as f64);
    }
    // One series for each pair that the kernel keeps, and no more than that.
    for (subject, function, value) in &snapshot.access.refusals {
        let subject = subject.to_string();
        count(names::REFUSALS, &[("subject", &subject), ("function", function.as_str())], *value);
    }
    for (subject, admitted, refused) in &snapshot.access.subjects {
        let subject = subject.to_string();
        count(names::ADMITTED, &[("subject", &subject)], *admitted);
        count(names::REFUSED, &[("subject", &subject)], *refused);
    }
    for (reason, value) in snapshot.api_refused {
        count(names::API_REFUSED, &[("reason", reason)], value);
    }
    for peer in &snapshot.peers {
        if let Some(at) = peer.last_handshake {
            gauge(names::PEER_HANDSHAKE, &[("peer", peer.name.as_str())], at.as_second() as f64);
        }
        count(names::PEER_RECEIVED, &[("peer", peer.name.as_str())], peer.received_bytes);
        count(names::PEER_SENT, &[("peer", peer.name.as_str())], peer.sent_bytes);
    }
    let dns = &snapshot.dns;
    for (outcome, value) in dns.outcomes() {
        count(names::DNS_QUERIES, &[("outcome", outcome)], value);
    }
    count(names::DNS_REBINDS, &[], dns.rebinds);
    count(names::DNS_UNCONFIRMED, &[], dns.unconfirmed);
    gauge(names::DNS_NAMES, &[], snapshot.zone.len() as f64);
    gauge(names::DNS_SERIAL, &[], snapshot.zone.serial().into());
    recorder.handle().render()
}

/// Of all branches together.
fn latency(all: &[Arc<Stats>]) -> (u64, [u64; LATENCY_BOUNDS_NS.len() + 1]) {
    all.iter().map(|stats| stats.latency()).fold((0, [0; _]), |(sum, mut counts), (more_sum, more)| {
        counts.iter_mut().zip(more).for_each(|(count, more)| *count += more);
        (sum + more_sum, counts)
    })
}

fn key(metric: Metric, labels: &[(&'static str, &str)]) -> Key {
    let labels: Vec<_> = labels.iter().map(|(name, value)| Label::new(*name, (*value).to_owned())).collect();
    Key::from_parts(metric.name, labels)
}
