//! What one peer may have of the tunnel's listener, so that none can have all of it.

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Connections by whose they are: as many entries as there are connections at most.
#[derive(Debug)]
pub(super) struct Shares {
    max: usize,
    open: Mutex<HashMap<Ipv6Addr, usize>>,
}

/// A connection's part in it, until it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    shares: Arc<Shares>,
    of: Ipv6Addr,
}

impl Shares {
    /// Nobody has more than `max` at a time.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, open: Mutex::default() })
    }

    /// One more for somebody, if there is one left.
    pub fn take(self: &Arc<Self>, of: Ipv6Addr) -> Option<Share> {
        let mut open = self.open();
        let count = open.entry(of).or_default();
        if *count >= self.max {
            return None;
        }
        *count += 1;
        Some(Share { shares: Arc::clone(self), of })
    }

    fn open(&self) -> MutexGuard<'_, HashMap<Ipv6Addr, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut open = self.shares.open();
        if let Some(count) = open.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.of);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_has_more_than_a_share() {
        let shares = Shares::new(2);
        let (anna, bert) = (Ipv6Addr::from_bits(1), Ipv6Addr::from_bits(2));
        let first = shares.take(anna).unwrap();
        let _second = shares.take(anna).unwrap();
        assert!(shares.take(anna).is_none());
        let of_bert = shares.take(bert).unwrap();
        drop(first);
        let _third = shares.take(anna).unwrap();
        assert!(shares.take(anna).is_none());
        drop(of_bert);
        assert_eq!(shares.open().keys().copied().collect::<Vec<_>>(), [anna], "who has none leaves nothing");
    }
}
