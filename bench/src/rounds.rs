//! The order of events: what a subject is compared with has a chunk before and after the subject's own, and the subjects
//! of one base are shuffled in each round.

use std::collections::BTreeMap;
use std::fmt;
use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};

use crate::load::{Load, Outcome, Placement, Scenario, fetch};
use crate::report::Row;
use crate::scrape;
use crate::stats::{Pair, Sample, Series};
use crate::subject::{Running, Site, Subject};

/// Between two chunks: what the last one left behind in kernel and servers is done with by then.
const GAP: Duration = Duration::from_millis(15);
/// Before the first round, for each subject and case: caches, page tables and the allocators' pools are warm then.
const WARM_UP: Duration = Duration::from_millis(100);

/// One kind of load.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub scenario: Scenario,
    pub clients: usize,
    pub placement: Placement,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x{}", self.scenario.name(), self.clients)
    }
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub cases: Vec<Case>,
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

/// Runs the plan; the first of `running` is what those are compared with that name nothing else.
///
/// # Errors
/// If a subject's process ends, or a chunk cannot start.
pub fn run(plan: &Plan, site: &Site, running: &mut [Running]) -> anyhow::Result<Vec<Row>> {
    let mut random = plan.seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed);
    let bases = bases(running)?;
    let mut measurement = Measurement { plan, site, running, bases, series: BTreeMap::new() };
    measurement.leave_out_what_is_not_served()?;
    let progress = progress(plan);
    for round in 1..=plan.rounds {
        for index in 0..plan.cases.len() {
            progress.set_message(plan.cases[index].to_string());
            measurement.round(index, &mut random)?;
            progress.inc(1);
        }
        if !std::io::stderr().is_terminal() {
            eprintln!("round {round} of {}", plan.rounds);
        }
    }
    progress.finish_and_clear();
    Ok(measurement.rows())
}

/// The place of what each is compared with.
fn bases(running: &[Running]) -> anyhow::Result<Vec<usize>> {
    let place = |name: &String| running.iter().position(|other| other.name == *name);
    let base = |subject: &Running| match &subject.base {
        None => Ok(0),
        Some(name) => place(name)
            .with_context(|| format!("{} is compared with {name}, which is not there", subject.name)),
    };
    running.iter().map(base).collect()
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
    plan: &'a Plan,
    site: &'a Site,
    running: &'a mut [Running],
    bases: Vec<usize>,
    /// By case and subject; only what is measured has an entry.
    series: BTreeMap<(usize, usize), Series>,
}

impl Measurement<'_> {
    /// Warms up, and leaves out what a subject does not serve (such as `large` with a program of the user's own).
    fn leave_out_what_is_not_served(&mut self) -> anyhow::Result<()> {
        for (index, case) in self.plan.cases.iter().enumerate() {
            for subject in 0..self.running.len() {
                let (to, scenario) = (&self.running[subject].to, case.scenario);
                let seat = &self.site.seat;
                if let Err(fault) = seat.run(case.placement, to.netns.as_deref(), || Ok(fetch(to, scenario)?))
                {
                    let (name, path) = (&self.running[subject].name, scenario.path());
                    eprintln!("skipped: {} of {name}: it does not serve {path} ({fault})", scenario.name());
                    continue;
                }
                self.series.insert((index, subject), Series::default());
                self.chunk(*case, WARM_UP, subject)?;
            }
        }
        Ok(())
    }

    /// Every subject once, its base in between.
    fn round(&mut self, case: usize, random: &mut fastrand::Rng) -> anyhow::Result<()> {
        for base in 0..self.running.len() {
            let bases = &self.bases;
            let measured = |(at, subject): &(usize, usize)| {
                (*at == case && *subject != base && bases[*subject] == base).then_some(*subject)
            };
            let mut order: Vec<usize> = self.series.keys().filter_map(measured).collect();
            if order.is_empty() || !self.series.contains_key(&(case, base)) {
                continue;
            }
            random.shuffle(&mut order);
            let mut before = self.base(case, base)?;
            for subject in order {
                let sample = self.sample(case, subject)?;
                let after = self.base(case, base)?;
                if let (Some(before), Some(sample), Some(after)) = (before, sample, after) {
                    self.push(case, subject, Pair::new(before, sample, after));
                }
                before = after;
            }
        }
        Ok(())
    }

    /// A base's chunk, which is its own measure if it has no other.
    fn base(&mut self, case: usize, base: usize) -> anyhow::Result<Option<Sample>> {
        let sample = self.sample(case, base)?;
        if let Some(own) = sample
            && self.bases[base] == base
        {
            self.push(case, base, Pair { subject: own, base: own });
        }
        Ok(sample)
    }

    fn push(&mut self, case: usize, subject: usize, pair: Pair) {
        self.series.entry((case, subject)).or_default().pairs.push(pair);
    }

    /// One chunk, noted.
    fn sample(&mut self, case: usize, subject: usize) -> anyhow::Result<Option<Sample>> {
        let outcome = self.chunk(self.plan.cases[case], self.plan.chunk, subject)?;
        self.series.entry((case, subject)).or_default().note(&outcome);
        Ok(Sample::of(&outcome))
    }

    fn chunk(&mut self, case: Case, duration: Duration, subject: usize) -> anyhow::Result<Outcome> {
        let running = &mut self.running[subject];
        running.check()?;
        let running = &*running;
        let load = Load { scenario: case.scenario, clients: case.clients, to: &running.to, duration };
        let netns = running.to.netns.as_deref();
        let seat = &self.site.seat;
        let measure = || seat.run(case.placement, netns, || load.run(&|| running.cpu()));
        let outcome = match &running.scraped {
            Some(scraped) => scrape::during(scraped, &running.to, seat, measure),
            None => measure(),
        };
        let outcome = outcome.with_context(|| format!("{case} of {}", running.name))?;
        std::thread::sleep(GAP);
        Ok(outcome)
    }

    fn rows(self) -> Vec<Row> {
        let row = |((case, subject), series): (&(usize, usize), &Series)| {
            let base = &self.running[self.bases[*subject]].name;
            Row::new(self.plan.cases[*case], &self.running[*subject].name, base, series)
        };
        // What was only there to be compared with by nobody has nothing to show.
        self.series.iter().filter(|(_, series)| !series.pairs.is_empty()).map(row).collect()
    }
}
