//! The socket under HTTP: used directly at first, on tokio's reactor from the first time that it has to wait.
//!
//! A new connection's request is mostly there already when the connection is handed over, and its answer fits into
//! the socket's buffer. Such a connection is never registered with epoll at all.

use std::io;
use std::net;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection::Activity;
use crate::Guard;

#[derive(Debug)]
enum Socket {
    /// Asked with MSG_DONTWAIT: whether the descriptor itself is non-blocking does not matter.
    Direct {
        socket: net::TcpStream,
        written: bool,
    },
    Registered(tokio::net::TcpStream),
    /// Registration failed.
    Gone,
}

/// A connection's socket, with what was read too early by a predecessor in front.
#[derive(Debug)]
pub(crate) struct Stream {
    socket: Socket,
    prefix: Bytes,
    activity: Arc<Activity>,
    /// Here, because an upgraded connection is the service's own as long as it lives. The last field: a connection is
    /// closed before it counts as finished.
    _guard: Guard,
}

impl Stream {
    pub(crate) fn new(socket: OwnedFd, activity: Arc<Activity>, guard: Guard) -> Self {
        let socket = Socket::Direct { socket: socket.into(), written: false };
        Self { socket, prefix: Bytes::new(), activity, _guard: guard }
    }

    /// Puts bytes back, to be read again.
    pub(crate) fn put_back(&mut self, bytes: Bytes) {
        self.prefix = bytes;
    }

    /// Waits until there is something to read, or the end.
    pub(crate) async fn readable(&mut self) -> io::Result<()> {
        if self.prefix.is_empty() { self.registered()?.readable().await } else { Ok(()) }
    }

    /// Whether there is something to read at this moment.
    pub(crate) fn has_input(&self) -> bool {
        let mut byte = [0; 1];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let peeked = match &self.socket {
            Socket::Direct { socket, .. } => rustix::net::recv(socket, &mut byte, flags),
            Socket::Registered(socket) => rustix::net::recv(socket, &mut byte, flags),
            Socket::Gone => return false,
        };
        !self.prefix.is_empty() || peeked.is_ok_and(|(_, bytes)| bytes > 0)
    }

    fn registered(&mut self) -> io::Result<&mut tokio::net::TcpStream> {
        if let Socket::Direct { .. } = self.socket
            && let Socket::Direct { socket, .. } = std::mem::replace(&mut self.socket, Socket::Gone)
        {
            socket.set_nonblocking(true)?;
            // Nagle's algorithm delays nothing but a second small write, so a connection that is answered directly
            // does not need this.
            socket.set_nodelay(true)?;
            self.socket = Socket::Registered(tokio::net::TcpStream::from_std(socket)?);
        }
        match &mut self.socket {
            Socket::Registered(socket) => Ok(socket),
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn note<T>(&self, result: Poll<T>) -> Poll<T> {
        self.activity.set_blocked(result.is_pending());
        result
    }
}

/// Sends directly. `None` if that would have to wait.
fn send(socket: &net::TcpStream, written: &mut bool, bytes: &[io::IoSlice<'_>]) -> io::Result<Option<usize>> {
    if std::mem::replace(written, true) && !socket.nodelay()? {
        socket.set_nodelay(true)?;
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    loop {
        match rustix::net::sendmsg(socket, bytes, &mut SendAncillaryBuffer::default(), flags) {
            Ok(sent) => return Ok(Some(sent)),
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.prefix.is_empty() {
            let bytes = this.prefix.split_to(this.prefix.len().min(out.remaining()));
            out.put_slice(&bytes);
            return Poll::Ready(Ok(()));
        }
        if let Socket::Direct { socket, .. } = &this.socket {
            loop {
                match rustix::net::recv(socket, out.initialize_unfilled(), RecvFlags::DONTWAIT) {
                    Ok((read, _)) => {
                        out.advance(read);
                        return Poll::Ready(Ok(()));
                    }
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => break,
                    Err(e) => return Poll::Ready(Err(e.into())),
                }
            }
        }
        Pin::new(this.registered()?).poll_read(cx, out)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Socket::Direct { socket, written } = &mut this.socket
            && let Some(sent) = send(socket, written, bytes)?
        {
            return this.note(Poll::Ready(Ok(sent)));
        }
        let result = Pin::new(this.registered()?).poll_write_vectored(cx, bytes);
        this.note(result)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = match &self.socket {
            Socket::Direct { socket, .. } => rustix::net::shutdown(socket, Shutdown::Write),
            Socket::Registered(socket) => rustix::net::shutdown(socket, Shutdown::Write),
            Socket::Gone => return Poll::Ready(Ok(())),
        };
        match result {
            // The client may be gone already, which is the end that was wanted.
            Ok(()) | Err(Errno::NOTCONN) => Poll::Ready(Ok(())),
            Err(e) => Poll::Ready(Err(e.into())),
        }
    }
}
