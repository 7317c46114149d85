//! How many instances a revision has: more as soon as its connections ask for more, fewer once they have asked for fewer
//! for as long as the revision's `idle` says.

use super::instances::Instance;
use super::{Action, Demand, Lifecycle, Phase, Revision, Time, Turn};

impl Lifecycle {
    /// A sample: how busy the instances are, and what the revisions met.
    pub(super) fn sample(&mut self, instances: &[(u32, u64)], demand: &[Demand], now: Time) {
        for instance in self.instances.0.values_mut() {
            instance.is_idle = false;
        }
        for (key, open) in instances {
            if let Some(instance) = self.instances.0.get_mut(key) {
                instance.open = *open;
                instance.is_idle = *open == 0;
            }
        }
        for share in &self.shares {
            let number = share.revision.number;
            let count = self.instances.count(number);
            let Some(pool) = self.pools.get_mut(&number) else { continue };
            let met = demand.iter().find(|d| d.revision == number);
            pool.waiting = met.map_or(0, |d| d.waiting);
            if pool.waiting == 0 && count.ready > 0 {
                pool.waits = false;
            }
            // A counter that began anew has moved as well.
            let before = pool.arrived.unwrap_or_default();
            pool.arrived = met.map(|d| d.arrived).or(pool.arrived);
            let somebody_came = pool.arrived.is_some_and(|arrived| arrived != before);
            // What is there when the first sample comes counts as needed until then.
            if pool.needs.is_empty() {
                pool.needs.note(count.ready, now);
            }
            let busy = share.revision.instances_for(count.open.saturating_add(pool.waiting));
            pool.needs.note(busy.max(u32::from(somebody_came || pool.waits)), now);
        }
    }

    /// The instances that a revision with a share should have now.
    pub(super) fn target(&self, revision: Revision) -> u32 {
        let Some(pool) = self.pools.get(&revision.number) else { return 0 };
        let open = self.instances.count(revision.number).open;
        let busy = revision.instances_for(open.saturating_add(pool.waiting));
        busy.max(u32::from(pool.waits)).max(revision.least())
    }

    /// Lets ready instances that were not needed take part again, also in place of what is on its way: that may fail, and
    /// who waits is served now. The busiest first, since the others are nearer to their end.
    pub(super) fn readmit(&mut self, revision: Revision, turn: &mut Turn<'_>) {
        for key in self.instances.by_load(revision.number, Phase::Withdrawn).into_iter().rev() {
            // Its connections count again with it.
            if self.instances.count(revision.number).ready >= self.target(revision) {
                return;
            }
            self.admit(key, turn);
        }
    }

    /// Sees to it that so many instances of a revision are ready or on their way: by what is prepared, by new ones.
    pub(super) fn grow(&mut self, revision: Revision, target: u32, turn: &mut Turn<'_>) {
        let number = revision.number;
        let Some(pool) = self.pools.get(&number) else { return };
        if pool.failures.is_pausing() {
            return;
        }
        let count = self.instances.count(number);
        let mut missing = target.saturating_sub(count.proven() + count.starting);
        // What fails again and again is tried by one instance at a time.
        if pool.failures.is_crash_loop() && count.proven() == 0 {
            missing = missing.min(1_u32.saturating_sub(count.starting));
        }
        let prepared = self.instances.keys(|i| i.revision.number == number && i.phase == Phase::Prepared);
        for key in prepared.into_iter().take(missing as usize) {
            missing -= 1;
            self.set(key, Phase::Starting { until: turn.now.saturating_add(revision.start_deadline) });
            turn.actions.push(Action::Release { key });
        }
        // What is being prepared is released once it is.
        let room = revision.most().saturating_sub(count.alive());
        for _ in 0..missing.saturating_sub(count.preparing).min(room) {
            self.start(revision, false, turn);
        }
    }

    /// Lets go of what was not needed for long enough; what has connections is first given no more. Only when a sample
    /// was just taken, and no plan is under way.
    pub(super) fn shrink(&mut self, revision: Revision, turn: &mut Turn<'_>) {
        let number = revision.number;
        let is_over = |i: &Instance| i.revision.number == number && i.phase == Phase::Withdrawn && i.is_idle;
        for key in self.instances.keys(is_over) {
            self.drain(key, turn);
        }
        let Some(pool) = self.pools.get_mut(&number) else { return };
        let kept = pool.needs.peak(revision.idle, turn.now).max(revision.least());
        let surplus = self.instances.count(number).ready.saturating_sub(kept);
        for key in self.instances.by_load(number, Phase::Ready).into_iter().take(surplus as usize) {
            self.set(key, Phase::Withdrawn);
            turn.actions.push(Action::Withdraw { key });
        }
    }

    /// Refuses new connections while more wait than may and no help is to come, until half of them are gone.
    pub(super) fn shed(&mut self, revision: Revision, turn: &mut Turn<'_>) {
        let number = revision.number;
        let count = self.instances.count(number);
        let Some(pool) = self.pools.get_mut(&number) else { return };
        let queue = u64::from(revision.queue);
        let no_help = count.ready + count.starting >= revision.most() || pool.failures.is_pausing();
        let on = if pool.sheds { pool.waiting > queue / 2 } else { pool.waiting > queue && no_help };
        if on != pool.sheds {
            pool.sheds = on;
            turn.actions.push(Action::Shed { revision: number, on });
        }
    }

    /// Keeps containers prepared for instances that may be wanted, while nothing else is going on.
    pub(super) fn prepare(&mut self, revision: Revision, turn: &mut Turn<'_>) {
        let number = revision.number;
        let count = self.instances.count(number);
        let wanted = revision.prepared.min(revision.most().saturating_sub(count.alive() - count.held()));
        let is_failing = self.pools.get(&number).is_none_or(|pool| pool.failures.is_pausing());
        if self.change.is_some() || count.starting > 0 || is_failing {
            return;
        }
        for _ in count.held()..wanted {
            if !turn.machine.may_prepare() {
                return;
            }
            self.start(revision, true, turn);
        }
    }

    /// Whether samples matter now: something is there that may be too much or too little, or somebody waits.
    #[must_use]
    pub fn wants_load(&self) -> bool {
        self.shares.iter().any(|share| {
            let count = self.instances.count(share.revision.number);
            let pool = self.pools.get(&share.revision.number);
            let is_busy = pool.is_some_and(|p| p.is_waited_for() || p.sheds || p.failures.is_pausing());
            // As many as ever may be, and as few: there is nothing to decide.
            let revision = share.scaled();
            let is_fixed = revision.least() == revision.most() && count.withdrawn == 0;
            (count.alive() > count.held() && !is_fixed) || is_busy
        })
    }
}
