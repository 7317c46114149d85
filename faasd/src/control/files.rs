//! How many files the daemon has open. A function holds one for as long as it is declared, whether it is called or not,
//! and may not take what connections, instances and callers need.

use std::os::fd::{AsFd, AsRawFd};

use rustix::process::{Resource, getrlimit};

/// The share of the limit that is not for declared functions: one in so many.
const LEFT_TO_OTHERS: u64 = 4;

/// There is no room for another function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no room for another function: faasd may open {limit} files, and keeps a quarter of them for connections and instances"
)]
pub struct Full {
    limit: u64,
}

impl Full {
    /// What to do about it.
    pub const REMEDY: &str = "remove a function, or raise the limit: LimitNOFILE=1048576 in the unit, or `ulimit -Hn 1048576` \
        before the start";
}

/// Whether another function may take its files.
///
/// # Errors
/// If it may not.
pub fn room() -> Result<(), Full> {
    let Some(limit) = getrlimit(Resource::Nofile).current else { return Ok(()) };
    // The kernel gives the lowest number that is free. To count what is open would take as long as there are files.
    let lowest_free = std::io::stdin().as_fd().try_clone_to_owned().map(|fd| fd.as_raw_fd());
    let lowest_free = lowest_free.ok().and_then(|number| u64::try_from(number).ok());
    is_room(lowest_free, limit).then_some(()).ok_or(Full { limit })
}

/// `lowest_free` is `None` where no number is.
fn is_room(lowest_free: Option<u64>, limit: u64) -> bool {
    lowest_free.is_some_and(|number| number < limit - limit / LEFT_TO_OTHERS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_leave_a_quarter_to_others() {
        assert!(is_room(Some(14_999), 20_000));
        assert!(!is_room(Some(15_000), 20_000));
        assert!(!is_room(None, 20_000));
        room().unwrap();
    }
}
