//! Load on a server: threads, each with a runtime of its own and its share of the connections, that have nothing in
//! common while requests are sent. What they send and what is kept of it is decided in `core::load`.
//!
//! A thread never waits for another, takes no lock of another's and shares no counter with it.
//! Threads of a target that is reached from another network namespace live there.

mod client;
mod connect;
mod fault;
mod http1;
mod pace;
mod payload;
mod run;
mod target;
mod websocket;
mod worker;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hyper::{HeaderMap, Method};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::watch;

pub use self::payload::Payload;
pub use self::target::{Target, TargetError};
use self::worker::Worker;
use crate::core::load::record::Record;
use crate::core::load::{Mode, Protocol};

/// The most connections. Each takes a descriptor.
pub const CONNECTIONS_MAX: u32 = 100_000;

/// The most threads.
pub const THREADS_MAX: u32 = 256;

/// Descriptors that are not for connections.
const DESCRIPTORS_SPARE: u64 = 64;

/// What is sent, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    pub mode: Mode,
    pub protocol: Protocol,
    pub connections: u32,
    /// At most as many as connections.
    pub threads: u32,
    /// Of an open loop, in requests a second.
    pub rate: Option<f64>,
    /// For each request, its connection's establishment included.
    pub timeout: Duration,
    pub method: Method,
    /// Besides `host` and those of the mode.
    pub headers: HeaderMap,
    pub payload: Payload,
}

/// When to stop sending. With neither, nothing stops it but [`Load`]'s own signal.
#[derive(Clone, Copy, Debug, Default)]
pub struct Chunk {
    pub duration: Option<Duration>,
    pub requests: Option<u64>,
}

impl Chunk {
    /// One of `workers` equal parts; what does not divide goes to the first ones.
    fn part(self, index: u32, workers: u32) -> Self {
        let (index, workers) = (u64::from(index), u64::from(workers));
        let share = |all: u64| all / workers + u64::from(index < all % workers);
        Self { requests: self.requests.map(share), ..self }
    }
}

/// What is shown while it runs.
#[derive(Debug, Default)]
struct Counters {
    answered: AtomicU64,
    failed: AtomicU64,
}

/// Threads that send requests to one target. They end when this is dropped.
#[derive(Debug)]
pub struct Load {
    workers: Vec<Worker>,
}

impl Load {
    /// Starts the threads. No request is sent yet, and no connection is opened. `stop` ends a chunk early.
    ///
    /// # Errors
    /// If there may not be as many descriptors, no thread can be started, or the target's namespace cannot be entered.
    pub fn start(plan: &Arc<Plan>, target: &Arc<Target>, stop: &watch::Receiver<bool>) -> io::Result<Self> {
        allow_descriptors(u64::from(plan.connections))?;
        let start = |index| Worker::start(Arc::clone(plan), Arc::clone(target), index, stop.clone());
        Ok(Self { workers: (0..plan.threads).map(start).collect::<io::Result<_>>()? })
    }

    /// Opens the connections that are missing, where they are to stay, and sends requests until the chunk is over and
    /// each is answered or has failed.
    ///
    /// # Errors
    /// If a thread has ended.
    pub async fn run(&self, chunk: Chunk) -> io::Result<Record> {
        let mut opened = Vec::new();
        for worker in &self.workers {
            opened.push(worker.open().await?);
        }
        let mut record = Record::default();
        for opened in opened {
            record.beside(opened.await.map_err(|_| gone())?);
        }
        let count = self.workers.len() as u32;
        let (mut done, begin) = (Vec::new(), Instant::now());
        for (index, worker) in (0..).zip(&self.workers) {
            done.push(worker.run(chunk.part(index, count), begin).await?);
        }
        for done in done {
            record.beside(done.await.map_err(|_| gone())?);
        }
        Ok(record)
    }

    /// How many requests have been answered and have failed so far.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        let sum = |of: fn(&Counters) -> &AtomicU64| {
            self.workers.iter().map(|worker| of(&worker.counters).load(Ordering::Relaxed)).sum()
        };
        (sum(|counters| &counters.answered), sum(|counters| &counters.failed))
    }
}

/// A thread of the load has panicked.
fn gone() -> io::Error {
    io::Error::other("a thread of the load has ended")
}

fn allow_descriptors(connections: u64) -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let wanted = connections + DESCRIPTORS_SPARE;
    if limit.current.is_none_or(|now| now >= wanted) {
        return Ok(());
    }
    if limit.maximum.is_some_and(|most| most < wanted) {
        let most = limit.maximum.unwrap_or_default().saturating_sub(DESCRIPTORS_SPARE);
        return Err(io::Error::other(format!(
            "this process may have {most} connections; `ulimit -n {wanted}` allows more"
        )));
    }
    // Others of this process may have descriptors as well.
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    Ok(())
}

#[cfg(test)]
mod tests;
