//! The peers' timers: keepalives, handshakes that are repeated, sessions that end.
//!
//! gotatun's sessions learn the time when they are asked what is due, four times a second. Only peers that have something
//! due are asked: a peer wakes by its first packet and sleeps when its last session is over, so that of ten thousand peers
//! that are known those few cost time that are there. Many are not asked at once but spread over the quarter of a
//! second, so that no packet waits for all of them.

use std::time::{Duration, Instant};

use gotatun::noise::errors::WireGuardError;

use super::peers::Id;
use super::{Ends, Engine};

/// How often each peer is asked.
const PERIOD: Duration = Duration::from_millis(250);

/// Peers asked at a time: some 50 µs.
const PEERS_PER_TURN: usize = 128;

impl Engine {
    /// When the timers want their turn next, if any run.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Asks some of the peers, if it is time.
    pub(super) fn tick(&mut self, now: Instant, ends: &mut impl Ends) {
        if self.due.is_none_or(|due| due > now) {
            return;
        }
        let awake = self.peers.awake();
        for _ in 0..awake.min(PEERS_PER_TURN) {
            let Some(id) = self.peers.next_awake() else { break };
            if self.ask(id, ends) {
                self.peers.wake(id);
            } else {
                self.peers.settle(id);
            }
        }
        let awake = self.peers.awake();
        self.due = (awake > 0).then(|| now + wait(awake));
    }

    /// Lets a peer's timers run, before anything is done with it: they stood still, and take now for the time at
    /// which they stopped.
    pub(super) fn wake(&mut self, id: Id, ends: &mut impl Ends) {
        if self.peers.wake(id) {
            self.ask(id, ends);
            if self.due.is_none() {
                self.due = Some(Instant::now() + PERIOD);
            }
        }
    }

    /// Whether there is anything to come.
    fn ask(&mut self, id: Id, ends: &mut impl Ends) -> bool {
        let Some(peer) = self.peers.get_mut(id) else { return false };
        let endpoint = peer.endpoint;
        let message = match peer.tunn.update_timers() {
            Ok(message) => message,
            Err(WireGuardError::ConnectionExpired) => {
                // gotatun gives up here, and would say nothing until there is something to say. Whoever is to keep the
                // way open tries again, as the kernel does.
                if peer.tunn.persistent_keepalive().is_none() || endpoint.is_none() {
                    return false;
                }
                peer.tunn.format_handshake_initiation(false).map(Into::into)
            }
            Err(error) => {
                tracing::warn!(?error, "a peer's timers failed");
                None
            }
        };
        if let (Some(message), Some(endpoint)) = (message, endpoint) {
            self.emit(id, message, endpoint, ends);
        }
        true
    }
}

/// How long until the next turn, of which each peer has one in a period.
fn wait(awake: usize) -> Duration {
    PERIOD.div_f64(awake.div_ceil(PEERS_PER_TURN).max(1) as f64)
}
