//! From a declaration to a function that serves, and back.

use super::*;

impl Owner {
    pub(super) async fn deploy(
        &mut self,
        name: FunctionName,
        code: (Option<String>, Option<String>),
        spec: FunctionSpec,
        reply: Reply<Function>,
    ) {
        match self.prepare(&name, code, spec) {
            Err(error) => drop(reply.send(Err(error))),
            Ok(record) => {
                let event = Event::Deploy(revision(&record));
                if !self.functions.contains_key(&name) {
                    let entry = self.entry(&record);
                    self.functions.insert(name.clone(), entry);
                }
                // One that is overtaken is answered by what the lifecycle says of it.
                let overtaken = self
                    .functions
                    .get_mut(&name)
                    .and_then(|entry| entry.candidate.replace(Candidate { record, reply, error: None }));
                if let Some(overtaken) = overtaken {
                    let title = format!("another deploy of '{name}' overtook this one");
                    drop(overtaken.reply.send(Err(ApiError::conflict(title))));
                }
                self.step(&name, event).await;
            }
        }
    }

    /// Everything that can be refused before anything is started.
    pub(super) fn prepare(
        &self,
        name: &FunctionName,
        (image, dependencies): (Option<String>, Option<String>),
        mut spec: FunctionSpec,
    ) -> Result<FunctionRecord, ApiError> {
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
            None => free_slot(
                self.functions.values().map(|e| e.slot),
                SLOTS_MAX.min(crate::runtime::bundle::SLOTS_MAX),
            )
            .ok_or_else(|| ApiError::conflict("there is no room for another function"))?,
        };
        let newest = existing.and_then(|e| e.candidate.as_ref().map(|c| &c.record).or(e.record.as_ref()));
        Ok(FunctionRecord {
            name: name.clone(),
            slot,
            revision: newest.map_or(1, |r| r.revision + 1),
            image,
            root,
            dependencies,
            spec,
            deployed_at: Timestamp::now(),
        })
    }

    pub(super) async fn remove(&mut self, name: &FunctionName) {
        // The record goes first: whatever happens from here on, it does not come back.
        let (store, key) = (Arc::clone(&self.parts.store), FunctionRecord::key(name));
        let deleted = tokio::task::spawn_blocking(move || store.delete(&key, Expect::Any)).await;
        let failed = match deleted {
            Ok(Ok(_)) => None,
            Ok(Err(e)) => Some(ApiError::failed(&e)),
            Err(e) => Some(ApiError::failed(&e)),
        };
        if let (Some(error), Some(entry)) = (failed, self.functions.get_mut(name)) {
            for reply in entry.removals.drain(..) {
                drop(reply.send(Err(error.clone())));
            }
            return;
        }
        self.uninstall(name);
        self.step(name, Event::Remove).await;
    }

    pub(super) async fn ready(&mut self, key: u32) {
        let Some(name) = self.by_key.get(&key).cloned() else { return };
        let Some(entry) = self.functions.get_mut(&name) else { return };
        if entry.lifecycle.would_promote(key)
            && let Some(candidate) = &entry.candidate
        {
            // On record before it is in effect: a deploy that was acknowledged is there after any crash.
            let record = candidate.record.clone();
            if let Err(error) = self.establish(&record).await {
                if let Some(entry) = self.functions.get_mut(&name) {
                    if let Some(candidate) = &mut entry.candidate {
                        candidate.error = Some(error);
                    }
                    if let Some(live) = entry.live.get(&key) {
                        live.order(Order::Kill);
                    }
                }
                return;
            }
        }
        self.step(&name, Event::Ready(key)).await;
    }

    /// Stores a record, and makes its listener if there is none for its port.
    pub(super) async fn establish(&mut self, record: &FunctionRecord) -> Result<(), ApiError> {
        let Some(entry) = self.functions.get(&record.name) else { return Ok(()) };
        let (address, routed) = (entry.address, entry.routed);
        let listener = match routed {
            Some(port) if port == record.spec.port => None,
            _ => Some(self.listener(record, address).map_err(|e| {
                let error: &(dyn std::error::Error + 'static) = e.as_ref();
                ApiError::failed(error)
            })?),
        };
        let (store, stored) = (Arc::clone(&self.parts.store), record.clone());
        let put = tokio::task::spawn_blocking(move || {
            put_json(&*store, &FunctionRecord::key(&stored.name), &stored, Expect::Any)
        });
        match put.await {
            Ok(Ok(_)) => {}
            Ok(Err(e)) => return Err(ApiError::failed(&e)),
            Err(e) => return Err(ApiError::failed(&e)),
        }
        if let Some(entry) = self.functions.get_mut(&record.name) {
            entry.record = Some(record.clone());
        }
        match listener {
            Some(listener) => self.install(&record.name, &Arc::new(listener)).map_err(|e| {
                let error: &(dyn std::error::Error + 'static) = e.as_ref();
                ApiError::failed(error)
            }),
            None => Ok(()),
        }
    }

    pub(super) fn promoted(&mut self, name: &FunctionName) {
        let Some(entry) = self.functions.get_mut(name) else { return };
        let candidate = entry.candidate.take();
        let entry = &self.functions[name];
        if let Some(Candidate { record, reply, .. }) = candidate {
            tracing::info!(function = %name, revision = record.revision, "deployed");
            let view = self.view(name, entry);
            drop(reply.send(view.ok_or_else(|| self.no_function(name))));
        }
        self.collect_images();
    }

    pub(super) fn abandon(&mut self, name: &FunctionName, revision: u64, why: String) {
        let Some(entry) = self.functions.get_mut(name) else { return };
        // One that was overtaken has been answered, and what stands in its place now is not meant.
        let candidate = entry.candidate.take_if(|candidate| candidate.record.revision == revision);
        let Some(Candidate { reply, error, record }) = candidate else { return };
        tracing::warn!(function = %name, revision = record.revision, why, "a deploy failed");
        let error = error.unwrap_or_else(|| ApiError::Failed {
            title: format!("'{name}' was not deployed: its instance did not become ready"),
            detail: Some(why),
        });
        drop(reply.send(Err(error)));
    }

    pub(super) fn gone(&mut self, name: &FunctionName) {
        self.uninstall(name);
        let Some(entry) = self.functions.remove(name) else { return };
        self.ticks.remove(name);
        self.by_slot.remove(&entry.slot);
        if let Err(error) = self.parts.logs.remove(name) {
            tracing::warn!(function = %name, %error, "its logs stay");
        }
        for reply in entry.removals {
            drop(reply.send(Ok(())));
        }
        tracing::info!(function = %name, "removed");
        self.collect_images();
    }

    /// Removes images that no function uses, some time after the last one did.
    pub(super) fn collect_images(&self) {
        let images = self.parts.images.clone();
        let used = self.records().flat_map(|(_, r)| r.image.iter().chain(&r.dependencies).cloned()).collect();
        let keeps = self.root_keeper();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = images.gc(&used, IMAGE_AGE_MIN) {
                tracing::warn!(%error, "an image that is not used stays");
            }
            if let Err(error) = images.roots().gc(keeps, IMAGE_AGE_MIN) {
                tracing::warn!(%error, "a root image that is not used stays");
            }
        });
    }
}
