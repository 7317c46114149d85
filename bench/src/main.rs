//! `faasd-bench`: parse and run.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match faasd_bench::cli::Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("faasd-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
