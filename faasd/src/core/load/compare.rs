//! Two targets in turns. Chunks of both alternate, each next to one of the other, so that what the machine does
//! meanwhile touches both. The result is the median of the pairs' ratios, with an interval by the bootstrap.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::record::Record;

/// How often the pairs are drawn anew.
const RESAMPLES: usize = 10_000;

/// The same pairs give the same interval.
const SEED: u64 = 0xfaa5;

/// An interval needs more than a few values to be drawn from.
const PAIRS_MIN: usize = 5;

/// How a run is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    pub pairs: u32,
    /// Of each chunk.
    pub chunk: Option<Duration>,
    pub requests: Option<u64>,
}

impl Cut {
    /// Enough pairs for an interval, of chunks that are long enough for a median, in so much time or so many
    /// requests for each target.
    #[must_use]
    pub fn new(duration: Option<Duration>, requests: Option<u64>) -> Self {
        let by_time = duration.map_or(u64::MAX, |all| (all.as_millis() / 250) as u64);
        let by_count = requests.map_or(u64::MAX, |all| all / 20);
        let pairs = by_time.min(by_count).clamp(6, 40);
        Self {
            pairs: pairs as u32,
            chunk: duration.map(|all| all / pairs as u32),
            requests: requests.map(|all| all.div_ceil(pairs)),
        }
    }

    /// Which target has its turn when: A B, B A, A B, … so that a drift touches both alike.
    pub fn order(self) -> impl Iterator<Item = [usize; 2]> {
        (0..self.pairs).map(|pair| if pair % 2 == 0 { [0, 1] } else { [1, 0] })
    }
}

/// What a chunk showed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shown {
    pub p50: f64,
    pub p99: f64,
    pub per_second: f64,
}

impl Shown {
    /// Nothing, if nothing was answered.
    #[must_use]
    pub fn of(record: &Record) -> Option<Self> {
        let at = |quantile| record.latency.value_at_quantile(quantile) as f64;
        (record.answered() > 0).then(|| Self { p50: at(0.5), p99: at(0.99), per_second: record.per_second() })
    }
}

/// The second target's figure, if the first one's is 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    pub ratio: f64,
    /// Of the interval; none with too few pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high: Option<f64>,
}

impl Ratio {
    /// Whether the interval leaves 1 out.
    #[must_use]
    pub fn differs(&self) -> bool {
        self.low.is_some_and(|low| low > 1.0) || self.high.is_some_and(|high| high < 1.0)
    }
}

/// The second target against the first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    pub pairs: usize,
    /// Of the intervals, in percent.
    pub confidence: f64,
    pub p50: Ratio,
    /// None where a chunk is a single request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99: Option<Ratio>,
    /// None where it is not the server that says how many there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<Ratio>,
}

/// Compares by the pairs (first target, second target) of a run, if there is any. `tail` says that chunks are long enough
/// for a 99th percentile.
#[must_use]
pub fn compare(pairs: &[(Shown, Shown)], tail: bool, rate: bool) -> Option<Comparison> {
    let ratios = |of: fn(&Shown) -> f64| -> Vec<f64> {
        let ratio = |(first, second): &(Shown, Shown)| of(second) / of(first);
        pairs.iter().map(ratio).filter(|ratio| ratio.is_finite() && *ratio > 0.0).collect()
    };
    Some(Comparison {
        pairs: pairs.len(),
        confidence: 95.0,
        p50: bootstrap(&ratios(|shown| shown.p50))?,
        p99: if tail { bootstrap(&ratios(|shown| shown.p99)) } else { None },
        requests_per_second: if rate { bootstrap(&ratios(|shown| shown.per_second)) } else { None },
    })
}

/// The median, and between what it lies in 95 % of the samples that are drawn from these values.
#[must_use]
pub fn bootstrap(values: &[f64]) -> Option<Ratio> {
    let ratio = median(&mut values.to_vec())?;
    if values.len() < PAIRS_MIN {
        return Some(Ratio { ratio, low: None, high: None });
    }
    let mut random = fastrand::Rng::with_seed(SEED);
    let mut sample = vec![0.0; values.len()];
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| {
            sample.fill_with(|| values[random.usize(..values.len())]);
            median(&mut sample)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    let at = |quantile: f64| medians[((medians.len() - 1) as f64 * quantile).round() as usize];
    Some(Ratio { ratio, low: Some(at(0.025)), high: Some(at(0.975)) })
}

fn median(values: &mut [f64]) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    values.sort_by(f64::total_cmp);
    let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
    Some(f64::midpoint(low, high))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(p50: f64) -> Shown {
        Shown { p50, p99: 3.0 * p50, per_second: 1e9 / p50 }
    }

    #[test]
    fn a_drift_of_the_machine_does_not_show() {
        // Ten times slower at the end; the second target always takes a fifth more.
        let at = |step: usize| 100.0 + 20.0 * step as f64;
        let pairs: Vec<_> = (0..40).map(|pair| (shown(at(2 * pair)), shown(1.2 * at(2 * pair)))).collect();
        let found = compare(&pairs, true, true).unwrap();
        for ratio in [found.p50, found.p99.unwrap()] {
            assert!((ratio.ratio - 1.2).abs() < 1e-9 && ratio.differs(), "{ratio:?}");
        }
        assert!((found.requests_per_second.unwrap().ratio - 1.0 / 1.2).abs() < 1e-9);
    }

    #[test]
    fn equal_targets_with_noise_do_not_differ() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut outside = 0;
        for _ in 0..40 {
            let mut one = || shown(100.0 * (1.0 + 0.3 * random.f64()));
            let pairs: Vec<_> = (0..20).map(|_| (one(), one())).collect();
            outside += usize::from(compare(&pairs, true, true).unwrap().p50.differs());
        }
        // Of 40 intervals at 95 %, two are expected to leave 1 out.
        assert!(outside <= 6, "{outside} of 40");
    }

    #[test]
    fn the_interval_narrows_with_more_pairs() {
        let width = |pairs: usize| {
            let mut random = fastrand::Rng::with_seed(3);
            let pairs: Vec<_> =
                (0..pairs).map(|_| (shown(100.0), shown(110.0 + 40.0 * random.f64()))).collect();
            let ratio = compare(&pairs, true, true).unwrap().p50;
            ratio.high.unwrap() - ratio.low.unwrap()
        };
        assert!(width(200) < width(20) / 2.0, "{} {}", width(200), width(20));
    }

    #[test]
    fn few_pairs_have_a_ratio_and_no_interval() {
        let pairs = [(shown(1.0), shown(2.0)), (shown(1.0), shown(4.0))];
        let found = compare(&pairs, false, false).unwrap();
        assert_eq!(found.p50, Ratio { ratio: 3.0, low: None, high: None });
        assert_eq!((found.p99, found.requests_per_second), (None, None));
        assert_eq!(compare(&[], true, true), None);
    }

    #[test]
    fn a_run_is_cut_into_pairs_whose_order_alternates() {
        let cut = Cut::new(Some(Duration::from_secs(10)), None);
        assert_eq!((cut.pairs, cut.chunk), (40, Some(Duration::from_millis(250))));
        assert_eq!(cut.order().take(3).collect::<Vec<_>>(), [[0, 1], [1, 0], [0, 1]]);
        let short = Cut::new(Some(Duration::from_secs(1)), None);
        assert_eq!((short.pairs, short.chunk), (6, Some(Duration::from_secs(1) / 6)));
        let counted = Cut::new(None, Some(100));
        assert_eq!((counted.pairs, counted.requests), (6, Some(17)));
    }
}
