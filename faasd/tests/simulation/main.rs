//! The policy of a function's life in a world that goes wrong: containers fail, hang and die, the store is full, messages
//! are late, the daemon is restarted between two actions, the clock jumps, and users change their minds. Each seed is
//! one such world; what must hold is checked at each step (`checks.rs`), and after the faults have stopped the function
//! has to come to rest as it was declared.
//!
//! `FAASD_SEED=N cargo test -p faasd --test simulation -- --nocapture` replays one with its trace, `FAASD_SEEDS=N` tries
//! so many.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod checks;
mod driver;
mod user;
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use self::world::World;

const SEEDS: u64 = 10_000;

/// Lines of a failing seed's trace that are printed.
const TRACE_LINES_MAX: usize = 60;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is no number: {value}")))
}

/// Seeds after which every kind of action has been seen, or they show too little.
const SEEDS_ENOUGH: u64 = 1_000;

/// The kinds of actions, and how often each was done.
type Done = BTreeMap<&'static str, u64>;

const KINDS: usize = 14;

/// A seed from its beginning to rest: what went wrong, the trace, if it is kept, and what was done.
fn live(seed: u64, keep_trace: bool) -> (Result<(), String>, Vec<String>, Done) {
    let mut world = World::new(seed, keep_trace);
    let result = catch_unwind(AssertUnwindSafe(|| world.live())).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(format!("a panic: {}", text.unwrap_or_else(|| "without a text".to_owned())))
    });
    let steps = world.steps;
    (result.map_err(|why| format!("seed {seed}, step {steps}: {why}")), world.trace, world.done)
}

#[test]
fn a_function_survives_what_goes_wrong() {
    if let Some(seed) = variable("FAASD_SEED") {
        let (result, trace, _) = live(seed, true);
        println!("{}", trace.join("\n"));
        result.unwrap();
        return;
    }
    let seeds = variable("FAASD_SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(0);
    let failed = Mutex::new(None::<u64>);
    let all = Mutex::new(Done::new());
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    let (result, _, done) = live(seed, false);
                    let mut all = all.lock().unwrap();
                    done.into_iter().for_each(|(kind, times)| *all.entry(kind).or_default() += times);
                    drop(all);
                    if result.is_err() {
                        let mut failed = failed.lock().unwrap();
                        *failed = Some(failed.map_or(seed, |other| other.min(seed)));
                        next.store(seeds, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    if let Some(seed) = failed.into_inner().unwrap() {
        let (result, trace, _) = live(seed, true);
        println!("{}", trace[trace.len().saturating_sub(TRACE_LINES_MAX)..].join("\n"));
        let why = result.expect_err("a seed fails each time or never");
        panic!("{why}\nFAASD_SEED={seed} cargo test -p faasd --test simulation -- --nocapture replays it");
    }
    let all = all.into_inner().unwrap();
    println!("{seeds} seeds: {all:?}");
    assert!(seeds < SEEDS_ENOUGH || all.len() == KINDS, "some actions were never asked for: {all:?}");
}
