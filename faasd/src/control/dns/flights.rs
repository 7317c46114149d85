//! Equal questions at one moment are one question to an upstream: it answers all who asked, and a forger has one chance
//! to guess its identifier and port, and not as many as can be provoked (RFC 5452, 5).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// Questions that are on their way, and who waits for their answers.
#[derive(Debug)]
pub(super) struct Flights<K: Eq + Hash, V>(Arc<Mutex<HashMap<K, watch::Receiver<Option<V>>>>>);

/// The one that asks. If it is dropped before it has an answer, the others ask by themselves.
#[derive(Debug)]
pub(super) struct Leader<K: Eq + Hash, V> {
    flights: Arc<Mutex<HashMap<K, watch::Receiver<Option<V>>>>>,
    key: K,
    answer: watch::Sender<Option<V>>,
}

impl<K: Eq + Hash, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Clone + Eq + Hash, V: Clone> Flights<K, V> {
    /// To be the one that asks, or the answer of the one that does.
    pub(super) fn join(&self, key: K) -> Result<Leader<K, V>, watch::Receiver<Option<V>>> {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(key) {
            Entry::Occupied(there) => Err(there.get().clone()),
            Entry::Vacant(free) => {
                let (answer, told) = watch::channel(None);
                let key = free.key().clone();
                free.insert(told);
                Ok(Leader { flights: Arc::clone(&self.0), key, answer })
            }
        }
    }
}

impl<K: Eq + Hash, V> Leader<K, V> {
    /// Tells the others.
    pub(super) fn tell(self, answer: V) {
        self.answer.send_replace(Some(answer));
    }
}

impl<K: Eq + Hash, V> Drop for Leader<K, V> {
    fn drop(&mut self) {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_asks_and_all_are_told() {
        let flights = Flights::<&str, u32>::default();
        let leader = flights.join("a").unwrap();
        let mut waiting = flights.join("a").unwrap_err();
        drop(flights.join("b").unwrap());
        leader.tell(7);
        assert_eq!(*waiting.wait_for(Option::is_some).await.unwrap(), Some(7));
        // The next one asks anew; who waits for one that gives up is told so.
        let leader = flights.join("a").unwrap();
        let mut waiting = flights.join("a").unwrap_err();
        drop(leader);
        waiting.wait_for(Option::is_some).await.unwrap_err();
        flights.join("a").unwrap();
    }
}
