//! What is on record of a function, kept in line with what is known of it here.

use super::*;
use crate::control::records::REVISIONS_MAX;
use crate::control::store::StoreError;

impl Owner {
    /// Writes a function's record, and before it that of a revision which it may name: one that nothing names is
    /// harmless, and removed by the next daemon.
    pub(super) async fn put(
        &self,
        record: &FunctionRecord,
        new: Option<&RevisionRecord>,
    ) -> Result<(), ApiError> {
        let (record, new) = (record.clone(), new.cloned());
        self.write(move |store| {
            if let Some(new) = &new {
                put_json(store, &new.key(), new, Expect::Any)?;
            }
            put_json(store, &FunctionRecord::key(&record.name), &record, Expect::Any)?;
            Ok(())
        })
        .await
    }

    pub(super) async fn write(
        &self,
        work: impl FnOnce(&dyn Store) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<(), ApiError> {
        let store = Arc::clone(&self.parts.store);
        match tokio::task::spawn_blocking(move || work(&*store)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(ApiError::failed(&e)),
            Err(e) => Err(ApiError::failed(&e)),
        }
    }

    /// Forgets all but the newest revisions, apart from those that somebody may still go by.
    pub(super) async fn forget_revisions(&mut self, name: &FunctionName) {
        let Some(entry) = self.functions.get(name) else { return };
        let Some(record) = &entry.record else { return };
        let is_new = |number: u64| entry.changes.values().any(|change| change.deploys(number));
        let old: Vec<u64> = entry
            .revisions
            .keys()
            .rev()
            .copied()
            .filter(|number| !is_new(*number))
            .skip(REVISIONS_MAX)
            .filter(|number| !record.names(*number))
            .filter(|number| entry.live.values().all(|live| live.revision != *number))
            .collect();
        if old.is_empty() {
            return;
        }
        let keys: Vec<_> = old.iter().map(|number| RevisionRecord::key_of(name, *number)).collect();
        let deleted = self.write(move |store| delete(store, &keys)).await;
        match deleted {
            Err(error) => tracing::warn!(function = %name, %error, "old revisions stay"),
            Ok(()) => {
                if let Some(entry) = self.functions.get_mut(name) {
                    entry.revisions.retain(|number, _| !old.contains(number));
                }
            }
        }
    }

    /// Every revision that is kept, with its function.
    pub(super) fn records(&self) -> impl Iterator<Item = (&FunctionName, &RevisionRecord)> {
        self.functions
            .iter()
            .flat_map(|(name, entry)| entry.revisions.values().map(move |record| (name, record)))
    }
}

pub(super) fn delete(store: &dyn Store, keys: &[String]) -> Result<(), StoreError> {
    keys.iter().try_for_each(|key| store.delete(key, Expect::Any).map(drop))
}
