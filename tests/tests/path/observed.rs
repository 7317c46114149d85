//! What a function writes and what happens to it, as it is watched.

use std::io::{BufRead, BufReader};
use std::process::Child;
use std::sync::mpsc::{Receiver, sync_channel};

use anyhow::{Context, Result, ensure};
use faasd_tests::{Bed, DEADLINE, signal};
use rustix::process::Signal;

use crate::{only, ready, until};

/// Says that it has started; its instance's name is in front of each line.
const TALKER: &str = "print('started', flush=True)\n\ndef handle(event, context):\n    \
    print('asked for', event.path, flush=True)\n    return 'ok'\n";

/// A verb that goes on, and its lines.
struct Watching {
    child: Child,
    lines: Receiver<String>,
}

impl Watching {
    fn start(bed: &Bed, arguments: &[&str]) -> Result<Self> {
        let mut child = bed.faas_beside(arguments)?;
        let out = BufReader::new(child.stdout.take().context("no output")?);
        let (sender, lines) = sync_channel(1024);
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Ok(Self { child, lines })
    }

    /// Reads on to the first line that `is_it` likes.
    fn until(&self, is_it: impl Fn(&str) -> bool) -> Result<String> {
        loop {
            let line = self.lines.recv_timeout(DEADLINE).context("the line does not come")?;
            if is_it(&line) {
                return Ok(line);
            }
        }
    }

    /// Waits for its end.
    fn end(mut self) -> Result<Option<i32>> {
        while self.lines.recv_timeout(DEADLINE).is_ok() {}
        Ok(self.child.wait()?.code())
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        // One that has ended already is no error.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The instance of a line: `TIME INSTANCE: TEXT`.
fn instance(line: &str) -> String {
    let rest = line.split_once(' ').map_or("", |(_, rest)| rest);
    rest.split(':').next().unwrap_or_default().to_owned()
}

pub fn logs() -> Result<()> {
    let bed = Bed::joined()?;
    let two = ("faas.toml", &b"[scale]\nmin = 2\n"[..]);
    bed.deploy("talker", &[("handler.py", TALKER.as_bytes()), two])?.ok()?;
    let before = until(&bed, "talker", "two instances", |f| ready(f).len() == 2)?;
    let watch = Watching::start(&bed, &["logs", "talker", "-f"])?;
    let started = |line: &str| line.ends_with(": started");
    // Those that are there come from the files, the ones after them as they are written.
    let (one, two) = (instance(&watch.until(started)?), instance(&watch.until(started)?));
    ensure!(one != two && one.starts_with("talker-1-") && two.starts_with("talker-1-"), "{one} {two}");
    bed.client().curl("http://talker.faas/now")?;
    let asked = instance(&watch.until(|line| line.ends_with(": asked for /now"))?);
    ensure!([&one, &two].contains(&&asked), "{asked}");
    signal(ready(&before)[0], Signal::KILL)?;
    let third = instance(&watch.until(started)?);
    ensure!(third != one && third != two, "{third}");

    let own = bed.faas(&["logs", "talker", "--instance", &third])?.ok()?;
    ensure!(!own.is_empty() && own.lines().all(|line| instance(line) == third), "{own}");
    let all = bed.faas(&["logs", "talker", "--since", "10m"])?.ok()?;
    ensure!(all.lines().filter(|line| started(line)).count() == 3, "{all}");
    ensure!(!all.contains('\x1b'), "{all}");
    ensure!(bed.faas(&["logs", "talker", "--since", "2100-01-01T00:00:00Z"])?.ok()?.is_empty());

    bed.faas(&["rm", "talker"])?.ok()?;
    ensure!(watch.end()? == Some(0), "it does not end as it should when the function is removed");
    bed.finish()
}

pub fn crashes() -> Result<()> {
    let bed = Bed::joined()?;
    let handler = |code: &str| format!("print('the last words', flush=True)\n{code}\n");
    let serves = handler("def handle(event, context):\n    return 'ok'");
    bed.deploy("frail", &[("handler.py", serves.as_bytes())])?.ok()?;
    let watch = Watching::start(&bed, &["events", "frail", "-f"])?;
    let crashed = only(&bed.describe("frail")?)?;
    signal(crashed, Signal::KILL)?;
    let line = watch.until(|line| line.contains("instance-failed"))?;
    ensure!(line.contains(" frail-1-") && line.to_lowercase().contains("kill"), "{line}");
    watch.until(|line| line.contains("the last words"))?;
    until(&bed, "frail", "another instance", |f| only(f).is_ok_and(|pid| pid != crashed))?;
    bed.deploy("frail", &[("handler.py", handler("raise SystemExit(3)").as_bytes())])?.failed()?;
    let line = watch.until(|line| line.contains("deploy-failed"))?;
    ensure!(line.contains(" frail"), "{line}");
    let described = bed.faas(&["describe", "frail"])?.ok()?;
    ensure!(described.contains("instance-failed") && described.contains("deploy-failed"), "{described}");
    // They outlive the function.
    bed.faas(&["rm", "frail"])?.ok()?;
    let kept = bed.json(&["events", "frail"])?;
    let kinds: Vec<_> =
        kept["events"].as_array().into_iter().flatten().filter_map(|event| event["kind"].as_str()).collect();
    for kind in ["deployed", "instance-failed", "deploy-failed", "removed"] {
        ensure!(kinds.contains(&kind), "no {kind}: {kept}");
    }
    bed.finish()
}

pub fn events() -> Result<()> {
    let mut bed = Bed::serving()?;
    bed.end_daemon(Signal::KILL)?;
    bed.serve()?;
    let watch = Watching::start(&bed, &["events", "-f", "-o", "json"])?;
    let is_start = |line: &str| line.contains("\"daemon-started\"");
    let ids: Vec<u64> = (0..2)
        .map(|_| {
            let event: serde_json::Value = serde_json::from_str(&watch.until(is_start)?)?;
            event["id"].as_u64().context("no number")
        })
        .collect::<Result<_>>()?;
    ensure!(ids[0] < ids[1], "{ids:?}");
    // Who watches is told when the daemon stops, and does not hold it up.
    ensure!(bed.end_daemon(Signal::TERM)? == Some(0));
    ensure!(watch.end()? == Some(69));
    bed.serve()?;
    let events = bed.json(&["events"])?;
    let starts = events["events"].as_array().context("no events")?;
    ensure!(starts.iter().filter(|event| event["kind"] == "daemon-started").count() == 3, "{events}");
    ensure!(bed.json(&["events", "nobody"])?["events"] == serde_json::json!([]));
    bed.finish()
}
