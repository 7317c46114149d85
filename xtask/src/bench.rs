//! `cargo xtask bench`: the whole platform against the same program with no platform, and against what else could stand
//! in its place, interleaved in one run.
//!
//! A real daemon is started in a network namespace of its own, a real container serves the SDK's example in it, and the
//! harness (`bench/`) measures it beside a bare server and proxies. docs/BENCHMARKS.md has the method and the results.

mod cold;
mod compare;
mod density;
mod dns;
mod egress;
pub mod measure;
mod parts;
mod peer;
mod platform;
mod tunnel;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde_json::{Map, Value};

use crate::report::step;
use crate::setup::{self, Scope};
use crate::{interrupt, lock, repo, root, run};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cargo xtask bench                                  all of it, into docs/BENCHMARKS.md (more than an hour)
  cargo xtask bench --quick --out results.json       all of it in ten minutes
  cargo xtask bench lanes tunnelled --out some.json
  cargo xtask bench lanes --out x.json -- --subjects nginx --load apart
  cargo xtask bench --compare main~5 --scenarios new
  cargo xtask bench --render docs/benchmarks/results.json")]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// What to measure [default: all of it]
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// In ten minutes; the documents stay as they are
    #[arg(long)]
    quick: bool,
    /// Put the results there, beside other parts' that are there already, and leave the documents as they are
    /// [default: docs/benchmarks/results.json, and from there into docs/BENCHMARKS.md; nowhere with --quick]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Measure nothing: write tables and plots of stored results into docs/BENCHMARKS.md
    #[arg(long, value_name = "FILE", conflicts_with_all = ["parts", "quick", "out", "compare"])]
    render: Option<PathBuf>,
    /// Measure a commit's platform against what is checked out, or two commits' (REV..REV)
    #[arg(long, value_name = "REV", conflicts_with = "parts")]
    compare: Option<String>,
    /// What is said of the comparison where it is shown
    #[arg(long, requires = "compare")]
    title: Option<String>,
    /// Of the comparison [default: new and keepalive]
    #[arg(long, value_name = "NAME", value_delimiter = ',', requires = "compare")]
    scenarios: Vec<String>,
    /// Set-up and build are done
    #[arg(long, hide = true)]
    built: bool,
    /// For the harness, with one part: `-- --help` lists what it takes
    #[arg(last = true)]
    rest: Vec<OsString>,
}

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// New and kept connections beside every peer, and 10,000 idle ones
    Lanes,
    /// Bodies of 1 and 64 MiB up and down, and WebSockets, beside every peer
    Bodies,
    /// Whether a scrape of the metrics is felt under load
    Scrape,
    /// Through a tunnel, against a bare server through a tunnel
    Tunnelled,
    /// One function among 10,000 against one alone
    Many,
    /// What a connection to a function that does not run waits for
    Cold,
    /// What a thousand functions cost against one
    Density,
    /// What it costs to look up who connects and whether it may
    Access,
    /// What a function's connection to another function costs
    Egress,
    /// What a query to the name server costs, beside Knot and NSD
    Dns,
    /// What the tunnel costs beside stock gotatun, boringtun and wireguard-go
    Tunnel,
}

impl Part {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    const fn measure(self) -> fn(&Job) -> Result<()> {
        match self {
            Self::Lanes => parts::lanes,
            Self::Bodies => parts::bodies,
            Self::Scrape => parts::scrape,
            Self::Tunnelled => parts::tunnelled,
            Self::Many => parts::many,
            Self::Cold => cold::run,
            Self::Density => density::run,
            Self::Access => parts::access,
            Self::Egress => egress::run,
            Self::Dns => dns::run,
            Self::Tunnel => tunnel::run,
        }
    }
}

/// One measurement's orders.
#[derive(Debug)]
pub struct Job {
    quick: bool,
    /// Where it writes what it found.
    out: PathBuf,
    /// For the harness.
    rest: Vec<OsString>,
}

impl Job {
    /// Writes what was found.
    fn write(&self, found: &Value) -> Result<()> {
        write(&self.out, found)
    }

    fn read(&self) -> Result<Value> {
        read(&self.out)
    }
}

/// The profile that is measured: the one that is shipped.
const PROFILE: &str = "release";

/// Two measurements at a time would measure each other.
const LOCK: &str = "/run/faasd-bench.lock";

/// What one measurement found, for as long as it takes to put it with the others. Nobody but root writes there.
const SCRATCH: &str = "/run/faasd-bench.json";

pub fn main(args: &Args) -> Result<()> {
    if let Some(results) = &args.render {
        step("bench", "building what renders", || cargo_build(&["-p", "faasd-bench"]))?;
        return parts::render(&std::path::absolute(results)?);
    }
    let stored = repo::root().join("docs/benchmarks/results.json");
    let out = match &args.out {
        Some(file) => Some(std::path::absolute(file)?),
        None => (!args.quick).then_some(stored.clone()),
    };
    if args.built {
        return measure(args, out.as_deref());
    }
    setup::ensure(Scope::Bench)?;
    let sides = args.compare.as_deref().map(compare::build).transpose()?;
    step("bench", "building what is measured as it is shipped", build)?;
    drop(sides);
    if root::is_root() {
        measure(args, out.as_deref())?;
    } else {
        // Whose it is now it remains.
        store(out.as_deref(), |_| ())?;
        again_as_root()?;
    }
    if out.as_ref() == Some(&stored) { parts::render(&stored) } else { Ok(()) }
}

/// Measures one part after the other. One that fails does not keep the others from being measured.
fn measure(args: &Args, out: Option<&Path>) -> Result<()> {
    interrupt::catch()?;
    let _alone = lock::hold(Path::new(LOCK), "bench")?;
    let job = Job { quick: args.quick, out: SCRATCH.into(), rest: args.rest.clone() };
    let measured = match &args.compare {
        Some(range) => compare::build(range)
            .and_then(|sides| compare::run(&job, &sides, &args.scenarios, args.title.as_deref()))
            .and_then(|pair| store(out, |all| add_pair(all, pair))),
        None => all_parts(args, &job, out),
    };
    // There is none if nothing was measured.
    let _ = fs::remove_file(SCRATCH);
    measured
}

fn all_parts(args: &Args, job: &Job, out: Option<&Path>) -> Result<()> {
    let parts = if args.parts.is_empty() { Part::value_variants() } else { &args.parts };
    if parts.len() > 1 && !job.rest.is_empty() {
        bail!("what is for the harness is for one part: name it before the `--`");
    }
    let mut failed = Vec::new();
    for part in parts {
        interrupt::check()?;
        let name = part.name();
        let measured = step("bench", &name, || {
            part.measure()(job)?;
            let found = job.read()?;
            store(out, |all| drop(all.insert(name.clone(), found)))
        });
        if let Err(error) = measured {
            eprintln!("error: {name}: {error:#}");
            failed.push(name);
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("not measured: {}", failed.join(", ")) }
}

/// A comparison takes the place of an earlier one of the same name.
fn add_pair(all: &mut Map<String, Value>, pair: Value) {
    let pairs = all.entry("compare").or_insert_with(|| Value::Array(Vec::new()));
    if let Some(pairs) = pairs.as_array_mut() {
        pairs.retain(|other| other["title"] != pair["title"]);
        pairs.push(pair);
    }
}

/// Changes what is stored.
fn store(out: Option<&Path>, change: impl FnOnce(&mut Map<String, Value>)) -> Result<()> {
    let Some(out) = out else { return Ok(()) };
    let mut all = if out.exists() { read(out)? } else { Value::Object(Map::new()) };
    let map = all.as_object_mut().with_context(|| format!("{} holds no results", out.display()))?;
    change(map);
    if let Some(directory) = out.parent() {
        fs::create_dir_all(directory)?;
    }
    write(out, &all)
}

fn read(file: &Path) -> Result<Value> {
    let text = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no JSON", file.display()))
}

fn write(file: &Path, value: &Value) -> Result<()> {
    fs::write(file, serde_json::to_vec_pretty(value)?).with_context(|| format!("writing {}", file.display()))
}

/// Namespaces and containers need root; the build must not leave root's files in the user's checkout.
fn again_as_root() -> Result<()> {
    let program = std::env::current_exe().context("finding this program")?;
    let target = repo::target_dir();
    let mut command = root::command(program, &[("CARGO_TARGET_DIR", target.as_os_str())])?;
    // Ours begin with the task's name.
    command.args(["bench", "--built"]).args(std::env::args_os().skip(2));
    run::run(&mut command)
}

/// Builds the daemon, the client, the benchmarks and the functions that these serve, as they are shipped.
pub fn build() -> Result<()> {
    cargo_build(&["--bins", "--examples", "-p", "faasd", "-p", "faasd-bench", "-p", "faasd-sdk"])
}

fn cargo_build(what: &[&str]) -> Result<()> {
    let mut cargo = repo::cargo();
    cargo.args(["build", "--profile", PROFILE, "--locked", "--quiet"]).args(what);
    run::run(&mut cargo)
}

/// Where [`build`] puts what it makes.
fn programs() -> PathBuf {
    repo::target_dir().join(PROFILE)
}

/// One of the programs that [`build`] makes.
pub fn built(name: &str) -> PathBuf {
    programs().join(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use serde_json::json;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(words: &[&str]) -> Result<Args, clap::Error> {
        Line::try_parse_from([&["bench"], words].concat()).map(|line| line.args)
    }

    #[test]
    fn a_command_line_says_what_is_measured() {
        let args = parse(&["lanes", "tunnelled", "--quick", "--out", "x", "--", "--load", "apart"]).unwrap();
        assert_eq!(args.parts, [Part::Lanes, Part::Tunnelled]);
        assert_eq!(args.rest, ["--load", "apart"]);
        assert!(parse(&["--compare", "main", "--scenarios", "new,keepalive"]).is_ok());
        for wrong in
            [&["nothing"][..], &["lanes", "--compare", "x"], &["--render", "x", "--quick"], &["--title", "x"]]
        {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn results_are_kept_by_part_and_comparisons_by_title() {
        let mut all = Map::new();
        add_pair(&mut all, json!({ "title": "one", "to": 1 }));
        add_pair(&mut all, json!({ "title": "two", "to": 1 }));
        add_pair(&mut all, json!({ "title": "one", "to": 2 }));
        assert_eq!(all["compare"], json!([{ "title": "two", "to": 1 }, { "title": "one", "to": 2 }]));
    }
}
