//! What must hold.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use faasd::core::life::{Action, Event, Outlook, Phase, Share};

use super::world::{Check, Container, Stage, World};

/// What was so before a step.
#[derive(Debug)]
pub struct Picture {
    is_removal: bool,
    is_sample: bool,
    was_removed: bool,
    takers: BTreeMap<u64, usize>,
    weighed: BTreeSet<u64>,
    planned: usize,
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { Err(what()) }
}

impl World {
    pub fn picture(&self, event: &Event) -> Picture {
        let taken = |share: &Share| (share.revision.number, self.takers(share.revision.number).len());
        Picture {
            is_removal: matches!(event, Event::Remove),
            is_sample: matches!(event, Event::Load { .. }),
            was_removed: self.life.is_removed(),
            takers: self.routed.iter().map(taken).collect(),
            weighed: self.routed.iter().filter(|s| s.weight > 0).map(|s| s.revision.number).collect(),
            planned: self.plans.len(),
        }
    }

    fn share(&self, revision: u64) -> Option<&Share> {
        self.routed.iter().find(|share| share.revision.number == revision)
    }

    /// Before an action is done.
    pub fn check_action(&self, action: &Action, before: &Picture) -> Check {
        let ends = before.is_removal || self.life.is_removed();
        match action {
            Action::Start { key, revision, .. } => {
                ensure(!self.used.contains(key), || format!("key {key} is used again"))?;
                let pause = self.paused.get(revision).copied().unwrap_or_default();
                ensure(pause <= self.now, || format!("v{revision} is started with no pause after a failure"))
            }
            Action::Release { key } => {
                let Some(container) = self.containers.get(key) else {
                    return Err(format!("{key} is unknown"));
                };
                ensure(container.stage == Stage::Held, || format!("{key} is released and was not held"))?;
                let pause = self.paused.get(&container.revision.number).copied().unwrap_or_default();
                ensure(pause <= self.now, || format!("{key} is released with no pause after a failure"))
            }
            Action::Admit { key } => {
                let Some(container) = self.containers.get(key) else {
                    return Err(format!("{key} is unknown"));
                };
                let is_fit = container.stage == Stage::Ready && !container.draining && !container.killed;
                ensure(is_fit, || format!("{key} is admitted as {container:?}"))?;
                ensure(self.share(container.revision.number).is_some(), || {
                    format!("{key} is admitted and has no share: {container:?}")
                })
            }
            Action::Withdraw { key } => self.check_takes_away(*key),
            Action::Drain { key } => {
                let Some(container) = self.containers.get(key) else {
                    return Err(format!("{key} is unknown"));
                };
                let number = container.revision.number;
                let is_demoted = |share: &Share| share.weight == 0 && before.weighed.contains(&number);
                let is_surplus = self.share(number).is_some_and(|share| !is_demoted(share));
                ensure(!is_surplus || self.open(*key) == 0, || format!("{key} is drained with connections"))?;
                ensure(!is_surplus || !container.takes(), || {
                    format!("{key} is drained and was not withdrawn")
                })
            }
            Action::Kill { key } => {
                let Some(container) = self.containers.get(key) else {
                    return Err(format!("{key} is unknown"));
                };
                ensure(!container.killed, || format!("{key} is killed twice"))?;
                ensure(ends || container.draining || self.open(*key) == 0, || {
                    format!("{key} is killed with connections: {container:?}")
                })?;
                ensure(ends || !container.takes(), || format!("{key} is killed and takes connections"))
            }
            Action::Commit { plan } => {
                ensure(self.plans.contains_key(plan), || format!("plan {plan} is answered already"))?;
                let plan = &self.plans[plan];
                let weighed = plan.shares.iter().filter(|share| share.weight > 0);
                let proven = weighed.map(|share| share.revision).chain(plan.prove);
                for revision in proven {
                    let shown = self.containers.iter().any(|(key, c)| {
                        let phase = self.life.phase(*key);
                        c.revision == revision && matches!(phase, Some(Phase::Ready | Phase::Withdrawn))
                    });
                    ensure(shown, || format!("v{} was never ready", revision.number))?;
                }
                Ok(())
            }
            Action::Apply { plan } => {
                let recorded = self.plans.get(plan).is_some_and(|plan| plan.shares == self.record);
                ensure(recorded, || format!("plan {plan} is applied and not on record"))
            }
            Action::Abandon { plan, .. } => {
                let plan = self.plans.get(plan).ok_or_else(|| format!("plan {plan} is answered already"))?;
                ensure(self.recording != Some(plan.id) || ends, || {
                    "a plan is given up while it is recorded".to_owned()
                })
            }
            Action::Refuse { revision } => {
                let may = ends || self.share(*revision).is_none() || self.life.failures() >= 3;
                ensure(may, || format!("who waits for v{revision} is refused without need"))
            }
            Action::Shed { revision, on } => {
                let Some(share) = self.share(*revision).filter(|_| *on) else { return Ok(()) };
                let waited = self.sampled.get(revision).copied().unwrap_or_default();
                ensure(waited > share.revision.queue.into(), || {
                    format!("v{revision} is shed at {waited} waiting")
                })
            }
            Action::Gone => {
                let is_whole = self.containers.is_empty() && self.life.is_removed();
                ensure(is_whole, || format!("gone, and there is {:?}", self.containers))
            }
        }
    }

    /// A taker is taken away: not the last that is needed, nor one of the fewest that are kept.
    fn check_takes_away(&self, key: u32) -> Check {
        let Some(container) = self.containers.get(&key) else { return Err(format!("{key} is unknown")) };
        if container.dead {
            return Ok(());
        }
        let revision = container.revision;
        let Some(share) = self.share(revision.number) else {
            return Err(format!("{key} is withdrawn and has no share"));
        };
        let admitted = self.containers.values().filter(|c| c.revision == revision && c.admitted).count();
        ensure(admitted > share.scaled().min as usize, || format!("{key} is withdrawn, one of the fewest"))?;
        if admitted > 1 {
            return Ok(());
        }
        let last = self.last_arrival.get(&revision.number).copied().unwrap_or_default();
        ensure(self.now.saturating_sub(last) >= revision.idle, || format!("{key} sleeps too soon"))?;
        let busy = self.open(key) + self.waiting(revision.number);
        ensure(busy == 0, || format!("{key} was the last, and {busy} connections need it"))
    }

    /// Instances that the policy counts on: ready ones and those on their way, also if their fate is sealed.
    fn counted_on(&self, revision: u64) -> u64 {
        let is_counted =
            |phase| matches!(phase, Phase::Preparing | Phase::Starting { .. } | Phase::Ready | Phase::Killed);
        let of_revision = self.containers.iter().filter(|(_, c)| c.revision.number == revision);
        of_revision.filter(|(key, _)| self.life.phase(**key).is_some_and(is_counted)).count() as u64
    }

    /// Whether the policy has an instance of a revision that stands so.
    pub fn has_phase(&self, revision: u64, wanted: impl Fn(Phase) -> bool) -> bool {
        let mut of_revision = self.containers.iter().filter(|(_, c)| c.revision.number == revision);
        of_revision.any(|(key, _)| self.life.phase(*key).is_some_and(&wanted))
    }

    /// Of each revision that serves: nobody waits beside what could serve him, nothing is started beside what is there,
    /// and no fewer are there than have to be.
    fn check_use(&self, actions: &[Action]) -> Check {
        for share in &self.routed {
            let number = share.revision.number;
            let thinks_it_has_taker = self
                .containers
                .iter()
                .any(|(key, c)| c.revision.number == number && self.life.takes_connections(*key));
            let waits = self.waiting(number) > 0 && !thinks_it_has_taker;
            ensure(!waits || !self.has_phase(number, |phase| phase == Phase::Withdrawn), || {
                format!("somebody waits for v{number}, and an instance is withdrawn")
            })?;
            let is_started =
                |a: &Action| matches!(a, Action::Start { revision, hold: false, .. } if *revision == number);
            let has_spare =
                self.has_phase(number, |phase| matches!(phase, Phase::Withdrawn | Phase::Prepared));
            // A plan counts what is withdrawn as ready.
            ensure(self.life.is_planning() || !has_spare || !actions.iter().any(is_started), || {
                format!("an instance of v{number} is started beside one that is there")
            })?;
            let has_pause = self.life.retry_at().is_some() || self.life.failures() >= 3;
            let counted = self.counted_on(number);
            ensure(has_pause || counted >= share.scaled().min.into(), || {
                format!("v{number} has {counted} instances, and nothing is done")
            })?;
        }
        Ok(())
    }

    /// Before time passes: whoever waits is looked at.
    pub fn check_wait(&self) -> Check {
        let waits = self.routed.iter().find(|share| self.waiting(share.revision.number) > 0);
        let is_seen = waits.is_none() || self.life.wants_load() || self.life.is_removed();
        ensure(is_seen, || format!("somebody waits, and nobody looks: {waits:?}"))
    }

    /// After a sample: there are as many instances as it asks for.
    fn check_sampled(&self) -> Check {
        for share in &self.routed {
            let revision = share.revision;
            let ready = self
                .containers
                .iter()
                .filter(|(key, c)| c.revision == revision && self.life.takes_connections(**key));
            let busy = ready.map(|(key, _)| self.open(*key)).sum::<u64>() + self.waiting(revision.number);
            let wanted = busy.div_ceil(revision.concurrency.into()).min(revision.max.into());
            let has_pause = self.life.retry_at().is_some() || self.life.failures() >= 3;
            let counted = self.counted_on(revision.number);
            ensure(has_pause || counted >= wanted, || {
                format!("v{} has {counted} instances for {busy} connections", revision.number)
            })?;
        }
        Ok(())
    }

    /// After the actions of a step.
    pub fn check_step(&self, actions: &[Action], before: &Picture) -> Check {
        for (key, container) in &self.containers {
            ensure(container.dead || self.life.takes_connections(*key) == container.admitted, || {
                format!("{key} is thought to be another than it is: {container:?}")
            })?;
            ensure(self.life.phase(*key).is_some(), || format!("{key} is forgotten: {container:?}"))?;
            let is_routed = self.share(container.revision.number).is_some();
            ensure(is_routed || !container.admitted, || format!("{key} takes connections without a share"))?;
        }
        for revision in &self.revisions {
            let alive = self
                .containers
                .values()
                .filter(|c| c.revision == *revision && !c.draining && !c.killed && !c.dead);
            let alive = alive.count();
            ensure(alive <= revision.max as usize, || format!("v{} has {alive} instances", revision.number))?;
        }
        let has_ended = self.life.is_removed();
        ensure(has_ended || self.life.shares() == self.routed, || {
            "who serves is not who is routed".to_owned()
        })?;
        let is_settled = self.recording.is_none() && !has_ended;
        ensure(!is_settled || self.record == self.routed, || {
            "what is routed is not what is on record".to_owned()
        })?;
        let doomed = self.doomed.filter(|plan| self.plans.contains_key(plan));
        ensure(doomed.is_none(), || format!("plan {doomed:?} goes on though its proof failed"))?;
        ensure(self.plans.len() <= 1, || format!("{} plans have no answer", self.plans.len()))?;
        ensure(self.life.is_planning() != self.plans.is_empty(), || "a plan is lost".to_owned())?;
        let is_failing = self.life.outlook() == Outlook::Failing;
        ensure(!is_failing || self.life.retry_at().is_some(), || {
            "failing, and nothing will be tried".to_owned()
        })?;
        ensure(self.gone <= self.last_plan as u32, || "gone more than once".to_owned())?;
        if actions.iter().any(|action| matches!(action, Action::Apply { .. })) {
            return self.check_applied(before);
        }
        if !has_ended {
            self.check_use(actions)?;
            if before.is_sample {
                self.check_sampled()?;
            }
        }
        let abandons = actions.iter().any(|action| matches!(action, Action::Abandon { .. }));
        if abandons && !has_ended && !before.was_removed {
            for (revision, takers) in &before.takers {
                ensure(self.takers(*revision).len() >= *takers, || {
                    format!("v{revision} has fewer takers by a plan that was given up")
                })?;
            }
        }
        Ok(())
    }

    /// Each revision that serves has a taker, unless it died in between.
    fn check_applied(&self, before: &Picture) -> Check {
        ensure(before.planned == 1, || "applied with no plan".to_owned())?;
        for share in &self.routed {
            let of_share = || self.containers.iter().filter(|(_, c)| c.revision == share.revision);
            let is_coming = |key| {
                matches!(
                    self.life.phase(key),
                    Some(Phase::Starting { .. } | Phase::Preparing | Phase::Killed)
                )
            };
            let has_taker = of_share().any(|(key, _)| self.life.takes_connections(*key) || is_coming(*key));
            let is_cold = share.revision.min == 0 && self.life.reason().is_some();
            ensure(share.weight == 0 || has_taker || is_cold || self.life.retry_at().is_some(), || {
                format!("v{} serves, and has no taker", share.revision.number)
            })?;
            let ready = of_share()
                .filter(|(key, _)| matches!(self.life.phase(**key), Some(Phase::Ready | Phase::Withdrawn)));
            for (key, _) in ready {
                ensure(self.life.takes_connections(*key), || format!("{key} is ready and left out"))?;
            }
        }
        Ok(())
    }

    /// The faults have stopped for a while; connections are still open.
    pub fn check_calm(&self) -> Check {
        ensure(self.plans.is_empty() && self.recording.is_none(), || "a plan has no end".to_owned())?;
        ensure(!self.life.is_removed(), || "a removal has no end".to_owned())?;
        ensure(self.record == self.routed, || "what is routed is not what is on record".to_owned())?;
        let waits = self.connections.values().find(|c| c.at.is_none());
        ensure(waits.is_none(), || format!("somebody waits for ever: {waits:?}"))?;
        ensure(self.shed.is_empty(), || format!("still refused: {:?}", self.shed))?;
        for share in &self.routed {
            let takers = self.takers(share.revision.number).len();
            ensure(takers >= share.scaled().min as usize, || {
                format!("v{} lacks instances", share.revision.number)
            })?;
        }
        for (key, container) in &self.containers {
            let is_routed = self.share(container.revision.number).is_some();
            ensure(is_routed && !container.dead, || format!("{key} was left behind: {container:?}"))?;
        }
        Ok(())
    }

    /// Nobody has been connected for longer than any revision's `idle`.
    pub fn check_rest(&self) -> Check {
        self.check_calm()?;
        for share in &self.routed {
            let revision = share.scaled();
            let of_stage = |stages: &[Stage]| {
                let wanted = |c: &&_| is_of(c, revision.number, stages);
                self.containers.values().filter(wanted).count() as u32
            };
            let (ready, held) = (of_stage(&[Stage::Ready]), of_stage(&[Stage::Creating, Stage::Held]));
            let number = revision.number;
            ensure(ready == revision.min, || format!("v{number} rests with {ready} instances"))?;
            let prepared = revision.prepared.min(revision.max - revision.min);
            ensure(held == prepared, || format!("v{number} rests with {held} prepared"))?;
        }
        let wants = self.routed.iter().any(|share| share.scaled().min > 0);
        let outlook = if wants { Outlook::Warm } else { Outlook::Cold };
        ensure(self.life.outlook() == outlook, || format!("at rest it looks {:?}", self.life.outlook()))?;
        let tick = self.life.next_tick();
        ensure(tick.is_none_or(|at| at > self.now + Duration::from_millis(1)), || "no rest".to_owned())
    }
}

fn is_of(container: &Container, revision: u64, stages: &[Stage]) -> bool {
    container.revision.number == revision && stages.contains(&container.stage)
}
