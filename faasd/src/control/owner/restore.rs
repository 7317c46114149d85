//! What an earlier daemon left, taken over: listeners, routes, instances.

use std::net::SocketAddr;

use super::*;

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
            ticks: BTreeMap::new(),
            began: Instant::now(),
            next_key: 0,
        };
        let records: Vec<FunctionRecord> =
            list_json(&*owner.parts.store, FUNCTIONS)?.into_iter().map(|(_, stored)| stored.record).collect();
        let mut listeners = {
            let store = owner.parts.fdstore.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            store.list()?
        };
        let mut found = owner.parts.instances.found().await?;
        owner.forget_stale_routes(&records)?;
        let pools = owner.parts.kernel.pools()?;
        owner.seats = Seats::beside(pools.iter().flat_map(|(_, seats)| seats).copied());
        if let Err(error) = owner.parts.logs.retain(|name| records.iter().any(|r| r.name.as_str() == name)) {
            tracing::warn!(%error, "logs of functions that are not declared stay");
        }
        for record in records {
            let name = record.name.clone();
            let listener = listeners.remove(&listener_entry(&name)).and_then(|mut kept| kept.pop());
            let (own, others): (Vec<_>, Vec<_>) = found
                .into_iter()
                .partition(|(one, _)| one.function == name && one.revision == record.revision);
            found = others;
            if let Err(error) = owner.restore_function(record, listener, own).await {
                tracing::error!(function = %name, error = format!("{error:#}"), "a function could not be restored");
            }
        }
        owner.forget_stale_seats(pools)?;
        for (one, kept) in found {
            tracing::info!(id = one.id, "ending an instance that nothing declares");
            owner.parts.instances.discard(one, &kept).await;
        }
        for name in listeners.into_keys().filter_map(|n| n.strip_prefix("listener/")?.parse().ok()) {
            drop_listener(&owner.parts.fdstore, &name)?;
        }
        Ok(owner)
    }

    pub(super) async fn restore_function(
        &mut self,
        record: FunctionRecord,
        listener: Option<OwnedFd>,
        found: Vec<(Adopted, Vec<OwnedFd>)>,
    ) -> anyhow::Result<()> {
        let name = record.name.clone();
        let mut entry = self.entry(&record);
        let listener = match listener.filter(|l| is_bound_to(l, entry.address, record.spec.port)) {
            Some(listener) => listener,
            None => self.listener(&record, entry.address)?,
        };
        let address = SocketAddr::from((entry.address, record.spec.port));
        for (one, kept) in found {
            let key = self.fresh_key();
            // A discarded one needs its own process and socket; an adopted one takes them.
            let spare = one.clone();
            let socket: Vec<_> =
                kept.first().and_then(|socket| socket.try_clone().ok()).into_iter().collect();
            match self.parts.instances.adopt(key, &record, address, one, kept) {
                Some(live) => {
                    self.by_key.insert(key, name.clone());
                    entry.live.insert(key, live);
                }
                None => self.parts.instances.discard(spare, &socket).await,
            }
        }
        entry.lifecycle = Lifecycle::adopted(revision(&record), entry.live.keys().copied());
        entry.record = Some(record);
        self.functions.insert(name.clone(), entry);
        self.install(&name, &Arc::new(listener))?;
        self.set_pool(&name)?;
        // What is missing is started.
        self.step(&name, Event::Tick).await;
        Ok(())
    }

    /// Removes routes of functions that are no longer declared.
    pub(super) fn forget_stale_routes(&mut self, records: &[FunctionRecord]) -> anyhow::Result<()> {
        let prefix = self.parts.config.function_prefix;
        let declared: HashMap<_, _> =
            records.iter().map(|r| (prefix.function(&r.name), r.spec.port)).collect();
        for (address, port, route) in self.parts.kernel.routes()? {
            if route != Route::SERVICE && declared.get(&address) != Some(&port) {
                self.parts.kernel.clear_route(address, port)?;
                if !declared.contains_key(&address) {
                    self.parts.kernel.clear_listener(route.slot)?;
                }
            }
        }
        Ok(())
    }
}

/// Whether a listener that was kept is the one that the function needs now.
fn is_bound_to(listener: &OwnedFd, address: Ipv6Addr, port: u16) -> bool {
    let bound =
        rustix::net::getsockname(listener).ok().and_then(|a| std::net::SocketAddrV6::try_from(a).ok());
    bound.is_some_and(|bound| *bound.ip() == address && bound.port() == port)
}
