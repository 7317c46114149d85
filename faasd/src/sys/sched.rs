//! How the scheduler treats a thread.

use std::io;

/// How a thread that is woken on a busy core comes to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// It may interrupt whoever runs (`SCHED_OTHER`).
    AtOnce,
    /// It takes its turn (`SCHED_BATCH`).
    InTurn,
}

/// Says how the calling thread is woken from now on. A core that is idle runs it at once in any case, and its share of the CPU
/// stays what it was.
///
/// # Errors
/// Those of `sched_setscheduler(2)`.
#[expect(unsafe_code, reason = "neither rustix nor nix has the call")]
pub fn wake(wake: Wake) -> io::Result<()> {
    let policy = match wake {
        Wake::AtOnce => libc::SCHED_OTHER,
        Wake::InTurn => libc::SCHED_BATCH,
    };
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: 0 is the calling thread; the kernel reads `parameters` during the call alone.
    let result = unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) };
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
        let changed = || -> io::Result<_> {
            wake(Wake::InTurn)?;
            let in_turn = policy();
            wake(Wake::AtOnce)?;
            Ok((in_turn, policy()))
        };
        let changed = std::thread::spawn(changed).join().unwrap().unwrap();
        assert_eq!(changed, (Some(libc::SCHED_BATCH), Some(libc::SCHED_OTHER)));
        assert_eq!(policy(), before);
    }
}
