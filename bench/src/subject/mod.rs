//! What is measured. Each subject is a set of processes that answer on one address.

mod acceptor;
mod bare;
mod conditions;
mod process;
mod proxy;
mod target;

use nix::unistd::Pid;

use crate::load::Destination;

pub use acceptor::HandedOver;
pub use bare::{Bare, Confined, filtered};
pub use conditions::{niceness, realtime_policy};
pub use process::{Process, Site};
pub use proxy::Proxied;
pub use target::{Scraped, Target};

/// Something that answers requests.
pub trait Subject {
    /// The name in tables and files.
    fn name(&self) -> &str;

    /// Why it cannot be measured here, with the remedy.
    fn unavailable(&self) -> Option<String> {
        None
    }

    /// The name and version of the program that it is made of, if that is not ours.
    fn version(&self) -> Option<(String, String)> {
        None
    }

    /// Starts it and waits until it answers.
    ///
    /// # Errors
    /// If it does not come up.
    fn start(&self, site: &Site) -> anyhow::Result<Running>;
}

/// A subject that answers. Its processes end when this is dropped.
#[derive(Debug)]
pub struct Running {
    pub name: String,
    /// What it is compared with, if that is not the first of all.
    pub base: Option<String>,
    pub to: Destination,
    /// The processes between client and function, if there are any.
    pub gateway: Vec<Pid>,
    /// The function's own processes.
    pub function: Vec<Pid>,
    /// What is asked of its gateway meanwhile.
    pub scraped: Option<Scraped>,
    /// Held for their `Drop`, which ends them; the gateway before the function.
    pub(crate) processes: Vec<Process>,
    /// Held for its `Drop` too.
    pub(crate) _adopted: conditions::Adopted,
}

impl Running {
    /// CPU time of all its processes so far; `None` if none is known, or one has ended.
    #[must_use]
    pub fn cpu(&self) -> Option<std::time::Duration> {
        let mut pids = self.gateway.iter().chain(&self.function).peekable();
        pids.peek()?;
        pids.map(|pid| process::cpu(*pid).ok()).sum()
    }

    /// Fails if a process of the subject has ended.
    ///
    /// # Errors
    /// With what the process said last.
    pub fn check(&mut self) -> anyhow::Result<()> {
        self.processes.iter_mut().try_for_each(Process::check)
    }
}
