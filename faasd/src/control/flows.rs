//! What passes between subjects and functions: what the kernel program has counted of connections that have ended, and the
//! kernel's own books of those that are open.
//!
//! Nothing is done for it while nobody asks, and whoever asks again at once is told the same.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use faasd_common::RTT_BUCKETS;

use super::access::Access;
use super::api::ApiError;
use super::ingress::Ingress;
use crate::core::access::Subject;
use crate::core::name::FunctionName;
use crate::sys::bpf;
use crate::sys::sock_diag::open::{self, Open};

/// How old an answer may be. A look takes time for each connection that is open, whoever asks.
const AGE_MAX: Duration = Duration::from_millis(500);

/// All connections of one subject with one function. A subject's are told apart by its number for as long as it has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Those that have ended, and those that are open.
    pub connections: u64,
    pub open: u64,
    pub received_bytes: u64,
    pub sent_bytes: u64,
    pub retransmits: u64,
    /// The sum of the smoothed round-trip times of those that are open and have one, and their number.
    pub open_rtt_us: (u64, u64),
    /// Of those that have ended, likewise.
    pub rtt_sum_us: u64,
    pub rtt: [u64; RTT_BUCKETS],
    ended: u64,
}

/// Whose connections, and with which function; nobody's are the daemon's own.
pub type Pair = (Option<Subject>, FunctionName);

/// All flows that are known.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub flows: HashMap<Pair, Flow>,
    /// Whether open connections are among the numbers.
    pub complete: bool,
}

/// Looks at them.
#[derive(Debug)]
pub struct Flows {
    kernel: bpf::Flows,
    ingress: Arc<Ingress>,
    access: Arc<Access>,
    last: Mutex<Option<(Instant, Arc<Seen>)>>,
}

impl Flows {
    #[must_use]
    pub fn new(kernel: bpf::Flows, ingress: Arc<Ingress>, access: Arc<Access>) -> Self {
        Self { kernel, ingress, access, last: Mutex::new(None) }
    }

    /// What there is now, or was a moment ago. Blocks.
    ///
    /// # Errors
    /// [`ApiError::Failed`], if the kernel does not tell.
    pub fn look(&self) -> Result<Arc<Seen>, ApiError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, seen)) = last.as_ref().filter(|(at, _)| at.elapsed() < AGE_MAX) {
            return Ok(Arc::clone(seen));
        }
        // In this order: one that ends in between is missing for once, and none counts twice.
        let ended = self.kernel.ended().map_err(|e| ApiError::failed(&e))?;
        let open = open::list(self.ingress.ns(), self.kernel.marks()).map_err(|e| ApiError::failed(&e))?;
        let mut seen = Seen { complete: open.is_some(), ..Seen::default() };
        let names = self.access.names();
        for (number, address, flow) in ended {
            // Of who is not there any more nothing is shown.
            let subject = names.subject(number);
            let Some(function) = names.function(address).filter(|_| number == 0 || subject.is_some()) else {
                continue;
            };
            seen.flows.entry((subject, function)).or_default().add_ended(&flow);
        }
        for one in open.into_iter().flatten() {
            let Some(function) = names.function(one.local) else { continue };
            seen.flows.entry((names.caller(one.remote), function)).or_default().add_open(&one);
        }
        drop(names);
        if let Some((_, before)) = last.as_ref() {
            for (pair, flow) in &mut seen.flows {
                if let Some(before) = before.flows.get(pair) {
                    flow.keep_from_falling(before);
                }
            }
        }
        let seen = Arc::new(seen);
        *last = Some((Instant::now(), Arc::clone(&seen)));
        Ok(seen)
    }
}

impl Flow {
    fn add_ended(&mut self, flow: &faasd_common::Flow) {
        self.ended += flow.ended;
        self.connections += flow.ended;
        self.received_bytes += flow.received;
        self.sent_bytes += flow.sent;
        self.retransmits += flow.retransmits;
        self.rtt_sum_us += flow.rtt_sum_us;
        self.rtt.iter_mut().zip(flow.rtt).for_each(|(all, more)| *all += more);
    }

    fn add_open(&mut self, open: &Open) {
        self.connections += 1;
        self.open += 1;
        self.received_bytes += open.received_bytes;
        self.sent_bytes += open.sent_bytes;
        self.retransmits += open.retransmits;
        if open.rtt_us > 0 {
            self.open_rtt_us.0 += u64::from(open.rtt_us);
            self.open_rtt_us.1 += 1;
        }
    }

    /// Adds those of another subject.
    pub fn merge(&mut self, other: &Self) {
        self.connections += other.connections;
        self.open += other.open;
        self.received_bytes += other.received_bytes;
        self.sent_bytes += other.sent_bytes;
        self.retransmits += other.retransmits;
        self.open_rtt_us.0 += other.open_rtt_us.0;
        self.open_rtt_us.1 += other.open_rtt_us.1;
        self.rtt_sum_us += other.rtt_sum_us;
        self.rtt.iter_mut().zip(other.rtt).for_each(|(all, more)| *all += more);
        self.ended += other.ended;
    }

    /// A connection that ended while we looked is in neither list, and in the next one. What has been shown is not taken
    /// back for that: a counter that falls is read as one that began anew. One that did is told by those that have ended.
    fn keep_from_falling(&mut self, before: &Self) {
        if self.ended < before.ended {
            return;
        }
        self.connections = self.connections.max(before.connections);
        self.received_bytes = self.received_bytes.max(before.received_bytes);
        self.sent_bytes = self.sent_bytes.max(before.sent_bytes);
        self.retransmits = self.retransmits.max(before.retransmits);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    fn flow(ended: u64, received: u64, open: &[u64]) -> Flow {
        let mut flow = Flow::default();
        flow.add_ended(&faasd_common::Flow { ended, received, ..Default::default() });
        for received_bytes in open {
            flow.add_open(&Open {
                local: Ipv6Addr::LOCALHOST,
                remote: Ipv6Addr::LOCALHOST,
                received_bytes: *received_bytes,
                sent_bytes: 0,
                retransmits: 0,
                rtt_us: 7,
            });
        }
        flow
    }

    #[test]
    fn open_connections_are_added_to_those_that_have_ended() {
        let flow = flow(2, 100, &[30, 5]);
        assert_eq!(
            (flow.connections, flow.open, flow.received_bytes, flow.open_rtt_us),
            (4, 2, 135, (14, 2))
        );
    }

    #[test]
    fn what_was_shown_is_not_taken_back_unless_it_began_anew() {
        let before = flow(2, 100, &[30]);
        // It ended between the two looks, and is in neither.
        let mut between = flow(2, 100, &[]);
        between.keep_from_falling(&before);
        assert_eq!((between.connections, between.received_bytes, between.open), (3, 130, 0));
        let mut after = flow(3, 131, &[]);
        after.keep_from_falling(&between);
        assert_eq!((after.connections, after.received_bytes), (3, 131));
        // The kernel has forgotten the pair meanwhile.
        let mut anew = flow(1, 10, &[]);
        anew.keep_from_falling(&after);
        assert_eq!((anew.connections, anew.received_bytes), (1, 10));
    }
}
