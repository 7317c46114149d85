//! Changes of who serves: a deploy, a rollback, other shares. Each becomes a plan of the policy's, goes on record when the
//! policy says so, and is then in effect.

use std::collections::BTreeSet;

use super::*;
use crate::control::files::{self, Full};
use crate::control::owner::branches::is_bound_to;
use crate::core::life::{Revision, Share};
use crate::core::revision::{ALIASES_MAX, RevisionName, WantedShare, check_shares};
use crate::core::spec::FunctionSpec;

/// What somebody wants changed.
#[derive(Debug)]
pub enum Wanted {
    /// A new revision.
    Deploy {
        image: Option<String>,
        dependencies: Option<String>,
        spec: Box<FunctionSpec>,
        /// Whether it is to serve at once, and alone. Otherwise it only has to show that it can.
        serve: bool,
        /// Whether it becomes a revision even if all is as declared already.
        force: bool,
        condition: Condition,
    },
    /// Revisions that there are.
    Traffic(Vec<WantedShare>),
    /// Who served before the last change.
    Rollback,
    /// A name for a revision, or without one no such name any more.
    Alias { alias: Alias, revision: Option<u64> },
}

/// A change under way.
pub(super) struct Change {
    /// Revisions and weights; of 0 for those that have an alias and nothing else.
    shares: Vec<(u64, u32)>,
    aliases: BTreeMap<Alias, u64>,
    /// The revision that is deployed by it.
    new: Option<u64>,
    kind: Kind,
    reply: Reply<Function>,
    /// Why it could not go on record.
    error: Option<ApiError>,
    /// Listeners for slots that have none, by slot.
    listeners: BTreeMap<u32, Arc<OwnedFd>>,
}

/// What a change is to whoever looks back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Deploy,
    Traffic,
    Rollback,
    Alias,
}

impl Change {
    /// What to tell of it when it is in effect.
    fn event(&self) -> NewEvent {
        let list = |of: Vec<String>| of.join(", ");
        let shares = || list(self.weighed().map(|(number, weight)| format!("v{number} {weight}%")).collect());
        let aliases =
            || list(self.aliases.iter().map(|(alias, number)| format!("{alias} is v{number}")).collect());
        match self.kind {
            Kind::Deploy => NewEvent { revision: self.new, ..NewEvent::new(EventKind::Deployed, shares()) },
            Kind::Rollback => NewEvent::new(EventKind::RolledBack, shares()),
            Kind::Traffic => NewEvent::new(EventKind::TrafficChanged, shares()),
            Kind::Alias => NewEvent::new(EventKind::AliasesChanged, aliases()),
        }
    }

    /// Those that the function's connections are shared out to.
    pub(super) fn weighed(&self) -> impl Iterator<Item = (u64, u32)> + '_ {
        self.shares.iter().copied().filter(|(_, weight)| *weight > 0)
    }

    /// Whether it is this revision's deploy.
    pub(super) fn deploys(&self, revision: u64) -> bool {
        self.new == Some(revision)
    }
}

impl Owner {
    pub(super) async fn change(&mut self, name: FunctionName, wanted: Wanted, reply: Reply<Function>) {
        let kind = match &wanted {
            Wanted::Deploy { .. } => Kind::Deploy,
            Wanted::Traffic(_) => Kind::Traffic,
            Wanted::Rollback => Kind::Rollback,
            Wanted::Alias { .. } => Kind::Alias,
        };
        let entry = self.functions.get(&name);
        let mut aliases =
            entry.and_then(|entry| Some(entry.record.as_ref()?.aliases.clone())).unwrap_or_default();
        let checked = match wanted {
            Wanted::Deploy { image, dependencies, spec, serve, force, condition } => {
                let met = self.meets(&name, &condition);
                let prepared = met.and_then(|()| self.prepare(&name, (image, dependencies), *spec));
                if let Ok(record) = &prepared
                    && serve
                    && !force
                    && let Some(present) = self.as_declared(record)
                {
                    return drop(reply.send(Ok(present)));
                }
                prepared.and_then(|record| {
                    let new = record.revision;
                    let shares = if serve { vec![(new, 100)] } else { self.present(&name)? };
                    Ok((shares, Some(record)))
                })
            }
            Wanted::Traffic(shares) => self.resolve(&name, &shares).map(|shares| (shares, None)),
            Wanted::Rollback => self.previous(&name).map(|shares| (shares, None)),
            Wanted::Alias { alias, revision } => self
                .set_alias(&name, &mut aliases, alias, revision)
                .and_then(|()| Ok((self.present(&name)?, None))),
        };
        let (mut shares, new) = match checked.and_then(|(shares, new)| {
            self.check_ports(&name, &shares, new.as_ref())?;
            Ok((shares, new))
        }) {
            Ok(checked) => checked,
            Err(error) => return drop(reply.send(Err(error))),
        };
        if let Some(record) = &new
            && !self.functions.contains_key(&name)
        {
            let entry = self.entry(&name, record.slot);
            self.functions.insert(name.clone(), entry);
        }
        self.next_plan += 1;
        let id = self.next_plan;
        let Some(entry) = self.functions.get_mut(&name) else { return };
        // What has a name is reached by it.
        let named: BTreeSet<u64> =
            aliases.values().copied().filter(|n| entry.revisions.contains_key(n)).collect();
        for number in named {
            if shares.iter().all(|(other, _)| *other != number) {
                shares.push((number, 0));
            }
        }
        let number = new.as_ref().map(|record| record.revision);
        if let Some(record) = new {
            entry.newest = record.revision;
            entry.revisions.insert(record.revision, record);
        }
        let of = |number: u64| entry.revisions.get(&number).map(policy);
        let plan = Plan {
            id,
            shares: shares
                .iter()
                .filter_map(|&(number, weight)| Some(Share { revision: of(number)?, weight }))
                .collect(),
            prove: number.filter(|new| shares.iter().all(|(number, _)| number != new)).and_then(of),
        };
        let change =
            Change { shares, aliases, new: number, kind, reply, error: None, listeners: BTreeMap::new() };
        // The policy is about to abandon what it overtakes.
        for overtaken in entry.changes.values_mut() {
            let title = format!("another change of '{name}' overtook this one");
            overtaken.error = Some(ApiError::conflict(title));
        }
        entry.changes.insert(id, change);
        self.step(&name, Event::Plan(plan)).await;
    }

    /// Whether a function is as a caller expects it. Nothing is while it changes: what comes of it is not known yet.
    pub(super) fn meets(&self, name: &FunctionName, condition: &Condition) -> Result<(), ApiError> {
        if *condition == Condition::Always {
            return Ok(());
        }
        let entry = self.functions.get(name);
        if entry.is_some_and(|entry| !entry.changes.is_empty()) {
            return Err(ApiError::Conflict {
                title: format!("another change of '{name}' is under way"),
                detail: Some("read it again when that is done".to_owned()),
            });
        }
        let present = entry.and_then(|entry| self.view(name, entry));
        if condition.holds(present.as_ref()) {
            return Ok(());
        }
        let found = present.map_or("no function".to_owned(), |function| etag(&function));
        Err(ApiError::Precondition { name: name.clone(), expected: condition.to_string(), found })
    }

    /// The function, if it is what a deploy of this would make it, but for the revision's number.
    fn as_declared(&self, wanted: &RevisionRecord) -> Option<Function> {
        let entry = self.functions.get(&wanted.name)?;
        let record = entry.record.as_ref()?;
        let serving = record.primary().filter(|_| record.weighed().count() == 1)?;
        let present = entry.revisions.get(&serving)?;
        let is_same = entry.changes.is_empty()
            && (&present.image, &present.root, &present.dependencies, &present.spec)
                == (&wanted.image, &wanted.root, &wanted.dependencies, &wanted.spec);
        is_same.then(|| self.view(&wanted.name, entry)).flatten()
    }

    /// Everything about a deploy that can be refused before anything is started.
    fn prepare(
        &self,
        name: &FunctionName,
        (image, dependencies): (Option<String>, Option<String>),
        mut spec: FunctionSpec,
    ) -> Result<RevisionRecord, ApiError> {
        spec.check().map_err(|e| ApiError::invalid(e.to_string()))?;
        self.parts.instances.secrets().check(&spec.secrets)?;
        let root = images::check(&self.parts.images, image.as_deref(), dependencies.as_deref(), &mut spec)?;
        let existing = self.functions.get(name);
        if existing.is_some_and(|entry| entry.lifecycle.is_removed()) {
            return Err(ApiError::conflict(format!(
                "'{name}' is being removed; deploy it again in a moment"
            )));
        }
        let address = self.parts.config.function_prefix.function(name);
        if let Some((other, _)) = self.functions.iter().find(|(n, e)| *n != name && e.address == address) {
            return Err(ApiError::conflict(format!(
                "'{name}' has the same address as '{other}'; choose another name"
            )));
        }
        let slot = match existing {
            Some(entry) => entry.slot,
            None => {
                files::room().map_err(|full| ApiError::Unavailable {
                    title: full.to_string(),
                    detail: Some(Full::REMEDY.to_owned()),
                })?;
                let slots = self.functions.values().map(|e| e.slot);
                free_slot(slots, SLOTS_MAX.min(crate::runtime::bundle::SLOTS_MAX))
                    .ok_or_else(|| ApiError::conflict("there is no room for another function"))?
            }
        };
        Ok(RevisionRecord {
            name: name.clone(),
            slot,
            revision: existing.map_or(0, |entry| entry.newest) + 1,
            image,
            root,
            dependencies,
            spec,
            deployed_at: Timestamp::now(),
        })
    }

    fn record_of(&self, name: &FunctionName) -> Result<(&Entry, &FunctionRecord), ApiError> {
        let entry = self.functions.get(name).filter(|entry| !entry.lifecycle.is_removed());
        let found = entry.and_then(|entry| Some((entry, entry.record.as_ref()?)));
        found.ok_or_else(|| self.no_function(name))
    }

    /// Who serves.
    fn present(&self, name: &FunctionName) -> Result<Vec<(u64, u32)>, ApiError> {
        let (_, record) = self.record_of(name).map_err(|_| ApiError::Conflict {
            title: format!("'{name}' has no revision that serves"),
            detail: Some("deploy the first one with traffic".to_owned()),
        })?;
        Ok(record.weighed().collect())
    }

    /// Who served before the last change.
    fn previous(&self, name: &FunctionName) -> Result<Vec<(u64, u32)>, ApiError> {
        let (entry, record) = self.record_of(name)?;
        if record.previous.is_empty() {
            return Err(ApiError::Conflict {
                title: format!("'{name}' has nothing to go back to"),
                detail: Some(format!("its revisions are listed by `faas revisions {name}`")),
            });
        }
        record.previous.iter().try_for_each(|(number, _)| known(entry, name, *number))?;
        Ok(record.previous.clone())
    }

    /// The revisions that a user named.
    fn resolve(&self, name: &FunctionName, wanted: &[WantedShare]) -> Result<Vec<(u64, u32)>, ApiError> {
        let (entry, record) = self.record_of(name)?;
        let shares = check_shares(wanted).map_err(|e| ApiError::invalid(e.to_string()))?;
        let mut found: Vec<(u64, u32)> = Vec::new();
        for share in shares {
            let number = match &share.revision {
                RevisionName::Number(number) => *number,
                RevisionName::Alias(alias) => {
                    *record.aliases.get(alias).ok_or_else(|| no_alias(name, alias, record.aliases.keys()))?
                }
            };
            known(entry, name, number)?;
            if found.iter().any(|(other, _)| *other == number) {
                return Err(ApiError::invalid(format!("revision v{number} is named twice")));
            }
            found.push((number, share.weight));
        }
        Ok(found)
    }

    /// Revisions that serve together do so at one port.
    fn check_ports(
        &self,
        name: &FunctionName,
        shares: &[(u64, u32)],
        new: Option<&RevisionRecord>,
    ) -> Result<(), ApiError> {
        let entry = self.functions.get(name);
        let port = |number: u64| {
            let kept = entry.and_then(|entry| entry.revisions.get(&number));
            new.filter(|record| record.revision == number).or(kept).map(|record| record.spec.port)
        };
        let mut ports = shares.iter().filter_map(|(number, _)| Some((number, port(*number)?)));
        let Some((first, port)) = ports.next() else { return Ok(()) };
        match ports.find(|(_, other)| *other != port) {
            None => Ok(()),
            Some((other, at)) => Err(ApiError::Conflict {
                title: format!("v{first} is at port {port} and v{other} at port {at}"),
                detail: Some("revisions that share the traffic have the same port".to_owned()),
            }),
        }
    }

    /// Puts a plan on record, with all that can fail: once it is there, it only has to be put into effect.
    pub(super) async fn commit(&mut self, name: &FunctionName, plan: u64) -> Event {
        match self.put_on_record(name, plan).await {
            Ok(()) => Event::Committed { plan },
            Err(error) => {
                let why = error.to_string();
                let change = self.functions.get_mut(name).and_then(|entry| entry.changes.get_mut(&plan));
                if let Some(change) = change {
                    change.error = Some(error);
                }
                Event::NotCommitted { plan, why }
            }
        }
    }

    async fn put_on_record(&mut self, name: &FunctionName, plan: u64) -> Result<(), ApiError> {
        let overtaken = || ApiError::conflict(format!("another change of '{name}' overtook this one"));
        let used: Vec<u32> = self.by_slot.keys().copied().collect();
        let entry = self.functions.get(name).ok_or_else(overtaken)?;
        let change = entry.changes.get(&plan).ok_or_else(overtaken)?;
        let slots = slots(entry, &change.shares, used)
            .ok_or_else(|| ApiError::conflict("there is no room for another revision with traffic"))?;
        let mut listeners = BTreeMap::new();
        for (&(number, weight), &slot) in change.shares.iter().zip(&slots) {
            let port = entry.revisions.get(&number).map(|record| record.spec.port).ok_or_else(overtaken)?;
            let homes = self.homes(name, number, weight);
            let is_fit = |branch: &Branch| branch.slot == slot && is_bound_to(&branch.listener, &homes, port);
            if !entry.branches.values().any(is_fit) {
                listeners.insert(slot, self.listener(homes[0], port).map_err(|e| failure(&e))?);
            }
        }
        let shares: Vec<ShareRecord> = change
            .shares
            .iter()
            .zip(slots)
            .map(|(&(revision, weight), slot)| ShareRecord { revision, weight, slot })
            .collect();
        let old = entry.record.as_ref();
        let was: Vec<(u64, u32)> = old.into_iter().flat_map(FunctionRecord::weighed).collect();
        let record = FunctionRecord {
            name: name.clone(),
            slot: entry.slot,
            subject: old.map_or_else(|| self.parts.access.fresh_number(), |record| record.subject),
            newest: change.new.into_iter().chain(old.map(|r| r.newest)).max().unwrap_or_default(),
            shares,
            previous: if change.weighed().eq(was.iter().copied()) {
                old.map(|r| r.previous.clone()).unwrap_or_default()
            } else {
                was
            },
            aliases: change.aliases.clone(),
        };
        let new = change.new.and_then(|number| entry.revisions.get(&number)).cloned();
        self.put(&record, new.as_ref()).await?;
        if let Some(entry) = self.functions.get_mut(name) {
            entry.record = Some(record);
            if let Some(change) = entry.changes.get_mut(&plan) {
                change.listeners = listeners;
            }
        }
        Ok(())
    }

    /// Puts a plan that is on record into effect.
    pub(super) fn apply(&mut self, name: &FunctionName, plan: u64) {
        let change = self.functions.get_mut(name).and_then(|entry| entry.changes.get_mut(&plan));
        let listeners = change.map(|change| std::mem::take(&mut change.listeners)).unwrap_or_default();
        if let Err(error) = self.serve_by_record(name, listeners, &BTreeMap::new()) {
            tracing::error!(function = %name, error = format!("{error:#}"), "a change is on record and not in effect");
            let change = self.functions.get_mut(name).and_then(|entry| entry.changes.get_mut(&plan));
            if let Some(change) = change {
                change.error = Some(failure(&error));
            }
        }
    }

    /// A plan is in effect, and all that follows from it has been said.
    pub(super) async fn applied(&mut self, name: &FunctionName, plan: u64) {
        self.close_leaving(name);
        self.forget_revisions(name).await;
        let Some(entry) = self.functions.get_mut(name) else { return };
        let Some(change) = entry.changes.remove(&plan) else { return };
        let Some(entry) = self.functions.get(name) else { return };
        tracing::info!(function = %name, shares = ?change.shares, new = change.new, "changed");
        self.parts.events.record(name, change.event());
        let answer = match change.error {
            Some(error) => Err(error),
            None => self.view(name, entry).ok_or_else(|| self.no_function(name)),
        };
        drop(change.reply.send(answer));
        self.collect_images();
    }

    pub(super) fn abandon(&mut self, name: &FunctionName, plan: u64, why: String) {
        let Some(entry) = self.functions.get_mut(name) else { return };
        let Some(change) = entry.changes.remove(&plan) else { return };
        if let Some(new) = change.new {
            entry.revisions.remove(&new);
        }
        tracing::warn!(function = %name, shares = ?change.shares, new = change.new, why, "a change failed");
        let event = NewEvent { revision: change.new, ..NewEvent::new(EventKind::DeployFailed, &*why) };
        self.parts.events.record(name, event);
        let error = change.error.unwrap_or_else(|| ApiError::Failed {
            title: match change.new {
                Some(_) => format!("'{name}' was not deployed: its instance did not become ready"),
                None => format!("the traffic of '{name}' stays as it was"),
            },
            detail: Some(why),
        });
        drop(change.reply.send(Err(error)));
    }

    /// The aliases of a function with this one for a revision, or without it.
    fn set_alias(
        &self,
        name: &FunctionName,
        aliases: &mut BTreeMap<Alias, u64>,
        alias: Alias,
        revision: Option<u64>,
    ) -> Result<(), ApiError> {
        let (entry, _) = self.record_of(name)?;
        // It takes no time, and is no reason to give up what does.
        if !entry.changes.is_empty() {
            return Err(ApiError::Conflict {
                title: format!("another change of '{name}' is under way"),
                detail: Some("try again when that is done".to_owned()),
            });
        }
        match revision {
            Some(number) => {
                known(entry, name, number)?;
                aliases.insert(alias, number);
            }
            None => {
                aliases.remove(&alias).ok_or_else(|| no_alias(name, &alias, aliases.keys()))?;
            }
        }
        if aliases.len() > ALIASES_MAX {
            return Err(ApiError::conflict(format!("a function has at most {ALIASES_MAX} aliases")));
        }
        Ok(())
    }
}

fn no_alias<'a>(name: &FunctionName, alias: &Alias, known: impl Iterator<Item = &'a Alias>) -> ApiError {
    let near = super::super::api::nearest(alias.as_str(), known.map(Alias::as_str)).map(str::to_owned);
    ApiError::NotFound { what: format!("alias '{alias}' of '{name}'"), suggestion: near }
}

/// A slot for each share: its own, or that of a revision that leaves, or a free one. What waits for the function goes on to
/// one that serves it, and what waits for a revision by its name to nobody else.
fn slots(entry: &Entry, shares: &[(u64, u32)], used: Vec<u32>) -> Option<Vec<u32>> {
    let own = |number: u64| entry.branches.get(&number).map(|branch| branch.slot);
    let stays = |number: u64| shares.iter().any(|(other, _)| *other == number);
    let mut leaving: Vec<&Branch> = entry
        .branches
        .iter()
        .filter(|(number, branch)| !stays(**number) && branch.weight > 0)
        .map(|(_, branch)| branch)
        .collect();
    leaving.sort_by_key(|branch| branch.weight);
    let mut taken: HashSet<u32> = used.into_iter().collect();
    let mut slot_of = |number: u64, weight: u32| {
        let slot = own(number)
            .or_else(|| leaving.pop_if(|_| weight > 0).map(|branch| branch.slot))
            .or_else(|| free_slot(taken.iter().copied(), SLOTS_MAX))?;
        taken.insert(slot);
        Some(slot)
    };
    shares.iter().map(|(number, weight)| slot_of(*number, *weight)).collect()
}

fn known(entry: &Entry, name: &FunctionName, number: u64) -> Result<(), ApiError> {
    // One that is being deployed may not come to be.
    let is_on_record = entry.changes.values().all(|change| !change.deploys(number));
    match is_on_record && entry.revisions.contains_key(&number) {
        true => Ok(()),
        false => Err(ApiError::NotFound {
            what: format!("revision v{number} of '{name}'"),
            suggestion: entry.revisions.keys().next_back().map(|newest| format!("v{newest}")),
        }),
    }
}

/// What the policy goes by.
pub(super) fn policy(record: &RevisionRecord) -> Revision {
    let RevisionRecord { spec, revision, .. } = record;
    Revision {
        number: *revision,
        min: spec.scale.min,
        max: spec.scale.max(),
        concurrency: spec.scale.concurrency,
        idle: spec.scale.idle(),
        prepared: spec.scale.prepared,
        queue: spec.scale.queue,
        start_deadline: spec.deadlines.start(),
        drain_deadline: spec.deadlines.drain(),
    }
}
