//! Every metric's name, kind, unit and meaning.

/// A metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    pub name: &'static str,
    pub help: &'static str,
}

macro_rules! metrics {
    ($($constant:ident = $name:literal, $help:literal;)*) => {
        $(#[doc = $help] pub const $constant: Metric = Metric { name: $name, help: $help };)*

        /// All of them.
        pub const ALL: &[Metric] = &[$($constant),*];
    };
}

metrics! {
    CONNECTIONS = "faasd_connections_total",
        "Connections by function and lane: steered by the kernel program, accepted, handed off, requeued, refused.";
    WAITING = "faasd_connections_waiting",
        "Connections that are accepted and not handed over, by function.";
    IN_FLIGHT = "faasd_connections_in_flight",
        "Connections that instances were given and have not finished, by function.";
    INSTANCES = "faasd_instances", "Instances by function and phase.";
    STARTS = "faasd_instance_starts_total", "Instances started by this daemon, by function.";
    FAILURES = "faasd_instance_failures_total", "Instances that ended without being asked to, by function.";
    HANDOFF_BUCKET = "faasd_handoff_seconds_bucket",
        "Hand-offs that took at most `le` seconds, from the accept's completion to the message's arrival.";
    HANDOFF_SUM = "faasd_handoff_seconds_sum", "Seconds that all hand-offs took together.";
    HANDOFF_COUNT = "faasd_handoff_seconds_count", "Hand-offs.";
    EGRESS = "faasd_egress_connections_total",
        "Connections that functions asked for, by function and outcome: made inside or outside, refused for want of a grant, failed.";
    DECISIONS = "faasd_kernel_decisions_total", "Decisions of the kernel program, by what was decided.";
    UNROUTABLE = "faasd_ingress_unroutable_packets_total",
        "Packets into the ingress that were refused before the kernel program: by another interface than the tunnel, from a function's address, or for nobody.";
    FUNCTIONS = "faasd_functions", "Functions that are declared.";
    PEERS = "faasd_peers", "Peers of the tunnel, by whether they have joined.";
    PEER_RECEIVED = "faasd_peer_received_bytes_total", "Bytes received from a peer.";
    PEER_SENT = "faasd_peer_sent_bytes_total", "Bytes sent to a peer.";
    PEER_HANDSHAKE = "faasd_peer_last_handshake_seconds",
        "When a peer last shook hands, in seconds since 1970; `time() - x` is its age.";
    ADMITTED = "faasd_subject_admitted_total", "Connections that a subject was let in with, at any function.";
    REFUSED = "faasd_subject_refused_total", "Connections of a subject that the policy refused, at any function.";
    REFUSALS = "faasd_policy_refused_total",
        "Connections that the policy refused, by subject and function; the pairs that were refused last.";
    API_REFUSED = "faasd_api_refused_total",
        "Requests through the tunnel that were turned away: no admin's (role), or a web page's (page).";
    DNS_QUERIES = "faasd_dns_queries_total", "Queries by outcome.";
    DNS_REBINDS = "faasd_dns_rebinds_total",
        "Upstreams' answers that pointed into our own network, and were stripped of that.";
    DNS_UNCONFIRMED = "faasd_dns_notifies_unconfirmed_total",
        "Notifications of a change that a secondary did not confirm.";
    DNS_NAMES = "faasd_dns_names", "Names below the zone `faas.`.";
    DNS_SERIAL = "faasd_dns_serial", "The zones' serial.";
    BUILD = "faasd_build_info", "1, with the version as a label.";
}
