//! The daemon's command line. Parse, compose, run.

use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use faasd::cli;
use faasd::control::daemon::{self, DEFAULT_INSTANCE, Options};
use faasd::control::{fdstore, init};
use faasd::core::paths::Paths;
use faasd::runtime::relay::{self, RelayArgs};
use faasd::runtime::runners::script;
use faasd::sys::systemd::Manager;
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
    /// Makes the directories, the server's keys and the zones that a daemon starts with, and ends
    ///
    /// A daemon makes them itself; packages want them before. What is there stays as it is.
    Init(Places),
    /// Removes what a stopped daemon leaves behind to serve without it
    ///
    /// That is: instances, the tunnel, the kernel program. What is declared stays, and comes back with the next
    /// `faasd serve`.
    Teardown(Places),
    /// Writes the manual's pages into a directory
    Man { directory: PathBuf },
    /// Starts the descriptor store, and leaves it running: in a unit of its own, for daemons to come
    #[command(hide = true)]
    Keep(Places),
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
    /// The control group that containers are put into, delegated to the daemon; without, one called like the instance
    #[arg(long, env = "FAASD_CGROUP", value_name = "GROUP", value_parser = group)]
    cgroup: Option<String>,
    /// HOST or HOST:PORT that clients of the tunnel dial
    #[arg(long, env = "FAAS_VPN_ENDPOINT")]
    endpoint: Option<String>,
}

impl From<Places> for Options {
    fn from(places: Places) -> Self {
        let Places { config, state, run, wireguard, instance, cgroup, endpoint } = places;
        // A variable that is set to nothing, as in a unit's environment file, is one that is not set.
        let endpoint = endpoint.filter(|endpoint| !endpoint.trim().is_empty());
        Self { paths: Paths { state, run, wireguard, instance, cgroup }, config, endpoint }
    }
}

/// A control group, as the kernel names it: absolute, and without its root or a way out of it.
fn group(text: &str) -> Result<String, String> {
    let path = Path::new(text);
    let is_plain = path.components().skip(1).all(|part| matches!(part, Component::Normal(_)));
    if path.is_absolute() && path.components().count() > 1 && is_plain {
        Ok(text.trim_end_matches('/').to_owned())
    } else {
        Err("a control group is absolute within its hierarchy, such as /faasd.slice/faasd-functions.service"
            .to_owned())
    }
}

fn main() -> ExitCode {
    let manager = Manager::take();
    let command = CommandLine::parse().command;
    // A function's log is its own.
    if !matches!(command, Command::RunScript { .. }) {
        logging::start();
    }
    let done = match command {
        Command::Serve(places) => wait(daemon::run(places.into(), manager)),
        Command::Teardown(places) => wait(daemon::teardown(places.into())),
        Command::Init(places) => init::init(&places.into()),
        Command::Man { directory } => {
            cli::write_pages(CommandLine::command(), "8", &directory).map_err(Into::into)
        }
        Command::Keep(places) => daemon::keep(&places.into()),
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
