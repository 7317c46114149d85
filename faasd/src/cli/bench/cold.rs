//! Cold starts: one request at a time, each to a function that has come to zero instances.

use std::time::{Duration, Instant};

use super::drive::{Drive, Measured};
use crate::api::client::Client;
use crate::api::types::{Function, Phase};
use crate::cli::ui::took;
use crate::cli::{Exit, Failure};
use crate::core::load::compare::Shown;
use crate::core::load::record::Record;
use crate::core::name::FunctionName;
use crate::load::{Chunk, Load};

/// How often the daemon is asked whether a function is at zero.
const POLL: Duration = Duration::from_millis(50);

/// How much longer than its own times a function may take to come to zero.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts if nobody says how many.
const STARTS: u64 = 10;

/// Says what forbids that a function is ever at zero.
pub fn refuse(function: &Function) -> Option<Failure> {
    let (name, min) = (&function.name, function.spec.scale.min);
    (min > 0).then(|| {
        Failure::new(Exit::Usage, format!("'{name}' never comes to zero instances: its scale.min is {min}"))
            .hint(format!("deploy it with `--min 0`, and `--idle 1s` to wait less: `faas deploy {name} DIR --min 0 --idle 1s`"))
    })
}

/// Whether a function has no instance that runs, and as many prepared ones as it is to have.
fn is_cold(function: &Function) -> bool {
    let prepared = function.instances.iter().filter(|instance| instance.phase == Phase::Prepared).count();
    let wanted = function.spec.scale.prepared.min(function.spec.scale.max()) as usize;
    prepared == function.instances.len() && prepared >= wanted
}

/// Measures one start after the other, of one function or of two in turns.
pub async fn run(drive: &Drive<'_>, client: &Client, names: &[FunctionName]) -> Result<Measured, Failure> {
    let start = |target| Load::start(&drive.plan, target, &drive.stop.receiver);
    let loads = drive.targets.iter().map(start).collect::<std::io::Result<Vec<_>>>();
    let loads = loads.map_err(|e| Failure::new(Exit::Failed, format!("cannot start the load: {e}")))?;
    let began = Instant::now();
    let starts = drive.requests.unwrap_or(if drive.duration.is_some() { u64::MAX } else { STARTS });
    let spinner = drive.ui.spinner(String::new());
    let mut measured = Measured { records: vec![Record::default(); loads.len()], pairs: Vec::new() };
    for number in 0..starts {
        if drive.duration.is_some_and(|duration| began.elapsed() >= duration) {
            break;
        }
        let mut seen = vec![None; loads.len()];
        for step in 0..loads.len() {
            // In turns, and who is first in turns as well.
            let which = (step + number as usize) % loads.len();
            spinner.set_message(format!("start {}: waiting until '{}' is at zero", number + 1, names[which]));
            let Some(waited) = drive.stop.unless(at_zero(client, &names[which])).await else { break };
            waited?;
            spinner.set_message(format!("start {}: '{}'", number + 1, names[which]));
            let chunk = Chunk { duration: None, requests: Some(1) };
            let record = loads[which].run(chunk).await;
            let record = record.map_err(|e| Failure::new(Exit::Failed, e.to_string()))?;
            seen[which] = Shown::of(&record);
            measured.records[which].append(record);
        }
        if drive.stop.is_stopped() {
            break;
        }
        if let [Some(first), Some(second)] = seen.as_slice() {
            measured.pairs.push((*first, *second));
        }
    }
    spinner.finish_and_clear();
    Ok(measured)
}

async fn at_zero(client: &Client, name: &FunctionName) -> Result<(), Failure> {
    let began = Instant::now();
    loop {
        let function = client.function(name).await?;
        if is_cold(&function) {
            return Ok(());
        }
        let limit = function.spec.scale.idle() + function.spec.deadlines.drain() + PATIENCE;
        if began.elapsed() > limit {
            let instances = function.instances.len();
            let text = format!("'{name}' has not come to zero within {}: {instances} instances", took(limit));
            return Err(Failure::new(Exit::Failed, text).hint("is somebody else connected to it?"));
        }
        tokio::time::sleep(POLL).await;
    }
}
