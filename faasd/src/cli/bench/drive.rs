//! Runs of load, with progress, until they are over or somebody has seen enough.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::cli::{Exit, Failure, Ui};
use crate::core::load::compare::{Cut, Shown};
use crate::core::load::record::Record;
use crate::load::{Chunk, Load, Plan, Target};

/// How often progress is shown.
const TICK: Duration = Duration::from_millis(100);

/// As a shell tells of a program that an interrupt has ended.
const INTERRUPTED: i32 = 130;

/// Ends runs early.
#[derive(Debug)]
pub struct Stop {
    sender: Arc<watch::Sender<bool>>,
    pub receiver: watch::Receiver<bool>,
}

impl Stop {
    /// An interrupt ends what is measured; a second one ends the program.
    pub fn on_interrupt() -> io::Result<Self> {
        let (sender, receiver) = watch::channel(false);
        let sender = Arc::new(sender);
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let stop = Arc::clone(&sender);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if stop.send_replace(true) {
                    std::process::exit(INTERRUPTED);
                }
            }
        });
        Ok(Self { sender, receiver })
    }

    pub fn is_stopped(&self) -> bool {
        *self.sender.borrow()
    }

    /// Waits for `future`, unless it is stopped first.
    pub async fn unless<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut receiver = self.receiver.clone();
        tokio::select! {
            done = future => Some(done),
            _ = receiver.wait_for(|stopped| *stopped) => None,
        }
    }
}

/// One or two targets under load.
#[derive(Debug)]
pub struct Drive<'a> {
    pub ui: &'a Ui,
    pub stop: &'a Stop,
    pub plan: Arc<Plan>,
    pub targets: Vec<Arc<Target>>,
    pub duration: Option<Duration>,
    pub requests: Option<u64>,
    pub warm_up: Duration,
}

/// What was measured.
#[derive(Debug, Default)]
pub struct Measured {
    /// By target.
    pub records: Vec<Record>,
    pub pairs: Vec<(Shown, Shown)>,
}

impl Drive<'_> {
    pub async fn run(&self) -> Result<Measured, Failure> {
        let start = |target| Load::start(&self.plan, target, &self.stop.receiver).map_err(|e| no_start(&e));
        let loads = self.targets.iter().map(start).collect::<Result<Vec<_>, _>>()?;
        let total = self.duration.map(|duration| duration * self.targets.len() as u32);
        let bar = self.ui.gauge(total.map(|total| total.as_millis() as u64));
        let shown = Progress { bar, loads: &loads };
        let mut warm_ups = Vec::new();
        if !self.warm_up.is_zero() {
            for load in &loads {
                shown.bar.set_message("warm-up");
                let chunk = Chunk { duration: Some(self.warm_up), requests: None };
                warm_ups.push(self.chunk(load, chunk).await?);
            }
        }
        let mut measured = match loads.as_slice() {
            [load] => {
                let chunk = Chunk { duration: self.duration, requests: self.requests };
                let record = shown.during(self.chunk(load, chunk)).await?;
                Measured { records: vec![record], pairs: Vec::new() }
            }
            loads => shown.during(self.in_turns(loads)).await?,
        };
        shown.bar.finish_and_clear();
        if !self.plan.mode.connects_each_time() {
            measured
                .records
                .iter_mut()
                .zip(&warm_ups)
                .for_each(|(record, warm_up)| record.warmed_up(warm_up));
        }
        Ok(measured)
    }

    async fn chunk(&self, load: &Load, chunk: Chunk) -> Result<Record, Failure> {
        load.run(chunk).await.map_err(|e| Failure::new(Exit::Failed, e.to_string()))
    }

    async fn in_turns(&self, loads: &[Load]) -> Result<Measured, Failure> {
        let mut measured =
            Measured { records: vec![Record::default(), Record::default()], pairs: Vec::new() };
        let cut = Cut::new(self.duration, self.requests);
        for order in cut.order() {
            let mut seen = [None, None];
            for which in order {
                let chunk = Chunk { duration: cut.chunk, requests: cut.requests };
                let record = self.chunk(&loads[which], chunk).await?;
                seen[which] = Shown::of(&record);
                measured.records[which].append(record);
                if self.stop.is_stopped() {
                    // What was cut short is no pair.
                    return Ok(measured);
                }
            }
            if let [Some(first), Some(second)] = seen {
                measured.pairs.push((first, second));
            }
        }
        Ok(measured)
    }
}

fn no_start(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            Failure::new(Exit::Permission, "may not enter the network namespace that functions are in")
                .hint("run this as root, or on a machine that is in the tunnel")
        }
        _ => Failure::new(Exit::Failed, format!("cannot start the load: {error}")),
    }
}

struct Progress<'a> {
    bar: ProgressBar,
    loads: &'a [Load],
}

impl Progress<'_> {
    /// Shows what is counted while it waits.
    async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        let mut ticks = tokio::time::interval(TICK);
        let counted = || self.loads.iter().map(Load::progress).fold((0, 0), |(a, f), (b, g)| (a + b, f + g));
        let (warm_up, began) = (counted(), Instant::now());
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = ticks.tick() => {
                    let (answered, failed) = counted();
                    let (answered, failed) = (answered - warm_up.0, failed - warm_up.1);
                    let seconds = began.elapsed().as_secs_f64().max(0.001);
                    let mut text = format!("{answered} answered, {:.0}/s", answered as f64 / seconds);
                    if failed > 0 {
                        text.push_str(&format!(", {failed} failed"));
                    }
                    self.bar.set_message(text);
                    self.bar.set_position(began.elapsed().as_millis() as u64);
                }
            }
        }
    }
}
