//! What passed between a subject and a function, in all connections of the one to the other.

use crate::RuleKey;

/// The most pairs of a subject and a function that are kept: those whose connections ended last.
pub const FLOWS_MAX: u32 = 4096;

/// Whose connections, and to which function: as in a rule. The daemon's own have the number 0.
pub type FlowKey = RuleKey;

/// Upper bounds of the round-trip times' buckets in microseconds, doubling: 32 µs to 1.05 s. One more bucket holds the rest.
pub const RTT_BOUNDS_US: [u32; 16] = {
    let mut bounds = [0; 16];
    let mut i = 0;
    while i < 16 {
        bounds[i] = 32 << i;
        i += 1;
    }
    bounds
};

/// Buckets of [`Flow::rtt`].
pub const RTT_BUCKETS: usize = RTT_BOUNDS_US.len() + 1;

/// The connections that have ended. What is counted here was taken from the kernel's own books, once for each connection,
/// at its end. Each field only grows, by itself: a reader may see one of two that belong together.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    pub ended: u64,
    /// Bytes that the function was sent, without headers and what was sent twice.
    pub received: u64,
    /// Bytes of the function's that have arrived.
    pub sent: u64,
    /// Segments that were sent to the subject again.
    pub retransmits: u64,
    /// The smoothed round-trip times at the connections' ends, in microseconds.
    pub rtt_sum_us: u64,
    /// How many of them fell into each bucket. Those that never had one are in none.
    pub rtt: [u64; RTT_BUCKETS],
}

const _: () = assert!(size_of::<Flow>() == 8 * (5 + RTT_BUCKETS) && align_of::<Flow>() == 8);
