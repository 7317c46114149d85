//! What a machine lives through, step by step.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::machine::Machine;
use super::payload::MOUNT;

/// One step. An emulated processor is some ten times slower.
const STEP_MAX: Duration = Duration::from_secs(600);

/// What a step does. A command is a line of bash, under `set -eu`; `$MEDIA` is what was brought along.
pub enum Step {
    Run(&'static str, &'static str),
    Reboot,
}
use Step::{Reboot, Run};

/// Put before each command: what several of them use. A `client` is a namespace that has never seen the server, `load` sends
/// to both kinds of function while what follows it runs, and fails if one request does. `documented` are the commands that
/// docs/INSTALL.md has for a channel, as it has them; but the site is the machine's own, the version the one that is here.
const WORDS: &str = concat!(
    "none() { if \"$@\"; then echo \"there is still: $*\"; return 1; fi; }; ",
    "client() { ip netns exec client \"$@\"; }; ",
    "soon() { for i in $(seq 300); do \"$@\" >/dev/null 2>&1 && return; sleep 0.2; done; echo \"not in a minute: $*\"; \"$@\"; }; ",
    // By address: names are the daemon's to answer.
    "answers() { test \"$(client curl -sS --max-time 60 http://[$(cat /run/address-$1)]/)\" = \"$2\"; }; ",
    "bench() { client faas bench http://$1.faas/ --mode $2 -c 2 --rate 6 --duration ${3}s --timeout 60s -o json > /run/load-$1-$2; }; ",
    "load() { local seconds=$1; shift; local pids=; for f in hello server; do for m in connect keep-alive; do ",
    "bench $f $m $seconds & pids=\"$pids $!\"; done; done; sleep 8; \"$@\"; for p in $pids; do wait $p; done; ",
    "python3 -S -c \"import json,sys; r=[json.load(open(f))['targets'][0] for f in sys.argv[1:]]; ",
    "print('answered, failed:', [(t['answered'], t['failed']) for t in r]); ",
    "sys.exit(any(t['failed'] or t['answered'] < 20 for t in r))\" /run/load-*; }; ",
    "documented() { sed -n '/^```sh install='$1'$/,/^```$/p' $MEDIA/INSTALL.md | ",
    "sed -e '/^```/d' -e 's|https://faasd.github.io/faasd|http://127.0.0.1|' -e 's/sudo //' -e \"s/0[.]1[.]0/$VERSION/g\" >/run/documented; ",
    "test -s /run/documented; cat /run/documented; }; ",
);

/// Lives it through. Stops at the first step that fails, with what the machine has to say.
pub fn run(machine: &mut Machine, version: &str, life: &[&[Step]]) -> Result<()> {
    mount(machine)?;
    let mut passed = 0;
    for step in life.iter().copied().flatten() {
        let start = Instant::now();
        match step {
            Run(title, command) => {
                println!("vm: {title} …");
                let line = format!("set -eu; MEDIA={MOUNT}; VERSION='{version}'; {WORDS}{command}");
                let status = machine.run(&line, STEP_MAX, &mut |line| println!("  {line}"))?;
                if status != 0 {
                    explain(machine)?;
                    bail!("`{title}` failed with {status}");
                }
            }
            Reboot => {
                println!("vm: rebooting …");
                machine.reboot()?;
                mount(machine)?;
            }
        }
        passed += 1;
        println!("vm: done in {:.1} s", start.elapsed().as_secs_f64());
    }
    println!("{passed} passed, 0 failed, 0 skipped");
    Ok(())
}

fn mount(machine: &mut Machine) -> Result<()> {
    let command = format!("mkdir -p {MOUNT} && mount -o ro /dev/nvme1n1 {MOUNT}");
    machine.succeed(&command, STEP_MAX).map(drop)
}

/// What helps to find out why.
fn explain(machine: &mut Machine) -> Result<()> {
    let questions = "systemctl status --no-pager -n 0 'faasd*'; journalctl --no-pager -n 60 -o short-monotonic; dmesg | tail -5";
    machine.run(questions, STEP_MAX, &mut |line| println!("  | {line}")).map(drop)
}
