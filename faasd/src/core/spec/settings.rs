//! The tables of `faas.toml`: limits, scale, deadlines.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::quantity;

/// What an instance may use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    #[serde(alias = "memory", deserialize_with = "quantity::bytes")]
    pub memory_bytes: u64,
    /// In cores: 0.5 is half of one.
    #[serde(alias = "cpu")]
    pub cpu_cores: f64,
    /// Processes and threads.
    #[serde(alias = "pids")]
    pub pids_max: u32,
    /// The size of `/tmp`, which is counted as memory.
    #[serde(alias = "tmp", deserialize_with = "quantity::bytes")]
    pub tmp_bytes: u64,
    /// Open descriptors, connections included.
    #[serde(alias = "files")]
    pub files_max: u64,
}

/// How many instances there are of each revision that has traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Scale {
    /// Instances that are always there. With 0, the first connection starts one.
    pub min: u32,
    /// The most that there are. Without it, as many as `min`, and at least one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    /// Open connections for each instance. With more, another instance is started, up to `max`.
    pub concurrency: u32,
    /// How long an instance is kept that is not needed. One with an open connection always is.
    #[serde(alias = "idle", deserialize_with = "quantity::milliseconds")]
    pub idle_ms: u64,
    /// Containers that are kept created and not started, as long as fewer than `max` instances are there.
    pub prepared: u32,
    /// Connections that may wait for an instance. More are refused at once.
    pub queue: u32,
}

impl Scale {
    /// The most instances.
    #[must_use]
    pub fn max(&self) -> u32 {
        self.max.unwrap_or(self.min).max(1)
    }

    #[must_use]
    pub const fn idle(&self) -> Duration {
        Duration::from_millis(self.idle_ms)
    }
}

/// How long the platform waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Deadlines {
    /// From the start of a container to its readiness.
    #[serde(alias = "start", deserialize_with = "quantity::milliseconds")]
    pub start_ms: u64,
    /// From the request to stop to the kill.
    #[serde(alias = "drain", deserialize_with = "quantity::milliseconds")]
    pub drain_ms: u64,
}

impl Deadlines {
    #[must_use]
    pub const fn start(&self) -> Duration {
        Duration::from_millis(self.start_ms)
    }

    #[must_use]
    pub const fn drain(&self) -> Duration {
        Duration::from_millis(self.drain_ms)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 128 << 20,
            cpu_cores: 1.0,
            pids_max: 128,
            tmp_bytes: 16 << 20,
            files_max: 16_384,
        }
    }
}

impl Default for Scale {
    fn default() -> Self {
        Self { min: 1, max: None, concurrency: 64, idle_ms: 300_000, prepared: 1, queue: 4096 }
    }
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { start_ms: 10_000, drain_ms: 10_000 }
    }
}
