//! Running a test program and reading what it says: libtest and libtest-mimic speak alike.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::run;

/// How many tests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// What a test program did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub tally: Tally,
    /// Name and reason.
    ignored: Vec<(String, String)>,
}

impl Outcome {
    /// The tests that were left out for this reason.
    pub fn ignored_because(&self, reason: &str) -> Vec<String> {
        self.ignored.iter().filter(|(_, why)| why == reason).map(|(name, _)| name.clone()).collect()
    }

    /// Reads one line. A program may print several results, as `cargo test --doc` does.
    pub fn read(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("test result: ") {
            let count = |what: &str| -> usize {
                let parts = rest.split([';', '.']).map(str::trim);
                parts
                    .filter_map(|part| part.strip_suffix(what))
                    .find_map(|n| n.trim().parse().ok())
                    .unwrap_or(0)
            };
            self.tally.add(&Tally {
                passed: count("passed"),
                failed: count("failed"),
                skipped: count("ignored"),
            });
        } else if let Some((name, why)) =
            line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ignored"))
        {
            self.ignored.push((name.trim().to_owned(), why.trim_start_matches(',').trim().to_owned()));
        }
    }
}

/// Runs a test program. Its output appears as it comes if `live`, else only if it fails.
///
/// A program that dies, or takes longer than `limit`, is one failed test more.
pub fn run(title: &str, command: &mut Command, limit: Duration, live: bool) -> Result<Outcome> {
    let start = Instant::now();
    if live {
        println!("test: {title} …");
    }
    // A group of its own, so that a hanging program ends with its children.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().with_context(|| format!("cannot run `{}`", run::line(command)))?;
    let lines = lines_of(child.stdout.take(), child.stderr.take());

    let mut outcome = Outcome::default();
    let mut said = Vec::new();
    let mut hangs = false;
    loop {
        match lines.recv_timeout(limit.saturating_sub(start.elapsed())) {
            Ok(line) => {
                outcome.read(&line);
                if live {
                    println!("  {line}");
                }
                said.push(line);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                hangs = true;
                if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                    // It may have ended just now.
                    let _ = kill_process_group(pid, Signal::KILL);
                }
                break;
            }
        }
    }
    let status = child.wait()?;
    let died = hangs || (!status.success() && outcome.tally.failed == 0);
    if died {
        outcome.tally.failed += 1;
    }
    if outcome.tally.failed > 0 && !live {
        said.iter().for_each(|line| println!("  {line}"));
    }
    let how = match (hangs, died) {
        (true, _) => format!(", stopped after {} s: it hangs", limit.as_secs()),
        (_, true) => format!(", died: {status}"),
        _ => String::new(),
    };
    let Tally { passed, failed, skipped } = outcome.tally;
    let seconds = start.elapsed().as_secs_f64();
    println!("test: {title}: {passed} ok, {failed} failed, {skipped} left out{how} ({seconds:.1} s)");
    Ok(outcome)
}

/// The lines of both streams as they come. Ends when both do.
fn lines_of(
    out: Option<impl Read + Send + 'static>,
    err: Option<impl Read + Send + 'static>,
) -> Receiver<String> {
    const QUEUED_LINES: usize = 1024;
    let (sender, receiver) = sync_channel(QUEUED_LINES);
    let streams: [Option<Box<dyn Read + Send>>; 2] =
        [out.map(|stream| Box::new(stream) as Box<_>), err.map(|stream| Box::new(stream) as Box<_>)];
    for stream in streams.into_iter().flatten() {
        let sender = sender.clone();
        thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    break;
                }
            }
        });
    }
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn sh(script: &str, limit: Duration) -> Outcome {
        run("sh", Command::new("sh").args(["-c", script]), limit, false).unwrap()
    }

    #[test]
    fn results_add_up() {
        let outcome = sh(
            "echo 'test a::b ... ok'
             echo 'test a::c ... ignored, needs root'
             echo 'test a::d ... ignored'
             echo 'test result: ok. 1 passed; 0 failed; 2 ignored; 0 measured; 3 filtered out; finished in 0.00s'
             echo 'test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out'",
            LONG,
        );
        assert_eq!(outcome.tally, Tally { passed: 5, failed: 0, skipped: 2 });
        assert_eq!(outcome.ignored_because("needs root"), ["a::c"]);
    }

    #[test]
    fn a_failed_result_is_counted_once() {
        let outcome = sh("echo 'test result: FAILED. 3 passed; 2 failed; 0 ignored'; exit 101", LONG);
        assert_eq!(outcome.tally, Tally { passed: 3, failed: 2, skipped: 0 });
    }

    #[test]
    fn a_program_that_dies_has_failed() {
        assert_eq!(sh("kill -SEGV $$", LONG).tally.failed, 1);
    }

    #[test]
    fn a_program_that_hangs_is_ended() {
        let outcome = sh(
            "echo 'test result: ok. 1 passed; 0 failed; 0 ignored'; sleep 600",
            Duration::from_millis(200),
        );
        assert_eq!(outcome.tally, Tally { passed: 1, failed: 1, skipped: 0 });
    }
}
