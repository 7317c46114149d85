//! The daemon's command line. Parse, compose, run.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use faasd::control::daemon::{self, DEFAULT_INSTANCE, Options};
use faasd::control::fdstore;
use faasd::core::paths::Paths;
use faasd::runtime::relay::{self, RelayArgs};
use faasd::runtime::runners::script;
use faasd::telemetry::logging;
use faasd::tunnel::process::{self, ProcessArgs};

/// Serves functions over a private network with nothing in the way
#[derive(Parser)]
#[command(name = "faasd", version)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the daemon
    ///
    /// SIGTERM ends it; instances, the tunnel and established connections stay, and the next daemon takes them over.
    Serve(Places),
    /// Removes what a stopped daemon leaves behind to serve without it
    ///
    /// That is: instances, the tunnel, the kernel program. What is declared stays, and comes back with the next
    /// `faasd serve`.
    Teardown(Places),
    /// Holds descriptors for the daemon; started by it
    #[command(hide = true)]
    Fdstore {
        #[arg(long)]
        socket: PathBuf,
    },
    /// Runs a WireGuard tunnel; started by the daemon
    #[command(hide = true)]
    Tunnel(ProcessArgs),
    /// Serves a script; an instance's program
    #[command(hide = true)]
    RunScript { file: String },
    /// Copies between a listener and a server; started by the daemon
    #[command(hide = true)]
    Relay(RelayArgs),
}

/// Where things are.
#[derive(Args)]
struct Places {
    /// Settings
    #[arg(long, default_value = "/etc/faasd/faasd.toml")]
    config: PathBuf,
    /// What survives a reboot: code, declarations, logs
    #[arg(long, env = "FAAS_ROOT", default_value = "/var/lib/faasd")]
    state: PathBuf,
    /// What does not: sockets, pins
    #[arg(long, default_value = "/run/faasd")]
    run: PathBuf,
    /// The tunnel's keys
    #[arg(long, default_value = "/etc/wireguard")]
    wireguard: PathBuf,
    /// Another name than the default lets a second daemon run beside the first, with places of its own
    #[arg(long, default_value = DEFAULT_INSTANCE)]
    instance: String,
    /// HOST or HOST:PORT that clients of the tunnel dial
    #[arg(long, env = "FAAS_VPN_ENDPOINT")]
    endpoint: Option<String>,
}

impl From<Places> for Options {
    fn from(places: Places) -> Self {
        let Places { config, state, run, wireguard, instance, endpoint } = places;
        Self { paths: Paths { state, run, wireguard, instance }, config, endpoint }
    }
}

fn main() -> ExitCode {
    let command = CommandLine::parse().command;
    // A function's log is its own.
    if !matches!(command, Command::RunScript { .. }) {
        logging::start();
    }
    let done = match command {
        Command::Serve(places) => wait(daemon::run(places.into())),
        Command::Teardown(places) => wait(daemon::teardown(places.into())),
        Command::Fdstore { socket } => fdstore::run(&socket).map_err(Into::into),
        Command::Tunnel(args) => process::run(&args).map_err(Into::into),
        Command::RunScript { file } => script::run(&file).map_err(Into::into),
        Command::Relay(args) => relay::run(args).map_err(Into::into),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("faasd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn wait(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work)
}
