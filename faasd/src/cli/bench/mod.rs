//! `faas bench`

mod cold;
mod drive;
mod plot;
mod target;
mod text;
mod write;

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use hyper::Method;
use hyper::body::Bytes;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;

use self::drive::{Drive, Measured, Stop};
use self::target::{Found, find};
use self::write::Format;
use super::ago::parse_ms;
use super::invoke::header;
use super::{Context, Exit, Failure};
use crate::core::load::compare::compare;
use crate::core::load::record::Phase;
use crate::core::load::report::{Report, TargetReport};
use crate::core::load::schedule::Schedule;
use crate::core::load::{Mode, Protocol};
use crate::load::{CONNECTIONS_MAX, Payload, Plan, THREADS_MAX};

/// Measure a function, or any URL, under load
///
/// A function is dialled as its clients dial it: by its name, through the tunnel. On the server, which has no
/// tunnel to itself, it is dialled where the tunnel's packets come out, which takes root. No request passes the daemon.
///
/// By default a closed loop: each connection sends when it has its answer, so that a slow server is asked less. With
/// --rate an open loop: requests are due at even distances whatever the server does, and latency counts from when a
/// request was due, so that a pause is seen by all who would have come during it (no coordinated omission).
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  faas bench hello
  faas bench hello /items -c 64 -t 30s -H 'accept: application/json'
  faas bench hello --rate 5000 -t 1m
  faas bench hello --compare http://[::1]:8080/ -c 1
  faas bench hello --mode connect
  faas bench hello --mode cold -n 20
  faas bench hello /upload --mode upload --size 10MiB
  faas bench http://127.0.0.1:8080/ --http2 -o json | jq '.targets[0].latency.p99_us'
  faas bench hello --out report.html --out report.png

An interrupt ends early, with the report of what was measured.
Exits with 1 when a target has not answered one request.")]
pub struct Bench {
    /// A function, or a URL
    target: String,
    /// The path and query, of a function [default: /]
    path: Option<String>,
    /// A function or a URL to measure beside it, in turns: ratios with confidence intervals
    #[arg(long, value_name = "TARGET")]
    compare: Option<String>,
    /// What a request is
    #[arg(short, long, value_name = "MODE", default_value = "keep-alive")]
    mode: Kind,
    /// Speak HTTP/2 from the first byte, without TLS (h2c)
    #[arg(long)]
    http2: bool,
    /// Connections at a time [default: 16; cold: 1]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(CONNECTIONS_MAX)))]
    connections: Option<u32>,
    /// Threads that share the connections [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(THREADS_MAX)))]
    threads: Option<u32>,
    /// An open loop of so many requests a second, over all connections
    #[arg(short, long, value_name = "PER-SECOND", value_parser = rate)]
    rate: Option<f64>,
    /// How long to measure each target [default: 10s, unless -n]
    #[arg(short = 't', long, value_name = "TIME", value_parser = duration)]
    duration: Option<Duration>,
    /// How many requests to send to each target [cold: 10]
    #[arg(short = 'n', long, value_name = "N")]
    requests: Option<NonZeroU64>,
    /// How long to send before measuring [default: 1s, unless -n]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    warm_up: Option<Duration>,
    /// How long a request may take
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    timeout: Duration,
    /// The method [default: GET, or POST with a body]
    #[arg(short = 'X', long, value_name = "METHOD")]
    method: Option<Method>,
    /// A header; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// The body of each request, or a WebSocket's message: text, or @FILE
    #[arg(short = 'd', long, value_name = "DATA", alias = "data", allow_hyphen_values = true)]
    body: Option<String>,
    /// A body of so many letters, like 64KiB [default: upload 1MiB, websocket 32B]
    #[arg(long, value_name = "SIZE", value_parser = size, conflicts_with = "body")]
    size: Option<u64>,
    /// Look the host up anew for each connection, as a part of its latency
    #[arg(long)]
    resolve_each: bool,
    /// What to print
    #[arg(short = 'o', long = "output", value_name = "FORMAT", default_value = "table")]
    format: Format,
    /// Write the report to a file as well: .html, .png, .json or .csv; may be repeated
    #[arg(long, value_name = "FILE")]
    out: Vec<PathBuf>,
}

/// What a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// One after the other, on connections that stay
    KeepAlive,
    /// Each on a new connection
    Connect,
    /// Each on a new connection to a function that has come to zero instances
    Cold,
    /// With a body
    Upload,
    /// For something large: bytes count
    Download,
    /// Messages, each of which the server answers by one
    Websocket,
}

impl From<Kind> for Mode {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::KeepAlive => Self::KeepAlive,
            Kind::Connect => Self::Connect,
            Kind::Cold => Self::Cold,
            Kind::Upload => Self::Upload,
            Kind::Download => Self::Download,
            Kind::Websocket => Self::Websocket,
        }
    }
}

/// The most that is read from a file and held for all requests.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// The largest generated body.
const SIZE_MAX: u64 = 1 << 40;

/// The longest message that is sent in one piece.
const MESSAGE_BYTES_MAX: u64 = 16 << 20;

const CONNECTIONS: u32 = 16;
const DURATION: Duration = Duration::from_secs(10);
const WARM_UP: Duration = Duration::from_secs(1);

/// A chunk's 99th percentile says something from here on.
const TAIL_REQUESTS: u64 = 100;

impl Bench {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let started_at = Timestamp::now();
        let formats = self.outputs()?;
        let mode = Mode::from(self.mode);
        let plan = self.plan(mode)?;
        let path = self.path.as_deref().unwrap_or("/");
        if self.path.is_some() && self.target.contains("://") {
            return Err(Failure::new(Exit::Usage, "a URL has a path of its own: write it there"));
        }
        let mut found = vec![find(context, &self.target, path, self.resolve_each).await?];
        if let Some(other) = &self.compare {
            found.push(find(context, other, path, self.resolve_each).await?);
        }
        let cold = if mode == Mode::Cold { self.cold_functions(context, &found).await? } else { Vec::new() };
        let stop = Stop::on_interrupt().map_err(|e| Failure::new(Exit::Failed, e.to_string()))?;
        let counted = self.requests.is_some();
        let warm_up = self.warm_up.unwrap_or(if counted { Duration::ZERO } else { WARM_UP });
        let (mut targets, mut about) = (Vec::new(), Vec::new());
        for Found { target, via, dns, .. } in found {
            about.push((target.name.clone(), target.to_string(), via, dns));
            targets.push(Arc::new(target));
        }
        let timed = !counted && mode != Mode::Cold;
        let drive = Drive {
            ui: &context.ui,
            stop: &stop,
            plan: Arc::new(plan),
            targets,
            duration: self.duration.or(timed.then_some(DURATION)),
            requests: self.requests.map(NonZeroU64::get),
            warm_up,
        };
        let measured = match cold.as_slice() {
            [] => drive.run().await?,
            names => cold::run(&drive, &context.client, names).await?,
        };
        let report = report(&drive, started_at, about, measured);
        for (path, format) in &formats {
            fs::write(path, format.write(&report)?).map_err(|e| Failure::file("write", path, &e))?;
            context.ui.note(&format!("wrote {}", path.display()));
        }
        match self.format {
            Format::Table => text::print(&context.ui, &report)?,
            format => {
                let mut out = io::stdout().lock();
                out.write_all(&format.write(&report)?)?;
                out.flush()?;
            }
        }
        failure(&report)
    }

    /// Files and formats that can be written, found out before anything is measured.
    fn outputs(&self) -> Result<Vec<(PathBuf, Format)>, Failure> {
        if self.format == Format::Png && io::stdout().is_terminal() {
            return Err(Failure::new(Exit::Usage, "a picture is not for a terminal")
                .hint("write it to a file: --out report.png"));
        }
        let mut outputs = Vec::new();
        for path in &self.out {
            let Some(format) = Format::of(path) else {
                let text = format!("what is {} to be?", path.display());
                return Err(
                    Failure::new(Exit::Usage, text).hint("end its name with .html, .png, .json or .csv")
                );
            };
            // Minutes of measuring are not to end in a directory that is not there.
            fs::File::options().append(true).create(true).open(path).map_err(|e| {
                Failure::new(Exit::CannotCreate, format!("cannot write {}: {e}", path.display()))
            })?;
            outputs.push((path.clone(), format));
        }
        Ok(outputs)
    }

    fn plan(&self, mode: Mode) -> Result<Plan, Failure> {
        let usage = |text: &str| Err(Failure::new(Exit::Usage, text));
        let cold = mode == Mode::Cold;
        if cold && (self.rate.is_some() || self.connections.is_some_and(|n| n > 1)) {
            return usage("cold starts are measured one at a time: leave out --rate and --connections");
        }
        if mode == Mode::Websocket && (self.http2 || self.method.is_some()) {
            return usage("a WebSocket begins with a GET of HTTP/1.1: leave out --http2 and --method");
        }
        let payload = self.payload(mode)?;
        if mode == Mode::Websocket && payload.len() > MESSAGE_BYTES_MAX {
            return usage("a WebSocket's message may have 16 MiB");
        }
        let mut headers = HeaderMap::new();
        headers.extend(self.headers.iter().map(|(name, value)| (Some(name.clone()), value.clone())));
        let with_body = !payload.is_empty() && mode != Mode::Websocket;
        let connections = if cold { 1 } else { self.connections.unwrap_or(CONNECTIONS) };
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
        Ok(Plan {
            mode,
            protocol: if self.http2 { Protocol::Http2 } else { Protocol::Http1 },
            connections,
            threads: self.threads.unwrap_or(cores).min(connections).min(THREADS_MAX),
            rate: self.rate,
            timeout: self.timeout,
            method: self.method.clone().unwrap_or(if with_body { Method::POST } else { Method::GET }),
            headers,
            payload,
        })
    }

    fn payload(&self, mode: Mode) -> Result<Payload, Failure> {
        let Some(text) = &self.body else {
            let size = self.size.unwrap_or(match mode {
                Mode::Upload => 1 << 20,
                Mode::Websocket => 32,
                _ => 0,
            });
            return Ok(Payload::generated(size));
        };
        let Some(path) = text.strip_prefix('@').map(PathBuf::from) else {
            return Ok(Payload::of(Bytes::from(text.clone())));
        };
        let failed = |e: io::Error| Failure::file("read", &path, &e);
        let length = fs::metadata(&path).map_err(failed)?.len();
        if length > FILE_BYTES_MAX {
            return Err(Failure::new(Exit::Data, format!("{} has more than 1 GiB", path.display()))
                .hint("`--size` makes a body of any length"));
        }
        Ok(Payload::of(fs::read(&path).map_err(failed)?.into()))
    }

    /// Only the daemon can say that a function is at zero.
    async fn cold_functions(
        &self,
        context: &Context,
        found: &[Found],
    ) -> Result<Vec<crate::core::name::FunctionName>, Failure> {
        let mut names = Vec::new();
        for found in found {
            let Some(name) = &found.function else {
                let text = format!("cold starts of {} cannot be told from warm ones", found.target.name);
                return Err(Failure::new(Exit::Usage, text).hint(
                    "give a function's name, on the server or on a machine of an admin's: the daemon is asked \
                     whether it is at zero",
                ));
            };
            let function = context.client.function(name).await?;
            if let Some(refused) = cold::refuse(&function) {
                return Err(refused);
            }
            names.push(name.clone());
        }
        Ok(names)
    }
}

type About = (String, String, Option<String>, Option<Duration>);

fn report(drive: &Drive<'_>, started_at: Timestamp, about: Vec<About>, measured: Measured) -> Report {
    let plan = &drive.plan;
    let targets = about.into_iter().zip(measured.records).map(|((name, url, via, dns), mut record)| {
        if let Some(dns) = dns {
            record.phase(Phase::Dns, dns);
        }
        TargetReport::new(name, url, via, plan.mode, &record)
    });
    let targets: Vec<TargetReport> = targets.collect();
    let cold = plan.mode == Mode::Cold;
    let per_pair =
        targets.iter().map(|target| target.answered).min().unwrap_or(0) / measured.pairs.len().max(1) as u64;
    Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at,
        mode: plan.mode,
        protocol: plan.protocol,
        method: plan.method.to_string(),
        connections: plan.connections,
        threads: plan.threads,
        rate: plan.rate,
        interrupted: drive.stop.is_stopped(),
        targets,
        // How many are answered is what the schedule says, not the server, where there is one.
        comparison: compare(&measured.pairs, per_pair >= TAIL_REQUESTS, !cold && plan.rate.is_none()),
    }
}

/// That no request was answered is a failure, whatever was printed.
fn failure(report: &Report) -> Result<(), Failure> {
    let Some(silent) = report.targets.iter().find(|target| target.answered == 0) else { return Ok(()) };
    let text = format!("{} has answered no request", silent.name);
    let failure = Failure::new(Exit::Failed, text);
    Err(match silent.faults.first() {
        Some(fault) => failure.hint(fault.example.clone()),
        None => failure,
    })
}

fn duration(text: &str) -> Result<Duration, String> {
    let time = text.strip_suffix("ms").map(|number| number.trim().parse::<u64>().ok());
    match time {
        Some(Some(milliseconds)) => Ok(Duration::from_millis(milliseconds)),
        _ => parse_ms(text)
            .map(Duration::from_millis)
            .map_err(|_| "write a time, like 500ms, 30s or 2m".into()),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok().filter(|rate| Schedule::new(*rate, 0, 1).is_some());
    rate.ok_or_else(|| "write requests a second, from 0.001 to 10000000".into())
}

/// A size as `faas.toml` has it.
fn size(text: &str) -> Result<u64, String> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[number.len()..] {
        "" | "B" => 1,
        "KiB" | "K" | "k" => 1 << 10,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        _ => 0,
    };
    let bytes = number.trim().parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    bytes
        .filter(|bytes| (1..=SIZE_MAX).contains(bytes))
        .ok_or_else(|| "write a size, like 512, 64KiB or 10MiB".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_read() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert!(duration("soon").is_err() && duration("-1ms").is_err());
        assert_eq!((size("512"), size("64KiB"), size("10M")), (Ok(512), Ok(65_536), Ok(10 << 20)));
        assert!(size("0").is_err() && size("10XB").is_err() && size("9999999GiB").is_err());
        assert!(rate("0").is_err() && rate("x").is_err());
        assert_eq!(rate("2.5"), Ok(2.5));
    }
}
