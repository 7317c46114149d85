//! What a tunnel costs: faasd's own WireGuard process beside stock gotatun, boringtun, wireguard-go and no tunnel at all,
//! each between the same two network namespaces, interleaved in one run.

mod bed;
mod load;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::host::{self, Host};
pub use bed::{Bed, Link};
pub use load::Bulk;

/// Measure tunnels.
#[derive(Debug, Args)]
pub struct Tunnel {
    /// The `faasd` or `faas` whose tunnel process is measured.
    #[arg(long, value_name = "PROGRAM")]
    faasd: PathBuf,
    /// boringtun's program; without, it is left out.
    #[arg(long, value_name = "PROGRAM")]
    boringtun: Option<PathBuf>,
    /// wireguard-go's program; without, it is left out.
    #[arg(long, value_name = "PROGRAM")]
    wireguard_go: Option<PathBuf>,
    /// Rounds, in each of which every subject has one chunk of each kind.
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// Milliseconds of a chunk.
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    chunk_ms: u64,
    /// Only these subjects [default: all].
    #[arg(long, value_delimiter = ',')]
    subjects: Vec<String>,
    /// Write the results here too, as JSON.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// What the others are compared with.
const BASE: &str = "gotatun";

/// No tunnel: the pair of interfaces that carries the others.
const NONE: &str = "veth";

#[derive(Debug, Serialize)]
struct Report {
    host: Host,
    commit: Option<String>,
    date: String,
    rounds: u32,
    chunk_ms: u64,
    results: Vec<Row>,
}

/// One subject: medians over the chunks, and their ratio to stock gotatun's. Round trips are of all chunks together.
#[derive(Debug, Serialize)]
struct Row {
    subject: String,
    gbit_per_s: f64,
    throughput_ratio: Option<f64>,
    /// Of both ends' processes together; none without a process.
    cpu_s_per_gbit: Option<f64>,
    round_trip_p50_us: f64,
    round_trip_p99_us: f64,
}

#[derive(Debug)]
struct Series {
    bulk: Vec<Bulk>,
    round_trips: Histogram<u64>,
}

impl Tunnel {
    /// Measures and prints.
    ///
    /// # Errors
    /// If a subject cannot be started or stops, with what it said.
    pub fn run(&self) -> anyhow::Result<()> {
        if cfg!(debug_assertions) {
            eprintln!("This is a debug build: its numbers mean little. Use `cargo xtask bench tunnel`.");
        }
        let bed = Bed::new()?;
        let mut links = vec![bed.plain()];
        for (number, (name, command)) in self.programs()?.into_iter().enumerate() {
            let link = bed.tunnel(name, number + 1, command);
            links.push(link.with_context(|| format!("cannot bring {name} up"))?);
        }
        let series = self.measure(&bed, &links)?;
        let report = Report {
            host: host::describe(),
            commit: host::commit(),
            date: host::date(),
            rounds: self.rounds,
            chunk_ms: self.chunk_ms,
            results: rows(&links, series),
        };
        println!("{}", table(&report.results));
        if let Some(path) = &self.out {
            let json = serde_json::to_vec_pretty(&report)?;
            std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// How each subject is started for an interface. All of them take `wg`'s configuration.
    #[expect(clippy::type_complexity, reason = "a list of names and of how to start what they stand for")]
    fn programs(&self) -> anyhow::Result<Vec<(&'static str, Box<dyn Fn(&str) -> Command>)>> {
        let own = std::env::current_exe()?;
        let faasd = self.faasd.clone();
        let mut all: Vec<(&'static str, Box<dyn Fn(&str) -> Command>)> = vec![
            (
                BASE,
                Box::new(move |interface| {
                    let mut command = Command::new(&own);
                    command.args(["stock-gotatun", interface]);
                    command
                }),
            ),
            ("faasd", Box::new(move |interface| faasd_tunnel(&faasd, interface))),
        ];
        if let Some(program) = self.boringtun.clone() {
            all.push((
                "boringtun",
                Box::new(move |interface| {
                    let mut command = Command::new(&program);
                    command.args(["--foreground", "--disable-drop-privileges", interface]);
                    command
                }),
            ));
        }
        if let Some(program) = self.wireguard_go.clone() {
            all.push((
                "wireguard-go",
                Box::new(move |interface| {
                    let mut command = Command::new(&program);
                    command.args(["--foreground", interface]).env("LOG_LEVEL", "error");
                    command
                }),
            ));
        }
        let known: Vec<_> = all.iter().map(|(name, _)| *name).collect();
        for name in &self.subjects {
            ensure!(
                known.contains(&name.as_str()),
                "there is no subject `{name}`; there are {}",
                known.join(", ")
            );
        }
        if !self.subjects.is_empty() {
            all.retain(|(name, _)| self.subjects.iter().any(|wanted| wanted == name));
        }
        Ok(all)
    }

    fn measure(&self, bed: &Bed, links: &[Link]) -> anyhow::Result<BTreeMap<usize, Series>> {
        let chunk = Duration::from_millis(self.chunk_ms);
        let mut all = BTreeMap::new();
        for (index, link) in links.iter().enumerate() {
            // The handshake, and TCP's way to its speed.
            load::bulk(bed, link, chunk / 4)
                .with_context(|| format!("nothing passes through {}", link.name))?;
            let round_trips = Histogram::new_with_bounds(1_000, 10_000_000_000, 3)?;
            all.insert(index, Series { bulk: Vec::new(), round_trips });
        }
        let mut order: Vec<usize> = (0..links.len()).collect();
        for round in 1..=self.rounds {
            fastrand::shuffle(&mut order);
            for index in &order {
                let (Some(link), Some(series)) = (links.get(*index), all.get_mut(index)) else { continue };
                series.bulk.push(load::bulk(bed, link, chunk)?);
                load::round_trips(bed, link, chunk / 2, &mut series.round_trips)?;
            }
            eprintln!("round {round} of {}", self.rounds);
        }
        Ok(all)
    }
}

fn rows(links: &[Link], series: BTreeMap<usize, Series>) -> Vec<Row> {
    let speeds: Vec<f64> =
        series.values().map(|series| median(series.bulk.iter().map(Bulk::gbit_per_s).collect())).collect();
    let base = links.iter().zip(&speeds).find(|(link, _)| link.name == BASE).map(|(_, speed)| *speed);
    let row = |((link, series), gbit_per_s): ((&Link, Series), &f64)| {
        let cpu: Option<Vec<f64>> = series.bulk.iter().map(Bulk::cpu_s_per_gbit).collect();
        let at = |quantile| series.round_trips.value_at_quantile(quantile) as f64 / 1e3;
        Row {
            subject: link.name.to_owned(),
            gbit_per_s: *gbit_per_s,
            throughput_ratio: base.map(|base| gbit_per_s / base),
            cpu_s_per_gbit: cpu.map(median),
            round_trip_p50_us: at(0.5),
            round_trip_p99_us: at(0.99),
        }
    };
    links.iter().zip(series.into_values()).zip(&speeds).map(row).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["subject", "Gbit/s", "of gotatun's", "CPU s/Gbit", "round trip p50 µs", "p99 µs"]);
    let some = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
    for row in rows {
        table.add_row([
            row.subject.clone(),
            format!("{:.2}", row.gbit_per_s),
            some(row.throughput_ratio),
            some(row.cpu_s_per_gbit),
            format!("{:.1}", row.round_trip_p50_us),
            format!("{:.1}", row.round_trip_p99_us),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Our own tunnel, by `faasd` or `faas`.
#[must_use]
pub fn faasd_tunnel(program: &Path, interface: &str) -> Command {
    let mut command = Command::new(program);
    command.args(["tunnel", interface]);
    command
}

/// gotatun as it comes: its own TUN interface, UDP socket and configuration socket.
///
/// # Errors
/// If it does not start.
pub fn stock_gotatun(interface: &str) -> anyhow::Result<()> {
    use gotatun::device::{self, uapi::UapiServer};
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let uapi = UapiServer::default_unix_socket(interface, None, None)
            .map_err(|e| anyhow::anyhow!("cannot serve the configuration socket: {e}"))?;
        let device =
            device::build().with_default_udp().create_tun(interface)?.with_uapi(uapi).build().await?;
        std::future::pending::<()>().await;
        device.stop().await;
        Ok(())
    })
}
