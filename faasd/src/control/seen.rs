//! What the tunnel last said of its peers. To ask about one is cheap; to ask about all takes as long as there are many,
//! so all are asked about the more seldom the longer it takes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::tunnel::{self, Interface, PeerStatus, PublicKey};

/// Peers, as they were at some time.
#[derive(Debug, Default)]
pub struct Seen {
    peers: Arc<HashMap<PublicKey, PeerStatus>>,
    /// When they were read, and how long it took.
    read: Option<(Instant, Duration)>,
}

impl Seen {
    #[must_use]
    pub fn peers(&self) -> Arc<HashMap<PublicKey, PeerStatus>> {
        Arc::clone(&self.peers)
    }

    /// Whether reading them now would take no more than one part in `share` of the time.
    #[must_use]
    pub fn is_due(&self, share: u32) -> bool {
        self.read.is_none_or(|(at, took)| at.elapsed() >= took * share)
    }

    /// Reads them.
    ///
    /// # Errors
    /// If the interface is gone.
    pub fn read(&mut self, interface: &dyn Interface) -> Result<(), tunnel::Error> {
        let start = Instant::now();
        let status = interface.status()?;
        self.peers = Arc::new(status.peers.into_iter().map(|peer| (peer.public_key, peer)).collect());
        self.read = Some((Instant::now(), start.elapsed()));
        Ok(())
    }

    /// Keeps what is known of one peer apart from the others.
    pub fn note(&mut self, peer: PeerStatus) {
        Arc::make_mut(&mut self.peers).insert(peer.public_key, peer);
    }
}
