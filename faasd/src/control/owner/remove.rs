//! The end of a function.

use super::*;
use crate::control::access::Carried;
use crate::core::access::Subject;

impl Owner {
    pub(super) async fn remove(&mut self, name: &FunctionName) {
        // On record first: whatever happens from here on, it does not come back.
        let Some(entry) = self.functions.get(name) else { return };
        let revisions = entry.revisions.keys().map(|number| RevisionRecord::key_of(name, *number));
        let keys = revisions.chain([FunctionRecord::key(name)]);
        let deletions = keys.map(|key| Write::Delete { key }).collect();
        let (access, subject) = (Arc::clone(&self.parts.access), Subject::Function(name.clone()));
        // Who may call it, and whom it may call, goes with it.
        let deleted = tokio::task::spawn_blocking(move || access.remove(&subject, deletions));
        let going = match deleted.await.map_err(|e| ApiError::failed(&e)) {
            Ok(Ok(going)) => going,
            Ok(Err(error)) => return self.stays(name, &ApiError::failed(&error)),
            Err(error) => return self.stays(name, &error),
        };
        self.uninstall(name);
        // Its rules are of no use now that nothing leads to it.
        // Of what the kernel does not take nobody needs to know: there is no function that it speaks of.
        let Carried { guards, .. } = self.parts.access.finish(going);
        for other in guards {
            if let Err(error) = self.set_routes(&other) {
                tracing::error!(function = %other, %error, "its route asks for rules that there are none of");
            }
        }
        self.step(name, Event::Remove).await;
    }

    /// It could not be removed.
    fn stays(&mut self, name: &FunctionName, error: &ApiError) {
        let removals = self.functions.get_mut(name).map(|entry| std::mem::take(&mut entry.removals));
        for reply in removals.into_iter().flatten() {
            drop(reply.send(Err(error.clone())));
        }
    }

    pub(super) async fn gone(&mut self, name: &FunctionName) {
        self.uninstall(name);
        let Some(entry) = self.functions.remove(name) else { return };
        self.ticks.remove(name);
        self.parts.instances.egress().forget(name);
        let (logs, function) = (self.parts.logs.clone(), name.clone());
        let removed = tokio::task::spawn_blocking(move || logs.remove(&function)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(function = %name, %error, "its logs stay");
        }
        for reply in entry.removals {
            drop(reply.send(Ok(())));
        }
        tracing::info!(function = %name, "removed");
        // One that never was is not.
        if entry.record.is_some() {
            self.parts
                .events
                .record(name, NewEvent::new(EventKind::Removed, "it and its instances are gone"));
        }
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
