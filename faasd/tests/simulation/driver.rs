//! The daemon: it asks the policy, does what that says, samples, and is restarted.

use faasd::core::life::{Action, Demand, Event, Lifecycle, Machine as _, Running};

use super::world::{Check, Container, Due, SAMPLE, Stage, World};

impl World {
    /// Lets the policy decide, and does what it says; unless the daemon ends in the middle of it.
    pub fn tell(&mut self, event: Event) -> Check {
        self.steps += 1;
        self.note(|| format!("→ {event:?}"));
        let before = self.picture(&event);
        let actions = self.life.step(event, self.now, &mut self.keys);
        let is_cut = !self.calm && self.rng.below(500) == 0;
        let done = if is_cut { self.rng.below(actions.len() as u64 + 1) as usize } else { actions.len() };
        for action in &actions[..done] {
            self.note(|| format!("    {action:?}"));
            self.check_action(action, &before)?;
            self.execute(action);
        }
        if is_cut {
            return self.restart();
        }
        self.check_step(&actions, &before)?;
        self.doomed = None;
        if actions.contains(&Action::Gone) {
            let more = self.life.step(Event::Tick, self.now, &mut self.keys);
            if !more.is_empty() {
                return Err(format!("after the end: {more:?}"));
            }
            self.life = Lifecycle::new(self.steps);
            self.connections.clear();
            self.shed.clear();
            self.routed.clear();
            self.recording = None;
        }
        Ok(())
    }

    fn execute(&mut self, action: &Action) {
        *self.done.entry(name(action)).or_default() += 1;
        match action {
            Action::Start { key, revision, hold } => {
                self.used.insert(*key);
                let revision = self.revisions.iter().find(|r| r.number == *revision).copied().unwrap();
                let container = Container {
                    revision,
                    hold: *hold,
                    stage: Stage::Creating,
                    admitted: false,
                    draining: false,
                    killed: false,
                    dead: false,
                    told_until: self.now,
                };
                self.containers.insert(*key, container);
                self.proceed(*key, Due::Created(*key));
            }
            Action::Release { key } => {
                if let Some(container) = self.containers.get_mut(key).filter(|c| !c.dead) {
                    container.stage = Stage::Booting;
                    self.proceed(*key, Due::Booted(*key));
                }
            }
            Action::Admit { key } => {
                let Some(container) = self.containers.get_mut(key).filter(|c| !c.dead) else { return };
                container.admitted = true;
                let revision = container.revision.number;
                for connection in self.connections.values_mut().filter(|c| c.revision == revision) {
                    connection.at.get_or_insert(*key);
                }
            }
            Action::Withdraw { key } => {
                if let Some(container) = self.containers.get_mut(key) {
                    container.admitted = false;
                }
            }
            Action::Drain { key } => {
                let Some(container) = self.containers.get_mut(key) else { return };
                container.admitted = false;
                container.draining = true;
                // Some do not listen.
                if self.open(*key) == 0 && !self.rng.chance(10) {
                    self.die(*key);
                }
            }
            Action::Kill { key } => {
                if let Some(container) = self.containers.get_mut(key) {
                    container.admitted = false;
                    container.killed = true;
                    self.die(*key);
                }
            }
            Action::Commit { plan } => {
                self.recording = Some(*plan);
                let written = self.calm || self.rng.chance(90);
                let after = self.rng.ms(0, 300);
                self.schedule(after, Due::Write(self.plans[plan].clone(), written));
            }
            Action::Apply { plan } => {
                self.routed = self.plans.remove(plan).map(|plan| plan.shares).unwrap_or_default();
            }
            Action::Abandon { plan, .. } => drop(self.plans.remove(plan)),
            Action::Refuse { revision } => {
                self.connections.retain(|_, c| c.revision != *revision || c.at.is_some());
            }
            Action::Shed { revision, on: true } => drop(self.shed.insert(*revision)),
            Action::Shed { revision, on: false } => drop(self.shed.remove(revision)),
            Action::Gone => self.gone += 1,
        }
    }

    pub fn sample(&mut self) -> Check {
        self.next_sample = self.now + SAMPLE;
        let living = self.containers.iter().filter(|(_, c)| !c.dead);
        let instances = living.map(|(key, _)| (*key, self.open(*key))).collect();
        let revisions: Vec<u64> = self.routed.iter().map(|share| share.revision.number).collect();
        let met = |revision: &u64| Demand {
            revision: *revision,
            waiting: self.waiting(*revision),
            arrived: self.arrived.get(revision).copied().unwrap_or_default(),
        };
        let demand: Vec<Demand> = revisions.iter().map(met).collect();
        self.sampled = demand.iter().map(|d| (d.revision, d.waiting)).collect();
        self.tell(Event::Load { instances, demand })
    }

    /// The daemon ends, and another one takes over what is there.
    pub fn restart(&mut self) -> Check {
        self.note(|| "the daemon is restarted".to_owned());
        if let Some(plan) = self.recording.take()
            && self.rng.chance(50)
            && let Some(plan) = self.plans.get(&plan)
        {
            self.record.clone_from(&plan.shares);
        }
        self.due.retain(|_, due| matches!(due, Due::Die(_)));
        self.plans.clear();
        self.paused.clear();
        self.shed.clear();
        self.routed.clone_from(&self.record);
        let declared: Vec<u64> = self.routed.iter().map(|share| share.revision.number).collect();
        let mut running = Vec::new();
        for (key, mut container) in std::mem::take(&mut self.containers) {
            let leaves = container.dead || container.draining || container.killed;
            let is_kept =
                container.stage == Stage::Ready && !leaves && declared.contains(&container.revision.number);
            if !is_kept {
                self.connections.retain(|_, c| c.at != Some(key));
                continue;
            }
            let new = self.keys.fresh_key();
            self.used.insert(new);
            for connection in self.connections.values_mut().filter(|c| c.at == Some(key)) {
                connection.at = Some(new);
            }
            running.push(Running { key: new, revision: container.revision, draining: false });
            container.told_until = self.now;
            container.admitted = false;
            self.containers.insert(new, container);
        }
        self.connections.retain(|_, c| declared.contains(&c.revision));
        self.life = if self.record.is_empty() {
            Lifecycle::new(self.steps)
        } else {
            Lifecycle::adopted(self.steps, self.record.clone(), running.iter().copied(), self.now)
        };
        for Running { key, .. } in running {
            if self.life.takes_connections(key) {
                self.execute(&Action::Admit { key });
            }
        }
        self.tell(Event::Tick)?;
        for revision in declared {
            if self.waiting(revision) > 0 && self.takers(revision).is_empty() {
                self.tell(Event::Waiting { revision })?;
            }
        }
        Ok(())
    }
}

const fn name(action: &Action) -> &'static str {
    match action {
        Action::Start { hold: false, .. } => "start",
        Action::Start { hold: true, .. } => "prepare",
        Action::Release { .. } => "release",
        Action::Admit { .. } => "admit",
        Action::Withdraw { .. } => "withdraw",
        Action::Drain { .. } => "drain",
        Action::Kill { .. } => "kill",
        Action::Commit { .. } => "commit",
        Action::Apply { .. } => "apply",
        Action::Abandon { .. } => "abandon",
        Action::Refuse { .. } => "refuse",
        Action::Shed { on: true, .. } => "shed",
        Action::Shed { on: false, .. } => "shed no longer",
        Action::Gone => "gone",
    }
}
