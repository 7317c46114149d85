//! The order of events: bare before and after every other subject's chunk, the others shuffled in each round.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};

use crate::load::{Load, Outcome, Scenario};
use crate::report::Row;
use crate::stats::{Pair, Sample, Series};
use crate::subject::{Running, Site, Subject};

/// Between two chunks: what the last one left behind in kernel and servers is done with by then.
const GAP: Duration = Duration::from_millis(15);
/// Before the first round, for each subject and case: caches, page tables and the allocators' pools are warm then.
const WARM_UP: Duration = Duration::from_millis(100);

/// What to run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub cases: Vec<(Scenario, usize)>,
    pub rounds: u32,
    pub chunk: Duration,
    pub seed: Option<u64>,
}

/// Starts the subjects that can be measured here; says which cannot.
///
/// # Errors
/// If one that should start does not.
pub fn start(site: &Site, subjects: &[Box<dyn Subject>]) -> anyhow::Result<Vec<Running>> {
    let mut running = Vec::with_capacity(subjects.len());
    for subject in subjects {
        match subject.unavailable() {
            Some(reason) => eprintln!("skipped: {}: {reason}", subject.name()),
            None => {
                running
                    .push(subject.start(site).with_context(|| format!("cannot start {}", subject.name()))?);
            }
        }
    }
    Ok(running)
}

/// Runs the plan; the first of `running` is what the others are compared with.
///
/// # Errors
/// If a subject's process ends, or a chunk cannot start.
pub fn run(plan: &Plan, site: &Site, running: &mut [Running]) -> anyhow::Result<Vec<Row>> {
    let mut random = plan.seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed);
    let mut measurement = Measurement { site, running, series: BTreeMap::new() };
    measurement.leave_out_what_is_not_served(plan)?;
    let progress = progress(plan);
    for round in 1..=plan.rounds {
        for (case, (scenario, clients)) in plan.cases.iter().enumerate() {
            progress.set_message(format!("{} x{clients}", scenario.name()));
            measurement.round(case, *scenario, *clients, plan.chunk, &mut random)?;
            progress.inc(1);
        }
        if !std::io::stderr().is_terminal() {
            eprintln!("round {round} of {}", plan.rounds);
        }
    }
    progress.finish_and_clear();
    Ok(measurement.rows(plan))
}

fn progress(plan: &Plan) -> ProgressBar {
    // Draws nothing where standard error is no terminal.
    let bar = ProgressBar::new(u64::from(plan.rounds) * plan.cases.len() as u64);
    match ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} ({eta} left)") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

struct Measurement<'a> {
    site: &'a Site,
    running: &'a mut [Running],
    /// By case and subject; only what is measured has an entry.
    series: BTreeMap<(usize, usize), Series>,
}

impl Measurement<'_> {
    /// Warms up, and leaves out what a subject does not serve (such as `large` with a program of the user's own).
    fn leave_out_what_is_not_served(&mut self, plan: &Plan) -> anyhow::Result<()> {
        for (case, (scenario, clients)) in plan.cases.iter().enumerate() {
            for subject in 0..self.running.len() {
                let address = self.running[subject].address;
                if let Err(fault) = self.site.seat.run(|| Ok(crate::load::fetch(&address, *scenario)?)) {
                    let (name, path) = (&self.running[subject].name, scenario.path());
                    eprintln!("skipped: {} of {name}: it does not serve {path} ({fault})", scenario.name());
                    continue;
                }
                self.series.insert((case, subject), Series::default());
                self.chunk(*scenario, *clients, WARM_UP, subject)?;
            }
        }
        Ok(())
    }

    fn round(
        &mut self,
        case: usize,
        scenario: Scenario,
        clients: usize,
        chunk: Duration,
        random: &mut fastrand::Rng,
    ) -> anyhow::Result<()> {
        let measured = |(at, subject): &(usize, usize)| (*at == case && *subject > 0).then_some(*subject);
        let mut order: Vec<usize> = self.series.keys().filter_map(measured).collect();
        random.shuffle(&mut order);
        if !self.series.contains_key(&(case, 0)) {
            return Ok(());
        }
        let mut before = self.sample(case, scenario, clients, chunk, 0)?;
        if order.is_empty() {
            order.push(0);
        }
        for subject in order {
            let sample = self.sample(case, scenario, clients, chunk, subject)?;
            let after = self.sample(case, scenario, clients, chunk, 0)?;
            if let (Some(before), Some(sample), Some(after)) = (before, sample, after) {
                self.push(case, subject, Pair::new(before, sample, after));
                self.push(case, 0, Pair { subject: after, bare: after });
            }
            before = after;
        }
        Ok(())
    }

    fn push(&mut self, case: usize, subject: usize, pair: Pair) {
        self.series.entry((case, subject)).or_default().pairs.push(pair);
    }

    /// One chunk, noted.
    fn sample(
        &mut self,
        case: usize,
        scenario: Scenario,
        clients: usize,
        chunk: Duration,
        subject: usize,
    ) -> anyhow::Result<Option<Sample>> {
        let outcome = self.chunk(scenario, clients, chunk, subject)?;
        self.series.entry((case, subject)).or_default().note(&outcome);
        Ok(Sample::of(&outcome))
    }

    fn chunk(
        &mut self,
        scenario: Scenario,
        clients: usize,
        duration: Duration,
        subject: usize,
    ) -> anyhow::Result<Outcome> {
        let running = &mut self.running[subject];
        running.check()?;
        let load = Load { scenario, clients, address: running.address, duration };
        let running = &*running;
        let outcome = self
            .site
            .seat
            .run(|| load.run(&|| running.cpu()))
            .with_context(|| format!("{} x{clients} of {}", scenario.name(), running.name))?;
        std::thread::sleep(GAP);
        Ok(outcome)
    }

    fn rows(self, plan: &Plan) -> Vec<Row> {
        let row = |((case, subject), series): (&(usize, usize), &Series)| {
            let (scenario, clients) = plan.cases[*case];
            Row::new(scenario, clients, &self.running[*subject].name, series)
        };
        self.series.iter().map(row).collect()
    }
}
