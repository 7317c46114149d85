//! A histogram as people see it: a few bins, each wider than the one before by the same factor.

use hdrhistogram::Histogram;

/// What lies between two latencies.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Bin {
    pub from_us: f64,
    pub to_us: f64,
    pub count: u64,
}

/// At most `count` bins from the least value to the greatest, with the outermost thousandth of the values at the
/// upper end in the last one: what is far out would leave nothing of the rest.
#[must_use]
pub fn bins(histogram: &Histogram<u64>, count: usize) -> Vec<Bin> {
    if histogram.is_empty() || count == 0 {
        return Vec::new();
    }
    let least = histogram.min_nz().max(1) as f64;
    let most = (histogram.value_at_quantile(0.999) as f64).max(least * 1.01);
    let factor = (most / least).powf(1.0 / count as f64);
    let edge = |index: usize| least * factor.powi(i32::try_from(index).unwrap_or(i32::MAX));
    let mut bins: Vec<Bin> = (0..count)
        .map(|index| Bin { from_us: edge(index) / 1e3, to_us: edge(index + 1) / 1e3, count: 0 })
        .collect();
    for value in histogram.iter_recorded() {
        let at = (value.value_iterated_to() as f64 / least).ln() / factor.ln();
        let index = (at.max(0.0) as usize).min(count - 1);
        bins[index].count += value.count_at_value();
    }
    if let Some(last) = bins.last_mut() {
        last.to_us = last.to_us.max(histogram.max() as f64 / 1e3);
    }
    bins
}

#[cfg(test)]
mod tests {
    use super::super::record::histogram;
    use super::*;

    #[test]
    fn every_value_is_in_one_bin() {
        let mut values = histogram(3);
        for value in 1..=10_000u64 {
            values.record(value * 1000).unwrap();
        }
        let bins = bins(&values, 20);
        assert_eq!(bins.len(), 20);
        assert_eq!(bins.iter().map(|bin| bin.count).sum::<u64>(), 10_000);
        assert!(bins.windows(2).all(|pair| (pair[0].to_us - pair[1].from_us).abs() < 1e-6));
        assert!(bins[0].from_us <= 1.0 && bins[19].to_us >= 10_000.0);
    }

    #[test]
    fn few_values_and_none_have_bins_too() {
        let mut values = histogram(3);
        assert_eq!(bins(&values, 10), []);
        values.record(5_000).unwrap();
        let one = bins(&values, 10);
        assert_eq!(one.iter().map(|bin| bin.count).sum::<u64>(), 1);
    }
}
