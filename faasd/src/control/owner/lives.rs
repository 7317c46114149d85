//! How a function's instances have fared under this daemon.

use faasd_sdk::status::StatusPage;

use crate::api::types::StartTimes;
use crate::control::instances::StartTimesSeen;

/// What became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lives {
    pub starts: u64,
    pub failures: u64,
    /// Connections that they wanted to pass on, and may not.
    pub kept_back: u64,
    /// Of those that have ended.
    pub requests: u64,
    pub errors: u64,
    /// The parts of starts that came to their end.
    pub create: StartTimesSeen,
    pub release: StartTimesSeen,
    pub ready: StartTimesSeen,
}

impl Lives {
    /// The parts by name.
    #[must_use]
    pub fn parts(&self) -> [(&'static str, &StartTimesSeen); 3] {
        [("create", &self.create), ("release", &self.release), ("ready", &self.ready)]
    }

    pub(super) fn started(&mut self, times: &StartTimes) {
        self.create.add(times.create_us);
        times.release_us.inspect(|us| self.release.add(*us));
        times.ready_us.inspect(|us| self.ready.add(*us));
    }

    /// Instances may write anything.
    pub(super) fn ended(&mut self, page: &StatusPage) {
        self.requests = self.requests.saturating_add(page.requests());
        self.errors = self.errors.saturating_add(page.errors());
    }
}
