//! What became of the connections that a function asked for.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

/// Connections that all instances of a function may be making at a time.
const PENDING_MAX: usize = 512;

/// Counters of one function, and its room.
#[derive(Debug)]
pub struct Counts {
    pub(super) pending: Arc<Semaphore>,
    inside: AtomicU64,
    outside: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    last: Mutex<Option<SocketAddr>>,
}

/// What they stand at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Connections to functions.
    pub inside: u64,
    /// Connections to the outside.
    pub outside: u64,
    /// Attempts at what was not granted.
    pub refused: u64,
    /// Granted, and not made: nobody there, no answer, too many at a time.
    pub failed: u64,
    /// Where the last attempt that was refused was to lead.
    pub last_refused: Option<SocketAddr>,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            pending: Arc::new(Semaphore::new(PENDING_MAX)),
            inside: AtomicU64::new(0),
            outside: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            last: Mutex::default(),
        }
    }
}

impl Counts {
    pub(super) fn made(&self, outside: bool) {
        let counter = if outside { &self.outside } else { &self.inside };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refused(&self, to: Option<SocketAddr>) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        if to.is_some() {
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = to;
        }
    }

    pub(super) fn now(&self) -> Counted {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counted {
            inside: read(&self.inside),
            outside: read(&self.outside),
            refused: read(&self.refused),
            failed: read(&self.failed),
            last_refused: *self.last.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }
}
