//! The figures as a table and as JSON.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::Taken;
use crate::host::{self, Host};

/// Every start of one program in one way.
#[derive(Debug, Default)]
pub(super) struct Series(Vec<Taken>);

impl Series {
    pub fn push(&mut self, taken: Taken) {
        self.0.push(taken);
    }

    fn sorted(&self, of: impl Fn(&Taken) -> Option<Duration>) -> Vec<f64> {
        let mut all: Vec<f64> = self.0.iter().filter_map(of).map(|taken| taken.as_secs_f64() * 1e3).collect();
        all.sort_by(f64::total_cmp);
        all
    }

    fn row(&self, program: &str, way: &'static str) -> Row {
        let whole = self.sorted(|taken| Some(taken.whole));
        let median = |of: fn(&Taken) -> Option<Duration>| quantile(&self.sorted(of), 0.5);
        let mut held: Vec<u64> = self.0.iter().filter_map(|taken| taken.held_kib).collect();
        held.sort_unstable();
        Row {
            program: program.to_owned(),
            way,
            starts: whole.len(),
            p50_ms: quantile(&whole, 0.5),
            p99_ms: quantile(&whole, 0.99),
            max_ms: whole.last().copied(),
            create_ms: median(|taken| taken.create),
            release_ms: median(|taken| taken.release),
            ready_ms: median(|taken| taken.ready),
            rest_ms: median(|taken| {
                let known = taken.create.unwrap_or_default() + taken.release? + taken.ready?;
                Some(taken.whole.saturating_sub(known))
            }),
            held_kib: held.get(held.len() / 2).copied(),
        }
    }
}

/// The value that this share of all is not above. `None` of nothing.
fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

/// One program in one way. The parts are medians of what the daemon says: the container's making, the order that it run
/// until it did, from there until it was ready; the rest is whatever is before, between and after.
#[derive(Clone, Debug, Serialize)]
struct Row {
    program: String,
    way: &'static str,
    starts: usize,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    max_ms: Option<f64>,
    create_ms: Option<f64>,
    release_ms: Option<f64>,
    ready_ms: Option<f64>,
    rest_ms: Option<f64>,
    /// Proportional set size of what is held.
    held_kib: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Report {
    host: Host,
    commit: Option<String>,
    date: String,
    rounds: u32,
    cold: Vec<Row>,
}

pub(super) fn print(
    all: &BTreeMap<(String, &'static str), Series>,
    rounds: u32,
    out: Option<&Path>,
) -> anyhow::Result<()> {
    let rows: Vec<Row> = all.iter().map(|((program, way), series)| series.row(program, way)).collect();
    println!("{}", table(&rows));
    let Some(path) = out else { return Ok(()) };
    let report =
        Report { host: host::describe(), commit: host::commit(), date: host::date(), rounds, cold: rows };
    let json = serde_json::to_vec_pretty(&report)?;
    std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))
}

fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "program", "way", "starts", "p50 ms", "p99 ms", "max ms", "create", "release", "ready", "rest",
        "held KiB",
    ]);
    for row in rows {
        let ms = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
        let mut cells = vec![row.program.clone(), row.way.to_owned(), row.starts.to_string()];
        let parts = [row.create_ms, row.release_ms, row.ready_ms, row.rest_ms];
        cells.extend([row.p50_ms, row.p99_ms, row.max_ms].into_iter().chain(parts).map(ms));
        cells.push(row.held_kib.map_or_else(|| "-".to_owned(), |kib| kib.to_string()));
        table.add_row(cells);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_summed_up() {
        let ms = Duration::from_millis;
        let mut series = Series::default();
        for whole in (1..=100).rev() {
            let part = Some(ms(1));
            let create = (whole > 50).then_some(ms(7));
            series.push(Taken { whole: ms(whole + 20), create, release: part, ready: part, held_kib: None });
        }
        let row = series.row("static", "x");
        assert_eq!((row.p50_ms, row.p99_ms, row.max_ms), (Some(70.0), Some(119.0), Some(120.0)));
        assert_eq!((row.create_ms, row.release_ms, row.held_kib), (Some(7.0), Some(1.0), None));
        assert_eq!(Series::default().row("static", "x").p50_ms, None);
    }
}
