//! A bounded number of places, of which no source can have them all.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// One source may have this part of the places.
const SHARE: usize = 4;

/// So many may be in, and of each source a part of them.
#[derive(Debug)]
pub(super) struct Places {
    max: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    count: usize,
    /// Only of those who have one.
    by_source: HashMap<IpAddr, usize>,
}

/// A place that is taken, until it is dropped.
#[derive(Debug)]
pub(super) struct Place(Arc<Places>, IpAddr);

impl Places {
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, taken: Mutex::default() })
    }

    /// How many are taken.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).count
    }

    /// A place, if there is one for this source.
    pub(super) fn take(self: &Arc<Self>, source: IpAddr) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.by_source.get(&source).copied().unwrap_or(0);
        if taken.count >= self.max || own >= self.max.div_ceil(SHARE) {
            return None;
        }
        taken.count += 1;
        taken.by_source.insert(source, own + 1);
        Some(Place(Arc::clone(self), source))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.count -= 1;
        if let Some(own) = taken.by_source.get_mut(&self.1) {
            *own -= 1;
            if *own == 0 {
                taken.by_source.remove(&self.1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_all_places() {
        let places = Places::new(8);
        let source = |n: u16| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, n]);
        let mut greedy: Vec<_> = (0..8).filter_map(|_| places.take(source(1))).collect();
        assert_eq!(greedy.len(), 2);
        let others: Vec<_> = (2..20).filter_map(|n| places.take(source(n))).collect();
        assert_eq!(others.len(), 6);
        assert!(places.take(source(30)).is_none());
        greedy.pop();
        assert!(places.take(source(30)).is_some());
        drop((greedy, others));
        let taken = places.taken.lock().unwrap();
        assert_eq!((taken.count, taken.by_source.len()), (0, 0));
    }
}
