//! Every metric's name, kind, labels and meaning. `docs/OBSERVABILITY.md` lists them from here.

use std::fmt::Write as _;

/// What a metric's numbers are, in Prometheus's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, and begins anew where what it is about does.
    Counter,
    /// It is what it is now.
    Gauge,
    /// How many fell below which bound, their number and their sum.
    Histogram,
}

impl Kind {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

impl Metric {
    /// The names of its series, without their labels.
    pub fn series(&self) -> impl Iterator<Item = String> + use<> {
        let suffixes: &[&str] = match self.kind {
            Kind::Counter | Kind::Gauge => &[""],
            Kind::Histogram => &["_bucket", "_sum", "_count"],
        };
        let name = self.name;
        suffixes.iter().map(move |suffix| format!("{name}{suffix}"))
    }
}

macro_rules! metrics {
    ($($constant:ident = $kind:ident $name:literal [$($label:literal),*], $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $constant: Metric =
                Metric { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };
        )*

        /// All of them, in the order in which they are shown.
        pub const ALL: &[Metric] = &[$($constant),*];
    };
}

metrics! {
    BUILD = Gauge "faasd_build_info" ["version", "layout"],
        "1; the daemon's version and the layout of its kernel maps are its labels.";
    WIREGUARD = Gauge "faasd_wireguard_info" ["backend"],
        "1; `backend` is who does WireGuard: the kernel, or a process of faasd's (userspace).";
    FUNCTIONS = Gauge "faasd_functions" [], "Functions that are declared.";

    CONNECTIONS = Counter "faasd_connections_total" ["function", "lane"],
        "Connections that the kernel program gave a function: to an instance's own listener (warm), or to be handed off (handoff).";
    IN_FLIGHT = Gauge "faasd_connections_in_flight" ["function"],
        "Connections that instances were given and have not finished.";
    QUEUED = Gauge "faasd_connections_queued" ["function", "queue"],
        "Connections that wait: in the kernel for an accept (listener), in faasd for an instance (acceptor), at an instance that has not received them (instance).";
    ACCEPTED = Counter "faasd_accepted_connections_total" ["function"],
        "Connections that faasd accepted, to hand them off.";
    HANDED_OFF = Counter "faasd_handed_off_connections_total" ["function"],
        "Connections that were handed to an instance. One that was handed over twice counts twice.";
    REQUEUED = Counter "faasd_requeued_connections_total" ["function"],
        "Connections that were read back from an instance that died, or from a revision that left, and given to another.";
    FORWARDED = Counter "faasd_forwarded_connections_total" ["function"],
        "Connections that another function passed on to this one.";
    REFUSED_LATE = Counter "faasd_closed_connections_total" ["function"],
        "Connections that faasd accepted and closed, for want of an instance or of room.";
    KEPT_BACK = Counter "faasd_forward_refused_connections_total" ["function"],
        "Connections that this function wanted to pass on to another, and that were reset: the declaration or the policy is against it, or it is none of its own.";
    HANDOFF = Histogram "faasd_handoff_seconds" ["function"],
        "From the accept's completion to the connection's arrival at the instance's socket.";
    REQUESTS = Counter "faasd_requests_total" ["function"],
        "Requests that instances say they have served: those of handlers and of the SDK, which count in shared memory.";
    REQUEST_ERRORS = Counter "faasd_request_errors_total" ["function"],
        "Those of them that ended in the function's own error (status 500 and above).";

    INSTANCES = Gauge "faasd_instances" ["function", "phase"], "Instances.";
    STARTS = Counter "faasd_instance_starts_total" ["function"], "Instances that were started by this daemon.";
    FAILURES = Counter "faasd_instance_failures_total" ["function"],
        "Instances that ended without being asked to.";
    START = Histogram "faasd_instance_start_seconds" ["function", "part"],
        "The parts of a cold start: the container is made (create), let run (release), and takes connections (ready). With an instance prepared nobody waits for the first.";
    CPU = Counter "faasd_function_cpu_seconds_total" ["function"],
        "CPU time of a function's instances, as their control groups count it. What an instance used after it was last looked at is missing.";
    MEMORY = Gauge "faasd_function_memory_bytes" ["function"],
        "Memory of a function's instances, as their control groups count it.";

    FLOW_CONNECTIONS = Counter "faasd_flow_connections_total" ["function", "subject"],
        "Connections that a subject had with a function; see faasd_flows_complete.";
    FLOW_OPEN = Gauge "faasd_flow_open_connections" ["function", "subject"], "Those of them that are open.";
    FLOW_RECEIVED = Counter "faasd_flow_received_bytes_total" ["function", "subject"],
        "Bytes that the function was sent in them, without headers and what was sent twice.";
    FLOW_SENT = Counter "faasd_flow_sent_bytes_total" ["function", "subject"],
        "Bytes of the function's that have arrived.";
    FLOW_RETRANSMITS = Counter "faasd_flow_retransmitted_segments_total" ["function", "subject"],
        "Segments that were sent to the subject again.";
    FLOW_RTT = Histogram "faasd_flow_rtt_seconds" ["function", "subject"],
        "Smoothed round-trip times of connections at their end.";
    FLOWS_COMPLETE = Gauge "faasd_flows_complete" [],
        "1 if open connections are among the flows' numbers; 0 while there are too many, and each counts at its end.";

    EGRESS = Counter "faasd_egress_connections_total" ["function", "outcome"],
        "Connections that functions asked for: made inside or outside, refused for want of a grant, failed.";
    DECISIONS = Counter "faasd_kernel_decisions_total" ["decision"],
        "Decisions of the kernel program.";
    UNROUTABLE = Counter "faasd_ingress_unroutable_packets_total" [],
        "Packets into the ingress that were refused before the kernel program: by another interface than the tunnel, from a function's address, or for nobody.";
    ENTRIES_BEHIND = Gauge "faasd_kernel_entries_behind" ["maps"],
        "Entries that the kernel has not taken yet: of who may what (policy), of what goes where (steering). They are tried again.";
    ENTRIES_REPAIRED = Counter "faasd_kernel_entries_repaired_total" ["maps"],
        "Entries of the kernel's maps that were found to be other than they should be, and were put right.";
    ADMITTED = Counter "faasd_subject_admitted_total" ["subject"],
        "Connections that a subject was let in with, at any function.";
    REFUSED = Counter "faasd_subject_refused_total" ["subject"],
        "Connections of a subject that the policy refused, at any function.";
    REFUSALS = Counter "faasd_policy_refused_total" ["subject", "function"],
        "Connections that the policy refused; the pairs that were refused last.";
    API_REFUSED = Counter "faasd_api_refused_total" ["reason"],
        "Requests through the tunnel that were turned away: no admin's (role), or a web page's (page); and connections that were too many for one peer (share).";

    PEERS = Gauge "faasd_peers" ["state"], "Peers of the tunnel that have joined, or are invited.";
    PEER_RECEIVED = Counter "faasd_peer_received_bytes_total" ["peer"],
        "Bytes received from a peer, by WireGuard.";
    PEER_SENT = Counter "faasd_peer_sent_bytes_total" ["peer"], "Bytes sent to a peer, by WireGuard.";
    PEER_HANDSHAKE = Gauge "faasd_peer_last_handshake_timestamp_seconds" ["peer"],
        "When a peer last shook hands, in seconds since 1970; `time() - x` is its age.";

    TUNNEL_DROPPED = Counter "faasd_tunnel_dropped_packets_total" ["reason"],
        "Packets that the tunnel dropped: forged, replayed, by nobody's key, from another's address. The kernel's WireGuard tells less.";

    DNS_QUERIES = Counter "faasd_dns_queries_total" ["outcome"], "Queries.";
    DNS_REBINDS = Counter "faasd_dns_rebinds_total" [],
        "Upstreams' answers that pointed into our own network, and were stripped of that.";
    DNS_UNCONFIRMED = Counter "faasd_dns_notifies_unconfirmed_total" [],
        "Notifications of a change that a secondary did not confirm.";
    DNS_NAMES = Gauge "faasd_dns_names" [], "Names below the zone `faas.`.";
    DNS_SERIAL = Gauge "faasd_dns_serial" [], "The zones' serial.";

    GATHERED = Gauge "faasd_gather_seconds" [], "How long it took to gather what you read.";
    PROCESS_CPU = Counter "process_cpu_seconds_total" [], "CPU time of the daemon.";
    PROCESS_RESIDENT = Gauge "process_resident_memory_bytes" [], "Resident memory of the daemon.";
    PROCESS_VIRTUAL = Gauge "process_virtual_memory_bytes" [], "Virtual memory of the daemon.";
    PROCESS_OPEN_FDS = Gauge "process_open_fds" [], "Open descriptors of the daemon.";
    PROCESS_MAX_FDS = Gauge "process_max_fds" [], "How many it may have.";
    PROCESS_START = Gauge "process_start_time_seconds" [],
        "When the daemon started, in seconds since 1970.";
    PROCESS_THREADS = Gauge "process_threads" [], "Threads of the daemon.";
}

/// All of them as a table in Markdown.
#[must_use]
pub fn table() -> String {
    let mut text = String::from("| metric | kind | labels | what it is |\n| --- | --- | --- | --- |\n");
    for Metric { name, kind, labels, help } in ALL {
        let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
        // Writing to a string does not fail.
        let _ = writeln!(text, "| `{name}` | {} | {} | {help} |", kind.as_str(), labels.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_as_prometheus_wants_them() {
        let names: BTreeSet<_> = ALL.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), ALL.len());
        for Metric { name, kind, labels, help } in ALL {
            assert_eq!(*kind == Kind::Counter, name.ends_with("_total"), "{name}");
            assert!(name.starts_with("faasd_") || name.starts_with("process_"), "{name}");
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
            assert!(help.ends_with('.') && !help.contains('|'), "{name}: {help}");
            assert!(!labels.contains(&"le"), "{name}");
            let unit =
                ["_seconds", "_bytes"].iter().any(|unit| name.trim_end_matches("_total").ends_with(unit));
            assert!(unit || *kind != Kind::Histogram, "{name} has no unit");
        }
    }
}
