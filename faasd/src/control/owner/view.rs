//! A function as callers see it.

use super::*;
use crate::api::egress::Egress;
use crate::api::types::{Connections, Instance, Phase as Shown, Revision, State, TrafficShare};
use crate::core::life::Outlook;
use crate::runtime::egress::Counted;
use crate::sys::readiness::queued;

impl Owner {
    /// One that was never deployed with success is none.
    pub(super) fn view(&self, name: &FunctionName, entry: &Entry) -> Option<Function> {
        let record = entry.record.as_ref()?;
        let primary = entry.revisions.get(&record.primary()?)?;
        let instances = entry
            .live
            .iter()
            .map(|(key, live)| Instance {
                id: live.id.clone(),
                revision: live.revision,
                pid: live.pid,
                phase: match entry.lifecycle.phase(*key) {
                    Some(Phase::Preparing | Phase::Prepared) => Shown::Prepared,
                    Some(Phase::Ready) => Shown::Ready,
                    Some(Phase::Withdrawn) => Shown::Withdrawn,
                    Some(Phase::Draining { .. } | Phase::Killed) => Shown::Draining,
                    Some(Phase::Starting { .. }) | None => Shown::Starting,
                },
                started_at: live.started_at,
                in_flight: self.in_flight(live),
                requests: live.page.requests(),
                errors: live.page.errors(),
                adopted: live.adopted,
                relayed: live.relayed,
                start: live.timings.view(),
            })
            .collect();
        let now = self.began.elapsed();
        let retry = entry.lifecycle.retry_at().and_then(|at| at.checked_sub(now));
        Some(Function {
            name: name.clone(),
            revision: primary.revision,
            address: entry.address,
            image: primary.image.clone(),
            root: primary.root.clone(),
            dependencies: primary.dependencies.clone(),
            spec: primary.spec.clone(),
            deployed_at: primary.deployed_at,
            traffic: record.weighed().map(|(revision, weight)| TrafficShare { revision, weight }).collect(),
            aliases: record.aliases.clone(),
            state: match entry.lifecycle.outlook() {
                Outlook::Warm => State::Warm,
                Outlook::Cold => State::Cold,
                Outlook::Starting => State::Starting,
                Outlook::Failing => State::Failing,
                Outlook::Overloaded => State::Overloaded,
            },
            reason: entry.lifecycle.reason().map(str::to_owned),
            failures: entry.lifecycle.failures(),
            retry_in_ms: retry.map(|pause| pause.as_millis() as u64),
            instances,
            connections: self.connections(entry),
            egress: self.egress(name),
        })
    }

    /// The same, for whoever measures.
    pub(super) fn listed(&self, name: &FunctionName, entry: &Entry) -> Option<Listed> {
        let stats: Vec<_> = entry.branches.values().map(|branch| Arc::clone(&branch.stats)).collect();
        let branches = entry.branches.values().map(|branch| queued(&branch.listener)).sum::<u64>();
        let seated = entry.live.values().filter_map(Live::listener).map(queued).sum::<u64>();
        // Instances write one of the two numbers, and may write anything.
        let undelivered = |live: &Live| live.page.sent().saturating_sub(live.page.received());
        let handed = entry.live.values().filter(|live| live.seat.is_none()).map(undelivered);
        let queues = Queues {
            listener: branches + seated,
            acceptor: stats.iter().map(|stats| stats.waiting()).sum(),
            instance: handed.fold(0, u64::saturating_add),
        };
        Some(Listed { function: self.view(name, entry)?, stats, lives: entry.lives, queues })
    }

    fn egress(&self, name: &FunctionName) -> Egress {
        let Counted { inside, outside, refused, failed, last_refused } =
            self.parts.instances.egress().counted(name);
        Egress { inside, outside, refused, failed, last_refused }
    }

    fn connections(&self, entry: &Entry) -> Connections {
        let mut all = entry.past;
        for branch in entry.branches.values().chain(&entry.leaving) {
            self.add_counts(&mut all, branch);
        }
        all
    }

    pub(super) fn add_counts(&self, all: &mut Connections, branch: &Branch) {
        let stats = &branch.stats;
        all.steered += self.parts.kernel.steered(branch.slot).unwrap_or_default();
        all.warm += self.parts.kernel.warm(branch.slot).unwrap_or_default();
        all.accepted += stats.accepted();
        all.handed_off += stats.handed_off();
        all.requeued += stats.requeued();
        all.forwarded += stats.forwarded();
        all.refused += stats.refused();
        all.waiting += stats.waiting();
    }

    /// All revisions that are kept, the newest first.
    pub(super) fn revisions(&self, name: &FunctionName) -> Result<Revisions, ApiError> {
        let entry = self.functions.get(name);
        let found = entry.and_then(|entry| Some((entry, entry.record.as_ref()?)));
        let (entry, record) = found.ok_or_else(|| self.no_function(name))?;
        let view = |kept: &RevisionRecord| {
            let number = kept.revision;
            let is_ready = |(key, live): (&u32, &Live)| {
                live.revision == number && entry.lifecycle.takes_connections(*key)
            };
            Revision {
                revision: number,
                weight: record.shares.iter().find(|s| s.revision == number).map_or(0, |share| share.weight),
                aliases: record
                    .aliases
                    .iter()
                    .filter(|(_, n)| **n == number)
                    .map(|(a, _)| a.clone())
                    .collect(),
                ready: entry.live.iter().filter(|pair| is_ready(*pair)).count(),
                image: kept.image.clone(),
                root: kept.root.clone(),
                dependencies: kept.dependencies.clone(),
                spec: kept.spec.clone(),
                deployed_at: kept.deployed_at,
            }
        };
        let is_recorded =
            |kept: &&RevisionRecord| entry.changes.values().all(|change| !change.deploys(kept.revision));
        let revisions = entry.revisions.values().rev().filter(is_recorded).map(view).collect();
        Ok(Revisions { revisions })
    }
}
