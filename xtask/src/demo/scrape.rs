//! A Prometheus on the client's machine, as an operator has one: it scrapes the server through the tunnel.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use super::lab::{Lab, Side, run_directory, work};
use crate::{interrupt, repo, run};

/// In the client's namespace.
pub const LISTEN: &str = "127.0.0.1:9090";

/// What is asked, and how the answer is called.
const QUESTIONS: [(&str, &str); 4] = [
    ("connections to hello", "sum(faasd_connections_total{function=\"hello\"})"),
    ("bytes that it sent to laptop", "faasd_flow_sent_bytes_total{function=\"hello\",subject=\"laptop\"}"),
    ("requests that it says it served", "faasd_requests_total{function=\"hello\"}"),
    ("WireGuard is done by", "faasd_wireguard_info"),
];

/// How long the first answer may take: Prometheus's start and a scrape.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Starts it with what is in the repository, but for the interval.
pub fn start(lab: &Lab) -> Result<()> {
    let shipped = repo::root().join("docs/observability");
    let config = fs::read_to_string(shipped.join("prometheus.yml")).context("docs/observability")?;
    let file = work().join("prometheus.yml");
    fs::write(&file, config.replace("scrape_interval: 15s", "scrape_interval: 1s"))?;
    fs::copy(shipped.join("rules.yml"), work().join("rules.yml"))?;
    let listen = format!("--web.listen-address={LISTEN}");
    let arguments = ["--config.file=prometheus.yml", "--storage.tsdb.path=prometheus", &listen];
    lab.beside(Side::Client, "prometheus", &arguments, &run_directory().join("prometheus.log"))
}

/// Asks it, once it has seen the call.
pub fn show(lab: &Lab) -> Result<()> {
    let last = QUESTIONS[2].1;
    run::wait_for("Prometheus to have scraped the call", ANSWER_MAX, || {
        interrupt::check()?;
        // Nobody answers before it has started.
        Ok(ask(lab, &format!("{last} > 0")).ok().filter(|answers| !answers.is_empty()))
    })?;
    println!("client# curl -G http://{LISTEN}/api/v1/query --data-urlencode query=…");
    for (what, query) in QUESTIONS {
        for (labels, value) in ask(lab, query)? {
            let value = labels.get("backend").and_then(|backend| backend.as_str()).unwrap_or(&value);
            println!("{what:<32} {value:>10}   {query}");
        }
    }
    Ok(())
}

/// Each series with its labels.
fn ask(lab: &Lab, query: &str) -> Result<Vec<(serde_json::Value, String)>> {
    let (url, query) = (format!("http://{LISTEN}/api/v1/query"), format!("query={query}"));
    let arguments = ["-sS", "--fail", "--max-time", "5", "-G", &url, "--data-urlencode", &query];
    let answer: serde_json::Value = serde_json::from_str(&lab.silent(Side::Client, "curl", &arguments)?)?;
    let series = answer["data"]["result"].as_array().context("no result")?;
    let one = |series: &serde_json::Value| {
        (series["metric"].clone(), series["value"][1].as_str().unwrap_or_default().to_owned())
    };
    Ok(series.iter().map(one).collect())
}
