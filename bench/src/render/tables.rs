//! Tables in Markdown.

use std::fmt::Write;

use serde_json::Value;

/// A column: its key in a row (or a path in it), its heading, how many digits a number has after the point.
type Column = (&'static str, &'static str, usize);

/// Parts whose results are rows already, where these are, and what of them is shown.
pub(super) const COLUMNS: [(&str, &str, &[Column]); 6] = [
    (
        "cold",
        "cold",
        &[
            ("program", "program", 0),
            ("way", "way", 0),
            ("p50_ms", "p50 ms", 2),
            ("max_ms", "max", 2),
            ("create_ms", "create", 2),
            ("release_ms", "release", 2),
            ("ready_ms", "ready", 2),
            ("rest_ms", "rest", 2),
            ("held_kib", "held KiB", 0),
        ],
    ),
    ("density", "rows", &[("what", "", 0), ("one", "one", 2), ("all", "all", 2), ("ratio", "ratio", 2)]),
    (
        "access",
        "connections",
        &[
            ("namespace", "in the maps", 0),
            ("way", "who connects", 0),
            ("connect_us", "connect µs", 2),
            ("ratio", "ratio", 3),
            ("program_ns", "kernel program ns", 0),
        ],
    ),
    (
        "egress",
        "egress",
        &[("subject", "connect", 0), ("calls", "calls", 0), ("p50_us", "p50 µs", 1), ("p99_us", "p99 µs", 1)],
    ),
    (
        "dns",
        "rows",
        &[
            ("server", "server", 0),
            ("functions", "functions", 0),
            ("per_cpu_second", "answers a second of CPU", 0),
            ("pss_kib", "PSS KiB", 0),
            ("lost", "lost", 0),
            ("update_to_answer/p50_us", "change to answer, p50 µs", 1),
        ],
    ),
    (
        "tunnel",
        "results",
        &[
            ("subject", "tunnel", 0),
            ("gbit_per_s", "Gbit/s", 2),
            ("throughput_ratio", "of stock gotatun's", 2),
            ("cpu_s_per_gbit", "CPU s a Gbit", 2),
            ("round_trip_p50_us", "round trip p50 µs", 1),
            ("round_trip_p99_us", "p99", 1),
        ],
    ),
];

/// A table; those columns that hold numbers are aligned to the right.
pub(super) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let is_number = |cell: &String| cell.is_empty() || cell.starts_with(|first: char| first.is_ascii_digit());
    let right = |column: usize| rows.iter().all(|row| row.get(column).is_none_or(is_number));
    let mut text = format!("| {} |\n|", headings.join(" | "));
    for column in 0..headings.len() {
        text.push_str(if right(column) { "--:|" } else { "---|" });
    }
    text.push('\n');
    for row in rows {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    text
}

/// Rows as they are stored.
pub(super) fn columns(rows: &Value, columns: &[Column]) -> String {
    let headings: Vec<_> = columns.iter().map(|(_, heading, _)| *heading).collect();
    let cell = |row: &Value, (key, _, digits): &Column| match row.pointer(&format!("/{key}")) {
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.as_f64().map_or_else(String::new, |number| format!("{number:.digits$}")),
        None => String::new(),
    };
    let cells = |row: &Value| columns.iter().map(|column| cell(row, column)).collect();
    let rows: Vec<Vec<String>> = rows.as_array().into_iter().flatten().map(cells).collect();
    table(&headings, &rows)
}

/// A ratio with its interval: `1.02 (0.99–1.05)`.
pub(super) fn ratio(row: &Value, metric: &str) -> String {
    let Some(ratio) = row[format!("{metric}_ratio")].as_f64() else { return String::new() };
    let ci = &row[format!("{metric}_ratio_ci")];
    match (ci[0].as_f64(), ci[1].as_f64()) {
        (Some(low), Some(high)) => format!("{ratio:.2} ({low:.2}–{high:.2})"),
        _ => format!("{ratio:.2}"),
    }
}

/// A run of the harness: what each subject had, and in proportion to its base.
pub(super) fn rows(part: &Value, bulk: bool) -> String {
    let rate = if bulk { "Gbit/s" } else { "requests/s" };
    let headings = [
        "scenario", "clients", "subject", "against", "p50 µs", "p99 µs", rate, "p50", "p99", rate, "CPU",
        "errors",
    ];
    let cells = |row: &Value| {
        let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        let number = |key: &str, digits: usize| {
            row[key].as_f64().map_or_else(String::new, |number| format!("{number:.digits$}"))
        };
        let rate = match (bulk.then(|| bytes(&row["scenario"])).flatten(), row["rps"].as_f64()) {
            (Some(bytes), Some(rps)) => format!("{:.2}", rps * bytes * 8.0 / 1e9),
            _ => number("rps", 0),
        };
        let mut cells = vec![text("scenario"), number("clients", 0), text("subject"), text("base")];
        cells.extend([number("p50_us", 1), number("p99_us", 0), rate]);
        let is_base = row["base"] == row["subject"];
        cells.extend(
            ["p50", "p99", "rps", "cpu"].map(|m| if is_base { String::new() } else { ratio(row, m) }),
        );
        cells.push(number("errors", 0));
        cells
    };
    let rows: Vec<Vec<String>> = part["results"].as_array().into_iter().flatten().map(cells).collect();
    table(&headings, &rows)
}

/// Bytes that each request of a scenario carries.
fn bytes(scenario: &Value) -> Option<f64> {
    let (_, mib) = scenario.as_str()?.split_once('-')?;
    Some(mib.strip_suffix('m')?.parse::<f64>().ok()? * f64::from(1 << 20))
}

pub(super) fn idle(part: &Value) -> String {
    let cells = |row: &Value| {
        let number = |key: &str| row[key].as_i64().unwrap_or_default();
        let more = |key: &str| {
            let key = |when: &str| format!("gateway_{key}_{when}");
            (number(&key("held")) - number(&key("before"))).max(0).to_string()
        };
        let name = row["subject"].as_str().unwrap_or_default().to_owned();
        vec![name, number("connections").to_string(), more("rss_kib"), more("descriptors")]
    };
    let rows: Vec<Vec<String>> = part["idle"].as_array().into_iter().flatten().map(cells).collect();
    table(&["subject", "connections", "KiB more in the gateway", "descriptors more"], &rows)
}

/// Pairs of commits.
pub(super) fn compare(part: &Value) -> String {
    let mut text = String::new();
    for pair in part.as_array().into_iter().flatten() {
        let name = |key: &str| pair[key].as_str().unwrap_or_default();
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "`{}` against `{}`{} ({}, load average {}, {} rounds of {} ms):\n\n{}",
            name("to"),
            name("from"),
            if name("title").is_empty() { String::new() } else { format!(", {}", name("title")) },
            pair["report"]["date"].as_str().unwrap_or_default(),
            pair["report"]["host"]["load_average"],
            pair["report"]["setup"]["rounds"],
            pair["report"]["setup"]["chunk_ms"],
            rows(&pair["report"], false)
        );
    }
    text
}

/// The machine, and when each part was measured.
pub(super) fn conditions(results: &Value) -> String {
    let parts: Vec<(&String, &Value)> =
        results.as_object().into_iter().flatten().filter(|(_, part)| part["host"].is_object()).collect();
    let Some((_, first)) = parts.iter().find(|(name, _)| *name == "lanes").or(parts.first()) else {
        return "Nothing has been measured.".to_owned();
    };
    let host = &first["host"];
    let said = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut text = format!(
        "{}, {} cores, {} MiB, Linux {}; {}.\n\n",
        said(&host["cpu"]),
        host["cores"],
        host["memory_mib"],
        said(&host["kernel"]),
        said(&host["runc"])
    );
    let list = |map: &Value, form: fn(&str, &str) -> String| -> Vec<String> {
        let entries = map.as_object().into_iter().flatten();
        entries.map(|(name, value)| form(name, value.as_str().unwrap_or_default())).collect()
    };
    let peers = list(&first["peers"], |_, version| version.to_owned());
    let mitigations = list(&host["mitigations"], |name, how| format!("{name}: {how}"));
    let mitigations: Vec<_> =
        mitigations.into_iter().filter(|line| !line.ends_with("Not affected")).collect();
    let _ = write!(text, "Peers: {}.\n\nMitigations: {}.\n\n", peers.join("; "), mitigations.join("; "));
    let row = |(name, part): &(&String, &Value)| {
        let commit: String = part["commit"].as_str().unwrap_or_default().chars().take(12).collect();
        let rounds = match (
            part["setup"]["rounds"].as_u64().or(part["rounds"].as_u64()),
            part["setup"]["chunk_ms"].as_u64(),
        ) {
            (Some(rounds), Some(ms)) => format!("{rounds} × {ms} ms"),
            (Some(rounds), None) => rounds.to_string(),
            _ => String::new(),
        };
        let load =
            part["host"]["load_average"].as_f64().map_or_else(String::new, |load| format!("{load:.2}"));
        vec![(*name).clone(), said(&part["date"]), commit, load, rounds]
    };
    let rows: Vec<Vec<String>> = parts.iter().map(row).collect();
    text + &table(&["part", "measured", "commit", "load average before", "rounds"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rows_become_a_table() {
        let part = json!({ "results": [{
            "scenario": "download-64m", "clients": 1, "subject": "warm", "base": "bare", "p50_us": 20000.04, "p99_us": 30000.0,
            "rps": 50.0, "p50_ratio": 1.018, "p50_ratio_ci": [0.991, 1.05], "p99_ratio": 1.1, "rps_ratio": null, "errors": 0,
        }]});
        let text = rows(&part, true);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[1], "|---|--:|---|---|--:|--:|--:|--:|--:|--:|--:|--:|");
        assert_eq!(
            lines[2],
            "| download-64m | 1 | warm | bare | 20000.0 | 30000 | 26.84 | 1.02 (0.99–1.05) | 1.10 |  |  | 0 |"
        );
        let cold = json!([{ "program": "static", "way": "1 floor", "p50_ms": 2.345, "held_kib": 12, "a": { "b": 1 } }]);
        let text = columns(
            &cold,
            &[("program", "program", 0), ("p50_ms", "p50", 1), ("a/b", "b", 0), ("none", "", 0)],
        );
        assert_eq!(text.lines().last(), Some("| static | 2.3 | 1 |  |"));
    }
}
