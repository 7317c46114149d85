//! Deploys, removals and the daemon's end at once.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use faasd_tests::{Bed, Output};
use rustix::process::Signal;

use crate::check::{has_instances, is_absent, is_idle, resolve, says};

fn handler(answer: &str) -> Vec<u8> {
    format!("def handle(event, context):\n    return '{answer}'\n").into_bytes()
}

/// Writes a function's files to a directory of its own, so that two may be deployed by one name.
fn written(bed: &Bed, answer: &str) -> Result<String> {
    let dir = bed.path("versions").join(answer);
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("handler.py"), handler(answer))?;
    Ok(dir.display().to_string())
}

fn joined(thread: std::thread::ScopedJoinHandle<'_, Result<Output>>) -> Result<Output> {
    thread.join().unwrap_or_else(|_| bail!("a thread panicked"))
}

pub fn at_once() -> Result<()> {
    let bed = Bed::serving()?;
    let (one, two) = (written(&bed, "one")?, written(&bed, "two")?);
    // Two deploys of one name.
    for _ in 0..3 {
        let (a, b) = std::thread::scope(|scope| -> Result<_> {
            let a = scope.spawn(|| bed.faas(&["deploy", "f", &one]));
            let b = scope.spawn(|| bed.faas(&["deploy", "f", &two]));
            Ok((joined(a)?, joined(b)?))
        })?;
        let answer = bed.faas(&["invoke", "f"])?.ok()?;
        let mut went_well = 0;
        for (output, own) in [(a, "one"), (b, "two")] {
            match output.status {
                Some(0) => went_well += 1,
                _ => {
                    ensure!(!answer.contains(own), "'{own}' was refused and serves: {output:?}");
                    says(output, &["another change of 'f' overtook this one"])?;
                }
            }
        }
        ensure!(went_well > 0, "neither was deployed");
        has_instances(&bed, 1)?;
    }
    // A deploy and a removal: each answers, and what is there afterwards is all there or all gone.
    for delay_ms in [0, 50, 150, 300] {
        let (a, b) = std::thread::scope(|scope| -> Result<_> {
            let a = scope.spawn(|| bed.faas(&["deploy", "f", &one]));
            let b = scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(delay_ms));
                Ok(())
            });
            b.join().unwrap_or_else(|_| bail!("a thread panicked"))?;
            let removed = bed.faas(&["rm", "f"])?;
            Ok((joined(a)?, removed))
        })?;
        ensure!(a.status.is_some() && b.status.is_some(), "{a:?}\n{b:?}");
        if bed.faas(&["describe", "f"])?.status == Some(0) {
            ensure!(bed.faas(&["invoke", "f"])?.ok()?.contains("one"));
            ensure!(resolve(&bed, "f")? == 0);
            has_instances(&bed, 1)?;
            ensure!(a.status == Some(0), "it is there, and its deploy failed: {a:?}");
        } else {
            is_absent(&bed, "f")?;
            is_idle(&bed)?;
            ensure!(b.status == Some(0), "it is gone, and its removal failed: {b:?}");
        }
    }
    bed.faas(&["deploy", "hello", &one])?.ok()?;
    says(bed.faas(&["rm", "helo"])?, &["no function 'helo'", "did you mean 'hello'"])?;
    bed.finish()
}

/// What serves after a deploy of `new` over `old` was cut short.
fn old_or_new(bed: &Bed, acknowledged: bool) -> Result<()> {
    let answer = bed.faas(&["invoke", "f"])?.ok()?;
    let revision = bed.describe("f")?["revision"].as_u64().context("a revision")?;
    match (answer.contains("old"), answer.contains("new")) {
        (true, false) => ensure!(revision == 1 && !acknowledged, "{revision}, {acknowledged}"),
        (false, true) => ensure!(revision == 2, "{revision}"),
        _ => bail!("between old and new: {answer}"),
    }
    has_instances(bed, 1)
}

pub fn terminated() -> Result<()> {
    let mut bed = Bed::serving()?;
    let (old, slow) = (written(&bed, "old")?, written(&bed, "new")?);
    let code = "import time\ntime.sleep(3)\ndef handle(event, context):\n    return 'new'\n";
    std::fs::write(format!("{slow}/handler.py"), code)?;
    bed.faas(&["deploy", "f", &old])?.ok()?;
    let socket = bed.path("run/faasd.sock");
    let deploy = std::process::Command::new(faasd_tests::program("faas"))
        .arg("--socket")
        .arg(&socket)
        .args(["deploy", "f", &slow])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()?;
    faasd_tests::eventually("the candidate starts", || {
        bed.describe("f").is_ok_and(|f| f["instances"].as_array().is_some_and(|i| i.len() == 2))
    })?;
    bed.end_daemon(Signal::TERM)?;
    let output = deploy.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let acknowledged = output.status.success();
    ensure!(acknowledged || said.contains("faasd"), "{said}");
    bed.serve()?;
    old_or_new(&bed, acknowledged)?;
    bed.finish()
}

pub fn killed() -> Result<()> {
    let mut bed = Bed::serving()?;
    let (old, new) = (written(&bed, "old")?, written(&bed, "new")?);
    for delay_ms in [5, 30, 60, 100, 150, 220, 320] {
        bed.faas(&["deploy", "f", &old])?.ok()?;
        let socket = bed.path("run/faasd.sock").display().to_string();
        let mut deploy = std::process::Command::new(faasd_tests::program("faas"))
            .args(["--socket", &socket, "deploy", "f", &new])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()?;
        // The moment is the thing that is tried.
        std::thread::sleep(Duration::from_millis(delay_ms));
        bed.end_daemon(Signal::KILL)?;
        let acknowledged = deploy.wait()?.success();
        bed.serve().with_context(|| format!("after {delay_ms} ms"))?;
        old_or_new(&bed, acknowledged).with_context(|| format!("after {delay_ms} ms"))?;
        for dir in ["state/uploads", "state/images/tmp"] {
            let left: Vec<_> = std::fs::read_dir(bed.path(dir)).into_iter().flatten().flatten().collect();
            ensure!(left.is_empty(), "after {delay_ms} ms: {left:?}");
        }
        bed.faas(&["rm", "f"])?.ok()?;
        is_idle(&bed)?;
    }
    // And the very first deploy of a name.
    for delay_ms in [40, 120, 200] {
        let socket = bed.path("run/faasd.sock").display().to_string();
        let mut deploy = std::process::Command::new(faasd_tests::program("faas"))
            .args(["--socket", &socket, "deploy", "g", &new])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()?;
        std::thread::sleep(Duration::from_millis(delay_ms));
        bed.end_daemon(Signal::KILL)?;
        let acknowledged = deploy.wait()?.success();
        bed.serve()?;
        if bed.faas(&["describe", "g"])?.status == Some(0) {
            ensure!(bed.faas(&["invoke", "g"])?.ok()?.contains("new"));
            bed.faas(&["rm", "g"])?.ok()?;
        } else {
            ensure!(!acknowledged, "an acknowledged deploy is gone");
        }
        is_absent(&bed, "g")?;
        is_idle(&bed)?;
    }
    bed.finish()
}
