//! What open connections cost the gateway while nothing happens on them.

use std::fmt;
use std::fs;

use anyhow::Context;
use nix::unistd::Pid;
use serde::Serialize;

use crate::host;
use crate::load::{Placement, Scenario, fetch};
use crate::subject::{Running, Site};

/// Descriptors that are left for everything but the connections.
const DESCRIPTORS_KEPT: usize = 500;

/// One subject's gateway before and while the connections are open. A subject without a gateway has zeros.
#[derive(Clone, Debug, Serialize)]
pub struct Idle {
    pub subject: String,
    pub connections: usize,
    pub gateway_rss_kib_before: u64,
    pub gateway_rss_kib_held: u64,
    pub gateway_descriptors_before: usize,
    pub gateway_descriptors_held: usize,
}

impl fmt::Display for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = self.gateway_rss_kib_held.saturating_sub(self.gateway_rss_kib_before);
        let descriptors = self.gateway_descriptors_held.saturating_sub(self.gateway_descriptors_before);
        let Self { subject, connections, .. } = self;
        write!(
            f,
            "idle: {subject}: {connections} connections cost the gateway {kib} KiB and {descriptors} descriptors"
        )
    }
}

/// Holds `connections` to each subject in turn, each used for one request before. Who cannot hold so many is left out.
pub fn run(connections: usize, site: &Site, running: &mut [Running]) -> Vec<Idle> {
    let possible = host::descriptor_limit().saturating_sub(DESCRIPTORS_KEPT);
    if connections > possible {
        eprintln!(
            "holding {possible} idle connections rather than {connections}: raise `ulimit -Hn` for more"
        );
    }
    let connections = connections.min(possible);
    let held = |subject: &mut Running| {
        let held = measure(connections, site, subject);
        held.inspect_err(|error| eprintln!("idle: {}: {error:#}", subject.name)).ok()
    };
    running.iter_mut().filter_map(held).collect()
}

fn measure(connections: usize, site: &Site, running: &mut Running) -> anyhow::Result<Idle> {
    running.check()?;
    let to = &running.to;
    let before = Cost::of(&running.gateway)?;
    let held = site.seat.run(Placement::Apart, to.netns.as_deref(), || {
        let open = |number| {
            fetch(to, Scenario::Keepalive)
                .with_context(|| format!("idle connection {number} of {connections}"))
        };
        (0..connections).map(open).collect::<anyhow::Result<Vec<_>>>()
    });
    let held = held.with_context(|| running.name.clone())?;
    let after = Cost::of(&running.gateway)?;
    Ok(Idle {
        subject: running.name.clone(),
        connections: held.len(),
        gateway_rss_kib_before: before.rss_kib,
        gateway_rss_kib_held: after.rss_kib,
        gateway_descriptors_before: before.descriptors,
        gateway_descriptors_held: after.descriptors,
    })
}

#[derive(Default)]
struct Cost {
    rss_kib: u64,
    descriptors: usize,
}

impl Cost {
    fn of(pids: &[Pid]) -> anyhow::Result<Self> {
        let mut cost = Self::default();
        for pid in pids {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
            cost.rss_kib += kib.with_context(|| format!("process {pid} has no VmRSS"))?;
            cost.descriptors += fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        }
        Ok(cost)
    }
}
