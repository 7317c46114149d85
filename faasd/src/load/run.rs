//! A chunk of a worker's: its connections send until it is over.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::client::{Client, Done};
use super::fault::Failed;
use super::pace::pace;
use super::{Chunk, Counters, Plan};
use crate::core::load::record::{Answer, Fault, Phase, Record};
use crate::core::load::schedule::Schedule;

/// How long a connection waits after it could not be opened: a server that refuses at once is not to be flooded.
const AFTER_REFUSAL: Duration = Duration::from_millis(10);

/// What the connections of a worker share.
#[derive(Debug)]
struct Run {
    plan: Arc<Plan>,
    counters: Arc<Counters>,
    begin: Instant,
    end: Option<Instant>,
    /// Requests of a closed loop that may still be sent.
    left: Cell<u64>,
    /// Requests of an open loop that are due.
    permits: Semaphore,
    /// How many of them there were.
    given: Cell<u64>,
    /// How many of them have been taken.
    taken: Cell<u64>,
    schedule: Option<Schedule>,
    record: RefCell<Record>,
}

/// Sends until the chunk is over, and answers what was seen. The connections that are open afterwards stay in `clients`.
pub(super) async fn run(
    plan: &Arc<Plan>,
    counters: &Arc<Counters>,
    clients: &mut Vec<Client>,
    chunk: Chunk,
    begin: Instant,
    schedule: Option<Schedule>,
    stop: &mut watch::Receiver<bool>,
) -> Record {
    let cpu = cpu_time();
    let run = Rc::new(Run {
        plan: Arc::clone(plan),
        counters: Arc::clone(counters),
        begin,
        end: chunk.duration.map(|duration| begin + duration),
        left: Cell::new(chunk.requests.unwrap_or(u64::MAX)),
        permits: Semaphore::new(0),
        given: Cell::new(0),
        taken: Cell::new(0),
        schedule,
        record: RefCell::default(),
    });
    let mut tasks = JoinSet::new();
    for client in clients.drain(..) {
        tasks.spawn_local(send(client, Rc::clone(&run)));
    }
    let pacer = schedule.map(|schedule| {
        let run = Rc::clone(&run);
        tokio::task::spawn_local(async move {
            let paced = pace(schedule, &run.permits, &run.given, run.begin, run.end, run.left.get()).await;
            if let Err(error) = &paced {
                run.note(run.begin, run.begin, Err(Failed::io(error)));
            }
            // Of a counted run, all are sent. Of a timed one, what was due and had no connection is not.
            if run.end.is_some() || run.left.get() == 0 || paced.is_err() {
                run.permits.close();
            }
        })
    });
    tokio::select! {
        () = async { while let Some(done) = tasks.join_next().await { clients.extend(done); } } => {}
        _ = stop.wait_for(|stopped| *stopped) => tasks.shutdown().await,
    }
    if let Some(pacer) = pacer {
        pacer.abort();
    }
    let elapsed = run.begin.elapsed();
    let mut record = run.record.take();
    record.cpu = cpu_time().saturating_sub(cpu);
    record.unsent = run.given.get().saturating_sub(run.taken.get());
    record.elapsed = chunk.duration.map_or(elapsed, |duration| elapsed.min(duration));
    record
}

/// The processor time that this thread has taken.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Opens the connections that are missing.
pub(super) async fn open(
    plan: &Arc<Plan>,
    clients: &mut Vec<Client>,
    stop: &mut watch::Receiver<bool>,
) -> Record {
    if plan.mode.connects_each_time() {
        return Record::default();
    }
    let mut tasks = JoinSet::new();
    for mut client in clients.drain(..) {
        let timeout = plan.timeout;
        tasks.spawn_local(async move {
            let mut answer = Answer::default();
            let opened = tokio::time::timeout(timeout, client.open(&mut answer)).await;
            (client, answer, opened)
        });
    }
    let mut record = Record::default();
    let all = async {
        while let Some(done) = tasks.join_next().await {
            let Ok((client, answer, opened)) = done else { continue };
            clients.push(client);
            // What failed is tried again with the first request, and counted there.
            if let Ok(Ok(true)) = opened {
                record.connections += 1;
                for phase in [Phase::Dns, Phase::Connect] {
                    if let Some(took) = answer.phases[phase as usize] {
                        record.phase(phase, took);
                    }
                }
            }
        }
    };
    tokio::select! {
        () = all => {}
        _ = stop.wait_for(|stopped| *stopped) => {}
    }
    record
}

async fn send(mut client: Client, run: Rc<Run>) -> Client {
    while let Some(due) = run.next().await {
        let begin = Instant::now();
        let done = match tokio::time::timeout(run.plan.timeout, client.exchange()).await {
            Ok(done) => done,
            Err(_) => Err(Failed::new(Fault::Timeout, format!("no answer within {:?}", run.plan.timeout))),
        };
        let is_refused = done.as_ref().is_err_and(|failed| failed.connecting);
        if done.as_ref().is_err_and(|failed| !matches!(failed.fault, Fault::Status(_))) {
            client.reset();
        }
        run.note(due, begin, done);
        client.settle().await;
        if is_refused {
            tokio::time::sleep(AFTER_REFUSAL).await;
        }
    }
    client
}

impl Run {
    /// Waits for the next request's turn and tells when it was due; nothing once the chunk is over.
    async fn next(&self) -> Option<Instant> {
        let Some(schedule) = &self.schedule else {
            let now = Instant::now();
            let left = self.left.get().checked_sub(1)?;
            if self.end.is_some_and(|end| now >= end) {
                return None;
            }
            self.left.set(left);
            return Some(now);
        };
        self.permits.acquire().await.ok()?.forget();
        let number = self.taken.get();
        self.taken.set(number + 1);
        if self.left.get() == number + 1 {
            // The last one of a counted run.
            self.permits.close();
        }
        Some(self.begin + schedule.at(number))
    }

    fn note(&self, due: Instant, begin: Instant, done: Result<Done, Failed>) {
        let mut record = self.record.borrow_mut();
        match done {
            Ok(Done { mut answer, end, connected }) => {
                answer.latency = end.saturating_duration_since(due);
                if self.schedule.is_some() {
                    answer.set(Phase::Wait, begin.saturating_duration_since(due));
                }
                record.connections += u64::from(connected);
                record.late += u64::from(self.end.is_some_and(|last| end > last));
                record.answer(end.saturating_duration_since(self.begin), &answer);
                self.counters.answered.fetch_add(1, Ordering::Relaxed);
            }
            Err(failed) => {
                record.fault(self.begin.elapsed(), failed.fault, || failed.example);
                self.counters.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}
