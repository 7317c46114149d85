//! Lets requests of an open loop go when they are due. tokio's timers are a millisecond wide, which would be a part of
//! each latency; a timer of the kernel's is not.

use std::cell::Cell;
use std::io;
use std::time::Instant;

use tokio::sync::Semaphore;

use crate::core::load::schedule::Schedule;
use crate::sys::timer::Timer;

/// The most permits that are given in one turn.
const AT_ONCE_MAX: usize = 1 << 16;

/// Gives a permit for each request when it is due, `most` at most, and returns at the `end`; without one, when all have
/// been given. `given` counts them.
pub(super) async fn pace(
    schedule: Schedule,
    permits: &Semaphore,
    given: &Cell<u64>,
    begin: Instant,
    end: Option<Instant>,
    most: u64,
) -> io::Result<()> {
    let timer = Timer::new()?;
    loop {
        let now = Instant::now();
        if end.is_some_and(|end| now >= end) {
            return Ok(());
        }
        let due = schedule.due(now.saturating_duration_since(begin)).min(most);
        if due > given.get() {
            // No more than a semaphore can hold; the rest is given in the next turn.
            let more = usize::try_from(due - given.get()).unwrap_or(usize::MAX).min(AT_ONCE_MAX);
            permits.add_permits(more);
            given.set(given.get() + more as u64);
            // Let them go before the next ones are looked for.
            tokio::task::yield_now().await;
            continue;
        }
        let next = (given.get() < most).then(|| begin + schedule.at(given.get()));
        let Some(until) = [next, end].into_iter().flatten().min() else { return Ok(()) };
        timer.wait(until.saturating_duration_since(Instant::now())).await?;
    }
}
