//! How connections reach a function: listener, slot, route, name.

use super::*;

impl Owner {
    /// Makes connections to a function reach its acceptor: listener, slot, route, name, in this order, so that none
    /// of them leads to something that is not there yet.
    pub(super) fn install(&mut self, name: &FunctionName, listener: &Arc<OwnedFd>) -> anyhow::Result<()> {
        let Some(entry) = self.functions.get_mut(name) else { return Ok(()) };
        let Some(record) = &entry.record else { return Ok(()) };
        let (slot, address, port) = (entry.slot, entry.address, record.spec.port);
        keep_listener(&self.parts.fdstore, name, listener)?;
        let stats = Arc::clone(&entry.stats);
        entry.listener = Some(Arc::clone(listener));
        self.parts.acceptors.send(Command::AddFunction { slot, listener: Arc::clone(listener), stats })?;
        self.parts.kernel.set_listener(slot, slot, &**listener)?;
        self.parts.kernel.set_route(address, port, Route::to(slot))?;
        if let Some(old) = entry.routed.replace(port)
            && old != port
        {
            self.parts.kernel.clear_route(address, old)?;
        }
        self.by_slot.insert(slot, name.clone());
        self.publish(|zone, serial| zone.with(name, address, serial));
        // Instances that were with the slot's former listener.
        let ready: Vec<_> = {
            let entry = &self.functions[name];
            entry.live.keys().copied().filter(|key| entry.lifecycle.is_ready(*key)).collect()
        };
        for key in ready {
            self.admit(name, key);
        }
        Ok(())
    }

    /// The reverse of [`Self::install`]. Each step is tried.
    pub(super) fn uninstall(&mut self, name: &FunctionName) {
        let Some(entry) = self.functions.get_mut(name) else { return };
        let (slot, address) = (entry.slot, entry.address);
        let Some(port) = entry.routed.take() else { return };
        entry.listener = None;
        self.publish(|zone, serial| zone.without(name, serial));
        let route = self.parts.kernel.clear_route(address, port);
        let listener = self.parts.kernel.clear_listener(slot);
        let pool = self.parts.kernel.set_pool(slot, &[]);
        let count = self.parts.kernel.reset_steered(slot);
        for error in [route, listener, pool, count].into_iter().filter_map(Result::err) {
            tracing::error!(function = %name, %error, "a removed function leaves a trace in the kernel's maps");
        }
        self.tell(Command::RemoveFunction { slot });
        if let Err(error) = drop_listener(&self.parts.fdstore, name) {
            tracing::error!(function = %name, %error, "a removed function's listener stays open");
        }
    }

    pub(super) fn publish(&self, change: impl FnOnce(&Zone, u32) -> Zone) {
        let serial = self.parts.store.revision().map_or(0, zone::serial);
        let old = self.parts.zone.load_full();
        self.parts.zone.store(Arc::new(change(&old, serial)));
        self.parts.zone_changed.notify_one();
    }

    pub(super) fn listener(&self, record: &FunctionRecord, address: Ipv6Addr) -> anyhow::Result<OwnedFd> {
        Ok(self.parts.ingress.listen(address, record.spec.port, self.parts.config.backlog)?)
    }

    pub(super) fn admit(&mut self, name: &FunctionName, key: u32) {
        let Some(entry) = self.functions.get(name) else { return };
        let Some(live) = entry.live.get(&key) else { return };
        let slot = entry.slot;
        let admitted = match live.listener() {
            Some(_) => self.take_seat(name, key),
            None => live.for_acceptor(key).map_err(Into::into).map(|instance| {
                self.tell(Command::AddInstance { slot, instance });
            }),
        };
        if let Err(error) = admitted {
            tracing::error!(function = %name, error = format!("{error:#}"), "an instance cannot be given connections");
            self.order(key, Order::Kill);
        }
    }
}
