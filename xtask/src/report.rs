//! Progress: one line when a step begins, one when it ends, with the time it took.

use std::time::Instant;

use anyhow::Result;

/// Runs one step of a task. What it returns closes its line.
pub fn step<T>(task: &str, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("{task}: {what} …");
    let start = Instant::now();
    let result = work();
    let seconds = start.elapsed().as_secs_f64();
    match &result {
        Ok(_) => println!("{task}: {what}: done in {seconds:.1} s"),
        Err(_) => println!("{task}: {what}: FAILED after {seconds:.1} s"),
    }
    result
}
