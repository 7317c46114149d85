//! The options that a program has set on a socket, for the one that takes its place.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::sockopt::{self, Timeout};

/// Copies what programs set before they bind or connect, as far as it differs; but not how the socket lingers, which is for
/// whoever closes it alone.
///
/// # Errors
/// Those of `getsockopt(2)` and `setsockopt(2)`.
pub fn copy_options(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    const SECOND: Duration = Duration::from_secs(1);
    sockopt::set_tcp_nodelay(to, sockopt::tcp_nodelay(from)?)?;
    if sockopt::socket_keepalive(from)? {
        sockopt::set_socket_keepalive(to, true)?;
        sockopt::set_tcp_keepidle(to, sockopt::tcp_keepidle(from)?.max(SECOND))?;
        sockopt::set_tcp_keepintvl(to, sockopt::tcp_keepintvl(from)?.max(SECOND))?;
        sockopt::set_tcp_keepcnt(to, sockopt::tcp_keepcnt(from)?)?;
    }
    for timeout in [Timeout::Recv, Timeout::Send] {
        if let Some(set) = sockopt::socket_timeout(from, timeout)? {
            sockopt::set_socket_timeout(to, timeout, Some(set))?;
        }
    }
    match sockopt::tcp_user_timeout(from)? {
        0 => {}
        set => sockopt::set_tcp_user_timeout(to, set)?,
    }
    // The kernel doubles what it is told, and tells the double. One that was not set is left to adjust itself.
    let (receive, send) = (sockopt::socket_recv_buffer_size(from)?, sockopt::socket_send_buffer_size(from)?);
    if receive != sockopt::socket_recv_buffer_size(to)? {
        sockopt::set_socket_recv_buffer_size(to, receive / 2)?;
    }
    if send != sockopt::socket_send_buffer_size(to)? {
        sockopt::set_socket_send_buffer_size(to, send / 2)?;
    }
    Ok(())
}
