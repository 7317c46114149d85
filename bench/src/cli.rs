//! The command line.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Args, Parser, Subcommand};

use crate::acceptors::Acceptor;
use crate::access::Access;
use crate::cold::{self, Cold};
use crate::host::Cpus;
use crate::load::{Placement, Scenario, Seat};
use crate::report::{self, Report, Setup};
use crate::rounds::{self, Case, Plan};
use crate::subject::{
    Bare, Confined, HandedOver, Proxied, Site, Subject, Target, filtered, niceness, realtime_policy,
};
use crate::tunnel::{self, Bed, Tunnel};
use crate::{declare, hello, host, idle, render};

/// Measures servers against a bare one, interleaved in one run.
///
/// For quieter numbers on a machine that does other things too: `nice -n -20 faasd-bench run`, or, where no target is
/// in a cpu cgroup, `chrt --rr 1 faasd-bench run`. The processes of a target get the same.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure.
    Run(Box<Run>),
    /// Measure cold starts.
    Cold(Box<Cold>),
    /// Measure subjects and rules.
    Access(Access),
    /// Measure tunnels.
    Tunnel(Tunnel),
    /// Write tables and plots of stored results into a document.
    Render(render::Render),
    /// Put many functions like one that is there into a store that no daemon has open.
    Declare(declare::Declare),
    /// Run gotatun as it comes.
    #[command(hide = true)]
    StockGotatun { interface: String },
    /// Serve the stand-in function.
    #[command(hide = true)]
    Hello,
    /// Run a program under a filter that lets every system call pass.
    #[command(hide = true, trailing_var_arg = true)]
    Filtered {
        #[arg(allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Wait for a byte, and start a program in namespaces of its own.
    #[command(hide = true, trailing_var_arg = true)]
    Floor {
        #[arg(allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Accept and hand over to the instance behind standard input.
    #[command(hide = true)]
    Acceptor { kind: Acceptor, address: SocketAddr },
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Where {
    Auto,
    Apart,
    Together,
}

impl Where {
    fn placement(self, scenario: Scenario, clients: usize) -> Placement {
        match (self, scenario, clients) {
            (Self::Auto, Scenario::New, 2..) | (Self::Together, ..) => Placement::Together,
            (Self::Auto | Self::Apart, ..) => Placement::Apart,
        }
    }
}

/// What to measure and how long.
#[derive(Debug, Args)]
pub struct Run {
    /// About two minutes instead of twelve.
    #[arg(long)]
    quick: bool,
    /// Write the results here too, as JSON.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Rounds, in each of which every subject has one chunk per scenario [default: 40; quick: 12].
    #[arg(long, overrides_with = "rounds")]
    rounds: Option<u32>,
    /// Milliseconds of a chunk [default: 400; quick: 200].
    #[arg(long, value_name = "MS", overrides_with = "chunk_ms")]
    chunk_ms: Option<u64>,
    #[arg(long, value_delimiter = ',', default_values = ["new", "keepalive"], overrides_with = "scenarios")]
    scenarios: Vec<Scenario>,
    /// How many at a time. Bodies are sent and fetched by one.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64], overrides_with = "clients")]
    clients: Vec<usize>,
    /// On which core the load runs: its own, the servers', or (auto) the servers' for several clients that open
    /// connections, and its own else.
    #[arg(long, value_enum, default_value_t = Where::Auto, overrides_with = "load")]
    load: Where,
    /// Only these subjects (bare always runs) [default: all].
    #[arg(long, value_delimiter = ',', overrides_with = "subjects")]
    subjects: Vec<String>,
    /// Measure something that runs already: NAME=ADDRESS[,netns=PATH][,pids=PID+PID…][,gateway=PID+PID…]. More may follow:
    /// base=NAME compares it with another target (or with itself: it is there for others), tunnel=PID+PID… have our
    /// priority, and metrics=ADDRESS,every=MS are scraped while it is measured.
    /// With a netns it is dialled from there, by loopback and marked as the daemon is, and all other subjects get a
    /// fresh namespace of their own, which is dialled alike. Its processes, as far as they are given, are on the
    /// servers' CPUs and have our priority while the measurement lasts.
    #[arg(long, value_name = "TARGET")]
    target: Vec<Target>,
    /// The function's program (such as the SDK's example `hello`); it serves with FAAS_LISTEN=ADDRESS, and without it
    /// takes connections over the hand-off protocol [default: one that is built in].
    #[arg(long, value_name = "PROGRAM")]
    hello: Option<PathBuf>,
    /// Dial the servers that we start through a tunnel between two namespaces, whose ends are this program (`faasd`).
    #[arg(long, value_name = "PROGRAM")]
    tunnel: Option<PathBuf>,
    /// The load's CPU.
    #[arg(long, default_value_t = 0)]
    client_cpu: usize,
    /// The servers' CPUs, as for `taskset -c` [default: 1, if there is one].
    #[arg(long, value_name = "LIST")]
    server_cpus: Option<Cpus>,
    /// Where the servers that we start listen.
    #[arg(long, default_value_t = IpAddr::V6(Ipv6Addr::LOCALHOST))]
    ip: IpAddr,
    /// Also hold so many idle connections to each subject and see what they cost the gateway.
    #[arg(long, value_name = "CONNECTIONS", overrides_with = "idle")]
    idle: Option<usize>,
    /// Makes the order of the subjects repeatable.
    #[arg(long)]
    seed: Option<u64>,
}

impl Cli {
    /// Does what was asked for.
    ///
    /// # Errors
    /// Whatever keeps it from that, with the remedy where there is one.
    pub fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Run(run) => run.run(),
            Command::Cold(cold) => cold.run(),
            Command::Filtered { words } => filtered(&words),
            Command::Floor { words } => cold::floor(&words),
            Command::Access(access) => access.run(),
            Command::Tunnel(tunnel) => tunnel.run(),
            Command::Render(render) => render.run(),
            Command::Declare(declare) => declare.run(),
            Command::StockGotatun { interface } => tunnel::stock_gotatun(&interface),
            Command::Hello => hello::run(),
            Command::Acceptor { kind, address } => kind.run(address),
        }
    }
}

impl Run {
    fn run(&self) -> anyhow::Result<()> {
        if cfg!(debug_assertions) {
            eprintln!(
                "This is a debug build: its numbers mean little. Use `cargo run --release -p faasd-bench`."
            );
        }
        // Before we are what is most of it.
        let host = host::describe();
        host::raise_descriptor_limit()?;
        ensure!(!self.clients.contains(&0), "--clients 0 measures nothing");
        let site = self.site()?;
        let subjects = self.subjects()?;
        let (rounds, chunk_ms) = if self.quick { (12, 200) } else { (40, 400) };
        let mut cases = Vec::new();
        for scenario in &self.scenarios {
            let clients: &[usize] = if scenario.bulk().is_some() { &[1] } else { &self.clients };
            cases.extend(clients.iter().map(|&clients| Case {
                scenario: *scenario,
                clients,
                placement: self.load.placement(*scenario, clients),
            }));
        }
        let plan = Plan {
            cases,
            rounds: self.rounds.unwrap_or(rounds).max(1),
            chunk: Duration::from_millis(self.chunk_ms.unwrap_or(chunk_ms).max(1)),
            seed: self.seed,
        };
        let mut running = rounds::start(&site, &subjects)?;
        let results = rounds::run(&plan, &site, &mut running)?;
        let idle = match self.idle {
            Some(connections) => idle::run(connections, &site, &mut running),
            None => Vec::new(),
        };
        drop(running);
        let report = Report {
            host,
            peers: subjects.iter().filter_map(|subject| subject.version()).collect(),
            setup: self.setup(&site, &plan),
            commit: host::commit(),
            date: host::date(),
            results,
            idle,
        };
        println!("{}", report::table(&report));
        if let Some(path) = &self.out {
            let json = serde_json::to_vec_pretty(&report)?;
            std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    fn site(&self) -> anyhow::Result<Site> {
        let cpus = std::thread::available_parallelism()?.get();
        let (client_cpu, server_cpus) = match (&self.server_cpus, cpus) {
            (Some(list), _) => (Some(self.client_cpu), Some(list.clone())),
            (None, 1) => {
                eprintln!("There is one CPU only: client and servers share it, and ratios come out flatter.");
                (None, None)
            }
            (None, _) => (Some(self.client_cpu), Some(usize::from(self.client_cpu == 0).into())),
        };
        let apart = self.target.iter().any(|target| target.netns.is_some());
        let mut netns = if apart { Some(Arc::new(host::fresh_netns()?)) } else { None };
        let (mut ip, mut client_netns, mut tunnel) = (self.ip, None, None);
        if let Some(program) = &self.tunnel {
            let bed = Bed::new()?;
            let link = bed.tunnel("faasd", 1, |interface| tunnel::faasd_tunnel(program, interface))?;
            netns = Some(Arc::new(bed.end(1)?));
            client_netns = Some(Arc::new(bed.end(0)?));
            ip = link.address.into();
            tunnel = Some(link);
        }
        let seat = Seat { own_cpu: client_cpu, server_cpu: server_cpus.as_ref().map(Cpus::first) };
        Ok(Site {
            program: std::env::current_exe()?,
            hello: self.hello.clone(),
            server_cpus,
            netns,
            client_netns,
            tunnel,
            mark: apart.then_some(faasd_common::DAEMON_MARK),
            ip,
            dir: tempfile::Builder::new().prefix("faasd-bench-").tempdir()?,
            seat,
        })
    }

    fn setup(&self, site: &Site, plan: &Plan) -> Setup {
        Setup {
            rounds: plan.rounds,
            chunk_ms: plan.chunk.as_millis(),
            client_cpu: site.seat.own_cpu,
            server_cpus: site.server_cpus.as_ref().map(ToString::to_string),
            fresh_netns: site.netns.is_some(),
            tunnel: site.tunnel.is_some(),
            hello: self.hello.as_ref().and_then(|p| Some(p.file_name()?.to_string_lossy().into_owned())),
            realtime: realtime_policy().is_some(),
            nice: niceness(),
        }
    }

    /// Those that were asked for; bare is always the first.
    fn subjects(&self) -> anyhow::Result<Vec<Box<dyn Subject>>> {
        let mut all: Vec<Box<dyn Subject>> = vec![Box::new(Bare(Bare::CONTROL))];
        all.extend(Proxied::ALL.map(|proxied| Box::new(proxied) as Box<dyn Subject>));
        all.extend(Acceptor::ALL.map(|acceptor| Box::new(HandedOver(acceptor)) as Box<dyn Subject>));
        // Like the first of the targets: they are there to be compared with each other.
        let like = self.target.iter().find_map(|target| target.function.first());
        all.extend(like.map(|pid| Box::new(Confined { like: *pid }) as Box<dyn Subject>));
        let names: Vec<_> = all.iter().map(|subject| subject.name().to_owned()).collect();
        for name in &self.subjects {
            ensure!(
                names.contains(name) || name == Bare::BASE,
                "there is no subject `{name}`; there are {}",
                names.join(", ")
            );
        }
        if !self.subjects.is_empty() {
            all.retain(|subject| self.subjects.iter().any(|name| name == subject.name()));
        }
        all.extend(self.target.iter().map(|target| Box::new(target.clone()) as Box<dyn Subject>));
        all.insert(0, Box::new(Bare(Bare::BASE)));
        Ok(all)
    }
}
