use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "faasd")]
enum Command {
    /// Runs a WireGuard tunnel; started by the daemon
    #[command(hide = true)]
    Tunnel(faasd::tunnel::process::ProcessArgs),
}

fn main() -> ExitCode {
    let Command::Tunnel(args) = Command::parse();
    match faasd::tunnel::process::run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{:#}", anyhow::Error::from(error));
            ExitCode::FAILURE
        }
    }
}
