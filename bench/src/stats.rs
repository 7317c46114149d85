//! From chunks to ratios. A subject's chunk is compared with the mean of the two chunks of its base around it, so that what
//! the machine does meanwhile touches both; the median over all such pairs is the result, with an interval by the bootstrap.

use faasd::core::load::compare::bootstrap;
use hdrhistogram::Histogram;

use crate::load::{Outcome, histogram};

/// One chunk, in numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub rps: f64,
    /// `None` if the subject's processes are not known.
    pub cpu_us: Option<f64>,
}

impl Sample {
    /// The numbers of a chunk; `None` if nothing was answered in it.
    #[must_use]
    pub fn of(outcome: &Outcome) -> Option<Self> {
        let requests = outcome.latency.len();
        if requests == 0 {
            return None;
        }
        let at = |quantile| outcome.latency.value_at_quantile(quantile) as f64 / 1e3;
        Some(Self {
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
            rps: requests as f64 / outcome.elapsed.as_secs_f64(),
            cpu_us: outcome.server_cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / requests as f64),
        })
    }

    fn mean(self, other: Self) -> Self {
        let mean = |a: f64, b: f64| f64::midpoint(a, b);
        Self {
            p50_us: mean(self.p50_us, other.p50_us),
            p99_us: mean(self.p99_us, other.p99_us),
            p999_us: mean(self.p999_us, other.p999_us),
            rps: mean(self.rps, other.rps),
            cpu_us: self.cpu_us.zip(other.cpu_us).map(|(a, b)| mean(a, b)),
        }
    }
}

/// A chunk of a subject, and those of its base right before and after it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    pub subject: Sample,
    pub base: Sample,
}

impl Pair {
    #[must_use]
    pub fn new(before: Sample, subject: Sample, after: Sample) -> Self {
        Self { subject, base: before.mean(after) }
    }

    fn ratio(&self, of: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        of(&self.subject)
            .zip(of(&self.base))
            .filter(|(_, base)| *base > 0.0)
            .map(|(subject, base)| subject / base)
    }
}

/// Everything about one subject in one scenario.
#[derive(Clone, Debug)]
pub struct Series {
    pub pairs: Vec<Pair>,
    /// All chunks together: p99.9 needs more requests than one chunk has.
    pub latency: Histogram<u64>,
    pub errors: u64,
    pub first_error: Option<String>,
    /// The largest share of its core that the load itself took in a chunk.
    pub client_busy_max: f64,
}

impl Default for Series {
    fn default() -> Self {
        Self { pairs: Vec::new(), latency: histogram(), errors: 0, first_error: None, client_busy_max: 0.0 }
    }
}

/// Median and quartiles, and the median's interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub quartiles: [f64; 2],
    /// 95 %; none of a few values.
    pub interval: Option<[f64; 2]>,
}

impl Spread {
    /// `None` for no values.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |quantile| percentile(&values, quantile);
        let found = bootstrap(&values)?;
        let interval = found.low.zip(found.high).map(|(low, high)| [low, high]);
        Some(Self { median: at(0.5)?, quartiles: [at(0.25)?, at(0.75)?], interval })
    }
}

/// The value at `quantile` of sorted values, linear between neighbours.
fn percentile(sorted: &[f64], quantile: f64) -> Option<f64> {
    let place = quantile * sorted.len().checked_sub(1)? as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    Some(low + (high - low) * place.fract())
}

impl Series {
    /// Notes what a chunk showed, apart from its numbers.
    pub fn note(&mut self, outcome: &Outcome) {
        // Both histograms have the same bounds: there is nothing that could not be added.
        let added = self.latency.add(&outcome.latency);
        debug_assert!(added.is_ok());
        self.errors += outcome.errors;
        if self.first_error.is_none() {
            self.first_error.clone_from(&outcome.first_error);
        }
        let busy = outcome.client_cpu.as_secs_f64() / outcome.elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
        self.client_busy_max = self.client_busy_max.max(busy);
    }

    /// The subject's own numbers.
    #[must_use]
    pub fn median(&self, of: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        Spread::of(self.pairs.iter().filter_map(|pair| of(&pair.subject))).map(|spread| spread.median)
    }

    /// The subject's numbers as ratios to its base's.
    #[must_use]
    pub fn ratio(&self, of: impl Fn(&Sample) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.pairs.iter().filter_map(|pair| pair.ratio(&of)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn sample(p50_us: f64) -> Sample {
        Sample {
            p50_us,
            p99_us: 2.0 * p50_us,
            p999_us: 4.0 * p50_us,
            rps: 1e6 / p50_us,
            cpu_us: Some(p50_us / 2.0),
        }
    }

    #[test]
    fn a_drift_of_the_machine_does_not_show_in_the_ratio() {
        // The machine gets ten times slower during the run; the subject always costs a fifth more.
        let mut series = Series::default();
        for step in 0..100 {
            let bare = |at: f64| 10.0 + at;
            let at = f64::from(step);
            series.pairs.push(Pair::new(
                sample(bare(at)),
                sample(1.2 * bare(at + 0.5)),
                sample(bare(at + 1.0)),
            ));
        }
        let ratio = series.ratio(|s| Some(s.p50_us)).unwrap();
        assert!((ratio.median - 1.2).abs() < 1e-9, "{ratio:?}");
        assert!(ratio.quartiles.iter().all(|q| (q - 1.2).abs() < 1e-9), "{ratio:?}");
        assert!((series.median(|s| Some(s.p50_us)).unwrap() - 1.2 * 60.0).abs() < 1e-9);
    }

    #[test]
    fn one_disturbed_chunk_does_not_move_the_median() {
        let mut series = Series::default();
        for subject in [10.0, 10.0, 1000.0, 10.0, 10.0] {
            series.pairs.push(Pair::new(sample(10.0), sample(subject), sample(10.0)));
        }
        let ratio = series.ratio(|s| Some(s.p50_us)).unwrap();
        assert_eq!((ratio.median, ratio.quartiles), (1.0, [1.0, 1.0]));
        // One in five is drawn thrice of five more often than in 5 % of the samples.
        let [low, high] = ratio.interval.unwrap();
        assert!(low <= 1.0 && high >= 1.0, "{ratio:?}");
    }

    #[test]
    fn what_is_not_known_has_no_ratio() {
        let mut series = Series::default();
        series.pairs.push(Pair::new(sample(1.0), Sample { cpu_us: None, ..sample(1.0) }, sample(1.0)));
        assert_eq!(series.ratio(|s| s.cpu_us), None);
        assert!(series.ratio(|s| Some(s.rps)).is_some());
        assert_eq!(Series::default().median(|s| Some(s.rps)), None);
    }

    #[test]
    fn percentiles_are_linear_between_neighbours() {
        let of = |quantile| percentile(&[1.0, 2.0, 3.0, 5.0], quantile).unwrap();
        assert_eq!([of(0.0), of(0.5), of(0.75), of(1.0)], [1.0, 2.5, 3.5, 5.0]);
        assert_eq!(percentile(&[7.0], 0.99), Some(7.0));
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn a_chunk_becomes_numbers_per_request() {
        let mut latency = histogram();
        (1..=1000u64).for_each(|us| latency.record(us * 1000).unwrap());
        let mut outcome = Outcome {
            latency,
            elapsed: Duration::from_secs(2),
            errors: 3,
            first_error: Some("recv: refused".to_owned()),
            client_cpu: Duration::from_secs(1),
            server_cpu: Some(Duration::from_millis(20)),
        };
        let sample = Sample::of(&outcome).unwrap();
        let close = |a: f64, b: f64| (a / b - 1.0).abs() < 0.002;
        assert!(close(sample.p50_us, 500.0) && close(sample.p99_us, 990.0) && close(sample.p999_us, 999.0));
        assert!(close(sample.rps, 500.0) && close(sample.cpu_us.unwrap(), 20.0));
        let mut series = Series::default();
        series.note(&outcome);
        series.note(&outcome);
        assert_eq!((series.errors, series.latency.len()), (6, 2000));
        assert!(close(series.client_busy_max, 0.5));
        outcome.latency.clear();
        assert_eq!(Sample::of(&outcome), None);
    }
}
