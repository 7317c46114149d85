//! Cold starts: from a client's `connect` to its answer when nothing runs yet. Four ways, interleaved: namespaces and an
//! `execve` and nothing else (the floor), `runc run` of the very bundle that faasd makes, faasd with nothing prepared, and
//! faasd with an instance held ready.

mod bare;
mod report;

pub use bare::floor;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde_json::Value;

use crate::load::{Destination, Placement, Scenario, Seat, fetch};
use crate::subject::Target;
use bare::Bundle;
use report::Series;

/// A target of this name with this appended is the same function with an instance held ready.
const PREPARED: &str = "-prepared";

/// How long a function may take to fall asleep and to be prepared anew.
const ASLEEP_MAX: Duration = Duration::from_secs(60);

/// How often it is looked whether it does.
const LOOK: Duration = Duration::from_millis(50);

/// What to measure.
#[derive(Debug, Args)]
pub struct Cold {
    /// A function at `scale.min = 0`, as for `run`; NAME-prepared is the same function with `scale.prepared = 1`.
    #[arg(long, value_name = "TARGET", required = true)]
    target: Vec<Target>,
    /// The client program `faas`, and the socket that it is to use.
    #[arg(long, value_name = "PROGRAM")]
    faas: PathBuf,
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Where the daemon makes its bundles.
    #[arg(long, value_name = "DIRECTORY")]
    bundles: PathBuf,
    /// In each of which everything is started once.
    #[arg(long, default_value_t = 50, overrides_with = "rounds")]
    rounds: u32,
    /// Write the results here too, as JSON.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Makes the order repeatable.
    #[arg(long)]
    seed: Option<u64>,
}

/// One way of one program to start.
#[derive(Clone, Debug)]
enum Way {
    Floor(Arc<Bundle>),
    Runc(Arc<Bundle>),
    Faasd { to: Destination, name: String, prepared: bool },
}

impl Cold {
    /// Measures, and prints what it found.
    ///
    /// # Errors
    /// If anything does not start or answer.
    pub fn run(&self) -> anyhow::Result<()> {
        ensure!(self.rounds > 0, "--rounds 0 measures nothing");
        let mut random = self.seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed);
        let ways = self.ways()?;
        let mut all: BTreeMap<(String, &'static str), Series> = BTreeMap::new();
        let mut order: Vec<usize> = (0..ways.len()).collect();
        for round in 0..=self.rounds {
            self.await_sleep()?;
            random.shuffle(&mut order);
            for &at in &order {
                let (program, way) = &ways[at];
                let taken = self.once(program, way).with_context(|| format!("{program}, {}", way.name()))?;
                // The first one is for the caches.
                if round > 0 {
                    all.entry((program.clone(), way.name())).or_default().push(taken);
                }
            }
            eprintln!("round {round} of {}", self.rounds);
        }
        report::print(&all, self.rounds, self.out.as_deref())
    }

    fn ways(&self) -> anyhow::Result<Vec<(String, Way)>> {
        let mut ways = Vec::new();
        for target in &self.target {
            let open = |path: &PathBuf| std::fs::File::open(path).map(Arc::new);
            let netns = target.netns.as_ref().map(open).transpose().context("opening the namespace")?;
            let to = Destination { address: target.address, netns, mark: Some(faasd_common::DAEMON_MARK) };
            let (program, prepared) = match target.name.strip_suffix(PREPARED) {
                Some(program) => (program.to_owned(), true),
                None => (target.name.clone(), false),
            };
            if !prepared {
                dial(&to)?;
                let described = self.describe(&target.name)?;
                let id = described.pointer("/instances/0/id").and_then(Value::as_str);
                let id = id.context("the function has no instance right after its answer")?;
                let bundle = Arc::new(Bundle::like(&self.bundles.join(id), &program)?);
                ways.push((program.clone(), Way::Floor(Arc::clone(&bundle))));
                ways.push((program.clone(), Way::Runc(bundle)));
            }
            ways.push((program, Way::Faasd { to, name: target.name.clone(), prepared }));
        }
        Ok(ways)
    }

    fn once(&self, program: &str, way: &Way) -> anyhow::Result<Taken> {
        match way {
            Way::Floor(bundle) => Ok(Taken::whole(bundle.floor()?)),
            Way::Runc(bundle) => Ok(Taken::whole(bundle.runc(program)?)),
            Way::Faasd { to, name, prepared } => {
                let held_kib = if *prepared { self.held(name)? } else { None };
                let whole = dial(to)?;
                let described = self.describe(name)?;
                let start = |key: &str| {
                    let instances = described["instances"].as_array()?;
                    let ready = instances.iter().find(|instance| instance["phase"] == "ready")?;
                    ready["start"][key].as_u64().map(Duration::from_micros)
                };
                Ok(Taken {
                    whole,
                    create: start("create_us").filter(|_| !prepared),
                    release: start("release_us"),
                    ready: start("ready_us"),
                    held_kib,
                })
            }
        }
    }

    /// Waits until no function runs, and those that are to have an instance prepared have it.
    fn await_sleep(&self) -> anyhow::Result<()> {
        for target in &self.target {
            let deadline = Instant::now() + ASLEEP_MAX;
            let wanted = usize::from(target.name.ends_with(PREPARED));
            loop {
                let described = self.describe(&target.name)?;
                let instances = described["instances"].as_array().map_or(&[][..], Vec::as_slice);
                // An instance has a process once it is prepared and not only about to be.
                let is_held = |i: &&Value| i["phase"] == "prepared" && i["pid"].is_u64();
                if instances.len() == wanted && instances.iter().filter(is_held).count() == wanted {
                    break;
                }
                if Instant::now() > deadline {
                    bail!("{} is not asleep after {ASLEEP_MAX:?}: {described}", target.name);
                }
                std::thread::sleep(LOOK);
            }
        }
        Ok(())
    }

    /// What an instance costs while it is held: the proportional set size of its process.
    fn held(&self, name: &str) -> anyhow::Result<Option<u64>> {
        let described = self.describe(name)?;
        let pid = described.pointer("/instances/0/pid").and_then(Value::as_u64);
        let read = |pid| std::fs::read_to_string(Path::new("/proc").join(pid).join("smaps_rollup"));
        let text = pid.and_then(|pid| read(pid.to_string()).ok()).unwrap_or_default();
        let pss = text.lines().find_map(|line| line.strip_prefix("Pss:")?.split_whitespace().next());
        Ok(pss.and_then(|kib| kib.parse().ok()))
    }

    fn describe(&self, name: &str) -> anyhow::Result<Value> {
        let mut command = Command::new(&self.faas);
        command.arg("--socket").arg(&self.socket).args(["describe", name, "--output", "json"]);
        let output = command.output().with_context(|| format!("cannot run {}", self.faas.display()))?;
        ensure!(output.status.success(), "faas: {}", String::from_utf8_lossy(&output.stderr).trim());
        serde_json::from_slice(&output.stdout).context("`faas describe` in JSON")
    }
}

impl Way {
    const fn name(&self) -> &'static str {
        match self {
            Self::Floor(_) => "1 floor",
            Self::Runc(_) => "2 runc run",
            Self::Faasd { prepared: false, .. } => "3 faasd",
            Self::Faasd { prepared: true, .. } => "4 faasd, prepared",
        }
    }
}

/// One start: all of it, and what the daemon says about its part.
#[derive(Clone, Copy, Debug)]
struct Taken {
    whole: Duration,
    create: Option<Duration>,
    release: Option<Duration>,
    ready: Option<Duration>,
    held_kib: Option<u64>,
}

impl Taken {
    const fn whole(whole: Duration) -> Self {
        Self { whole, create: None, release: None, ready: None, held_kib: None }
    }
}

/// From `connect` to the answer.
fn dial(to: &Destination) -> anyhow::Result<Duration> {
    Seat::default().run(Placement::Apart, to.netns.as_deref(), || {
        let began = Instant::now();
        fetch(to, Scenario::New)?;
        Ok(began.elapsed())
    })
}
