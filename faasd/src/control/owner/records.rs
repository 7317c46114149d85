//! What is on record of a function, kept in line with what is known of it here.

use super::*;
use crate::control::records::REVISIONS_MAX;

impl Owner {
    /// Writes a function's record, together with that of a revision which is new.
    pub(super) async fn put(
        &self,
        record: &FunctionRecord,
        new: Option<&RevisionRecord>,
    ) -> Result<(), ApiError> {
        let function = json_write(FunctionRecord::key(&record.name), record);
        let writes = new.map(|new| json_write(new.key(), new)).into_iter().chain([function]);
        self.write(writes.collect::<Result<_, _>>().map_err(|e| ApiError::failed(&e))?).await
    }

    /// Makes all of these changes or none.
    pub(super) async fn write(&self, writes: Vec<Write>) -> Result<(), ApiError> {
        let store = Arc::clone(&self.parts.store);
        match tokio::task::spawn_blocking(move || store.write_all(&writes)).await {
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
        let keys = old.iter().map(|number| RevisionRecord::key_of(name, *number));
        match self.write(keys.map(|key| Write::Delete { key }).collect()).await {
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
