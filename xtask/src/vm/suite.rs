//! What is tried in the machine.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::machine::Machine;
use crate::test::Program;
use crate::test::libtest::{Outcome, Tally};

/// An emulated processor is some ten times slower.
const PROGRAM_MAX: Duration = Duration::from_secs(20 * 60);

/// Questions to the machine itself.
const ASK_MAX: Duration = Duration::from_secs(60);

/// A test program and what of it runs.
struct Part {
    /// The crate and the target.
    program: (&'static str, &'static str),
    arguments: &'static [&'static str],
    /// Which of them `--quick` keeps; none: all of the part is left out.
    quick: &'static [&'static str],
}

/// In the order in which a failure says the most: the kernel program, the tunnel, containers, all together.
const PARTS: &[Part] = &[
    Part {
        program: ("faasd", "kernel"),
        arguments: &["--ignored"],
        quick: &["live_connections_are_counted_exactly"],
    },
    Part {
        program: ("faasd", "tunnel"),
        arguments: &["--ignored"],
        quick: &["traffic_passes_whoever_encrypts", "the_kernel_is_asked"],
    },
    Part { program: ("faasd", "runtime"), arguments: &["--ignored"], quick: &["memory_has_its_limit"] },
    Part { program: ("faasd-tests", "wireguard"), arguments: &[], quick: &[""] },
    Part {
        program: ("faasd-tests", "path"),
        arguments: &[],
        quick: &["both_kinds_of_function_answer_by_name_through_the_tunnel"],
    },
];

/// Those of this build that have a part.
pub fn programs(mut all: Vec<Program>) -> Vec<Program> {
    all.retain(|program| PARTS.iter().any(|part| part.is_of(program)));
    all
}

impl Part {
    fn is_of(&self, program: &Program) -> bool {
        program.package == self.program.0
            && program.name == format!("{} {} (test)", self.program.0, self.program.1)
    }
}

/// Runs the tests. Fails if one does, if none ran, or if the kernel complained.
pub fn run(machine: &mut Machine, programs: &[Program], quick: bool, filter: Option<&str>) -> Result<()> {
    println!(
        "vm: {}",
        machine
            .succeed("uname -sr; systemctl --version | head -1; runc --version | head -1", ASK_MAX)?
            .trim()
            .replace('\n', ", ")
    );
    let mut all = Tally::default();
    for part in PARTS {
        let program = programs.iter().find(|program| part.is_of(program));
        let program = program.with_context(|| format!("no test program {:?} was built", part.program))?;
        let filters: Vec<&str> = match (quick, filter) {
            (true, _) => part.quick.to_vec(),
            (false, Some(filter)) => vec![filter],
            (false, None) => vec![""],
        };
        if filters.is_empty() {
            continue;
        }
        println!("vm: {} …", program.name);
        let start = Instant::now();
        let mut outcome = Outcome::default();
        let status = machine.run(&command(program, part.arguments, &filters), PROGRAM_MAX, &mut |line| {
            println!("  {line}");
            outcome.read(line);
        })?;
        if status != 0 && outcome.tally.failed == 0 {
            println!("  it ended with {status}");
            outcome.tally.failed += 1;
        }
        println!("vm: {}: {:.1} s", program.name, start.elapsed().as_secs_f64());
        all.add(&outcome.tally);
    }
    let complaints = machine.succeed("dmesg | grep -E 'BUG:|WARNING:|Oops' || true", ASK_MAX)?;
    println!("{} passed, {} failed, {} skipped", all.passed, all.failed, all.skipped);
    if !complaints.trim().is_empty() {
        bail!("the kernel complained:\n{complaints}");
    }
    if all.failed > 0 {
        bail!("{} tests failed", all.failed);
    }
    if all.passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

/// What runs a test program as cargo would, one test at a time: processors here are few and slow.
fn command(program: &Program, arguments: &[&str], filters: &[&str]) -> String {
    let directory = program.directory.display();
    let filters = filters.iter().map(|filter| format!("'{filter}'")).collect::<Vec<_>>().join(" ");
    format!(
        "cd '{directory}' && CARGO_MANIFEST_DIR='{directory}' FAASD_TEST_WIREGUARD=kernel FAASD_TEST_MACHINE=1 '{}' --test-threads=1 {} {filters}",
        program.path.display(),
        arguments.join(" "),
    )
}
