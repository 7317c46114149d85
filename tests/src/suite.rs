//! A program of tests: each a function that tells what went wrong.

use std::sync::{PoisonError, RwLock};

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Held alone by a test that measures or loads the machine, and shared by all others.
static MACHINE: RwLock<()> = RwLock::new(());

/// A test that runs beside others.
pub fn shared(name: &str, test: fn() -> Result<()>) -> Trial {
    Trial::test(name, move || {
        let _machine = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
        outcome(test)
    })
}

/// A test that has the machine to itself.
pub fn alone(name: &str, test: fn() -> Result<()>) -> Trial {
    Trial::test(name, move || {
        let _machine = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
        outcome(test)
    })
}

/// Runs those that the command line asks for, with as many descriptors as may be had, and ends the program.
pub fn run(trials: Vec<Trial>) -> ! {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}

fn outcome(test: fn() -> Result<()>) -> Result<(), Failed> {
    test().map_err(|e| Failed::from(format!("{e:#}")))
}
