//! What Prometheus is told, held against what a client did.

use std::collections::HashMap;
use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use faasd::core::address::VPN_PREFIX;
use faasd_tests::{Bed, address, eventually};

use crate::ask;

const BODY_BYTES: u64 = 100_000;
const CALLS: u64 = 5;

const HANDLER: &str = "def handle(event, context):\n    \
    if event.path == '/fail':\n        raise RuntimeError('it was meant to')\n    return 'x' * 100000\n";

/// Series with their labels, as they stand in the text, and their values.
struct Scrape(HashMap<String, f64>);

impl Scrape {
    fn take(bed: &Bed) -> Result<(String, Self)> {
        let text = bed.client().curl(&format!("http://[{}]:9464/metrics", VPN_PREFIX.server()))?;
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let parsed = lines.map(|line| {
            let (series, value) = line.rsplit_once(' ').with_context(|| format!("no sample: {line}"))?;
            Ok((series.to_owned(), value.parse().with_context(|| line.to_owned())?))
        });
        let all = parsed.collect::<Result<_>>()?;
        Ok((text, Self(all)))
    }

    fn get(&self, series: &str) -> u64 {
        self.0.get(series).copied().unwrap_or_default() as u64
    }
}

/// The judge of the format is Prometheus's own tool.
fn lint(text: &str) -> Result<()> {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("promtool: `cargo xtask setup --for test` installs it")?;
    promtool.stdin.take().context("no input")?.write_all(text.as_bytes())?;
    let said = promtool.wait_with_output()?;
    let words = [said.stdout, said.stderr].concat();
    ensure!(said.status.success() && words.is_empty(), "{}", String::from_utf8_lossy(&words));
    Ok(())
}

pub fn counted() -> Result<()> {
    const PAIR: &str = "{function=\"counted\",subject=\"laptop\"}";
    let bed = Bed::joined()?;
    bed.deploy("counted", &[("handler.py", HANDLER.as_bytes())])?.ok()?;
    let client = bed.client();
    for _ in 0..CALLS {
        ensure!(client.curl("http://counted.faas/")?.len() as u64 == BODY_BYTES);
    }
    let failed =
        client.run(&["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "http://counted.faas/fail"])?;
    ensure!(failed.ok()? == "500");
    let peer = bed.json(&["vpn", "peers"])?["peers"][0]["name"].as_str().context("no peer")?.to_owned();
    let pair = PAIR.replace("laptop", &peer);
    // Ends are heard a moment after the client has its answer.
    eventually("every connection has ended", || {
        Scrape::take(&bed)
            .is_ok_and(|(_, seen)| seen.get(&format!("faasd_flow_rtt_seconds_count{pair}")) == CALLS + 1)
    })?;
    let (text, seen) = Scrape::take(&bed)?;
    lint(&text)?;
    let of = |name: &str| seen.get(&format!("{name}{{function=\"counted\"}}"));
    ensure!(of("faasd_requests_total") == CALLS + 1 && of("faasd_request_errors_total") == 1, "{text}");
    ensure!(of("faasd_handoff_seconds_count") == CALLS + 1, "{text}");
    ensure!(
        seen.get("faasd_connections_total{function=\"counted\",lane=\"handoff\"}") == CALLS + 1,
        "{text}"
    );
    ensure!(
        seen.get("faasd_instance_start_seconds_count{function=\"counted\",part=\"ready\"}") >= 1,
        "{text}"
    );
    ensure!(of("faasd_function_memory_bytes") > 1 << 20, "{text}");
    let flow = |name: &str| seen.get(&format!("faasd_flow_{name}{pair}"));
    ensure!((flow("connections_total"), flow("open_connections")) == (CALLS + 1, 0), "{text}");
    let sent = flow("sent_bytes_total");
    let heads = 1000 * (CALLS + 1);
    ensure!((CALLS * BODY_BYTES..CALLS * BODY_BYTES + heads).contains(&sent), "{sent}: {text}");
    ensure!((60..heads).contains(&flow("received_bytes_total")), "{text}");
    ensure!(seen.get("faasd_flows_complete") == 1, "{text}");
    ensure!(text.contains("\nfaasd_wireguard_info{backend=\""), "{text}");

    // One that stays open is among them at once, and in the table.
    let mut stream = client.connect(address(&bed.describe("counted")?)?, 80)?;
    ensure!(ask(&mut stream, "/")?.len() as u64 == BODY_BYTES);
    eventually("the open connection is seen", || {
        Scrape::take(&bed).is_ok_and(|(_, now)| {
            let flow = |name: &str| now.get(&format!("faasd_flow_{name}{pair}"));
            flow("open_connections") == 1 && flow("sent_bytes_total") >= sent + BODY_BYTES
        })
    })?;
    let top = bed.json(&["top", "count", "--interval", "0.5"])?;
    let row = &top["functions"][0];
    ensure!(row["name"] == "counted" && row["in_flight"] == 1 && row["ready"] == 1, "{top}");
    ensure!(row["requests"] == CALLS + 2 && row["rtt_us"].as_u64().is_some_and(|us| us > 0), "{top}");
    let table = bed.faas(&["top"])?.ok()?;
    ensure!(table.starts_with("NAME") && table.contains("\ncounted ") && !table.contains('\x1b'), "{table}");
    bed.finish()
}
