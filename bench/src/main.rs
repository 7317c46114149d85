//! `faasd-bench`: parse and run.

use clap::Parser;

fn main() -> anyhow::Result<()> {
    faasd_bench::cli::Cli::parse().run()
}
