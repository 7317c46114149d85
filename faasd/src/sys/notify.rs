//! System calls that a seccomp filter holds up and leaves to us (`SECCOMP_RET_USER_NOTIF`, seccomp_unotify(2)).
//!
//! What the call's arguments point to can change under our eyes until the call is answered. Whoever lets a call
//! proceed must not have decided anything by them that matters; whoever answers it himself may.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};
use tokio::io::unix::AsyncFd;

use super::readiness::watch;
use super::shared::Shared;

/// The longest argument that is read.
const ARGUMENT_BYTES_MAX: usize = 128;

/// The longest file of `/proc` that is read here.
const PROC_BYTES_MAX: u64 = 16 << 10;

/// The kernel's end of a filter.
#[derive(Debug)]
pub struct Notifications {
    fd: AsyncFd<OwnedFd>,
}

/// A call that waits for its answer.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    id: u64,
    /// The calling thread, as our own pid namespace names it.
    thread: u32,
    /// Which call, by the architecture's numbers.
    pub number: i64,
    pub arguments: [u64; 6],
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The kernel carries it out.
    Proceed,
    /// It returns 0, and the kernel does nothing.
    Done,
    /// It fails with this error.
    Fail(i32),
}

/// A descriptor of the caller's, as `/proc` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags {
    pub nonblocking: bool,
    pub close_on_exec: bool,
}

#[expect(unsafe_code, reason = "ioctl(2) on a notification descriptor")]
fn ioctl<T>(fd: BorrowedFd<'_>, request: libc::Ioctl, argument: &mut T) -> io::Result<()> {
    // SAFETY: each request below is used with the structure that it is defined for, which lives through the call.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(argument)) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

impl Notifications {
    /// Needs to be called within a tokio runtime.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        watch(fd).map(|fd| Self { fd })
    }

    /// The next call. `None` when no process is left that could make one. Nothing is lost if the future is dropped.
    ///
    /// # Errors
    /// Those of the ioctl.
    pub async fn next(&self) -> io::Result<Option<Call>> {
        loop {
            let mut guard = self.fd.readable().await?;
            if guard.ready().is_read_closed() {
                return Ok(None);
            }
            // To receive from an empty queue would block, and readiness is told at the edge.
            if !is_readable(self.fd.as_fd()) {
                guard.clear_ready();
                continue;
            }
            match receive(self.fd.as_fd()) {
                // The caller was killed meanwhile.
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => {}
                received => return received.map(Some),
            }
        }
    }

    /// Whether the call still waits: if so, what was read of its caller was read of the caller and not of a stranger
    /// that has its number now.
    #[must_use]
    pub fn is_waiting(&self, call: &Call) -> bool {
        let mut id = call.id;
        ioctl(self.fd.as_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &mut id).is_ok()
    }

    /// Puts a descriptor of ours in the place of one of the caller's.
    ///
    /// # Errors
    /// `ENOENT` if the caller is gone.
    pub fn replace(&self, call: &Call, number: RawFd, with: BorrowedFd<'_>, flags: Flags) -> io::Result<()> {
        let mut request = libc::seccomp_notif_addfd {
            id: call.id,
            flags: libc::SECCOMP_ADDFD_FLAG_SETFD as u32,
            srcfd: with.as_raw_fd() as u32,
            newfd: number as u32,
            newfd_flags: if flags.close_on_exec { libc::O_CLOEXEC as u32 } else { 0 },
        };
        ioctl(self.fd.as_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD, &mut request)
    }

    /// Answers a call. That its caller is gone, or was interrupted and calls again, is no error: it is told by `false`.
    ///
    /// # Errors
    /// Those of the ioctl.
    pub fn answer(&self, call: &Call, answer: Answer) -> io::Result<bool> {
        let mut response = libc::seccomp_notif_resp {
            id: call.id,
            val: 0,
            error: match answer {
                Answer::Fail(error) => -error,
                Answer::Proceed | Answer::Done => 0,
            },
            flags: match answer {
                Answer::Proceed => libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
                Answer::Done | Answer::Fail(_) => 0,
            },
        };
        match ioctl(self.fd.as_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &mut response) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            other => other.map(|()| true),
        }
    }
}

#[expect(unsafe_code, reason = "the kernel wants the structure zeroed")]
fn receive(fd: BorrowedFd<'_>) -> io::Result<Call> {
    // SAFETY: integers alone, for which zero is a value.
    let mut notification: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    ioctl(fd, libc::SECCOMP_IOCTL_NOTIF_RECV, &mut notification)?;
    let data = notification.data;
    Ok(Call { id: notification.id, thread: notification.pid, number: data.nr.into(), arguments: data.args })
}

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, poll};
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, Some(&rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|n| n > 0)
}

impl Call {
    /// Bytes of the caller's memory, up to [`ARGUMENT_BYTES_MAX`].
    ///
    /// # Errors
    /// Those of reading `/proc/PID/mem`.
    pub fn memory(&self, address: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let mut memory = fs::File::open(format!("/proc/{}/mem", self.thread))?;
        memory.seek(SeekFrom::Start(address))?;
        let mut buffer = vec![0; bytes.min(ARGUMENT_BYTES_MAX)];
        memory.read_exact(&mut buffer)?;
        Ok(buffer)
    }

    /// A duplicate of one of the caller's descriptors.
    ///
    /// # Errors
    /// Those of `pidfd_getfd(2)`.
    pub fn descriptor(&self, number: RawFd) -> io::Result<Shared> {
        // A pidfd is of a process, and the caller may be any of its threads.
        let process = self.field("status", "Tgid:", 10)?;
        duplicate(process, number)
    }

    /// The flags of one of the caller's descriptors.
    ///
    /// # Errors
    /// Those of reading `/proc/PID/fdinfo`.
    pub fn flags(&self, number: RawFd) -> io::Result<Flags> {
        let flags = self.field(&format!("fdinfo/{number}"), "flags:", 8)? as i32;
        let has = |flag| flags & flag != 0;
        Ok(Flags { nonblocking: has(libc::O_NONBLOCK), close_on_exec: has(libc::O_CLOEXEC) })
    }

    fn field(&self, file: &str, name: &str, radix: u32) -> io::Result<u32> {
        let mut text = String::new();
        let file = fs::File::open(format!("/proc/{}/{file}", self.thread))?;
        file.take(PROC_BYTES_MAX).read_to_string(&mut text)?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        value
            .and_then(|value| u32::from_str_radix(value, radix).ok())
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("no `{name}` in /proc")))
    }
}

/// Whether a thread of a process waits in one of the calls that are held up.
#[must_use]
pub fn waits_in_call(process: u32) -> bool {
    const HELD_UP: [libc::c_long; 3] = [libc::SYS_bind, libc::SYS_listen, libc::SYS_connect];
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    threads.filter_map(|thread| fs::read_to_string(thread.path().join("syscall")).ok()).any(|line| {
        // "running", or the call's number and its arguments.
        let number = line.split(' ').next().and_then(|number| number.parse().ok());
        number.is_some_and(|number| HELD_UP.contains(&number))
    })
}

/// A duplicate of another process's descriptor.
///
/// # Errors
/// Those of `pidfd_open(2)` and `pidfd_getfd(2)`.
pub fn duplicate(process: u32, number: RawFd) -> io::Result<Shared> {
    let process = i32::try_from(process).ok().and_then(Pid::from_raw).ok_or(rustix::io::Errno::SRCH)?;
    let process = rustix::process::pidfd_open(process, PidfdFlags::empty())?;
    Ok(Shared::new(rustix::process::pidfd_getfd(process, number, PidfdGetfdFlags::empty())?))
}
