//! Processes by descriptor: a pidfd names one process for good, so a signal never reaches a stranger that was given
//! the same number later.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use tokio::io::unix::AsyncFd;

use super::readiness::watch;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
    /// It was no child of ours: its parent has the status. So it is for containers adopted after a restart, whose
    /// parent is init.
    Unknown,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with {code}"),
            Self::Signal(9) => f.write_str("killed by SIGKILL"),
            Self::Signal(15) => f.write_str("ended by SIGTERM"),
            Self::Signal(signal) => write!(f, "killed by signal {signal}"),
            Self::Unknown => f.write_str("ended (its status went to another parent)"),
        }
    }
}

/// An open process. Any number of tasks may wait for its exit; the first one to see it reaps it.
#[derive(Debug)]
pub struct Pidfd {
    fd: AsyncFd<OwnedFd>,
    pid: Pid,
    exit: Mutex<Option<Exit>>,
}

impl Pidfd {
    /// Opens the process `pid`. Needs to be called within a tokio runtime, which then watches the descriptor.
    ///
    /// # Errors
    /// `ESRCH` if there is no such process, and those of `pidfd_open(2)`.
    pub fn open(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
        let fd = watch(rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)?)?;
        Ok(Self { fd, pid, exit: Mutex::new(None) })
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Sends a signal. A process that is gone already is no error: that is what the sender wanted.
    ///
    /// # Errors
    /// Those of `pidfd_send_signal(2)`.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(&self.fd, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Waits until the process has ended, and reaps it if it is a child of ours.
    ///
    /// # Errors
    /// Those of `epoll_wait(2)` and `waitid(2)`.
    pub async fn exited(&self) -> io::Result<Exit> {
        loop {
            if let Some(exit) = self.known() {
                return Ok(exit);
            }
            let mut ready = self.fd.readable().await?;
            match self.reap()? {
                Some(exit) => return Ok(exit),
                // Not over after all: wait for the next edge.
                None => ready.clear_ready(),
            }
        }
    }

    /// Whether it has ended, without waiting.
    ///
    /// # Errors
    /// Those of `poll(2)` and `waitid(2)`.
    pub fn try_exited(&self) -> io::Result<Option<Exit>> {
        if let Some(exit) = self.known() {
            return Ok(Some(exit));
        }
        let mut poll = [rustix::event::PollFd::new(&self.fd, rustix::event::PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        if rustix::event::poll(&mut poll, Some(&now))? == 0 {
            return Ok(None);
        }
        self.reap()
    }

    fn known(&self) -> Option<Exit> {
        *self.exit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the status. The lock is held across `waitid`, as the kernel tells it only once.
    fn reap(&self) -> io::Result<Option<Exit>> {
        let mut known = self.exit.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_some() {
            return Ok(*known);
        }
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        *known = match rustix::process::waitid(WaitId::PidFd(self.fd.as_fd()), options) {
            Ok(None) | Err(Errno::AGAIN | Errno::INTR) => None,
            Ok(Some(status)) => Some(match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Exit::Code(code),
                (_, Some(signal)) => Exit::Signal(signal),
                _ => Exit::Unknown,
            }),
            Err(Errno::CHILD) => Some(Exit::Unknown),
            Err(e) => return Err(e.into()),
        };
        Ok(*known)
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Makes this process the parent of its orphaned descendants. runc leaves a container's first process as such an
/// orphan; as its parent we learn how it ended.
///
/// # Errors
/// Those of `prctl(2)`.
pub fn become_subreaper() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// Reaps children of ours that have ended and whose command name begins with `prefix`. A subreaper inherits what a
/// killed child leaves, and nobody waits for those. A status that somebody does wait for would be lost, so the prefix
/// must name no such process.
pub fn reap_orphans(prefix: &str) {
    let ours = rustix::process::getpid();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        let (Some(pid), Ok(stat)) = (pid, std::fs::read_to_string(entry.path().join("stat"))) else {
            continue;
        };
        // `PID (NAME) STATE PPID …`, where a name may hold parentheses itself.
        let Some((name, rest)) = stat.split_once('(').and_then(|(_, right)| right.rsplit_once(')')) else {
            continue;
        };
        let mut rest = rest.split_whitespace();
        let is_over = rest.next() == Some("Z");
        let is_ours = rest.next().and_then(|p| p.parse().ok()).and_then(Pid::from_raw) == Some(ours);
        if is_over && is_ours && name.starts_with(prefix) {
            let _ = rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        }
    }
}

#[cfg(test)]
#[expect(clippy::zombie_processes, reason = "the pidfd reaps them: that is what is tested")]
mod tests {
    use std::io::BufRead;
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn an_exit_is_seen_by_every_waiter() {
        let child = Command::new("sh").args(["-c", "exit 7"]).spawn().unwrap();
        let process = Pidfd::open(child.id()).unwrap();
        let wait = || tokio::time::timeout(Duration::from_secs(10), process.exited());
        let (one, two) = tokio::join!(wait(), wait());
        assert_eq!((one.unwrap().unwrap(), two.unwrap().unwrap()), (Exit::Code(7), Exit::Code(7)));
        assert_eq!(process.try_exited().unwrap(), Some(Exit::Code(7)));
        process.signal(Signal::KILL).unwrap();
    }

    #[tokio::test]
    async fn a_kill_is_told_from_an_exit() {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let process = Pidfd::open(child.id()).unwrap();
        assert_eq!(process.try_exited().unwrap(), None);
        process.signal(Signal::KILL).unwrap();
        let exit = tokio::time::timeout(Duration::from_secs(10), process.exited()).await.unwrap().unwrap();
        assert_eq!(exit, Exit::Signal(9));
    }

    #[tokio::test]
    async fn a_process_of_others_ends_with_an_unknown_status() {
        // The shell is the sleeper's parent, and stays until it is told to go.
        let mut shell = Command::new("sh")
            .args(["-c", "sleep 1000 & echo $!; wait; read line"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        io::BufReader::new(shell.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let process = Pidfd::open(line.trim().parse().unwrap()).unwrap();
        process.signal(Signal::KILL).unwrap();
        let exit = tokio::time::timeout(Duration::from_secs(10), process.exited()).await.unwrap().unwrap();
        assert_eq!(exit, Exit::Unknown);
        drop(shell.stdin.take());
        shell.wait().unwrap();
    }

    #[tokio::test]
    async fn no_such_process() {
        assert_eq!(Pidfd::open(u32::MAX).unwrap_err().raw_os_error(), Some(Errno::SRCH.raw_os_error()));
    }
}
