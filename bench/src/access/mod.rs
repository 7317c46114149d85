//! What it costs to look up who connects and whether it may, with few and with many subjects and rules, interleaved in
//! one run; and how long it takes to change them.

mod bed;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use aya::sys::{Stats, enable_stats};
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use faasd::sys::bpf::{BpfError, GROUPS_MAX, Kernel, Subject};
use faasd::sys::sock_diag::{self, Filter};
use serde::Serialize;

use crate::host::{self, Host};
use bed::{Bed, Way, other_function, subject};

/// Measure subjects and rules.
#[derive(Debug, Args)]
pub struct Access {
    /// Subjects of the large one of two namespaces; the small one has one.
    #[arg(long, default_value_t = 10_000)]
    subjects: u32,
    /// Rules of the large one.
    #[arg(long, default_value_t = 100_000)]
    rules: u32,
    /// Rounds, in each of which every way in has one chunk of connections in each namespace.
    #[arg(long, default_value_t = 60)]
    rounds: u32,
    /// Connections of a chunk.
    #[arg(long, default_value_t = 200)]
    chunk: usize,
    /// How often each change is timed.
    #[arg(long, default_value_t = 1_000)]
    changes: u32,
    /// Write the results here too, as JSON.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Report {
    host: Host,
    commit: Option<String>,
    date: String,
    rounds: u32,
    chunk: usize,
    connections: Vec<Row>,
    changes: Vec<Change>,
}

/// One way in. Times are medians over the chunks' medians, ratios medians over the rounds.
#[derive(Debug, Serialize)]
struct Row {
    namespace: String,
    way: &'static str,
    connect_us: f64,
    /// To the first way in the same namespace and round.
    ratio: f64,
    /// The kernel program's own, for each time that it ran.
    program_ns: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Change {
    namespace: String,
    what: &'static str,
    median_us: f64,
}

impl Access {
    /// Measures and prints.
    ///
    /// # Errors
    /// If the kernel program cannot be loaded (it takes root), or a connection fails.
    pub fn run(&self) -> anyhow::Result<()> {
        let mut beds = vec![Bed::new(1, 2)?, Bed::new(self.subjects.max(2), self.rules)?];
        let connections = self.connections(&beds)?;
        let mut changes = Vec::new();
        for bed in &mut beds {
            changes.extend(self.changes(bed)?);
        }
        let report = Report {
            host: host::describe(),
            commit: host::commit(),
            date: host::date(),
            rounds: self.rounds,
            chunk: self.chunk,
            connections,
            changes,
        };
        println!("{}\n\n{}", connections_table(&report.connections), changes_table(&report.changes));
        beds.into_iter().try_for_each(Bed::finish)?;
        if let Some(path) = &self.out {
            let json = serde_json::to_vec_pretty(&report)?;
            std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    fn connections(&self, beds: &[Bed]) -> anyhow::Result<Vec<Row>> {
        let cases: Vec<_> = beds.iter().flat_map(|bed| Way::ALL.map(|way| (bed, way))).collect();
        let mut medians = vec![Vec::new(); cases.len()];
        let mut order: Vec<usize> = (0..cases.len()).collect();
        for _ in 0..self.rounds {
            fastrand::shuffle(&mut order);
            for case in &order {
                let (bed, way) = cases[*case];
                medians[*case].push(micros(median(bed.connect(way, self.chunk)?)));
            }
        }
        // Apart, since keeping them takes time as well.
        let own =
            cases.iter().map(|(bed, way)| self.own_time(bed, *way)).collect::<anyhow::Result<Vec<_>>>()?;
        let row = |(case, (bed, way)): (usize, &(&Bed, Way))| {
            let base = case - case % Way::ALL.len();
            let ratios = medians[case].iter().zip(&medians[base]).map(|(one, base)| one / base);
            Row {
                namespace: bed.label.clone(),
                way: way.name(),
                connect_us: middle(medians[case].clone()),
                ratio: middle(ratios.collect()),
                program_ns: own[case],
            }
        };
        Ok(cases.iter().enumerate().map(row).collect())
    }

    /// What the kernel says that its program took, if it keeps such statistics.
    fn own_time(&self, bed: &Bed, way: Way) -> anyhow::Result<Option<f64>> {
        let Ok(_kept) = enable_stats(Stats::RunTime) else { return Ok(None) };
        let (runs, time) = bed.ran()?;
        bed.connect(way, self.chunk * 10)?;
        let (more_runs, more_time) = bed.ran()?;
        let runs = more_runs.saturating_sub(runs);
        Ok((runs > 0).then(|| more_time.saturating_sub(time).as_nanos() as f64 / runs as f64))
    }

    fn changes(&self, bed: &mut Bed) -> anyhow::Result<Vec<Change>> {
        let namespace = bed.label.clone();
        let first = bed.subjects + 100;
        let numbers = first..first + self.changes;
        let kernel = &mut bed.kernel;
        let mut timed = |what: &'static str, change: &dyn Fn(&mut Kernel, u32) -> Result<(), BpfError>| {
            let each = numbers.clone().map(|number| {
                let start = Instant::now();
                change(kernel, number).map(|()| start.elapsed())
            });
            let times = each.collect::<Result<Vec<_>, _>>()?;
            anyhow::Ok(Change { namespace: namespace.clone(), what, median_us: micros(median(times)) })
        };
        let groups = [0; GROUPS_MAX];
        let mut changes = vec![
            timed("set_subject, new", &|kernel, number| {
                kernel.access.set_subject(subject(number), Subject { number, groups })
            })?,
            timed("set_subject, other groups", &|kernel, number| {
                kernel.access.set_subject(subject(number), Subject { number, groups: [7; GROUPS_MAX] })
            })?,
            timed("set_rule", &|kernel, number| kernel.access.set_rule(number, other_function(0), true))?,
            timed("clear_rule", &|kernel, number| kernel.access.clear_rule(number, other_function(0)))?,
            timed("clear_subject", &|kernel, number| kernel.access.clear_subject(subject(number)))?,
        ];
        let mut cuts = Vec::new();
        for _ in 0..20 {
            let start = Instant::now();
            sock_diag::destroy(bed.ingress.ns(), &Filter { remote: Some(subject(1)), local: None })?;
            cuts.push(start.elapsed());
        }
        let median_us = micros(median(cuts));
        changes.push(Change { namespace, what: "end a subject's connections", median_us });
        Ok(changes)
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn connections_table(rows: &[Row]) -> Table {
    let mut table = with_header(["", "connect µs", "of the first", "program ns"].map(str::to_owned));
    let mut namespace = "";
    for row in rows {
        if row.namespace != namespace {
            namespace = &row.namespace;
            table.add_row([namespace]);
        }
        let own = row.program_ns.map_or_else(|| "-".to_owned(), |ns| format!("{ns:.0}"));
        let (us, ratio) = (format!("{:.2}", row.connect_us), format!("{:.3}", row.ratio));
        table.add_row([format!("  {}", row.way), us, ratio, own]);
    }
    right(table)
}

fn changes_table(rows: &[Change]) -> Table {
    let mut names: Vec<&str> = rows.iter().map(|row| row.namespace.as_str()).collect();
    names.dedup();
    let header = ["µs"].into_iter().chain(names.iter().copied());
    let mut table = with_header(header.map(str::to_owned));
    for first in rows.iter().filter(|row| row.namespace == names[0]) {
        let same = rows.iter().filter(|row| row.what == first.what);
        let times = same.map(|row| format!("{:.1}", row.median_us));
        table.add_row([first.what.to_owned()].into_iter().chain(times));
    }
    right(table)
}

fn with_header(names: impl IntoIterator<Item = String>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(names);
    table
}

fn right(mut table: Table) -> Table {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
