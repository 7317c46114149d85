//! How the scheduler treats a thread.

use std::io;

/// Has the calling thread take its turn (`SCHED_BATCH`) rather than interrupt whoever runs when it is woken. A core that is
/// idle runs it at once, and its share of the CPU stays what it was.
///
/// # Errors
/// Those of `sched_setscheduler(2)`.
#[expect(unsafe_code, reason = "neither rustix nor nix has the call")]
pub fn batch() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: 0 is the calling thread; the kernel reads `parameters` during the call alone.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Field 41 of the thread's line; the name, field 2, ends with the last parenthesis.
    fn policy() -> Option<i32> {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(38)?.parse().ok()
    }

    #[test]
    fn the_calling_thread_alone_is_changed() {
        let before = policy();
        let changed = std::thread::spawn(|| batch().map(|()| policy())).join().unwrap().unwrap();
        assert_eq!(changed, Some(libc::SCHED_BATCH));
        assert_eq!(policy(), before);
    }
}
