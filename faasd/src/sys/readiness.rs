//! Readiness of any descriptor, for tokio.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

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

/// How many connections wait at a listener now.
#[must_use]
#[expect(unsafe_code, reason = "rustix has no TCP_INFO")]
pub fn queued(listener: &OwnedFd) -> u64 {
    let mut bytes = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: plain integers, for which all zeros is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most `bytes` bytes, which is the size of what the pointer leads to; a shorter answer
    // leaves zeros.
    let done = unsafe {
        libc::getsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut bytes,
        )
    };
    // Of a listener this is the length of its queue.
    if done == 0 { u64::from(info.tcpi_unacked) } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_queue_is_counted() {
        let listener = TcpListener::bind("[::1]:0").unwrap();
        let address = listener.local_addr().unwrap();
        let fd = OwnedFd::from(listener);
        assert_eq!((queued(&fd), waits(&fd)), (0, false));
        let streams: Vec<_> = (0..3).map(|_| TcpStream::connect(address).unwrap()).collect();
        assert_eq!((queued(&fd), waits(&fd), streams.len()), (3, true, 3));
    }
}
