//! Sockets of the load.

use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::{setsockopt, sockopt::Mark};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::response::{Fault, Response};
use super::script::Script;
use super::{SILENCE_MAX, Scenario};

/// The size of the buffer that answers are read into, and bodies sent from: a large body takes few calls, and the buffer stays
/// in the L2 cache.
pub(super) const BUFFER_BYTES: usize = 256 << 10;

/// What is dialled, and from where.
#[derive(Clone, Debug)]
pub struct Destination {
    pub address: SocketAddr,
    /// The network namespace to dial in; `None` is our own.
    pub netns: Option<Arc<File>>,
    /// What every packet is marked with (`SO_MARK`): the platform's namespaces let nobody but the daemon open
    /// connections. Either all subjects of a run have it or none, since it costs a system call.
    pub mark: Option<u32>,
}

pub(super) fn open(to: &Destination, flags: SocketFlags) -> Result<OwnedFd, Fault> {
    let family = if to.address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags | SocketFlags::CLOEXEC, None)
        .map_err(Fault::call("socket"))?;
    if let Some(mark) = &to.mark {
        let marked = setsockopt(&socket, Mark, mark);
        marked.map_err(|errno| Fault::call("SO_MARK")(Errno::from_raw_os_error(errno as i32)))?;
    }
    Ok(socket)
}

/// Opens a blocking connection on which no call waits longer than the load is willing to.
///
/// # Errors
/// [`Fault::Call`].
pub fn connect(to: &Destination) -> Result<OwnedFd, Fault> {
    let socket = open(to, SocketFlags::empty())?;
    for id in [Timeout::Recv, Timeout::Send] {
        set_socket_timeout(&socket, id, Some(SILENCE_MAX)).map_err(Fault::call("setsockopt"))?;
    }
    rustix::net::connect(&socket, &to.address).map_err(Fault::call("connect"))?;
    Ok(socket)
}

/// Opens a connection and says what the protocol wants said before the first request.
pub(super) fn open_conversation(
    to: &Destination,
    script: &Script,
    buffer: &mut [u8],
) -> Result<OwnedFd, Fault> {
    let socket = connect(to)?;
    if let Some(opening) = &script.opening {
        send_all(fd(&socket), opening)?;
        await_answer(fd(&socket), &mut Response::default(), buffer)?;
    }
    Ok(socket)
}

/// One request and its answer on a blocking connection.
pub(super) fn exchange(
    socket: BorrowedFd<'_>,
    script: &Script,
    response: &mut Response,
    buffer: &mut [u8],
) -> Result<(), Fault> {
    send_all(socket, &script.request)?;
    let mut body = script.body;
    while body > 0 {
        let part = buffer.len().min(usize::try_from(body).unwrap_or(usize::MAX));
        // Whatever the last answer has left in the buffer.
        send_all(socket, &buffer[..part])?;
        body -= part as u64;
    }
    response.clear();
    await_answer(socket, response, buffer)
}

fn await_answer(socket: BorrowedFd<'_>, response: &mut Response, buffer: &mut [u8]) -> Result<(), Fault> {
    loop {
        match receive(socket, buffer)? {
            0 => return Err(Fault::Closed),
            length if response.feed(&buffer[..length])? => return Ok(()),
            _ => {}
        }
    }
}

/// Asks once, as the scenario does, on a connection of its own and gives the connection back: shows that a server is
/// there and answers as the load needs it.
///
/// # Errors
/// [`Fault`], also if the server does not answer the path.
pub fn fetch(to: &Destination, scenario: Scenario) -> Result<OwnedFd, Fault> {
    let script = scenario.script();
    let mut buffer = vec![0; BUFFER_BYTES];
    let socket = open_conversation(to, &script, &mut buffer)?;
    exchange(fd(&socket), &script, &mut Response::new(script.answer), &mut buffer)?;
    Ok(socket)
}

pub(super) fn fd(socket: &OwnedFd) -> BorrowedFd<'_> {
    socket.as_fd()
}

fn send_all(socket: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Fault> {
    while !bytes.is_empty() {
        let sent = rustix::net::send(socket, bytes, SendFlags::NOSIGNAL).map_err(Fault::call("send"))?;
        bytes = &bytes[sent..];
    }
    Ok(())
}

/// Receives, or reports silence. Interrupted calls are repeated.
pub(super) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, Fault> {
    loop {
        match rustix::net::recv(socket, &mut *buffer, RecvFlags::empty()) {
            Ok((_, length)) => return Ok(length),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Err(Fault::Silence),
            Err(errno) => return Err(Fault::Call { call: "recv", errno }),
        }
    }
}

/// Waits for the other side's FIN on a blocking connection.
pub(super) fn await_close(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<(), Fault> {
    match receive(socket, buffer) {
        Ok(0) => Ok(()),
        Ok(_) => Err(Fault::Overrun),
        Err(Fault::Silence) => Err(Fault::KeptOpen),
        Err(other) => Err(other),
    }
}

/// `SILENCE_MAX` for epoll.
pub(super) fn silence() -> rustix::event::Timespec {
    rustix::event::Timespec { tv_sec: i64::try_from(SILENCE_MAX.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 }
}
