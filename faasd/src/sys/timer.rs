//! Timers that are exact: tokio's own are a millisecond wide.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A timer of the kernel's (`timerfd_create(2)`).
#[derive(Debug)]
pub struct Timer(AsyncFd<OwnedFd>);

impl Timer {
    /// A timer of the current runtime.
    ///
    /// # Errors
    /// Those of `timerfd_create(2)` and `epoll_ctl(2)`.
    #[expect(unsafe_code, reason = "tokio asks for a promise about the descriptor")]
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // SAFETY: the `OwnedFd` owns an open descriptor, which nobody else has, and is not replaced.
        let timer = unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) }?;
        Ok(Self(timer))
    }

    /// Waits for so long.
    ///
    /// # Errors
    /// Those of `timerfd_settime(2)`.
    pub async fn wait(&self, time: Duration) -> io::Result<()> {
        // 0 would disarm it.
        let time = time.max(Duration::from_nanos(1));
        let once = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) },
        };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once)?;
        let mut count = [0; 8];
        self.0.async_io(Interest::READABLE, |timer| Ok(rustix::io::read(timer, &mut count)?)).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[tokio::test]
    async fn it_never_ends_early_and_mostly_on_time() {
        let timer = Timer::new().unwrap();
        let wanted = Duration::from_micros(200);
        let mut late = Vec::new();
        for _ in 0..50 {
            let begin = Instant::now();
            timer.wait(wanted).await.unwrap();
            late.push(begin.elapsed().checked_sub(wanted).expect("not early"));
        }
        late.sort();
        // A busy machine makes some of them late, but not nearly all by a millisecond.
        assert!(late[10] < Duration::from_millis(1), "{late:?}");
    }
}
