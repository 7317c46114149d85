//! The measuring instrument: a closed loop of `clients` connections from one thread.
//!
//! It speaks to sockets directly rather than through hyper's client, whose pool, tasks and wakers cost 10 to 20 µs a
//! request: as much as the differences to be measured. Responses are still parsed properly (httparse). One client
//! blocks in `recv(2)`, which is the shortest way to be woken; several share an epoll set.

mod many;
mod one;
mod response;
mod script;
mod socket;

use std::fs::File;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;
use rustix::thread::{CpuSet, LinkNameSpaceType, move_into_link_name_space, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

pub use response::Fault;
pub use script::Scenario;
pub use socket::{Destination, connect, fetch};

/// After so many failed requests a chunk ends: the subject is broken, not slow.
const ERRORS_MAX: u64 = 100;

/// How long one connection may say nothing before its request counts as failed.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// On which core the load runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// On a core of its own: the latency of one client, with nothing in its way.
    Apart,
    /// On the servers' core. Over loopback a client has as much to do in the kernel as the server, so that from its
    /// own core it would itself be the limit; on one core every cycle of either counts, and nothing sleeps.
    Together,
}

/// Where the load comes from.
#[derive(Debug, Default)]
pub struct Seat {
    pub own_cpu: Option<usize>,
    pub server_cpu: Option<usize>,
}

impl Seat {
    /// Runs `work` on a thread of its own, on one of the seat's CPUs and in a network namespace.
    ///
    /// # Errors
    /// Those of `setns(2)` and `sched_setaffinity(2)`, and what `work` returns.
    pub fn run<T: Send>(
        &self,
        placement: Placement,
        netns: Option<&File>,
        work: impl FnOnce() -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        let cpu = match placement {
            Placement::Apart => self.own_cpu,
            Placement::Together => self.server_cpu,
        };
        let enter_and_work = || {
            if let Some(netns) = netns {
                move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
                    .context("cannot enter the network namespace: run as root (CAP_SYS_ADMIN)")?;
            }
            if let Some(cpu) = cpu {
                let mut set = CpuSet::new();
                set.set(cpu);
                sched_setaffinity(None, &set).with_context(|| {
                    format!("cannot run on CPU {cpu}: give others with --client-cpu and --server-cpus")
                })?;
            }
            work()
        };
        std::thread::scope(|scope| {
            scope.spawn(enter_and_work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// One chunk of load.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    pub scenario: Scenario,
    pub clients: usize,
    pub to: &'a Destination,
    pub duration: Duration,
}

/// What a chunk showed.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Nanoseconds.
    pub latency: Histogram<u64>,
    pub elapsed: Duration,
    pub errors: u64,
    pub first_error: Option<String>,
    /// CPU time of the load's own thread: near `elapsed`, the instrument was the limit.
    pub client_cpu: Duration,
    /// CPU time of the subject's processes, where they are known.
    pub server_cpu: Option<Duration>,
}

/// Counts within one chunk.
struct Tally {
    latency: Histogram<u64>,
    errors: u64,
    first_error: Option<String>,
}

impl Tally {
    fn answered(&mut self, since: Instant) {
        self.latency.saturating_record(u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }

    fn failed(&mut self, fault: &Fault) {
        self.errors += 1;
        self.first_error.get_or_insert_with(|| fault.to_string());
    }

    fn hopeless(&self) -> bool {
        self.errors >= ERRORS_MAX
    }
}

/// An empty histogram: 1 ns to 60 s, three digits.
#[must_use]
pub fn histogram() -> Histogram<u64> {
    #[expect(clippy::unwrap_used, reason = "the bounds are constants that the crate accepts")]
    Histogram::new_with_bounds(1, 60_000_000_000, 3).unwrap()
}

impl Load<'_> {
    /// Runs the chunk in the calling thread. `meter` reads the CPU time that the subject has used so far.
    ///
    /// # Errors
    /// If the load cannot even start: descriptors, epoll, the first connections of a keep-alive scenario.
    pub fn run(&self, meter: &dyn Fn() -> Option<Duration>) -> anyhow::Result<Outcome> {
        let script = self.scenario.script();
        let mut tally = Tally { latency: histogram(), errors: 0, first_error: None };
        let mut clock = Clock { meter, started: None };
        if self.clients == 1 {
            one::run(self, &script, &mut tally, &mut clock)?;
        } else {
            many::run(self, &script, &mut tally, &mut clock)?;
        }
        let (started, client_before, server_before) = clock.started.context("the load never started")?;
        let elapsed = started.elapsed();
        let client_cpu = thread_cpu().saturating_sub(client_before);
        let server_cpu = meter().zip(server_before).map(|(after, before)| after.saturating_sub(before));
        let Tally { latency, errors, first_error } = tally;
        Ok(Outcome { latency, elapsed, errors, first_error, client_cpu, server_cpu })
    }
}

/// Starts once the connections are ready, so that setting them up is not measured.
struct Clock<'a> {
    meter: &'a dyn Fn() -> Option<Duration>,
    started: Option<(Instant, Duration, Option<Duration>)>,
}

impl Clock<'_> {
    /// Starts, and says when the chunk ends.
    fn start(&mut self, duration: Duration) -> Instant {
        let server = (self.meter)();
        let now = Instant::now();
        self.started = Some((now, thread_cpu(), server));
        now + duration
    }
}

fn thread_cpu() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}
