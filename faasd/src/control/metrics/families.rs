//! Numbers by name and labels, as they are collected, and their text.

use std::collections::HashMap;

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, MetricFamily, MetricType};
use prometheus::{TextEncoder, proto};

use crate::telemetry::names::{ALL, Kind, Metric};

/// What is collected for one scrape.
#[derive(Debug, Default)]
pub(super) struct Families(HashMap<&'static str, Vec<proto::Metric>>);

impl Families {
    /// A counter's number.
    pub(super) fn count(&mut self, metric: &Metric, labels: &[&str], value: u64) {
        self.set(metric, labels, value as f64);
    }

    /// A number of either kind.
    pub(super) fn set(&mut self, metric: &Metric, labels: &[&str], value: f64) {
        let mut one = labelled(metric, labels);
        match metric.kind {
            Kind::Counter => {
                let mut counter = Counter::default();
                counter.set_value(value);
                one.set_counter(counter);
            }
            Kind::Gauge | Kind::Histogram => {
                let mut gauge = Gauge::default();
                gauge.set_value(value);
                one.set_gauge(gauge);
            }
        }
        self.add(metric, one);
    }

    /// A histogram's numbers: how many fell into each bucket, of which the last has no bound. One that nothing fell into is
    /// left out, for there is one for each function, most of which are idle.
    pub(super) fn observe(
        &mut self,
        metric: &Metric,
        labels: &[&str],
        bounds: &[f64],
        counts: &[u64],
        sum: f64,
    ) {
        let all = counts.iter().sum();
        if all == 0 {
            return;
        }
        let mut below = 0;
        let buckets = bounds.iter().zip(counts).map(|(bound, count)| {
            below += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(below);
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(all);
        histogram.set_sample_sum(sum);
        let mut one = labelled(metric, labels);
        one.set_histogram(histogram);
        self.add(metric, one);
    }

    /// What every process with metrics says of itself.
    pub(super) fn add_process(&mut self) {
        for mut family in ProcessCollector::for_self().collect() {
            if let Some(metric) = ALL.iter().find(|metric| metric.name == family.name()) {
                self.0.insert(metric.name, family.take_metric());
            }
        }
    }

    /// In the order of the names' file.
    pub(super) fn text(mut self) -> Result<String, prometheus::Error> {
        let mut families = Vec::with_capacity(ALL.len());
        for metric in ALL {
            // A family without a member has no text.
            let Some(members) = self.0.remove(metric.name) else { continue };
            let mut family = MetricFamily::default();
            family.set_name(metric.name.to_owned());
            family.set_help(metric.help.to_owned());
            family.set_field_type(match metric.kind {
                Kind::Counter => MetricType::COUNTER,
                Kind::Gauge => MetricType::GAUGE,
                Kind::Histogram => MetricType::HISTOGRAM,
            });
            family.set_metric(members);
            families.push(family);
        }
        TextEncoder::new().encode_to_string(&families)
    }

    fn add(&mut self, metric: &Metric, one: proto::Metric) {
        self.0.entry(metric.name).or_default().push(one);
    }
}

fn labelled(metric: &Metric, values: &[&str]) -> proto::Metric {
    debug_assert_eq!(metric.labels.len(), values.len(), "{}", metric.name);
    let pairs = metric.labels.iter().zip(values).map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    });
    proto::Metric::from_label(pairs.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::names as n;

    #[test]
    fn the_text_is_prometheus() {
        let mut all = Families::default();
        all.count(&n::CONNECTIONS, &["a", "warm"], 3);
        all.observe(&n::HANDOFF, &["a"], &[0.5, 1.0], &[2, 0, 1], 3.25);
        all.observe(&n::HANDOFF, &["idle"], &[0.5, 1.0], &[0; 3], 0.0);
        let lines: Vec<_> = all.text().unwrap().lines().map(str::to_owned).collect();
        let help = |metric: &Metric| format!("# HELP {} {}", metric.name, metric.help);
        assert_eq!(
            lines,
            [
                &*help(&n::CONNECTIONS),
                "# TYPE faasd_connections_total counter",
                "faasd_connections_total{function=\"a\",lane=\"warm\"} 3",
                &*help(&n::HANDOFF),
                "# TYPE faasd_handoff_seconds histogram",
                "faasd_handoff_seconds_bucket{function=\"a\",le=\"0.5\"} 2",
                "faasd_handoff_seconds_bucket{function=\"a\",le=\"1\"} 2",
                "faasd_handoff_seconds_bucket{function=\"a\",le=\"+Inf\"} 3",
                "faasd_handoff_seconds_sum{function=\"a\"} 3.25",
                "faasd_handoff_seconds_count{function=\"a\"} 3",
            ]
        );
    }

    #[test]
    fn the_process_says_what_is_listed() {
        let mut all = Families::default();
        all.add_process();
        let text = all.text().unwrap();
        for metric in ALL.iter().filter(|metric| metric.name.starts_with("process_")) {
            assert!(text.contains(&format!("\n{} ", metric.name)), "{}: {text}", metric.name);
        }
    }
}
