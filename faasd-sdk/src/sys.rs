//! Descriptors that safe Rust cannot vouch for: those that a process starts with, and those that tokio watches.

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::FileType;
use rustix::io::FdFlags;

use crate::wire::{SOCKET_FD, STATUS_FD};
use crate::{Error, StatusPage};

static TAKEN: AtomicBool = AtomicBool::new(false);

/// Takes the two descriptors that an instance starts with: once, since each can have one owner only.
pub(crate) fn inherited() -> Result<(OwnedFd, StatusPage), Error> {
    if TAKEN.swap(true, Ordering::AcqRel) {
        return Err(Error::Taken);
    }
    // Looked at by path first: only descriptors that are what they should be are taken into ownership, so that a
    // program started elsewhere does not close somebody else's.
    let kind = |fd: i32| {
        let stat = rustix::fs::stat(format!("/proc/self/fd/{fd}"))?;
        Ok(FileType::from_raw_mode(stat.st_mode))
    };
    let wrong = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    match kind(SOCKET_FD) {
        Ok(FileType::Socket) => {}
        Ok(_) => return Err(Error::NotASocket(wrong("it is something else"))),
        Err(e) => return Err(Error::NotASocket(e)),
    }
    let is_seqpacket = |fd: &OwnedFd| {
        rustix::net::sockopt::socket_type(fd).is_ok_and(|kind| kind == rustix::net::SocketType::SEQPACKET)
    };
    match kind(STATUS_FD) {
        Ok(FileType::RegularFile) => {}
        Ok(_) => return Err(Error::Status(wrong("it is something else"))),
        Err(e) => return Err(Error::Status(e)),
    }
    let (socket, page) = take();
    if !is_seqpacket(&socket) {
        return Err(Error::NotASocket(wrong("it is a socket, but no SOCK_SEQPACKET")));
    }
    for fd in [socket.as_fd(), page.as_fd()] {
        rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC).map_err(|e| Error::Receive(e.into()))?;
    }
    let page = StatusPage::map(page).map_err(Error::Status)?;
    Ok((socket, page))
}

#[expect(unsafe_code, reason = "descriptors from the environment have no owner until somebody says so")]
fn take() -> (OwnedFd, OwnedFd) {
    // SAFETY: the caller saw that both are open and of the right kind, and lets nobody come here twice. By the
    // protocol they were opened for this process's end of it, so nobody else in the process owns them.
    unsafe { (OwnedFd::from_raw_fd(SOCKET_FD), OwnedFd::from_raw_fd(STATUS_FD)) }
}

/// A value that owns one descriptor and keeps it, open and the same, for as long as it lives.
///
/// # Safety
/// `as_raw_fd` always returns that descriptor, and safe code can neither close nor exchange it.
#[cfg(feature = "tokio")]
#[expect(unsafe_code, reason = "what tokio's reactor asks of a descriptor's owner")]
pub(crate) unsafe trait Owner: std::os::fd::AsRawFd {}

#[cfg(feature = "tokio")]
#[expect(unsafe_code, reason = "as above")]
// SAFETY: the socket is private to it and is never replaced.
unsafe impl Owner for crate::Receiver {}

#[cfg(feature = "http")]
#[expect(unsafe_code, reason = "as above")]
// SAFETY: the standard library's listener owns its descriptor.
unsafe impl Owner for std::net::TcpListener {}

/// Lets tokio's reactor watch a descriptor for input.
#[cfg(feature = "tokio")]
#[expect(unsafe_code, reason = "tokio asks for the promise that `Owner` makes")]
pub(crate) fn watch<T: Owner>(owner: T) -> io::Result<tokio::io::unix::AsyncFd<T>> {
    // SAFETY: `Owner`.
    unsafe { tokio::io::unix::AsyncFd::register_with_interest(owner, tokio::io::Interest::READABLE) }
        .map_err(|e| e.into_parts().1)
}
