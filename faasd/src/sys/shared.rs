//! Descriptors that somebody who is not trusted has as well.

use std::io;
use std::ops::Deref;
use std::os::fd::OwnedFd;

use rustix::net::sockopt;

/// A socket of ours that a function has too. Whoever closes a socket last waits for as long as its options say
/// (`SO_LINGER`), also one that does not block; and which of us is last, and how it lingers, is up to the function. One that
/// lingers is therefore closed on a thread where nobody waits.
#[derive(Debug)]
pub struct Shared(Option<OwnedFd>);

impl Shared {
    #[must_use]
    pub const fn new(socket: OwnedFd) -> Self {
        Self(Some(socket))
    }

    /// For one that does not wait at its end, like a listener.
    #[must_use]
    pub fn into_inner(mut self) -> Option<OwnedFd> {
        self.0.take()
    }
}

impl Deref for Shared {
    type Target = OwnedFd;

    #[expect(
        clippy::expect_used,
        reason = "it is there until it is dropped or taken, which both end the value"
    )]
    fn deref(&self) -> &OwnedFd {
        self.0.as_ref().expect("it is there")
    }
}

impl std::os::fd::AsFd for Shared {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.deref().as_fd()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let Some(socket) = self.0.take() else { return };
        if !sockopt::socket_linger(&socket).is_ok_and(|linger| linger.is_some_and(|time| !time.is_zero())) {
            return;
        }
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || drop(socket))),
            Err(_) => drop(std::thread::spawn(move || drop(socket))),
        }
    }
}

/// Has a socket linger as another one does.
///
/// # Errors
/// Those of `getsockopt(2)` and `setsockopt(2)`.
pub fn copy_linger(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    match sockopt::socket_linger(from)? {
        Some(linger) => Ok(sockopt::set_socket_linger(to, Some(linger))?),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    use socket2::SockRef;

    use super::*;

    /// A connection whose other end reads nothing, filled, that lingers for long.
    fn filled(listener: &TcpListener) -> OwnedFd {
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stream.set_nonblocking(true).unwrap();
        while stream.write(&[0; 1 << 16]).is_ok() {}
        SockRef::from(&stream).set_linger(Some(Duration::from_secs(600))).unwrap();
        stream.into()
    }

    #[test]
    fn whoever_lets_go_last_does_not_wait() {
        let listener = TcpListener::bind("[::1]:0").unwrap();
        let began = Instant::now();
        drop(Shared::new(filled(&listener)));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let socket = Shared::new(filled(&listener));
        runtime.block_on(async { drop(socket) });
        assert!(began.elapsed() < Duration::from_secs(60));
        // The other ends go, and with them what was to be sent.
        drop(listener);
        runtime.shutdown_background();
    }
}
