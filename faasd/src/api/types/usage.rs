//! What functions use.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::State;
use crate::core::name::FunctionName;

/// `GET /v1/usage`: what functions use now, and have used so far. How fast is the difference of two answers.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    pub taken_at: Timestamp,
    /// By name.
    pub functions: Vec<FunctionUsage>,
    /// There is more: ask again with `after` as this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// What one function uses. Numbers that grow begin anew with the daemon, but for `connections`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FunctionUsage {
    pub name: FunctionName,
    pub state: State,
    /// Instances that take connections.
    pub ready: usize,
    /// All that there are.
    pub instances: usize,
    /// Connections so far.
    pub connections: u64,
    /// Connections now.
    pub in_flight: u64,
    pub queues: Queues,
    /// That its instances say they have served; 0 of what counts none.
    pub requests: u64,
    pub errors: u64,
    /// CPU time so far.
    pub cpu_us: u64,
    pub memory_bytes: u64,
    /// Bytes that it was sent so far, and of its own that have arrived.
    pub received_bytes: u64,
    pub sent_bytes: u64,
    /// Segments that were sent again so far.
    pub retransmits: u64,
    /// The mean of the smoothed round-trip times of its open connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u64>,
    /// The sum of those of the connections that have ended, and the number of these.
    pub ended_rtt_us_sum: u64,
    pub ended_rtts: u64,
}

/// Where a function's connections wait, and how many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Queues {
    /// In the kernel, for an accept.
    pub listener: u64,
    /// Accepted by the daemon, for an instance.
    pub acceptor: u64,
    /// Handed over, for the instance to receive them.
    pub instance: u64,
}

impl Queues {
    /// All of them.
    #[must_use]
    pub const fn sum(&self) -> u64 {
        self.listener.saturating_add(self.acceptor).saturating_add(self.instance)
    }
}
