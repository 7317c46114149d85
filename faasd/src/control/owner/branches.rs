//! How connections reach the revisions that serve: listener, slot, route, name.
//!
//! Each revision with a share of the traffic is a branch: a listener of its own at the function's address and port, a
//! slot in the kernel program's maps, a place in an acceptor. The kernel program chooses the branch for each connection.

use rustix::net::{Shutdown, shutdown};

use super::*;
use crate::core::access::Guard;
use crate::core::spec::Lane;
use crate::core::zone::FunctionNames;
use crate::dataplane::Stats;
use crate::sys::bpf::{self, Route};

/// A revision that serves.
#[derive(Debug)]
pub(super) struct Branch {
    pub slot: u32,
    /// The listener in its slot.
    pub listener: Arc<OwnedFd>,
    pub stats: Arc<Stats>,
    /// Where connections that wait at the listener are counted, on the warm lane: the seat of the instance that will take
    /// them, which is the next one to come when nobody is seated.
    pub lobby: Option<u32>,
    /// In percent.
    pub weight: u32,
    /// New connections are refused.
    pub shed: bool,
}

impl Owner {
    /// Brings branches, routes and name in line with the function's record: what is new is there before it is steered
    /// to, and what goes is steered to no longer before it is taken away. `fresh` are listeners for slots that have
    /// none, or one of another port; `lobbies` are the seats at which they count already, by revision.
    pub(super) fn serve_by_record(
        &mut self,
        name: &FunctionName,
        mut fresh: BTreeMap<u32, Arc<OwnedFd>>,
        lobbies: &BTreeMap<u64, u32>,
    ) -> anyhow::Result<()> {
        let Some(entry) = self.functions.get_mut(name) else { return Ok(()) };
        let Some(record) = entry.record.clone() else { return Ok(()) };
        let primary = record.primary().and_then(|revision| entry.revisions.get(&revision));
        let Some(port) = primary.map(|record| record.spec.port) else { return Ok(()) };
        let mut before = std::mem::take(&mut entry.branches);
        for share in &record.shares {
            // A revision is relieved by itself alone: it does not refuse because the one before it did.
            let shed = before.get(&share.revision).is_some_and(|branch| branch.shed);
            // Its own, or that of a revision that leaves: what waits there waits for it now.
            let mut takes_over = before.iter().filter(|(_, branch)| branch.slot == share.slot);
            let taken = takes_over.next().map(|(revision, _)| *revision).and_then(|r| before.remove(&r));
            let listener = fresh.remove(&share.slot);
            let is_new = taken.is_none() || listener.is_some();
            let stats = taken.as_ref().map_or_else(Arc::default, |branch| Arc::clone(&branch.stats));
            let known = lobbies.get(&share.revision).copied();
            let lobby = known.or(taken.as_ref().and_then(|branch| branch.lobby));
            let Some(listener) = listener.or(taken.map(|branch| branch.listener)) else {
                anyhow::bail!("revision {} has no listener", share.revision);
            };
            let branch = Branch { slot: share.slot, listener, stats, lobby, weight: share.weight, shed };
            if is_new {
                self.open_branch(name, &branch)?;
            }
            if let Some(entry) = self.functions.get_mut(name) {
                entry.branches.insert(share.revision, branch);
            }
            self.count_in_lobby(name, share.revision)?;
        }
        let Some(entry) = self.functions.get_mut(name) else { return Ok(()) };
        let (address, routed) = (entry.address, entry.routed.replace(port));
        // Known before it is reachable, and before it can call.
        self.parts.access.show_function(name, record.subject, address);
        let Some(entry) = self.functions.get_mut(name) else { return Ok(()) };
        entry.leaving.extend(before.into_values());
        let leaving: Vec<u32> = entry.leaving.iter().map(|branch| branch.slot).collect();
        // What the maps do not take is tried again, and who waits is told of it in the end.
        let mut written = vec![self.set_routes(name)];
        if let Some(old) = routed.filter(|old| *old != port) {
            written.push(self.parts.steering.clear_route(address, old));
        }
        let revisions = self.functions[name].routed_revisions.iter();
        self.parts.names.publish_function(FunctionNames {
            revisions: revisions.map(|(number, (address, _))| (*number, *address)).collect(),
            aliases: record.aliases,
            ..FunctionNames::new(name.clone(), address, Some(port))
        });
        for slot in leaving {
            written.push(self.parts.kernel.clear_listener(slot));
            written.push(self.parts.steering.set_pool(slot, &[]));
        }
        // Instances that were with a slot's former listener.
        let entry = &self.functions[name];
        let placed = |key: &u32| entry.placed.contains_key(key) && entry.lifecycle.takes_connections(*key);
        for key in entry.live.keys().copied().filter(placed).collect::<Vec<_>>() {
            self.admit(name, key);
        }
        written.into_iter().collect::<Result<(), BpfError>>().map_err(Into::into)
    }

    fn open_branch(&mut self, name: &FunctionName, branch: &Branch) -> anyhow::Result<()> {
        let Branch { slot, listener, stats, .. } = branch;
        let owner = self.functions[name].slot;
        keep_listener(&self.parts.fdstore, *slot, listener)?;
        self.parts.acceptors.send(Command::AddFunction {
            slot: *slot,
            listener: Arc::clone(listener),
            stats: Arc::clone(stats),
        })?;
        self.parts.kernel.set_listener(*slot, owner, &**listener)?;
        self.by_slot.insert(*slot, name.clone());
        Ok(())
    }

    /// Tells the kernel program who serves by which weight, and for whom. The one place where a function's route is set.
    ///
    /// # Errors
    /// The first of those of the maps. All that is to be written is wanted by then, and will be tried again.
    pub(super) fn set_routes(&mut self, name: &FunctionName) -> Result<(), BpfError> {
        let Some(entry) = self.functions.get(name) else { return Ok(()) };
        let Some(port) = entry.routed else { return Ok(()) };
        let (slot, address) = (entry.slot, entry.address);
        let branches: Vec<_> = entry
            .branches
            .values()
            .filter(|branch| branch.weight > 0)
            .map(|branch| bpf::Branch { slot: branch.slot, weight: branch.weight, shed: branch.shed })
            .collect();
        let by_name: BTreeMap<u64, (Ipv6Addr, u16)> = entry
            .branches
            .keys()
            .filter_map(|n| {
                let port = entry.revisions.get(n)?.spec.port;
                Some((*n, (self.parts.config.function_prefix.revision(name, *n), port)))
            })
            .collect();
        let ports = by_name.values().map(|(_, port)| *port).chain([port]);
        self.parts.access.show_ports(name, ports);
        let guard = guard_flags(self.parts.access.guard(name));
        // Whichever of its addresses is dialled, the rules are the same.
        let route = |slot, flags| Route { slot, flags: flags | guard };
        let to = |slot, shed| route(slot, if shed { Route::SHED } else { 0 });
        let steering = &self.parts.steering;
        let mut written = Vec::new();
        match branches[..] {
            [] => {}
            [bpf::Branch { slot: branch, shed, .. }] => {
                // For whoever has read the route just before.
                written.push(steering.set_split(slot, &branches));
                written.push(steering.set_route(address, port, to(branch, shed)));
            }
            _ => {
                written.push(steering.set_split(slot, &branches));
                written.push(steering.set_route(address, port, route(slot, Route::SPLIT)));
            }
        }
        for (number, &(address, port)) in &by_name {
            let branch = &entry.branches[number];
            written.push(steering.set_route(address, port, to(branch.slot, branch.shed)));
        }
        for (_, (address, port)) in
            entry.routed_revisions.iter().filter(|gone| by_name.get(gone.0) != Some(gone.1))
        {
            written.push(steering.clear_route(*address, *port));
        }
        if let Some(entry) = self.functions.get_mut(name) {
            entry.routed_revisions = by_name;
        }
        written.into_iter().collect()
    }

    /// Where the listener of a revision's branch may be bound. One that is reached by its own name alone is to have an
    /// address of its own, so that what waits for the function never moves there; one that has had a share may stay where
    /// it is.
    pub(super) fn homes(&self, name: &FunctionName, revision: u64, weight: u32) -> Vec<Ipv6Addr> {
        let prefix = self.parts.config.function_prefix;
        match weight {
            0 => vec![prefix.revision(name, revision), prefix.function(name)],
            _ => vec![prefix.function(name)],
        }
    }

    /// Closes the listeners of branches that no longer serve, which leaves what waits in their queues to the function's
    /// other listeners. To be called when their instances are given nothing more.
    pub(super) fn close_leaving(&mut self, name: &FunctionName) {
        let Some(entry) = self.functions.get(name) else { return };
        for branch in &entry.leaving {
            // Not listening any more: closed before.
            let _ = shutdown(&*branch.listener, Shutdown::Read);
            self.tell(Command::Yield { slot: branch.slot, heir: heir(entry) });
        }
        self.sweep_branches(name);
    }

    /// Removes branches that have left, once the last of their instances has ended: until then what these had not
    /// received is read back from them.
    pub(super) fn sweep_branches(&mut self, name: &FunctionName) {
        let Some(entry) = self.functions.get_mut(name) else { return };
        let placed: HashSet<u32> = entry.placed.values().copied().collect();
        let gone: Vec<Branch> = entry.leaving.extract_if(.., |b| !placed.contains(&b.slot)).collect();
        let mut past = entry.past;
        for branch in &gone {
            self.add_counts(&mut past, branch);
            self.remove_branch(name, branch);
        }
        if let Some(entry) = self.functions.get_mut(name) {
            // A function's counts never fall.
            entry.past = Connections { waiting: 0, ..past };
        }
    }

    fn remove_branch(&mut self, name: &FunctionName, branch: &Branch) {
        let slot = branch.slot;
        branch.lobby.inspect(|seat| self.seats.release(*seat));
        let (kernel, steering) = (&mut self.parts.kernel, &self.parts.steering);
        for error in [kernel.clear_listener(slot), steering.set_pool(slot, &[]), kernel.reset_steered(slot)]
            .into_iter()
            .filter_map(Result::err)
        {
            tracing::error!(function = %name, %error, "a branch that left stays in the kernel's maps");
        }
        let heir = self.functions.get(name).and_then(heir);
        self.tell(Command::Yield { slot, heir });
        self.tell(Command::RemoveFunction { slot });
        self.by_slot.remove(&slot);
        if let Err(error) = drop_listener(&self.parts.fdstore, slot) {
            tracing::error!(function = %name, %error, "a listener that is not needed stays open");
        }
    }

    /// Takes a function out of reach: name, route, branches. Each step is tried.
    pub(super) fn uninstall(&mut self, name: &FunctionName) {
        let Some(entry) = self.functions.get_mut(name) else { return };
        let (slot, address) = (entry.slot, entry.address);
        let branches: Vec<_> = std::mem::take(&mut entry.branches).into_values().collect();
        let leaving = std::mem::take(&mut entry.leaving);
        let by_name = std::mem::take(&mut entry.routed_revisions);
        // Its instances are with no branch any more, and the slots are for others.
        entry.placed.clear();
        if let Some(port) = entry.routed.take() {
            self.parts.names.remove_function(name);
            let steering = &self.parts.steering;
            let mut cleared = vec![steering.clear_route(address, port), steering.clear_split(slot)];
            cleared.extend(by_name.into_values().map(|(address, port)| steering.clear_route(address, port)));
            for error in cleared.into_iter().filter_map(Result::err) {
                tracing::error!(function = %name, %error, "a removed function stays in the kernel's maps");
            }
        }
        for branch in branches.iter().chain(&leaving) {
            self.tell(Command::Refuse { slot: branch.slot });
            self.remove_branch(name, branch);
        }
    }

    /// A listener of a function's own.
    pub(super) fn listener(&self, address: Ipv6Addr, port: u16) -> anyhow::Result<Arc<OwnedFd>> {
        Ok(Arc::new(self.parts.ingress.listen(address, port, self.parts.config.backlog)?))
    }

    /// Connections wait in a slot, and no instance of its acceptor can take them.
    pub(super) async fn waiting(&mut self, slot: u32) {
        let Some(name) = self.by_slot.get(&slot).cloned() else { return };
        let Some(entry) = self.functions.get(&name) else { return };
        let serving = entry.branches.iter().find(|(_, branch)| branch.slot == slot);
        if serving.is_none_or(|(revision, _)| !takes_from_acceptor(entry, *revision)) {
            // Nobody will take what the acceptor holds there.
            self.tell(Command::Yield { slot, heir: heir(entry) });
        }
        let revision = serving.map(|(revision, _)| *revision);
        // With a seat taken, these only missed it: an instance ended just then.
        if let Some(revision) = revision
            && !self.move_to_seats(&name, slot)
        {
            self.step(&name, Event::Waiting { revision }).await;
        }
    }

    /// What an acceptor held for a revision that has left is for another that serves now.
    pub(super) fn yielded(&self, slot: u32, connections: Vec<(Arrival, OwnedFd)>) {
        for (arrival, connection) in connections {
            self.tell(Command::Adopt { slot, arrival, connection });
        }
    }

    /// Gives an instance connections: those of its revision's branch.
    pub(super) fn admit(&mut self, name: &FunctionName, key: u32) {
        let Some(entry) = self.functions.get_mut(name) else { return };
        let Some(live) = entry.live.get(&key) else { return };
        let Some(slot) = entry.branches.get(&live.revision).map(|branch| branch.slot) else { return };
        entry.placed.insert(key, slot);
        let admitted = match live.listener() {
            Some(_) => self.take_seat(name, key, slot),
            None => live.for_acceptor(key).map_err(Into::into).map(|instance| {
                self.tell(Command::AddInstance { slot, instance });
            }),
        };
        if let Err(error) = admitted {
            tracing::error!(function = %name, error = format!("{error:#}"), "an instance cannot be given connections");
            self.order(key, Order::Kill);
        }
    }

    /// An instance gets no connection any more. It keeps those that it has.
    pub(super) fn withdraw(&mut self, name: &FunctionName, key: u32) -> Given {
        let Some(entry) = self.functions.get(name) else { return Given::Nothing };
        let Some(&slot) = entry.placed.get(&key) else { return Given::Nothing };
        let is_seated = entry.live.get(&key).is_some_and(|live| live.seat.is_some());
        if !is_seated {
            self.tell(Command::DrainInstance { slot, key });
            return Given::WhatWasAccepted;
        }
        if let Err(error) = self.set_pool(name, slot) {
            tracing::error!(function = %name, %error, "an instance that is withdrawn is still given connections");
        }
        Given::Nothing
    }

    /// An acceptor has given an instance the last of its connections: if it is to finish, it hears so after them.
    pub(super) fn left(&mut self, key: u32) {
        let entry = self.by_key.get(&key).and_then(|name| self.functions.get(name));
        if entry.is_some_and(|e| matches!(e.lifecycle.phase(key), Some(Phase::Draining { .. }))) {
            self.order(key, Order::Drain);
        }
    }

    /// Refuses what waits for a revision.
    pub(super) fn refuse(&self, name: &FunctionName, revision: u64) {
        let branch = self.functions.get(name).and_then(|entry| entry.branches.get(&revision));
        if let Some(slot) = branch.map(|branch| branch.slot) {
            self.tell(Command::Refuse { slot });
        }
    }

    /// Has new connections to a revision refused by the kernel program, or no longer.
    pub(super) fn shed(&mut self, name: &FunctionName, revision: u64, on: bool) {
        let branch = self.functions.get_mut(name).and_then(|entry| entry.branches.get_mut(&revision));
        let Some(branch) = branch else { return };
        branch.shed = on;
        let (kind, text) = match on {
            true => (EventKind::Overloaded, "more connections wait than may: new ones are refused"),
            false => (EventKind::Relieved, "new connections are taken again"),
        };
        tracing::warn!(function = %name, revision, text);
        self.parts.events.record(name, NewEvent::new(kind, text).revision(revision));
        if let Err(error) = self.set_routes(name) {
            tracing::error!(function = %name, %error, "the kernel program was not told to refuse connections");
        }
    }
}

/// What an instance that is withdrawn is still given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Given {
    Nothing,
    /// What its acceptor has by then, which says when that is all.
    WhatWasAccepted,
}

/// What a route says of who may come.
fn guard_flags(guard: Guard) -> u32 {
    let flag = |is_set: bool, flag| if is_set { flag } else { 0 };
    flag(guard.guarded, Route::GUARDED) | flag(guard.closed, Route::CLOSED)
}

/// Who takes connections that an acceptor has accepted: the branch with the largest share of those on the hand-off lane.
fn heir(entry: &Entry) -> Option<u32> {
    let takes =
        |(revision, branch): &(&u64, &Branch)| branch.weight > 0 && takes_from_acceptor(entry, **revision);
    let heir = entry.branches.iter().filter(takes).max_by_key(|(_, branch)| branch.weight);
    heir.map(|(_, branch)| branch.slot)
}

/// Whether a revision's instances are given connections by an acceptor.
fn takes_from_acceptor(entry: &Entry, revision: u64) -> bool {
    entry.revisions.get(&revision).is_some_and(|record| record.spec.lane() == Lane::HandOff)
}

/// Whether a listener is at one of these addresses, and at this port.
pub(super) fn is_bound_to(listener: &OwnedFd, addresses: &[Ipv6Addr], port: u16) -> bool {
    let bound =
        rustix::net::getsockname(listener).ok().and_then(|a| std::net::SocketAddrV6::try_from(a).ok());
    bound.is_some_and(|bound| addresses.contains(bound.ip()) && bound.port() == port)
}
