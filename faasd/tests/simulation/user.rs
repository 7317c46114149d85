//! What is done to a function: by its users, by its clients, by chance.

use std::time::Duration;

use faasd::core::life::{Event, Plan, Revision, Share};

use super::world::{Check, Quality, World};

/// Revisions that a rollback or a split may name.
const REMEMBERED: usize = 4;

impl World {
    /// Everything at once; then calm, rest, and the end.
    pub fn live(&mut self) -> Check {
        let moves = 100 + self.rng.below(150);
        for _ in 0..moves {
            self.do_something()?;
        }
        self.note(|| "calm".to_owned());
        self.calm = true;
        self.keys.may_prepare = true;
        // There is room again: who knows of it says so.
        self.tell(Event::Tick)?;
        self.run_for(Duration::from_secs(150))?;
        self.check_calm()?;
        for id in self.connections.keys().copied().collect::<Vec<_>>() {
            self.close(id);
        }
        self.note(|| "nobody is connected".to_owned());
        self.run_for(Duration::from_secs(60))?;
        self.check_rest()?;
        if !self.record.is_empty() {
            let before = self.gone;
            self.remove()?;
            self.run_for(Duration::from_secs(5))?;
            if self.gone != before + 1 || !self.containers.is_empty() {
                return Err("a removed function is not gone once and whole".to_owned());
            }
        }
        Ok(())
    }

    fn run_for(&mut self, time: Duration) -> Check {
        let end = self.now + time;
        while self.now < end {
            self.advance()?;
        }
        Ok(())
    }

    fn do_something(&mut self) -> Check {
        match self.rng.below(1000) {
            0..150 => {
                for _ in 0..=self.rng.below(6) {
                    let is_short = self.rng.chance(50);
                    self.connect(is_short)?;
                }
                Ok(())
            }
            150..260 => {
                let open: Vec<u64> =
                    self.connections.iter().filter(|(_, c)| c.at.is_some()).map(|(id, _)| *id).collect();
                if let Some(id) = self.rng.pick(&open) {
                    self.close(id);
                }
                Ok(())
            }
            260..288 => self.deploy(),
            288..312 => self.split(),
            312..315 => self.remove(),
            315..323 => self.restart(),
            323..333 => {
                let living: Vec<u32> =
                    self.containers.iter().filter(|(_, c)| !c.dead).map(|(key, _)| *key).collect();
                if let Some(key) = self.rng.pick(&living) {
                    self.die(key);
                }
                Ok(())
            }
            333..336 => {
                self.now += Duration::from_secs(3600 * (1 + self.rng.below(5)));
                self.note(|| "the clock jumps".to_owned());
                Ok(())
            }
            336..346 => {
                self.keys.may_prepare = self.rng.chance(70);
                Ok(())
            }
            // Short times and long ones.
            346..360 => {
                self.now += self.rng.ms(1, 20_000);
                Ok(())
            }
            _ => self.advance(),
        }
    }

    fn deploy(&mut self) -> Check {
        let number = self.revisions.len() as u64 + 1;
        let max = 1 + self.rng.below(4) as u32;
        let revision = Revision {
            number,
            min: self.rng.below(u64::from(max) + 1) as u32,
            max,
            concurrency: 1 + self.rng.below(4) as u32,
            idle: self.rng.pick(&[0, 3, 10, 20]).map(Duration::from_secs).unwrap_or_default(),
            prepared: self.rng.below(3) as u32,
            queue: self.rng.below(6) as u32,
            start_deadline: self.rng.ms(2_000, 10_000),
            drain_deadline: self.rng.ms(0, 5_000),
        };
        self.revisions.push(revision);
        // What was never there is mostly begun well, or there is little to see.
        let quality = match self.rng.below(10) {
            0..6 => Quality::Good,
            _ if self.routed.is_empty() && self.rng.chance(80) => Quality::Good,
            6 => Quality::Flaky,
            7 => Quality::Bad,
            8 => Quality::Hanging,
            _ => Quality::Dying,
        };
        self.qualities.insert(number, quality);
        self.note(|| format!("v{number} is {quality:?}: {revision:?}"));
        self.plan(vec![Share { revision, weight: 100 }], None)
    }

    /// A rollback, a split, other weights.
    fn split(&mut self) -> Check {
        let mut known = self.revisions[self.revisions.len().saturating_sub(REMEMBERED)..].to_vec();
        known.extend(self.routed.iter().map(|share| share.revision));
        known.sort_by_key(|revision| revision.number);
        known.dedup();
        let Some(first) = self.rng.pick(&known) else { return Ok(()) };
        let second = self.rng.pick(&known).filter(|second| *second != first);
        let prove = self.rng.pick(&known).filter(|_| self.rng.chance(20));
        let weight = 1 + self.rng.below(99) as u32;
        let shares = match second {
            Some(second) => {
                vec![Share { revision: first, weight }, Share { revision: second, weight: 100 - weight }]
            }
            None => vec![Share { revision: first, weight: 100 }],
        };
        self.plan(shares, prove)
    }

    fn plan(&mut self, mut shares: Vec<Share>, prove: Option<Revision>) -> Check {
        self.last_plan += 1;
        // Some keep a name of their own.
        for revision in self.revisions.iter().rev().take(REMEMBERED) {
            if self.rng.chance(20) && shares.iter().all(|share| share.revision != *revision) {
                shares.push(Share { revision: *revision, weight: 0 });
            }
        }
        let plan = Plan { id: self.last_plan, shares, prove };
        // Whoever asks for a revision gives it another chance.
        let numbers = plan.shares.iter().map(|share| share.revision.number);
        for number in numbers.chain(plan.prove.map(|revision| revision.number)) {
            self.paused.remove(&number);
        }
        self.plans.insert(plan.id, plan.clone());
        self.tell(Event::Plan(plan))
    }

    /// The record goes first: a daemon that ends here is followed by one that knows of nothing.
    fn remove(&mut self) -> Check {
        if self.record.is_empty() {
            return Ok(());
        }
        self.record.clear();
        self.recording = None;
        self.tell(Event::Remove)
    }
}
