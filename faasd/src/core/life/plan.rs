//! A change of who serves: proven first, then recorded, then in effect; or abandoned, and nothing has changed.

use super::instances::Instance;
use super::{Action, Lifecycle, Phase, Plan, Revision, Time, Turn};

/// A plan that is under way.
#[derive(Clone, Debug)]
pub(super) struct Change {
    plan: Plan,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its revisions start what they lack.
    Proving {
        /// When one instance of each is enough.
        until: Time,
        /// One of each is enough.
        one_is_enough: bool,
    },
    /// It is being recorded: whether it is in effect is for the record to say.
    Committing,
}

impl Change {
    /// The revisions that have to prove themselves, with their weights: 0 for one that only has to do that.
    fn proofs(&self) -> impl Iterator<Item = (Revision, u32)> + '_ {
        let weighed = || self.plan.shares.iter().filter(|share| share.weight > 0);
        let is_weighed = move |one: &Revision| weighed().any(|share| share.revision.number == one.number);
        let proved = self.plan.prove.filter(|one| !is_weighed(one));
        weighed().map(|share| (share.revision, share.weight)).chain(proved.map(|one| (one, 0)))
    }

    /// Whether a revision is to serve by the plan, or has to prove itself for it.
    pub(super) fn concerns(&self, revision: u64) -> bool {
        let mut revisions = self.plan.shares.iter().map(|share| share.revision).chain(self.plan.prove);
        revisions.any(|one| one.number == revision)
    }

    fn awaits_proof_of(&self, revision: u64) -> bool {
        self.proofs().any(|(one, _)| one.number == revision)
    }

    /// When it settles for fewer instances than it would like.
    pub(super) fn due(&self) -> Option<Time> {
        match self.stage {
            Stage::Proving { until, one_is_enough: false } => Some(until),
            Stage::Proving { .. } | Stage::Committing => None,
        }
    }
}

impl Lifecycle {
    pub(super) fn plan(&mut self, plan: Plan, turn: &mut Turn<'_>) {
        let refusal = if self.removed {
            Some("the function is being removed")
        } else if self.change.as_ref().is_some_and(|c| c.stage == Stage::Committing) {
            Some("another change is being recorded; try again")
        } else {
            None
        };
        if let Some(why) = refusal {
            turn.actions.push(Action::Abandon { plan: plan.id, why: why.to_owned() });
            return;
        }
        let mut change = Change { plan, stage: Stage::Committing };
        let mut longest = Time::ZERO;
        for revision in change.plan.shares.iter().map(|share| share.revision).chain(change.plan.prove) {
            longest = longest.max(revision.start_deadline);
            // Whoever asks for a revision gives it another chance.
            self.pools.entry(revision.number).or_default().failures.forgive();
        }
        change.stage = Stage::Proving { until: turn.now.saturating_add(longest), one_is_enough: false };
        if let Some(overtaken) = self.change.replace(change) {
            let why = "another change of the function overtook this one".to_owned();
            turn.actions.push(Action::Abandon { plan: overtaken.plan.id, why });
            self.discard_proofs(turn);
        }
    }

    /// Starts what the plan needs, and has it recorded once that is ready. What dies while it is recorded is replaced.
    pub(super) fn prove(&mut self, turn: &mut Turn<'_>) {
        let Some(mut change) = self.change.take() else { return };
        if let Stage::Proving { until, one_is_enough } = &mut change.stage {
            *one_is_enough |= *until <= turn.now;
        }
        let mut is_proven = true;
        for (revision, weight) in change.proofs() {
            let needed = match change.stage {
                Stage::Proving { one_is_enough: false, .. } => self.needed(revision, weight),
                Stage::Proving { .. } | Stage::Committing => 1,
            };
            self.grow(revision, needed, turn);
            is_proven &= self.instances.count(revision.number).proven() >= needed;
        }
        if is_proven && change.stage != Stage::Committing {
            change.stage = Stage::Committing;
            turn.actions.push(Action::Commit { plan: change.plan.id });
        }
        self.change = Some(change);
    }

    /// How many instances a revision has ready before it takes its share: as many as the present load will want of it,
    /// but no more than serve the function now. Whatever serves now is let go at the change, so with fewer there would
    /// be a moment with too few; with more, a change would be slower for no loss it avoids. One is enough for a function
    /// that nothing serves yet, and for a revision that gets no share. [`Stage::Proving`] says when one is enough for
    /// all: an instance failed after one of its revision was ready, or the longest start deadline has passed.
    fn needed(&self, revision: Revision, weight: u32) -> u32 {
        let serving = self.shares.iter().filter(|share| share.weight > 0).map(|share| share.revision.number);
        let (mut takers, mut connections) = (0, 0_u64);
        for number in serving {
            let count = self.instances.count(number);
            let waiting = self.pools.get(&number).map_or(0, |pool| pool.waiting);
            takers += count.ready;
            connections = connections.saturating_add(count.open).saturating_add(waiting);
        }
        if weight == 0 {
            return 1;
        }
        let connections = connections.saturating_mul(u64::from(weight)).div_ceil(100);
        revision.instances_for(connections).max(revision.least()).min(takers).max(1)
    }

    /// What the failure of an instance means for the plan. Those that served before it are no proof of it.
    pub(super) fn proof_failed(&mut self, revision: u64, why: &str, turn: &mut Turn<'_>) {
        let is_proven = self.instances.count(revision).proven() > 0;
        let Some(change) = self.change.as_mut().filter(|change| change.awaits_proof_of(revision)) else {
            return;
        };
        let Stage::Proving { one_is_enough, .. } = &mut change.stage else { return };
        if is_proven {
            *one_is_enough = true;
        } else {
            self.abandon(why.to_owned(), turn);
        }
    }

    pub(super) fn committed(&mut self, plan: u64, turn: &mut Turn<'_>) {
        let Some(change) = self.take_recorded(plan) else { return };
        let before = std::mem::replace(&mut self.shares, change.plan.shares);
        turn.actions.push(Action::Apply { plan });
        // Whoever came for the function and not for this revision is to come to one that has a share now.
        let had_weight = |number| before.iter().any(|s| s.revision.number == number && s.weight > 0);
        let is_demoted = |number| had_weight(number) && self.has_share(number) && !self.has_weight(number);
        for key in self.instances.keys(|i| is_demoted(i.revision.number)) {
            match self.phase(key) {
                Some(Phase::Ready | Phase::Withdrawn) => self.drain(key, turn),
                Some(Phase::Preparing | Phase::Prepared) => self.kill(key, turn),
                _ => {}
            }
        }
        // Those that were not needed take part again: what is wanted of each revision is not known yet.
        let is_idle = |i: &Instance| (i.phase == Phase::Ready && !i.admitted) || i.phase == Phase::Withdrawn;
        for key in self.instances.keys(|i| is_idle(i) && self.has_share(i.revision.number)) {
            self.admit(key, turn);
        }
    }

    pub(super) fn not_committed(&mut self, plan: u64, why: String, turn: &mut Turn<'_>) {
        if let Some(change) = self.take_recorded(plan) {
            self.change = Some(change);
            self.abandon(why, turn);
        }
    }

    fn take_recorded(&mut self, plan: u64) -> Option<Change> {
        self.change.take_if(|change| change.stage == Stage::Committing && change.plan.id == plan)
    }

    /// Gives the plan up. A function that nothing served before has nothing to go back to, and goes.
    fn abandon(&mut self, why: String, turn: &mut Turn<'_>) {
        let Some(change) = self.change.take() else { return };
        turn.actions.push(Action::Abandon { plan: change.plan.id, why });
        if self.shares.is_empty() {
            let revisions = change.plan.shares.iter().map(|share| share.revision.number);
            self.end(revisions.collect(), turn);
        } else {
            self.discard_proofs(turn);
        }
    }

    /// Kills what was started for a plan and is of no use without it. No connection was ever given to it.
    fn discard_proofs(&mut self, turn: &mut Turn<'_>) {
        let is_proof = |phase| !matches!(phase, Phase::Draining { .. } | Phase::Killed);
        for key in self.instances.keys(|i| is_proof(i.phase) && !self.is_of_use(i.revision.number)) {
            self.kill(key, turn);
        }
    }

    pub(super) fn remove(&mut self, turn: &mut Turn<'_>) {
        if self.removed {
            return;
        }
        if let Some(change) = self.change.take() {
            let why = "the function was removed while it was changed".to_owned();
            turn.actions.push(Action::Abandon { plan: change.plan.id, why });
        }
        let revisions = self.shares.iter().map(|share| share.revision.number).collect();
        self.end(revisions, turn);
    }

    /// Whoever removes a function wants it gone: its connections end with it.
    fn end(&mut self, refused: Vec<u64>, turn: &mut Turn<'_>) {
        self.removed = true;
        self.shares.clear();
        turn.actions.extend(refused.into_iter().map(|revision| Action::Refuse { revision }));
        for (revision, pool) in std::mem::take(&mut self.pools) {
            if pool.sheds {
                turn.actions.push(Action::Shed { revision, on: false });
            }
        }
        for key in self.instances.keys(|i| i.phase != Phase::Killed) {
            self.kill(key, turn);
        }
    }

    /// Lets go of whatever is of a revision that neither serves nor is to.
    pub(super) fn retire(&mut self, turn: &mut Turn<'_>) {
        for key in self.instances.keys(|i| !self.is_of_use(i.revision.number)) {
            let Some(phase) = self.phase(key) else { continue };
            match phase {
                Phase::Ready | Phase::Withdrawn => self.drain(key, turn),
                Phase::Preparing | Phase::Prepared | Phase::Starting { .. } => self.kill(key, turn),
                Phase::Draining { .. } | Phase::Killed => {}
            }
        }
        let useless: Vec<u64> =
            self.pools.keys().copied().filter(|number| !self.is_of_use(*number)).collect();
        for revision in useless {
            let Some(pool) = self.pools.remove(&revision) else { continue };
            // Nobody is to come for them any more.
            if pool.is_waited_for() {
                turn.actions.push(Action::Refuse { revision });
            }
            if pool.sheds {
                turn.actions.push(Action::Shed { revision, on: false });
            }
        }
    }

    pub(super) fn has_share(&self, revision: u64) -> bool {
        self.shares.iter().any(|share| share.revision.number == revision)
    }

    /// Whether connections to the function may come to a revision, and not only those to its own name.
    pub(super) fn has_weight(&self, revision: u64) -> bool {
        self.shares.iter().any(|share| share.revision.number == revision && share.weight > 0)
    }

    /// Whether a revision serves, or a plan that is under way wants it.
    fn is_of_use(&self, revision: u64) -> bool {
        self.has_share(revision) || self.change.as_ref().is_some_and(|change| change.concerns(revision))
    }
}
