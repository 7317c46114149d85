//! The command line. Parse, compose, run: see `faasd::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    faasd::cli::run(std::env::args_os())
}
