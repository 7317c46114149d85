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
    /// Parts of names; the empty one is in all of them.
    full: &'static [&'static str],
    quick: &'static [&'static str],
}

/// In the order in which a failure says the most: the kernel program, the tunnel, containers, all together.
const PARTS: &[Part] = &[
    Part {
        program: ("faasd", "kernel"),
        arguments: &["--ignored"],
        full: &[""],
        quick: &["a_connection_counts_where_it_was_made", "each_start_puts_one_guard"],
    },
    Part {
        program: ("faasd", "tunnel"),
        arguments: &["--ignored"],
        full: &[""],
        quick: &["the_kernel_is_asked"],
    },
    Part {
        program: ("faasd", "runtime"),
        arguments: &["--ignored"],
        full: &[""],
        quick: &["memory_has_its_limit"],
    },
    Part { program: ("faasd-tests", "wireguard"), arguments: &[], full: &[""], quick: &[""] },
    // What each is for is the same on any kernel, and takes a start of the daemon for each.
    Part { program: ("faasd-tests", "capabilities"), arguments: &[], full: &["are_enough"], quick: &[] },
    Part {
        program: ("faasd-tests", "attack"),
        arguments: &[],
        // What is left out is the name server's, which is the same on any kernel.
        full: &[
            "another_peers_address",
            "a_peers_address_is_of_no_use",
            "a_revoked_peer_is_cut_off",
            "who_may_nothing",
            "a_user_gets_nothing",
            "an_invitation_admits_once",
            "junk_from_outside",
            "a_recorded_handshake",
        ],
        quick: &["another_peers_address", "a_revoked_peer_is_cut_off"],
    },
    Part {
        program: ("faasd-tests", "path"),
        arguments: &[],
        // What is left out runs a load that takes an emulated processor an hour, or programs that are not installed.
        full: &[
            "both_kinds_of_function_answer",
            "what_is_not_there_is_refused",
            "names_come_and_go",
            "after_the_hand_off_only_the_container",
            "connections_are_spread",
            "a_killed_daemon_costs_no_connection",
            "a_killed_descriptor_store",
            "the_first_connections_wake",
            "a_crashed_instance_is_replaced",
            "a_new_revision_takes_over",
            "a_secret_is_read_by_its_function_alone",
        ],
        quick: &[],
    },
];

/// The test programs that have a part: their crates and targets.
pub fn targets() -> Vec<(&'static str, &'static str)> {
    PARTS.iter().map(|part| part.program).collect()
}

impl Part {
    fn is_of(&self, program: &Program) -> bool {
        program.package == self.program.0
            && program.name == format!("{} {} (test)", self.program.0, self.program.1)
    }

    /// Of which names parts have to be, of the tests to run.
    fn filters<'a>(&self, quick: bool, filter: Option<&'a str>) -> Vec<&'a str> {
        match (quick, filter) {
            (true, None) => self.quick.to_vec(),
            (false, None) => self.full.to_vec(),
            (false, Some(filter)) => vec![filter],
            // Where all are quick, those of them; else the quick ones of that name.
            (true, Some(filter)) if self.quick == [""] => vec![filter],
            (true, Some(filter)) => self.quick.iter().copied().filter(|name| name.contains(filter)).collect(),
        }
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
        let filters = part.filters(quick, filter);
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
    let variables =
        format!("CARGO_MANIFEST_DIR='{directory}' FAASD_TEST_WIREGUARD=kernel FAASD_TEST_MACHINE=1");
    format!(
        "cd '{directory}' && export {variables} && status=0; for filter in {filters}; do '{}' --test-threads=1 {} \"$filter\" || status=$?; done; exit $status",
        program.path.display(),
        arguments.join(" "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_holds_for_the_quick_ones_as_well() {
        let part = Part { program: ("p", "t"), arguments: &[], full: &[""], quick: &["one", "another"] };
        assert_eq!(part.filters(true, Some("other")), ["another"]);
        assert_eq!(part.filters(true, None), ["one", "another"]);
        assert!(part.filters(true, Some("x")).is_empty());
        assert_eq!(part.filters(false, Some("x")), ["x"]);
        assert_eq!(Part { quick: &[""], ..part }.filters(true, Some("x")), ["x"]);
    }

    #[test]
    fn what_is_quick_is_part_of_all() {
        for part in PARTS {
            let all = |name: &&&str| part.full.iter().any(|full| name.contains(full));
            assert_eq!(part.quick.iter().filter(all).count(), part.quick.len(), "{:?}", part.program);
        }
    }
}
