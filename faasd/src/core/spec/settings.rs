//! The tables of `faas.toml`: limits, scale, deadlines.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::quantity;

/// What an instance may use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Memory, `/tmp` included.
    #[serde(alias = "memory", deserialize_with = "quantity::bytes")]
    #[schemars(range(min = 8 << 20))]
    pub memory_bytes: u64,
    /// In cores: 0.5 is half of one.
    #[serde(alias = "cpu")]
    #[schemars(range(min = 0.01, max = 1024.0))]
    pub cpu_cores: f64,
    /// Processes and threads.
    #[serde(alias = "pids")]
    #[schemars(range(min = 4, max = 65536))]
    pub pids_max: u32,
    /// The size of `/tmp`, which is counted as memory.
    #[serde(alias = "tmp", deserialize_with = "quantity::bytes")]
    #[schemars(range(min = 4 << 10))]
    pub tmp_bytes: u64,
    /// Open descriptors, connections included.
    #[serde(alias = "files")]
    #[schemars(range(min = 64, max = 1 << 20))]
    pub files_max: u64,
}

/// How many instances there are of each revision that has traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Scale {
    /// Instances that are always there. With 0, the first connection starts one.
    #[schemars(range(min = 0, max = 64))]
    pub min: u32,
    /// The most that there are. Without it, as many as `min`, and at least one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub max: Option<u32>,
    /// Open connections for each instance. With more, another instance is started, up to `max`.
    #[schemars(range(min = 1, max = 1000000))]
    pub concurrency: u32,
    /// How long an instance is kept that is not needed. One with an open connection always is.
    #[serde(alias = "idle", deserialize_with = "quantity::milliseconds")]
    #[schemars(range(min = 1000, max = 86400000))]
    pub idle_ms: u64,
    /// Containers that are kept created and not started, as long as fewer than `max` instances are there.
    #[schemars(range(min = 0, max = 64))]
    pub prepared: u32,
    /// Connections that may wait for an instance. More are refused at once.
    #[schemars(range(min = 1, max = 65536))]
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
    #[schemars(range(min = 100, max = 600000))]
    pub start_ms: u64,
    /// From the request to stop to the kill.
    #[serde(alias = "drain", deserialize_with = "quantity::milliseconds")]
    #[schemars(range(min = 0, max = 600000))]
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
