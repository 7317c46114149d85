//! `cargo xtask bench egress`: what a function's `connect` to another function costs, beside one that no agent is asked
//! about. Both are timed by the same program in a container, in turns.

use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::measure::Server;
use super::platform::{Place, Platform};
use super::{Job, built};

/// Times connections, some at a time, with pauses: an instance's calls are served at a limited rate.
const TIMER: &str = r#"
import json, os, socket, time

inner = socket.create_server(("::1", 0), family=socket.AF_INET6, backlog=128)
place = os.environ.get("PLACE")
address = socket.getaddrinfo(place, 80)[0][4] if place else inner.getsockname()


def handle(event, context):
    times = []
    for _ in range(10):
        for _ in range(50):
            sock = socket.socket(socket.AF_INET6)
            begin = time.perf_counter_ns()
            sock.connect(address)
            times.append(time.perf_counter_ns() - begin)
            sock.close()
            if not place:
                inner.accept()[0].close()
        time.sleep(0.05)
    return json.dumps(times)
"#;

const ROUNDS: usize = 20;
const ROUNDS_QUICK: usize = 4;

/// The timers, and what stands before the rest of each one's declaration.
const TIMERS: [(&str, &str); 2] = [
    ("direct", ""),
    ("granted", "allow = [\"egress-target.faas\"]\n[env]\nPLACE = \"egress-target.faas\"\n"),
];

pub fn run(job: &Job) -> Result<()> {
    let platform = Platform::start(Place::here())?;
    let measured = measure(job, &platform.server());
    measured.and(platform.end())
}

fn measure(job: &Job, server: &Server<'_>) -> Result<()> {
    let target = server.work.join("egress-target");
    fs::create_dir_all(&target)?;
    fs::copy(built("examples/hello"), target.join("hello"))?;
    fs::write(target.join("faas.toml"), "contract = \"fd\"\ncommand = [\"./hello\"]\n")?;
    (server.faas)(&["deploy", "egress-target", &target.to_string_lossy()])?;
    for (name, declaration) in TIMERS {
        let directory = server.work.join(name);
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("handler.py"), TIMER)?;
        fs::write(directory.join("faas.toml"), declaration)?;
        (server.faas)(&["deploy", name, &directory.to_string_lossy()])?;
    }
    let mut times = [Vec::new(), Vec::new()];
    let rounds = if job.quick { ROUNDS_QUICK } else { ROUNDS };
    // The first round finds nothing prepared, and is not counted.
    for round in 0..=rounds {
        for ((name, _), times) in TIMERS.iter().zip(&mut times) {
            let more: Vec<u64> = serde_json::from_str(&(server.faas)(&["invoke", name])?)
                .with_context(|| format!("what {name} measured"))?;
            if round > 0 {
                times.extend(more);
            }
        }
    }
    let rows: Vec<Value> = TIMERS.iter().zip(&mut times).map(|((name, _), times)| row(name, times)).collect();
    println!("{:<10} {:>8} {:>9} {:>9}", "connect", "calls", "p50 µs", "p99 µs");
    for row in &rows {
        let number = |key: &str| row[key].as_f64().unwrap_or_default();
        println!(
            "{:<10} {:>8} {:>9.1} {:>9.1}",
            row["subject"].as_str().unwrap_or_default(),
            row["calls"],
            number("p50_us"),
            number("p99_us")
        );
    }
    job.write(&json!({ "egress": rows }))
}

fn row(name: &str, times: &mut [u64]) -> Value {
    times.sort_unstable();
    let at = |share: f64| {
        let place = (times.len() as f64 * share) as usize;
        times.get(place.min(times.len().saturating_sub(1))).map_or(0.0, |ns| *ns as f64 / 1e3)
    };
    json!({ "subject": name, "calls": times.len(), "p50_us": at(0.5), "p99_us": at(0.99) })
}
