//! TCP sockets that are given away: how far they have come, and what holds them to one peer.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use socket2::{SockFilter, SockRef};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How far a socket has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It has not begun, or it is over.
    Closed,
    /// Its SYN is on the way.
    Connecting,
    /// It is, or was, connected.
    Connected,
    Listening,
}

/// The kernel's names for the states of a socket (`include/net/tcp_states.h`).
const TCP_SYN_SENT: u8 = 2;
const TCP_CLOSE: u8 = 7;
const TCP_LISTEN: u8 = 10;

/// A socket's state.
///
/// # Errors
/// Those of `getsockopt(2)`: `EOPNOTSUPP` and the like for what is no TCP socket.
#[expect(unsafe_code, reason = "rustix has no TCP_INFO")]
pub fn state(socket: &impl AsRawFd) -> io::Result<State> {
    // The state is the first byte of what may be read in part.
    let mut state = 0u8;
    let mut bytes = 1 as libc::socklen_t;
    // SAFETY: the kernel writes at most `bytes` bytes, which is the room that the pointer leads to.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut state).cast(),
            &raw mut bytes,
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(match state {
        TCP_SYN_SENT => State::Connecting,
        TCP_CLOSE => State::Closed,
        TCP_LISTEN => State::Listening,
        _ => State::Connected,
    })
}

/// Watches a socket for the end of its handshake. Needs to be called within a tokio runtime.
///
/// # Errors
/// Those of `epoll_ctl(2)`.
#[expect(unsafe_code, reason = "registering any descriptor type is unsafe, as its number might change")]
pub fn watch_handshake(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd gives the same open descriptor until it is dropped.
    unsafe { AsyncFd::register_with_interest(socket, Interest::WRITABLE) }.map_err(Into::into)
}

/// Whether a handshake has ended, one way or the other.
#[must_use]
pub fn has_settled(socket: &impl AsFd) -> bool {
    let mut poll = [PollFd::new(socket, PollFlags::OUT)];
    let zero = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut poll, Some(&zero)).is_ok_and(|ready| ready > 0)
}

/// Holds a socket to its peer for good: of what opens a connection it hears nothing but this peer's own answer. Whoever
/// is given it may take it apart, but connects it to nobody else, and nobody connects to it. The filter is of the kernel's
/// first kind, runs before a packet is looked at, and cannot be taken off again.
///
/// # Errors
/// Those of `setsockopt(2)`.
pub fn hold_to(socket: &OwnedFd, peer: SocketAddr) -> io::Result<()> {
    SockRef::from(socket).attach_filter(&answers_of(peer))?;
    switch_on(socket, libc::SOL_SOCKET, libc::SO_LOCK_FILTER)
}

/// Has the port chosen at `connect` and not at `bind`, so that connections to different peers may share one.
///
/// # Errors
/// Those of `setsockopt(2)`.
pub fn bind_address_alone(socket: &OwnedFd) -> io::Result<()> {
    switch_on(socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT)
}

#[expect(unsafe_code, reason = "options that neither rustix nor socket2 has")]
fn switch_on(socket: &OwnedFd, level: libc::c_int, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the pointer leads to an integer of the length that is given.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A jump of the program below, with its target in place of the distance.
enum Line {
    Do(u16, u32),
    /// To the next line if it holds, else to the one that drops.
    Require(u16, u32),
    /// To the line that accepts if it does not hold.
    Unless(u16, u32),
}

/// The program of [`hold_to`], which sees each packet from its TCP header on.
fn answers_of(peer: SocketAddr) -> Vec<SockFilter> {
    use libc::{
        BPF_ABS, BPF_ALU, BPF_AND, BPF_B, BPF_H, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W,
    };
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    const SOURCE_PORT: u32 = 0;
    const FLAGS: u32 = 13;
    // Of the IP header, wherever it is (SKF_NET_OFF): the version, and the source in either kind.
    const NETWORK: u32 = (-0x10_0000_i32) as u32;
    const SOURCE_V4: u32 = NETWORK + 12;
    const SOURCE_V6: u32 = NETWORK + 8;
    let load = |size: u32, at: u32| Line::Do((BPF_LD | size | BPF_ABS) as u16, at);
    let equal = |value: u32| Line::Require((BPF_JMP | BPF_JEQ | BPF_K) as u16, value);
    let set = (BPF_JMP | BPF_JSET | BPF_K) as u16;

    let (version, words, first) = match peer.ip().to_canonical() {
        std::net::IpAddr::V4(v4) => (4, vec![v4.to_bits()], SOURCE_V4),
        std::net::IpAddr::V6(v6) => {
            let words = v6
                .octets()
                .chunks_exact(4)
                .map(|w| w.iter().fold(0, |n, b| n << 8 | u32::from(*b)))
                .collect();
            (6, words, SOURCE_V6)
        }
    };
    let mut lines = vec![
        load(BPF_B, FLAGS),
        // All that an open connection carries.
        Line::Unless(set, SYN),
        Line::Require(set, ACK),
        load(BPF_H, SOURCE_PORT),
        equal(peer.port().into()),
        load(BPF_B, NETWORK),
        Line::Do((BPF_ALU | BPF_AND | BPF_K) as u16, 0xf0),
        equal(version << 4),
    ];
    for (at, word) in (first..).step_by(4).zip(words) {
        lines.extend([load(BPF_W, at), equal(word)]);
    }
    let accept = lines.len();
    let mut program: Vec<SockFilter> = lines
        .iter()
        .enumerate()
        .map(|(at, line)| {
            // At most 18 lines: every distance fits.
            let distance = (accept - at - 1) as u8;
            match *line {
                Line::Do(code, value) => SockFilter::new(code, 0, 0, value),
                Line::Require(code, value) => SockFilter::new(code, 0, distance + 1, value),
                Line::Unless(code, value) => SockFilter::new(code, 0, distance, value),
            }
        })
        .collect();
    let answer = (BPF_RET | BPF_K) as u16;
    program.extend([SockFilter::new(answer, 0, 0, u32::MAX), SockFilter::new(answer, 0, 0, 0)]);
    program
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use socket2::{Domain, Protocol, Socket, Type};

    use super::*;

    const SOON: Duration = Duration::from_millis(300);

    fn socket(address: SocketAddr) -> Socket {
        Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).unwrap()
    }

    fn disconnect(socket: &OwnedFd) {
        let unspecified = [0; 16];
        #[expect(unsafe_code, reason = "no library lets a TCP socket be taken apart")]
        // SAFETY: the pointer leads to as many bytes as are told.
        let done = unsafe { libc::connect(socket.as_raw_fd(), unspecified.as_ptr().cast(), 16) };
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
    }

    fn held(kind: &str) {
        let (peer, other) = (TcpListener::bind(kind).unwrap(), TcpListener::bind(kind).unwrap());
        let address = peer.local_addr().unwrap();
        let fd = OwnedFd::from(socket(address));
        hold_to(&fd, address).unwrap();
        assert_eq!(state(&fd).unwrap(), State::Closed);
        let made = SockRef::from(&fd);
        made.connect(&address.into()).unwrap();
        assert_eq!((state(&fd).unwrap(), has_settled(&fd)), (State::Connected, true));
        let (mut accepted, _) = peer.accept().unwrap();
        accepted.write_all(b"hello").unwrap();
        let mut stream = TcpStream::from(fd.try_clone().unwrap());
        let mut five = [0; 5];
        stream.read_exact(&mut five).unwrap();
        assert_eq!(&five, b"hello");

        // Taken apart, it comes no further than to its peer.
        made.detach_filter().unwrap_err();
        made.attach_filter(&[SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, u32::MAX)])
            .unwrap_err();
        disconnect(&fd);
        made.connect_timeout(&other.local_addr().unwrap().into(), SOON).unwrap_err();
        disconnect(&fd);
        made.set_nonblocking(false).unwrap();
        made.connect(&address.into()).unwrap();
        // Nor does anybody come to it.
        disconnect(&fd);
        made.listen(1).unwrap();
        assert_eq!(state(&fd).unwrap(), State::Listening);
        let port = made.local_addr().unwrap().as_socket().unwrap().port();
        TcpStream::connect_timeout(&SocketAddr::new(address.ip(), port), SOON).unwrap_err();
    }

    #[test]
    fn a_held_socket_connects_to_its_peer_alone() {
        held("127.0.0.1:0");
        held("[::1]:0");
    }

    #[test]
    fn what_is_no_connection_has_no_state() {
        let pair = std::os::unix::net::UnixStream::pair().unwrap();
        state(&pair.0).unwrap_err();
    }
}
