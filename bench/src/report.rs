//! Results as a table and as JSON.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::host::Host;
use crate::idle::Idle;
use crate::load::{Placement, Scenario};
use crate::rounds::Case;
use crate::stats::{Sample, Series, Spread};

/// Share of its core from which on the load rather than the subject may be what is measured.
const CLIENT_BUSY_MAX: f64 = 0.97;

/// A whole run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub host: Host,
    /// What others' programs are measured, and their versions.
    pub peers: BTreeMap<String, String>,
    pub setup: Setup,
    pub commit: Option<String>,
    pub date: String,
    pub results: Vec<Row>,
    pub idle: Vec<Idle>,
}

/// How it was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Setup {
    pub rounds: u32,
    pub chunk_ms: u128,
    pub client_cpu: Option<usize>,
    pub server_cpus: Option<String>,
    /// Whether the servers that we start have a network namespace of their own.
    pub fresh_netns: bool,
    /// Whether a WireGuard tunnel lies between client and servers.
    pub tunnel: bool,
    /// The name of the function's program; null is the built-in one.
    pub hello: Option<String>,
    /// Under `chrt`: other work on the machine shows little.
    pub realtime: bool,
    /// Of every process that is measured.
    pub nice: i32,
}

/// One subject in one scenario: its own numbers (medians over the chunks; p99.9 over all requests) and their ratios to
/// its base's (medians over the pairs), with quartiles and the 95 % interval of the median. What is not known is null.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub scenario: Scenario,
    pub subject: String,
    /// What it is compared with.
    pub base: String,
    pub clients: usize,
    /// Whether the load had a core of its own.
    pub placement: Placement,
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
    pub p999_us: Option<f64>,
    pub rps: Option<f64>,
    pub cpu_us_per_request: Option<f64>,
    pub p50_ratio: Option<f64>,
    pub p99_ratio: Option<f64>,
    pub p999_ratio: Option<f64>,
    pub rps_ratio: Option<f64>,
    pub cpu_ratio: Option<f64>,
    pub p50_ratio_iqr: Option<[f64; 2]>,
    pub p99_ratio_iqr: Option<[f64; 2]>,
    pub rps_ratio_iqr: Option<[f64; 2]>,
    pub cpu_ratio_iqr: Option<[f64; 2]>,
    pub p50_ratio_ci: Option<[f64; 2]>,
    pub p99_ratio_ci: Option<[f64; 2]>,
    pub rps_ratio_ci: Option<[f64; 2]>,
    pub cpu_ratio_ci: Option<[f64; 2]>,
    /// Pairs.
    pub samples: usize,
    pub requests: u64,
    pub errors: u64,
    pub first_error: Option<String>,
    /// The largest share of its core that the load took in a chunk.
    pub client_busy: f64,
}

impl Row {
    /// Sums up.
    #[must_use]
    pub fn new(case: Case, subject: &str, base: &str, series: &Series) -> Self {
        let ratio = |of: fn(&Sample) -> Option<f64>| series.ratio(of);
        let [p50, p99, p999, rps] = [
            ratio(|sample| Some(sample.p50_us)),
            ratio(|sample| Some(sample.p99_us)),
            ratio(|sample| Some(sample.p999_us)),
            ratio(|sample| Some(sample.rps)),
        ];
        let cpu = ratio(|sample| sample.cpu_us);
        let median = |spread: Option<Spread>| spread.map(|spread| round(spread.median, 4));
        let quartiles =
            |spread: Option<Spread>| spread.map(|spread| spread.quartiles.map(|value| round(value, 4)));
        let interval = |spread: Option<Spread>| {
            spread.and_then(|spread| spread.interval).map(|ci| ci.map(|v| round(v, 4)))
        };
        let own = |of: fn(&Sample) -> Option<f64>| series.median(of).map(|value| round(value, 3));
        let requests = series.latency.len();
        let Case { scenario, clients, placement } = case;
        Self {
            scenario,
            subject: subject.to_owned(),
            base: base.to_owned(),
            clients,
            placement,
            p50_us: own(|sample| Some(sample.p50_us)),
            p99_us: own(|sample| Some(sample.p99_us)),
            p999_us: (requests > 0).then(|| round(series.latency.value_at_quantile(0.999) as f64 / 1e3, 3)),
            rps: own(|sample| Some(sample.rps)),
            cpu_us_per_request: own(|sample| sample.cpu_us),
            p50_ratio: median(p50),
            p99_ratio: median(p99),
            p999_ratio: median(p999),
            rps_ratio: median(rps),
            cpu_ratio: median(cpu),
            p50_ratio_iqr: quartiles(p50),
            p99_ratio_iqr: quartiles(p99),
            rps_ratio_iqr: quartiles(rps),
            cpu_ratio_iqr: quartiles(cpu),
            p50_ratio_ci: interval(p50),
            p99_ratio_ci: interval(p99),
            rps_ratio_ci: interval(rps),
            cpu_ratio_ci: interval(cpu),
            samples: series.pairs.len(),
            requests,
            errors: series.errors,
            first_error: series.first_error.clone(),
            client_busy: round(series.client_busy_max, 3),
        }
    }
}

/// Digits that mean nothing only hide the others.
fn round(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

/// The results for the terminal, with remarks on what should not be trusted.
#[must_use]
pub fn table(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "scenario",
        "clients",
        "subject",
        "p50 µs",
        "p99 µs",
        "p99.9 µs",
        "req/s",
        "cpu µs",
        "against",
        "p50",
        "(95 %)",
        "p99",
        "p99.9",
        "req/s",
        "cpu",
        "errors",
    ]);
    for row in &report.results {
        let number = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
        };
        let interval = row.p50_ratio_ci.map_or_else(String::new, |[low, high]| format!("{low:.2}-{high:.2}"));
        table.add_row([
            row.scenario.name().to_owned(),
            row.clients.to_string(),
            row.subject.clone(),
            number(row.p50_us, 1),
            number(row.p99_us, 1),
            number(row.p999_us, 1),
            number(row.rps, 0),
            number(row.cpu_us_per_request, 1),
            row.base.clone(),
            number(row.p50_ratio, 2),
            interval,
            number(row.p99_ratio, 2),
            number(row.p999_ratio, 2),
            number(row.rps_ratio, 2),
            number(row.cpu_ratio, 2),
            row.errors.to_string(),
        ]);
    }
    for column in table.column_iter_mut().filter(|column| ![0, 2, 8].contains(&column.index)) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    let remarks = report.results.iter().flat_map(remarks);
    lines
        .into_iter()
        .chain(report.idle.iter().map(ToString::to_string))
        .chain(remarks)
        .collect::<Vec<_>>()
        .join("\n")
}

fn remarks(row: &Row) -> Vec<String> {
    let of = format!("{} x{} of {}", row.scenario.name(), row.clients, row.subject);
    let mut remarks = Vec::new();
    if let Some(error) = &row.first_error {
        remarks.push(format!("{of}: {} errors, the first: {error}", row.errors));
    }
    if row.client_busy > CLIENT_BUSY_MAX {
        let busy = row.client_busy * 100.0;
        remarks
            .push(format!("{of}: the load took up to {busy:.0} % of its core and may have been the limit"));
    }
    remarks
}
