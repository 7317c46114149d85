//! What an earlier daemon left, taken over: listeners, routes, instances.

use std::net::SocketAddr;

use super::branches::is_bound_to;
use super::*;
use crate::control::files::{self, Full};
use crate::control::records::{FUNCTIONS, REVISIONS};
use crate::control::store::StoreError;
use crate::core::life::{Running, Share};
use crate::sys::bpf::{Owner as Mark, Route};

impl Owner {
    /// An owner with what is on record and what runs already.
    ///
    /// # Errors
    /// Of the store, the descriptor store, runc or the kernel.
    pub async fn restore(parts: Parts) -> anyhow::Result<Self> {
        let mut owner = Self {
            parts,
            functions: BTreeMap::new(),
            by_slot: HashMap::new(),
            by_key: HashMap::new(),
            seats: Seats::default(),
            prepared: HashSet::new(),
            is_crowded: false,
            ticks: BTreeMap::new(),
            began: Instant::now(),
            next_key: 0,
            next_plan: 0,
        };
        let (records, mut revisions) = on_record(&*owner.parts.store)?;
        let mut listeners = {
            let store = owner.parts.fdstore.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            store.list(LISTENER)
        };
        let mut found = owner.parts.instances.found().await?;
        owner.forget_stale_routes(&records, &revisions)?;
        let pools = owner.parts.steering.pools();
        owner.seats = Seats::beside(pools.iter().flat_map(|(_, seats)| seats).copied());
        if let Err(error) = owner.parts.logs.retain(|name| records.iter().any(|r| r.name.as_str() == name)) {
            tracing::warn!(%error, "logs of functions that are not declared stay");
        }
        let mut listeners_of = Vec::new();
        for record in records {
            let name = record.name.clone();
            let mut kept = BTreeMap::new();
            for share in &record.shares {
                let listener = listeners.remove(&share.slot.to_string()).and_then(|mut all| all.pop());
                kept.extend(listener.map(|listener| (share.slot, listener)));
            }
            let (own, others): (Vec<_>, Vec<_>) =
                found.into_iter().partition(|(one, _)| one.function == name);
            found = others;
            let revisions = revisions.remove(&name).unwrap_or_default();
            match owner.restore_function(record, revisions, &kept, own).await {
                Ok(()) => listeners_of.push((name, kept)),
                Err(error) => {
                    tracing::error!(function = %name, error = format!("{error:#}"), "a function could not be restored");
                }
            }
        }
        // Only now are seats given: all that are taken are known.
        for (name, kept) in listeners_of {
            if let Err(error) = owner.restore_branches(&name, kept) {
                tracing::error!(function = %name, error = format!("{error:#}"), "a function is not served");
            }
            // What is missing is started.
            owner.step(&name, Event::Tick).await;
        }
        owner.forget_stale_seats(pools)?;
        for (one, kept) in found {
            tracing::info!(id = one.id, "ending an instance that nothing declares");
            owner.parts.instances.discard(one, &kept).await;
        }
        for slot in listeners.into_keys().filter_map(|slot| slot.parse().ok()) {
            drop_listener(&owner.parts.fdstore, slot)?;
        }
        Ok(owner)
    }

    async fn restore_function(
        &mut self,
        record: FunctionRecord,
        revisions: BTreeMap<u64, RevisionRecord>,
        kept: &BTreeMap<u32, Arc<OwnedFd>>,
        found: Vec<(Adopted, Vec<OwnedFd>)>,
    ) -> anyhow::Result<()> {
        let name = record.name.clone();
        let mut entry = self.entry(&name, record.slot);
        let mut shares = Vec::new();
        for share in &record.shares {
            let revision = revisions.get(&share.revision);
            let revision =
                revision.with_context(|| format!("revision {} is not on record", share.revision))?;
            shares.push(Share { revision: change::policy(revision), weight: share.weight });
        }
        for listener in kept.values() {
            self.seat_of(listener).inspect(|seat| self.seats.keep(*seat));
        }
        for (one, kept) in found {
            // A discarded one needs its own process and socket; an adopted one takes them.
            let spare = one.clone();
            let socket: Vec<_> =
                kept.first().and_then(|socket| socket.try_clone().ok()).into_iter().collect();
            let key = self.fresh_key();
            let adopted = revisions.get(&one.revision).and_then(|record| {
                // By its name alone, or with a share when it was started.
                let addresses = self.homes(&name, one.revision, 0).into_iter();
                let addresses: Vec<_> = addresses.map(|a| SocketAddr::from((a, record.spec.port))).collect();
                self.parts.instances.adopt(key, record, &addresses, one, kept)
            });
            match adopted {
                Some(mut live) => {
                    // Its connections are counted by the seat that it had when it accepted them.
                    live.seat = live.listener().and_then(|listener| self.seat_of(listener));
                    live.seat.inspect(|seat| self.seats.keep(*seat));
                    self.by_key.insert(key, name.clone());
                    entry.live.insert(key, live);
                }
                None => self.parts.instances.discard(spare, &socket).await,
            }
        }
        let running = entry.live.iter().filter_map(|(key, live)| {
            let revision = change::policy(revisions.get(&live.revision)?);
            Some(Running { key: *key, revision, draining: live.page.draining() })
        });
        let now = self.began.elapsed();
        entry.lifecycle = Lifecycle::adopted(u64::from(record.slot), shares, running, now);
        for (key, live) in &mut entry.live {
            if live.page.draining() {
                // Not to be asked once more, but to be let finish: nobody else is to hold its listener.
                live.release_listener();
                live.order(Order::Drain);
            } else if let Some(share) = record.shares.iter().find(|share| share.revision == live.revision) {
                entry.placed.insert(*key, share.slot);
            }
        }
        entry.newest = record.newest;
        entry.record = Some(record);
        entry.revisions = revisions;
        self.functions.insert(name, entry);
        Ok(())
    }

    fn restore_branches(
        &mut self,
        name: &FunctionName,
        mut kept: BTreeMap<u32, Arc<OwnedFd>>,
    ) -> anyhow::Result<()> {
        let Some(entry) = self.functions.get(name) else { return Ok(()) };
        let shares = entry.record.iter().flat_map(|record| record.shares.clone());
        let mut lobbies = BTreeMap::new();
        for share in shares.collect::<Vec<_>>() {
            let record = self.functions[name].revisions.get(&share.revision);
            let port = record.map_or(0, |record| record.spec.port);
            let homes = self.homes(name, share.revision, share.weight);
            match kept.get(&share.slot).filter(|listener| is_bound_to(listener, &homes, port)) {
                Some(listener) => {
                    // Taken from the lobby a moment before the end, if somebody sits there.
                    let sits =
                        |seat: &u32| self.functions[name].live.values().any(|live| live.seat == Some(*seat));
                    let seat = self.seat_of(listener).filter(|seat| !sits(seat));
                    lobbies.extend(seat.map(|seat| (share.revision, seat)));
                }
                None => {
                    // Were all that is on record served, none of it would be where the limit is lower than it was.
                    files::room().context(Full::REMEDY)?;
                    kept.insert(share.slot, self.listener(homes[0], port)?);
                }
            }
        }
        self.serve_by_record(name, kept, &lobbies)?;
        // Who sat there and is gone must not be steered to: the seat may be somebody else's next.
        let slots: Vec<u32> = self.functions[name].branches.values().map(|branch| branch.slot).collect();
        for slot in slots {
            self.set_pool(name, slot)?;
        }
        Ok(())
    }

    /// Where a listener's connections are counted.
    fn seat_of(&self, listener: &OwnedFd) -> Option<u32> {
        let mark = self.parts.kernel.owner_of(listener).ok().flatten();
        mark.map(|mark| mark.seat).filter(|seat| *seat != Mark::NO_SEAT)
    }

    /// Removes routes of functions that are no longer declared, and of shares that are no longer.
    fn forget_stale_routes(&mut self, records: &[FunctionRecord], revisions: &Kept) -> anyhow::Result<()> {
        let prefix = self.parts.config.function_prefix;
        let port = |record: &FunctionRecord, revision: u64| {
            Some(revisions.get(&record.name)?.get(&revision)?.spec.port)
        };
        let mut declared = HashMap::new();
        for record in records {
            let own = record.primary().and_then(|revision| port(record, revision));
            declared.extend(own.map(|port| (prefix.function(&record.name), port)));
            let by_name = |share: &ShareRecord| {
                let address = prefix.revision(&record.name, share.revision);
                Some((address, port(record, share.revision)?))
            };
            declared.extend(record.shares.iter().filter_map(by_name));
        }
        let slots: HashSet<u32> = records.iter().flat_map(|r| &r.shares).map(|share| share.slot).collect();
        let (kernel, steering) = (&mut self.parts.kernel, &self.parts.steering);
        for (address, port, route) in steering.routes() {
            if route != Route::SERVICE && declared.get(&address) != Some(&port) {
                // What is not taken here is tried again.
                let _ = steering.clear_route(address, port);
                if route.flags & Route::SPLIT == 0 && !slots.contains(&route.slot) {
                    kernel.clear_listener(route.slot)?;
                }
            }
        }
        for (slot, branches) in steering.splits() {
            for branch in branches.into_iter().filter(|branch| !slots.contains(&branch.slot)) {
                kernel.clear_listener(branch.slot)?;
            }
            // One that is declared stays for as long as its route may lead to it.
            if !records.iter().any(|record| record.slot == slot) {
                let _ = steering.clear_split(slot);
            }
        }
        Ok(())
    }
}

/// By function and number.
type Kept = HashMap<FunctionName, BTreeMap<u64, RevisionRecord>>;

/// The functions and their revisions.
fn on_record(store: &dyn Store) -> Result<(Vec<FunctionRecord>, Kept), StoreError> {
    let functions = list_json(store, FUNCTIONS)?.into_iter().map(|(_, stored)| stored.record).collect();
    let mut revisions = Kept::new();
    for (_, stored) in list_json::<RevisionRecord>(store, REVISIONS)? {
        let record = stored.record;
        revisions.entry(record.name.clone()).or_default().insert(record.revision, record);
    }
    Ok((functions, revisions))
}
