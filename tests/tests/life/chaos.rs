//! The daemon, killed again and again while clients are at work and functions are changed.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use faasd_tests::{Bed, Load, address, eventually, only, ready, until};
use rustix::process::Signal;

use crate::code::{Kind, deploy};

/// How long it goes on: `FAASD_CHAOS_SECONDS`, or this.
const SECONDS: u64 = 45;

/// A number below `end`, another each time.
fn random(end: u64) -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::from(now.subsec_nanos()) / 64 % end
}

pub fn kills() -> Result<()> {
    let seconds = std::env::var("FAASD_CHAOS_SECONDS").ok().and_then(|text| text.parse().ok());
    let until_when = Instant::now() + Duration::from_secs(seconds.unwrap_or(SECONDS));
    let mut bed = Bed::joined()?;
    deploy(&bed, Kind::Handler, "steady", "steady", "", &[])?;
    deploy(&bed, Kind::Server, "server", "server", "[scale]\nmin = 2", &[])?;
    deploy(&bed, Kind::Handler, "change", "0", "", &[])?;
    deploy(&bed, Kind::Server, "sleeper", "sleeper", "[scale]\nmin = 0\nidle = '1s'", &[])?;
    let at = |name: &str| address(&bed.describe(name)?);
    let loads = [
        Load::start(&bed.client(), at("steady")?, 80, 8)?,
        Load::start(&bed.client(), at("server")?, 80, 8)?,
        // Its revisions come and go: a connection is closed by the one that leaves, and made anew.
        Load::keeping(&bed.client(), at("change")?, 80, 4)?,
        Load::reconnecting(&bed.client(), at("server")?, 80, 1)?,
    ];
    let sleeper = at("sleeper")?;
    let mut kills = 0;
    // What was acknowledged last, and what has been tried since.
    let (mut acknowledged, mut tried) = (0, 0);
    while Instant::now() < until_when {
        let daemon = bed.daemon();
        tried += 1;
        let text = tried.to_string();
        let wait = Duration::from_millis(random(1500));
        let done = std::thread::scope(|scope| {
            let changing = scope.spawn(|| match tried % 3 {
                0 => bed.faas(&["rollback", "change"]).map(|output| (output.status == Some(0), false)),
                _ => deploy_change(&bed, &text).map(|done| (done, true)),
            });
            std::thread::sleep(wait);
            faasd_tests::signal(daemon, Signal::KILL)?;
            changing.join().map_err(|_| anyhow::anyhow!("the change panicked"))?
        });
        bed.end_daemon(Signal::KILL)?;
        kills += 1;
        // While nobody is there.
        loads[0].more(20)?;
        loads[1].more(20)?;
        bed.serve().with_context(|| format!("after kill {kills}"))?;
        let (succeeded, was_deploy) = done.unwrap_or((false, true));
        let answer =
            bed.client().curl("http://change.faas/").with_context(|| format!("after kill {kills}"))?;
        if was_deploy {
            let known = answer == text || (!succeeded && answer == acknowledged.to_string());
            ensure!(known, "kill {kills}: {answer:?}, after {text} ({succeeded}) and {acknowledged}");
        }
        acknowledged = answer.parse::<u64>()?;
        ensure!(bed.client().curl("http://sleeper.faas/")? == "sleeper");
        for load in &loads {
            load.more(10).with_context(|| format!("after kill {kills}"))?;
        }
    }
    for (n, load) in loads.into_iter().enumerate() {
        load.finish().with_context(|| format!("load {n}, {kills} kills"))?;
    }
    // What is there is what was declared, and nothing else.
    until(&bed, "change", "one instance of one revision", |f| {
        only(f).is_ok() && f["instances"][0]["revision"] == f["revision"]
    })?;
    until(&bed, "server", "its two instances", |f| {
        ready(f).len() == 2 && f["instances"].as_array().is_some_and(|all| all.len() == 2)
    })?;
    ensure!(bed.client().connect(sleeper, 80).is_ok());
    for name in ["steady", "server", "change", "sleeper"] {
        bed.faas(&["rm", name, "--yes"])?.ok()?;
    }
    // Before anything is torn down: nothing is left of containers that a dead daemon had begun.
    for dir in ["state/bundles", "run/runc"] {
        eventually(&format!("nothing is left in {dir}, after {kills} kills"), || {
            std::fs::read_dir(bed.path(dir)).is_ok_and(|mut entries| entries.next().is_none())
        })?;
    }
    println!("{kills} kills");
    bed.finish()
}

/// Deploys the next revision. That the daemon dies meanwhile is no error.
fn deploy_change(bed: &Bed, text: &str) -> Result<bool> {
    match deploy(bed, Kind::Handler, "change", text, "", &[]) {
        Ok(()) => Ok(true),
        Err(_) => Ok(false),
    }
}
