//! `cargo xtask bench`: the whole platform against the same program with no platform, interleaved in one run.
//!
//! A real daemon is started in a network namespace of its own, a real container serves the SDK's example in it, and the
//! harness (`bench/`) measures it beside a bare server, nginx and three acceptors. docs/BENCHMARKS.md has the method.

mod cold;
mod density;
mod dns;
pub mod measure;
mod platform;

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::report::step;
use crate::setup::{self, Scope};
use crate::{interrupt, repo, root, run};
use platform::Platform;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// About three minutes instead of fifteen
    #[arg(long)]
    quick: bool,
    /// What a thousand functions cost against one, instead
    #[arg(long, conflicts_with = "quick")]
    density: bool,
    /// What a connection to a function that does not run waits for, instead
    #[arg(long, conflicts_with = "density")]
    cold: bool,
    /// What a query to the name server costs, beside Knot and NSD, instead
    #[arg(long, conflicts_with_all = ["density", "cold"])]
    dns: bool,
    /// What it costs to look up who connects and whether it may, instead
    #[arg(long, conflicts_with_all = ["quick", "density", "cold"])]
    access: bool,
    /// Write the results here too, as JSON
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Set-up and build are done
    #[arg(long, hide = true)]
    built: bool,
    /// For the harness: `-- --help` lists what it takes
    #[arg(last = true)]
    rest: Vec<OsString>,
}

/// The profile that is measured: the one that is shipped.
pub const PROFILE: &str = "release";

/// Connections that are held open to see what they cost the daemon.
const IDLE_CONNECTIONS: &str = "10000";

pub fn main(args: &Args) -> Result<()> {
    if !args.built {
        setup::ensure(Scope::Bench)?;
        let build = if args.dns { build_dns } else { build };
        step("bench", "building what is measured as it is shipped", build)?;
    }
    if args.dns {
        // Servers on the loopback interface, which anybody can start.
        return dns::run(args);
    }
    if !root::is_root() {
        return again_as_root(args);
    }
    interrupt::catch()?;
    if args.access {
        return measure::access(args.out.as_deref(), &args.rest);
    }
    let platform = step("bench", "starting faasd in a network namespace of its own", Platform::start)?;
    if args.density {
        let measured = density::run(&platform.server(), args);
        return measured.and(platform.end());
    }
    if args.cold {
        let measured = cold::run(&platform.server(), args);
        return measured.and(platform.end());
    }
    let targets = step("bench", "deploying the functions", || measure::deploy(&platform.server()));
    let measured = targets.and_then(|targets| measure::run(&targets, &arguments(args)).map(drop));
    let ended = platform.end();
    // Why the measurement failed matters more than what could not be cleaned up after it.
    measured.and(ended)
}

/// What the harness is told, before what the caller adds.
fn arguments(args: &Args) -> Vec<OsString> {
    let mut all: Vec<OsString> = Vec::new();
    if args.quick {
        all.push("--quick".into());
    }
    if let Some(file) = &args.out {
        all.extend(["--out".into(), file.into()]);
    }
    let own = |word: &OsString| word == "--idle" || word.to_string_lossy().starts_with("--idle=");
    if !args.rest.iter().any(own) {
        all.extend(["--idle", IDLE_CONNECTIONS].map(OsString::from));
    }
    all.extend(args.rest.iter().cloned());
    all
}

/// Namespaces and containers need root; the build must not leave root's files in the user's checkout.
fn again_as_root(args: &Args) -> Result<()> {
    let program = std::env::current_exe().context("finding this program")?;
    let target = repo::target_dir();
    let mut command = root::command(program, &[("CARGO_TARGET_DIR", target.as_os_str())])?;
    command.args(["bench", "--built"]);
    let modes = [
        (args.quick, "--quick"),
        (args.density, "--density"),
        (args.cold, "--cold"),
        (args.access, "--access"),
    ];
    for (wanted, flag) in modes {
        if wanted {
            command.arg(flag);
        }
    }
    if let Some(file) = &args.out {
        command.arg("--out").arg(file);
    }
    command.arg("--").args(&args.rest);
    run::run(&mut command)
}

/// Builds the daemon, the client, the benchmarks and the function that these serve, as they are shipped.
pub fn build() -> Result<()> {
    let mut cargo = repo::cargo();
    cargo.args(["build", "--profile", PROFILE, "--locked", "--quiet"]);
    cargo.args(["--bins", "--examples", "-p", "faasd", "-p", "faasd-bench", "-p", "faasd-sdk"]);
    run::run(&mut cargo)
}

/// Builds the name server alone.
fn build_dns() -> Result<()> {
    let mut cargo = repo::cargo();
    cargo.args(["build", "--profile", PROFILE, "--locked", "--quiet", "-p", "faasd", "--example", "dns"]);
    run::run(&mut cargo)
}

/// One of the programs that [`build`] makes.
pub fn built(name: &str) -> PathBuf {
    repo::target_dir().join(PROFILE).join(name)
}
