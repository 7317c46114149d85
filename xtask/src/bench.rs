//! `cargo xtask bench`: the benchmarks of `bench/`, built with optimisation, with what they need installed.

use std::ffi::OsString;

use anyhow::Result;

use crate::setup::{self, Scope};
use crate::{repo, root, run};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// For the benchmarks; `-- --help` lists what they take
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

/// The profile that is measured: the one that is shipped.
pub const PROFILE: &str = "release";

pub fn main(args: &Args) -> Result<()> {
    setup::ensure(Scope::Bench)?;
    build()?;
    let mut bench = root::command(program(), &[])?;
    bench.args(&args.rest);
    run::run(&mut bench)
}

/// Builds the daemon, the client, the benchmarks and the function that these serve, as they are shipped.
pub fn build() -> Result<()> {
    let mut cargo = repo::cargo();
    cargo.args(["build", "--profile", PROFILE, "--locked", "--quiet"]);
    cargo.args(["--bins", "--examples", "-p", "faasd", "-p", "faasd-bench", "-p", "faasd-sdk"]);
    run::run(&mut cargo)
}

pub fn program() -> std::path::PathBuf {
    repo::target_dir().join(PROFILE).join("faasd-bench")
}
