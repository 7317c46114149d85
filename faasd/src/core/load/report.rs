//! What a run reports: the shapes that `faas bench -o json` prints and everything else is drawn from. Times are in
//! microseconds.

use std::time::Duration;

use hdrhistogram::Histogram;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::bins::{Bin, bins};
use super::compare::Comparison;
use super::record::{Phase, Record};
use super::{Mode, Protocol};

const BINS: usize = 40;

/// The quantiles of the curve: those at which it is read, and on to one in 100,000.
const QUANTILES: [f64; 16] =
    [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999, 0.99995, 0.99999];

/// A run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Of faas.
    pub version: String,
    pub started_at: Timestamp,
    pub mode: Mode,
    pub protocol: Protocol,
    pub method: String,
    pub connections: u32,
    pub threads: u32,
    /// Requests a second that were to be sent; none: as many as were answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// Somebody ended it early.
    pub interrupted: bool,
    /// The target, and the one that it is compared with.
    pub targets: Vec<TargetReport>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comparison: Option<Comparison>,
}

impl Report {
    /// Whether there is a target that has not answered one request well.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.targets.iter().any(|target| target.answered == 0)
    }
}

/// What one target showed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TargetReport {
    /// As it was given.
    pub name: String,
    pub url: String,
    /// The way there, where it is not the usual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
    pub seconds: f64,
    pub answered: u64,
    pub failed: u64,
    /// Due, and not sent before the end.
    pub unsent: u64,
    pub connections_opened: u64,
    pub requests_per_second: f64,
    /// The part of the time that the load's busiest thread was at work. Near 1 it is the load that is measured.
    pub client_busy: f64,
    pub sent_bytes: u64,
    pub received_bytes: u64,
    /// None if nothing was answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<Summary>,
    /// Where the time went; parts that no request had are left out.
    pub phases: Vec<PhaseReport>,
    pub faults: Vec<FaultReport>,
    pub histogram: Vec<Bin>,
    pub quantiles: Vec<Quantile>,
    pub series: Vec<Point>,
}

/// A distribution, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub min_us: f64,
    pub mean_us: f64,
    pub stdev_us: f64,
    pub p50_us: f64,
    pub p75_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
}

impl Summary {
    /// None of nothing.
    #[must_use]
    pub fn of(histogram: &Histogram<u64>) -> Option<Self> {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        (!histogram.is_empty()).then(|| Self {
            min_us: histogram.min() as f64 / 1e3,
            mean_us: histogram.mean() / 1e3,
            stdev_us: histogram.stdev() / 1e3,
            p50_us: at(0.5),
            p75_us: at(0.75),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: histogram.max() as f64 / 1e3,
        })
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PhaseReport {
    pub phase: String,
    /// How many had it.
    pub count: u64,
    /// Its part of all latencies together. None for what went before: the connections that are opened beforehand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    #[serde(flatten)]
    pub time: Summary,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultReport {
    pub kind: String,
    pub count: u64,
    /// What the first one said.
    pub example: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quantile {
    pub quantile: f64,
    pub us: f64,
}

/// A stretch of the run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Its beginning, in seconds.
    pub at: f64,
    pub requests_per_second: f64,
    pub failed: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p50_us: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_us: Option<f64>,
}

impl TargetReport {
    /// What a record says of a target.
    #[must_use]
    pub fn new(name: String, url: String, via: Option<String>, mode: Mode, record: &Record) -> Self {
        let seconds = record.elapsed.as_secs_f64();
        let whole = record.latency.mean() / 1e3 * record.answered() as f64;
        let phases = Phase::ALL.into_iter().zip(&record.phases).filter_map(|(phase, histogram)| {
            let time = Summary::of(histogram)?;
            let before = matches!(phase, Phase::Dns | Phase::Connect) && !mode.connects_each_time();
            let share = (whole > 0.0 && !before).then(|| time.mean_us * histogram.len() as f64 / whole);
            Some(PhaseReport { phase: phase.as_str().to_owned(), count: histogram.len(), share, time })
        });
        let mut faults: Vec<FaultReport> = record
            .faults
            .iter()
            .map(|(fault, faults)| FaultReport {
                kind: fault.to_string(),
                count: faults.count,
                example: faults.example.clone(),
            })
            .collect();
        faults.sort_by_key(|fault| std::cmp::Reverse(fault.count));
        Self {
            name,
            url,
            via,
            seconds,
            answered: record.answered(),
            failed: record.failed(),
            unsent: record.unsent,
            connections_opened: record.connections,
            requests_per_second: record.per_second(),
            client_busy: if seconds > 0.0 { (record.cpu.as_secs_f64() / seconds).min(1.0) } else { 0.0 },
            sent_bytes: record.sent_bytes,
            received_bytes: record.received_bytes,
            latency: Summary::of(&record.latency),
            phases: phases.collect(),
            faults,
            histogram: bins(&record.latency, BINS),
            quantiles: quantiles(&record.latency),
            series: points(record),
        }
    }
}

fn per_second(count: u64, time: Duration) -> f64 {
    let seconds = time.as_secs_f64();
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

/// As far as there are values: one in 1,000 says nothing where there were 100.
fn quantiles(histogram: &Histogram<u64>) -> Vec<Quantile> {
    let values = histogram.len() as f64;
    let told = QUANTILES.into_iter().filter(|quantile| values * (1.0 - quantile) >= 1.0);
    told.map(|quantile| Quantile { quantile, us: histogram.value_at_quantile(quantile) as f64 / 1e3 })
        .collect()
}

fn points(record: &Record) -> Vec<Point> {
    let slot = record.series.slot();
    let count = record.series.slots().len();
    let point = |(index, slot_found): (usize, &super::series::Slot)| {
        let begin = slot * u32::try_from(index).unwrap_or(u32::MAX);
        // The last one may be cut short, and what ends after the end of sending is no rate.
        let length = if index + 1 == count { record.elapsed.saturating_sub(begin).min(slot) } else { slot };
        let length = if length * 2 < slot { slot } else { length };
        let at = |quantile| {
            let filled = slot_found.answered > 0;
            filled.then(|| slot_found.latency.value_at_quantile(quantile) as f64 / 1e3)
        };
        Point {
            at: begin.as_secs_f64(),
            requests_per_second: per_second(slot_found.answered, length),
            failed: slot_found.failed,
            p50_us: at(0.5),
            p99_us: at(0.99),
        }
    };
    record.series.slots().iter().enumerate().map(point).collect()
}

#[cfg(test)]
mod tests {
    use super::super::record::{Answer, Fault};
    use super::*;

    fn record(answers: u64) -> Record {
        let mut record = Record { elapsed: Duration::from_secs(2), ..Record::default() };
        for number in 1..=answers {
            let mut answer = Answer { latency: Duration::from_micros(number), ..Answer::default() };
            answer.set(Phase::FirstByte, Duration::from_nanos(750 * number));
            answer.set(Phase::Transfer, Duration::from_nanos(250 * number));
            record.answer(Duration::from_millis(2 * number), &answer);
        }
        record
    }

    fn report(record: &Record) -> TargetReport {
        TargetReport::new("x".into(), "http://x/".into(), None, Mode::KeepAlive, record)
    }

    #[test]
    fn a_record_becomes_figures() {
        let found = report(&record(1000));
        let close = |a: f64, b: f64| (a / b - 1.0).abs() < 0.01;
        let latency = found.latency.unwrap();
        assert!(
            close(latency.p50_us, 500.0) && close(latency.p99_us, 990.0) && close(latency.mean_us, 500.5)
        );
        assert!(close(found.requests_per_second, 500.0));
        let shares: Vec<f64> = found.phases.iter().filter_map(|phase| phase.share).collect();
        assert!(close(shares[0], 0.75) && close(shares[1], 0.25), "{shares:?}");
        assert_eq!(found.series.len(), 21);
        assert!(close(found.series[3].requests_per_second, 500.0), "{:?}", found.series[3]);
        assert_eq!(found.quantiles.last().unwrap().quantile, 0.999);
    }

    #[test]
    fn nothing_answered_is_told_and_not_drawn() {
        let mut failed = record(0);
        failed.fault(Duration::ZERO, Fault::Refused, || "connection refused".into());
        let found = report(&failed);
        assert_eq!((found.answered, found.failed, found.latency), (0, 1, None));
        assert!(found.histogram.is_empty() && found.quantiles.is_empty() && found.phases.is_empty());
        assert_eq!(found.faults[0].kind, "refused");
    }

    #[test]
    fn what_is_written_is_read_again() {
        let text = serde_json::to_string(&report(&record(10))).unwrap();
        let again: TargetReport = serde_json::from_str(&text).unwrap();
        assert_eq!((again.answered, again.histogram.len()), (10, BINS));
    }
}
