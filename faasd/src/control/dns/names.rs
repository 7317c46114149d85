//! The zones that are served, and the one place where they are changed.

use std::fmt;
use std::net::Ipv6Addr;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

use crate::core::name::FunctionName;
use crate::core::zone::{FunctionNames, Zone};

/// What has a name. A change is answered as soon as the call returns.
pub struct Names {
    zone: ArcSwap<Zone>,
    /// The serial; told at every change.
    changed: watch::Sender<u32>,
    /// The first serial.
    first: u32,
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Names").field(&*self.load()).finish()
    }
}

impl Names {
    #[must_use]
    pub fn new(zone: Zone) -> Self {
        let (changed, _) = watch::channel(zone.serial());
        let first = zone.serial();
        Self { zone: ArcSwap::from_pointee(zone), changed, first }
    }

    /// The zones as they are now.
    #[must_use]
    pub fn load(&self) -> Guard<Arc<Zone>> {
        self.zone.load()
    }

    /// Told of every change; of several in a row perhaps once.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u32> {
        self.changed.subscribe()
    }

    /// Ends the time in which names were put back and nobody was answered: all of it is one change. With ten thousand names a
    /// daemon that starts again and again would else use up serials by the million.
    pub fn settle(&self) {
        self.zone.rcu(|zone| zone.numbered(self.first));
        self.changed.send_replace(self.first);
    }

    /// Gives a function these names, in place of all those that it had.
    pub fn publish_function(&self, function: FunctionNames) {
        let function = Arc::new(function);
        self.change(|zone| zone.with_function(&function));
    }

    /// Takes away all names of a function, its revisions and its aliases.
    pub fn remove_function(&self, name: &FunctionName) {
        self.change(|zone| zone.without_function(name));
    }

    /// Gives a peer its name.
    pub fn publish_peer(&self, name: &FunctionName, address: Ipv6Addr) {
        self.change(|zone| zone.with_peer(name, address));
    }

    pub fn remove_peer(&self, name: &FunctionName) {
        self.change(|zone| zone.without_peer(name));
    }

    fn change(&self, change: impl Fn(&Zone) -> Option<Zone>) {
        let mut changed = None;
        // Done again if another change came first, so that none is lost.
        self.zone.rcu(|zone| {
            let new = change(zone).map(Arc::new);
            changed = new.as_ref().map(|zone| zone.serial());
            new.unwrap_or_else(|| Arc::clone(zone))
        });
        if let Some(serial) = changed {
            self.changed.send_replace(serial);
        }
    }
}
