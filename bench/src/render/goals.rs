//! What was to be reached, what was measured, and whether that is it.

use serde_json::Value;

use super::tables;

/// Who passes requests on in the runs.
const PROXIES: [&str; 4] = ["nginx", "haproxy", "caddy", "chain"];

const LANES: &[&str] = &["handoff", "warm"];

enum Limit {
    /// No worse than the base, as far as the control shows that equal things come out equal.
    Equal,
    /// At most so much of the base's time, or of its time for each request.
    AtMost(f64),
}

struct Goal {
    what: &'static str,
    part: &'static str,
    scenario: &'static str,
    clients: u64,
    metrics: &'static [&'static str],
    subjects: &'static [&'static str],
    limit: Limit,
}

use Limit::{AtMost, Equal};

const ALL: &[&str] = &["p50", "p99", "rps"];

const GOALS: [Goal; 18] = [
    goal("keep-alive, 1 client: as bare", "lanes", "keepalive", 1, ALL, LANES, Equal),
    goal("keep-alive, 64 clients: as bare", "lanes", "keepalive", 64, ALL, LANES, Equal),
    goal("keep-alive, CPU a request: as bare", "lanes", "keepalive", 64, &["cpu"], LANES, Equal),
    goal("keep-alive through the tunnel, 1 client: as bare", "tunnelled", "keepalive", 1, ALL, LANES, Equal),
    goal(
        "keep-alive through the tunnel, 64 clients: as bare",
        "tunnelled",
        "keepalive",
        64,
        ALL,
        LANES,
        Equal,
    ),
    goal("new connection: at most 1.05", "lanes", "new", 1, &["p50"], &["warm"], AtMost(1.05)),
    goal("new connection: at most 1.25", "lanes", "new", 1, &["p50"], &["handoff"], AtMost(1.25)),
    goal(
        "new connections, 64 clients: 1/1.05 of bare's",
        "lanes",
        "new",
        64,
        &["rps"],
        &["warm"],
        AtMost(1.05),
    ),
    goal(
        "new connections, 64 clients: 1/1.25 of bare's",
        "lanes",
        "new",
        64,
        &["rps"],
        &["handoff"],
        AtMost(1.25),
    ),
    goal(
        "new connection through the tunnel: at most 1.05",
        "tunnelled",
        "new",
        1,
        &["p50"],
        &["warm"],
        AtMost(1.05),
    ),
    goal(
        "new connection through the tunnel: at most 1.25",
        "tunnelled",
        "new",
        1,
        &["p50"],
        &["handoff"],
        AtMost(1.25),
    ),
    goal("WebSocket, 1 client: as bare", "bodies", "websocket", 1, ALL, LANES, Equal),
    goal("WebSocket, 64 clients: as bare", "bodies", "websocket", 64, ALL, LANES, Equal),
    goal("64 MiB down: as bare", "bodies", "download-64m", 1, &["p50", "rps"], LANES, Equal),
    goal("64 MiB up: as bare", "bodies", "upload-64m", 1, &["p50", "rps"], LANES, Equal),
    goal(
        "10,000 functions declared, against one: at most 1.05",
        "many",
        "new",
        1,
        &["p50"],
        MANY,
        AtMost(1.05),
    ),
    goal("a scrape under load moves p99 by nothing: new", "scrape", "new", 64, &["p99"], SCRAPED, Equal),
    goal(
        "a scrape under load moves p99 by nothing: keep-alive",
        "scrape",
        "keepalive",
        64,
        &["p99"],
        SCRAPED,
        Equal,
    ),
];

const MANY: &[&str] = &["handoff-10000", "warm-10000"];
/// Prometheus asks every few seconds; `back-to-back` is in the table, as the worst that a scraper can do.
const SCRAPED: &[&str] = &["every-second"];

const fn goal(
    what: &'static str,
    part: &'static str,
    scenario: &'static str,
    clients: u64,
    metrics: &'static [&'static str],
    subjects: &'static [&'static str],
    limit: Limit,
) -> Goal {
    Goal { what, part, scenario, clients, metrics, subjects, limit }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Met,
    /// The interval is on both sides of the limit.
    NotShown,
    Missed,
}

impl Verdict {
    const fn text(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::NotShown => "**not shown**",
            Self::Missed => "**missed**",
        }
    }
}

/// All goals.
pub(super) fn table(results: &Value) -> String {
    let mut rows = Vec::new();
    for goal in &GOALS {
        let found: Vec<_> = goal
            .metrics
            .iter()
            .flat_map(|metric| goal.subjects.iter().map(move |subject| (*metric, *subject)))
            .filter_map(|(metric, subject)| goal.judge(results, metric, subject))
            .collect();
        let verdict = found.iter().map(|(_, verdict)| *verdict).max();
        let measured: Vec<_> = found.into_iter().map(|(text, _)| text).collect();
        rows.push(vec![
            goal.what.to_owned(),
            measured.join("; "),
            verdict.map_or("not measured", Verdict::text).to_owned(),
        ]);
    }
    rows.extend([idle(results), peers(results)].into_iter().flatten());
    tables::table(&["goal", "measured, bare = 1.00 (95 %)", ""], &rows)
}

fn row<'a>(results: &'a Value, part: &str, scenario: &str, clients: u64, subject: &str) -> Option<&'a Value> {
    let rows = results[part]["results"].as_array()?;
    rows.iter().find(|r| r["scenario"] == scenario && r["clients"] == clients && r["subject"] == subject)
}

/// A ratio as a cost, and what it lies between: more is worse, also where requests are counted.
fn cost(row: &Value, metric: &str) -> Option<(f64, [f64; 2])> {
    let ratio = row[format!("{metric}_ratio")].as_f64()?;
    // Of few rounds there are quartiles alone.
    let interval = ["ci", "iqr"].map(|kind| &row[format!("{metric}_ratio_{kind}")]);
    let interval = interval.into_iter().find(|interval| interval.is_array());
    let end = |end: usize| interval.and_then(|interval| interval[end].as_f64()).unwrap_or(ratio);
    let [low, high] = [end(0), end(1)];
    Some(if metric == "rps" { (1.0 / ratio, [1.0 / high, 1.0 / low]) } else { (ratio, [low, high]) })
}

impl Goal {
    fn judge(&self, results: &Value, metric: &str, subject: &str) -> Option<(String, Verdict)> {
        let of = |subject: &str| row(results, self.part, self.scenario, self.clients, subject);
        let found = of(subject)?;
        let (median, [low, high]) = cost(found, metric)?;
        let verdict = match self.limit {
            Equal => {
                let noise =
                    of("control").and_then(|control| cost(control, metric)).map_or(1.0, |(_, ci)| ci[1]);
                if low <= noise.max(1.0) { Verdict::Met } else { Verdict::Missed }
            }
            AtMost(limit) if high <= limit => Verdict::Met,
            AtMost(limit) if low > limit => Verdict::Missed,
            AtMost(limit) if median <= limit => Verdict::Met,
            AtMost(_) => Verdict::NotShown,
        };
        let metric_name = if metric == "rps" { "requests/s" } else { metric };
        Some((format!("{subject} {metric_name} {}", tables::ratio(found, metric)), verdict))
    }
}

fn idle(results: &Value) -> Option<Vec<String>> {
    let rows = results["lanes"]["idle"].as_array()?;
    let mut texts = Vec::new();
    let mut verdict = Verdict::Met;
    for subject in LANES {
        let row = rows.iter().find(|row| row["subject"] == *subject)?;
        let more = |key: &str| {
            let at = |when: &str| row[format!("gateway_{key}_{when}")].as_i64().unwrap_or_default();
            (at("held") - at("before")).max(0)
        };
        let (kib, descriptors) = (more("rss_kib"), more("descriptors"));
        // Pages that the daemon touches meanwhile are not the connections'.
        let connections = row["connections"].as_i64().unwrap_or(1);
        if descriptors > 0 || kib * 1024 / connections.max(1) > 0 {
            verdict = Verdict::Missed;
        }
        texts.push(format!("{subject} {kib} KiB and {descriptors} descriptors of {connections} connections"));
    }
    Some(vec![
        "an idle connection: 0 bytes, 0 descriptors in the daemon".to_owned(),
        texts.join("; "),
        verdict.text().to_owned(),
    ])
}

/// Rows in which a proxy is not behind both lanes.
fn peers(results: &Value) -> Option<Vec<String>> {
    let mut ahead = Vec::new();
    let mut compared = 0;
    for part in ["lanes", "bodies"] {
        for found in results[part]["results"].as_array().into_iter().flatten() {
            let Some(peer) = PROXIES.iter().find(|peer| found["subject"] == **peer) else { continue };
            let (scenario, clients) = (found["scenario"].as_str()?, found["clients"].as_u64()?);
            for metric in ["p50", "rps", "cpu"] {
                let of = |subject: &str| cost(row(results, part, scenario, clients, subject)?, metric);
                let Some((theirs, _)) = of(peer) else { continue };
                for lane in LANES {
                    let Some((ours, _)) = of(lane) else { continue };
                    compared += 1;
                    if theirs <= ours {
                        let name = if metric == "rps" { "requests/s" } else { metric };
                        ahead.push(format!("{peer} before {lane}: {scenario} ×{clients}, {name}"));
                    }
                }
            }
        }
    }
    (compared > 0).then(|| {
        let verdict = if ahead.is_empty() { Verdict::Met } else { Verdict::Missed };
        let exceptions = if ahead.is_empty() { String::new() } else { format!("; but {}", ahead.join("; ")) };
        vec![
            "every proxy is behind in p50, requests/s and CPU".to_owned(),
            format!("in {} of {compared} comparisons{exceptions}", compared - ahead.len()),
            verdict.text().to_owned(),
        ]
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn results(warm: f64, ci: [f64; 2]) -> Value {
        let row = |subject: &str, ratio: f64, ci: [f64; 2]| json!({ "scenario": "new", "clients": 1, "subject": subject, "p50_ratio": ratio, "p50_ratio_ci": ci });
        json!({ "lanes": { "results": [
            row("warm", warm, ci), row("control", 1.0, [0.98, 1.02]), row("nginx", 1.5, [1.4, 1.6]),
        ]}})
    }

    #[test]
    fn a_goal_is_met_missed_or_not_shown() {
        let new = GOALS.iter().find(|goal| goal.subjects == ["warm"] && goal.scenario == "new").unwrap();
        let verdict = |ratio, ci| new.judge(&results(ratio, ci), "p50", "warm").unwrap().1;
        assert_eq!(verdict(1.02, [1.0, 1.03]), Verdict::Met);
        assert_eq!(verdict(1.06, [1.02, 1.09]), Verdict::NotShown);
        assert_eq!(verdict(1.2, [1.1, 1.3]), Verdict::Missed);
        let equal = Goal { limit: Equal, ..goal("", "lanes", "new", 1, ALL, LANES, Equal) };
        let verdict = |ratio, ci| equal.judge(&results(ratio, ci), "p50", "warm").unwrap().1;
        assert_eq!(verdict(1.03, [1.01, 1.05]), Verdict::Met);
        assert_eq!(verdict(1.04, [1.03, 1.05]), Verdict::Missed);
    }

    #[test]
    fn more_requests_cost_less() {
        let row = json!({ "rps_ratio": 0.8, "rps_ratio_ci": [0.5, 1.0] });
        assert_eq!(cost(&row, "rps"), Some((1.25, [1.0, 2.0])));
    }

    #[test]
    fn a_proxy_that_is_ahead_is_named() {
        let said = |warm| peers(&results(warm, [warm, warm])).unwrap();
        assert_eq!(said(1.02)[2], "met");
        assert!(said(1.6)[1].contains("nginx before warm: new ×1, p50"), "{:?}", said(1.6));
    }
}
