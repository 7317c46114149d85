//! A change of who serves: proven first, then recorded, then in effect; or abandoned, and nothing has changed.

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
    /// The plan's revisions with their weights: 0 for one that only has to prove itself.
    fn revisions(&self) -> impl Iterator<Item = (Revision, u32)> + '_ {
        let has_share = |one: &Revision| self.plan.shares.iter().any(|s| s.revision.number == one.number);
        let proved = self.plan.prove.filter(|one| !has_share(one));
        self.plan.shares.iter().map(|s| (s.revision, s.weight)).chain(proved.map(|one| (one, 0)))
    }

    pub(super) fn concerns(&self, revision: u64) -> bool {
        self.revisions().any(|(one, _)| one.number == revision)
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
        for (revision, _) in change.revisions() {
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

    /// Starts what the plan needs, and has it recorded once that is ready.
    pub(super) fn prove(&mut self, turn: &mut Turn<'_>) {
        let Some(mut change) = self.change.take() else { return };
        if let Stage::Proving { until, one_is_enough } = change.stage {
            let one_is_enough = one_is_enough || until <= turn.now;
            change.stage = Stage::Proving { until, one_is_enough };
            let mut is_proven = true;
            for (revision, weight) in change.revisions() {
                let needed = if one_is_enough { 1 } else { self.needed(revision, weight) };
                self.grow(revision, needed, turn);
                is_proven &= self.instances.count(revision.number).proven() >= needed;
            }
            if is_proven {
                change.stage = Stage::Committing;
                turn.actions.push(Action::Commit { plan: change.plan.id });
            }
        }
        self.change = Some(change);
    }

    /// How many instances a revision has ready before it takes its share: as many as the present load will want of it,
    /// but no more than serve the function now. Whatever serves now is let go at the change, so with fewer there would
    /// be a moment with too few; with more, a change would be slower for no loss it avoids. One is enough for a function
    /// that nothing serves yet, and for a revision that gets no share. [`Stage::Proving`] says when one is enough for
    /// all: an instance failed after one of its revision was ready, or the longest start deadline has passed.
    fn needed(&self, revision: Revision, weight: u32) -> u32 {
        let serving = self.shares.iter().map(|share| share.revision.number);
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
        let Some(change) = self.change.as_mut().filter(|change| change.concerns(revision)) else { return };
        let Stage::Proving { one_is_enough, .. } = &mut change.stage else { return };
        if is_proven {
            *one_is_enough = true;
        } else {
            self.abandon(why.to_owned(), turn);
        }
    }

    pub(super) fn committed(&mut self, plan: u64, turn: &mut Turn<'_>) {
        let Some(change) = self.take_recorded(plan) else { return };
        self.shares = change.plan.shares;
        turn.actions.push(Action::Apply { plan });
        // Those that were not needed take part again: what is wanted of each revision is not known yet.
        let ready = self.instances.keys(|i| match i.phase {
            Phase::Ready => !i.admitted,
            phase => phase == Phase::Withdrawn,
        });
        for key in ready {
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

    /// Whether a revision serves, or a plan that is under way wants it.
    fn is_of_use(&self, revision: u64) -> bool {
        self.has_share(revision) || self.change.as_ref().is_some_and(|change| change.concerns(revision))
    }
}
