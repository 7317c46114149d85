//! Readiness of any descriptor, for tokio.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches a descriptor for input. Needs to be called within a tokio runtime.
///
/// # Errors
/// Those of `epoll_ctl(2)`.
#[expect(unsafe_code, reason = "registering any descriptor type is unsafe, as its number might change")]
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd gives the same open descriptor until it is dropped.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(Into::into)
}

/// Whether a connection waits at a listener now.
#[must_use]
pub fn waits(listener: &OwnedFd) -> bool {
    let mut poll = [PollFd::new(listener, PollFlags::IN)];
    let zero = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut poll, Some(&zero)).is_ok_and(|ready| ready > 0)
}
