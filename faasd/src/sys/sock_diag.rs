//! Ends established TCP connections of a namespace, whoever holds their sockets: `sock_diag(7)`, `SOCK_DESTROY`.
//!
//! The kernel selects by a filter program, so that no other socket is listed here however many there are. It ends
//! what the reply names by address, port and *cookie*, which no later socket has.

pub mod open;

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with, sockopt,
};

use super::netns::NetNs;

/// Which connections. Both ends are as the namespace's own sockets see them: a connection between two addresses of
/// the namespace has a socket for each of its ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The other end's address; any without one.
    pub remote: Option<Ipv6Addr>,
    /// This end's address; any without one.
    pub local: Option<Ipv6Addr>,
}

/// Why connections may be open still.
#[derive(Debug, thiserror::Error)]
pub enum DestroyError {
    #[error("a filter that names neither end would end every connection")]
    Everything,
    #[error("cannot list connections to end them")]
    List(#[source] io::Error),
    #[error(
        "cannot end a connection{}",
        if source.raw_os_error() == Some(libc::EOPNOTSUPP) {
            ": the kernel is built without CONFIG_INET_DIAG_DESTROY"
        } else {
            ""
        }
    )]
    Destroy {
        #[source]
        source: io::Error,
    },
    #[error("connections are still being opened after {PASSES_MAX} times of ending those that there were")]
    Endless,
}

/// How long the kernel may take for one answer.
const DEADLINE: Duration = Duration::from_secs(5);

/// How often what is left is looked for. The second look finds nothing, unless a handshake was just being completed.
const PASSES_MAX: usize = 8;

/// For one part of a list. The kernel fills what it is given, to this size at most.
const BUFFER_BYTES: usize = 32 * 1024;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const INET_DIAG_REQ_BYTECODE: u16 = 1;
const INET_DIAG_BC_S_COND: u8 = 7;
const INET_DIAG_BC_D_COND: u8 = 8;
const TCP_TIME_WAIT: u32 = 6;
const TCP_CLOSE: u32 = 7;
const TCP_LISTEN: u32 = 10;

/// Not those that listen, and not what is over: ending a TIME_WAIT would only let old packets in.
const STATES: u32 = !(1 << TCP_TIME_WAIT | 1 << TCP_CLOSE | 1 << TCP_LISTEN);

/// `struct inet_diag_sockid`: addresses, ports, interface and cookie, as they stand in the reply.
const ID_BYTES: usize = 48;
type Id = [u8; ID_BYTES];

/// `struct nlmsghdr`, and the part of `struct inet_diag_msg` in front of the id.
const HEADER_BYTES: usize = 16;
const BEFORE_ID_BYTES: usize = 4;

/// Ends the TCP connections over IPv6 in `ns` that match, by RST to the other end and `ECONNABORTED` at this one, and
/// says how many there were. Change what lets them in *first*: those that got in until then are ended.
///
/// # Errors
/// [`DestroyError`]. It takes `CAP_NET_ADMIN` over the namespace.
pub fn destroy(ns: &NetNs, filter: &Filter) -> Result<u64, DestroyError> {
    if *filter == Filter::default() {
        return Err(DestroyError::Everything);
    }
    end_all(ns, filter, |_, _| true)
}

/// The same for connections for which `is_to_end` holds, by this end and the other one.
///
/// # Errors
/// [`DestroyError`].
pub fn destroy_if(
    ns: &NetNs,
    is_to_end: impl Fn(SocketAddrV6, SocketAddrV6) -> bool,
) -> Result<u64, DestroyError> {
    end_all(ns, &Filter::default(), is_to_end)
}

fn end_all(
    ns: &NetNs,
    filter: &Filter,
    is_to_end: impl Fn(SocketAddrV6, SocketAddrV6) -> bool,
) -> Result<u64, DestroyError> {
    // A connection that was let in a moment ago, by what is no longer so, may not be in the kernel's table yet.
    let_softirqs_finish();
    let socket = ns.run(open).map_err(DestroyError::List)?;
    let mut count = 0;
    for _ in 0..PASSES_MAX {
        let mut matching = list(&socket, filter).map_err(DestroyError::List)?;
        matching.retain(|id| {
            let (local, remote) = ends(id);
            is_to_end(local, remote)
        });
        if matching.is_empty() {
            return Ok(count);
        }
        for id in &matching {
            count += u64::from(end(&socket, id).map_err(|source| DestroyError::Destroy { source })?);
        }
    }
    Err(DestroyError::Endless)
}

/// This end and the other one: ports and addresses stand first, in the order of the packet.
fn ends(id: &Id) -> (SocketAddrV6, SocketAddrV6) {
    let port = |at: usize| u16::from_be_bytes([id[at], id[at + 1]]);
    let address = |at: usize| Ipv6Addr::from(std::array::from_fn::<u8, 16, _>(|byte| id[at + byte]));
    let end = |address, port| SocketAddrV6::new(address, port, 0, 0);
    (end(address(4), port(0)), end(address(20), port(2)))
}

/// Waits for an RCU grace period: whatever packet was being looked at when this was called has been dealt with.
#[expect(unsafe_code, reason = "no library has this system call")]
fn let_softirqs_finish() {
    const MEMBARRIER_CMD_GLOBAL: i32 = 1;
    // It fails where CPUs are isolated by `nohz_full`. The passes of `destroy` then have to do.
    // SAFETY: two numbers; it touches no memory.
    unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0) };
}

fn open() -> io::Result<OwnedFd> {
    let kind = SocketType::RAW;
    let socket = socket_with(AddressFamily::NETLINK, kind, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG))?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(DEADLINE))?;
    Ok(socket)
}

/// The ids of what matches.
fn list(socket: &impl AsFd, filter: &Filter) -> io::Result<Vec<Id>> {
    let mut request = request(SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP, STATES, &[0; ID_BYTES]);
    let program = program(filter);
    if !program.is_empty() {
        request.extend(((4 + program.len()) as u16).to_ne_bytes());
        request.extend(INET_DIAG_REQ_BYTECODE.to_ne_bytes());
        request.extend(program);
    }
    send_message(socket, request)?;

    let mut ids = Vec::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        for message in receive(socket, &mut buffer)? {
            let (kind, body) = message?;
            match i32::from(kind) {
                libc::NLMSG_DONE => return Ok(ids),
                libc::NLMSG_ERROR => error_of(body)?,
                _ if kind == SOCK_DIAG_BY_FAMILY => {
                    let id = body.get(BEFORE_ID_BYTES..).and_then(|rest| rest.first_chunk());
                    ids.push(*id.ok_or_else(truncated)?);
                }
                _ => {}
            }
        }
    }
}

/// Ends one. False if it is gone by itself.
fn end(socket: &impl AsFd, id: &Id) -> io::Result<bool> {
    send_message(socket, request(SOCK_DESTROY, libc::NLM_F_ACK, STATES, id))?;
    let mut buffer = [0; 1024];
    loop {
        for message in receive(socket, &mut buffer)? {
            let (kind, body) = message?;
            if i32::from(kind) == libc::NLMSG_ERROR {
                return match error_of(body) {
                    Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
                    other => other.map(|()| true),
                };
            }
        }
    }
}

/// `struct nlmsghdr` (its length is filled in at the end) and `struct inet_diag_req_v2`.
fn request(kind: u16, flags: i32, states: u32, id: &Id) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([libc::AF_INET6 as u8, libc::IPPROTO_TCP as u8, 0, 0]);
    bytes.extend(states.to_ne_bytes());
    bytes.extend(id);
    bytes
}

/// The filter in the kernel's language: jumps, past the end by 4 for "no".
fn program(filter: &Filter) -> Vec<u8> {
    const CONDITION_BYTES: u16 = 28;
    let wanted = [(INET_DIAG_BC_S_COND, filter.local), (INET_DIAG_BC_D_COND, filter.remote)];
    let conditions: Vec<_> = wanted.into_iter().filter_map(|(code, end)| Some((code, end?))).collect();
    let mut bytes = Vec::new();
    for (place, (code, address)) in conditions.iter().enumerate() {
        let left = (conditions.len() - place) as u16 * CONDITION_BYTES;
        // `struct inet_diag_bc_op`
        bytes.extend([*code, CONDITION_BYTES as u8]);
        bytes.extend((left + 4).to_ne_bytes());
        // `struct inet_diag_hostcond`: any port
        bytes.extend([libc::AF_INET6 as u8, 128, 0, 0]);
        bytes.extend((-1i32).to_ne_bytes());
        bytes.extend(address.octets());
    }
    bytes
}

fn send_message(socket: &impl AsFd, mut bytes: Vec<u8>) -> io::Result<()> {
    let length = bytes.len() as u32;
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    send(socket, &bytes, SendFlags::empty())?;
    Ok(())
}

/// One datagram's messages: each one's type and body.
fn receive<'b>(
    socket: &impl AsFd,
    buffer: &'b mut [u8],
) -> io::Result<impl Iterator<Item = io::Result<(u16, &'b [u8])>>> {
    let (_, length) = recv(socket, &mut *buffer, RecvFlags::TRUNC)?;
    let mut rest = buffer.get(..length).ok_or_else(truncated)?;
    Ok(std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let header = rest.first_chunk::<6>();
        let Some(&[l0, l1, l2, l3, k0, k1]) = header else { return Some(Err(truncated())) };
        let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let Some(body) = rest.get(HEADER_BYTES..length) else {
            rest = &[];
            return Some(Err(truncated()));
        };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok((u16::from_ne_bytes([k0, k1]), body)))
    }))
}

/// What `NLMSG_ERROR` says: no error if it is 0.
fn error_of(body: &[u8]) -> io::Result<()> {
    match i32::from_ne_bytes(*body.first_chunk().ok_or_else(truncated)?) {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(-errno)),
    }
}

fn truncated() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is cut short")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_ends_everything() {
        let ns = NetNs::current().unwrap();
        assert!(matches!(destroy(&ns, &Filter::default()), Err(DestroyError::Everything)));
    }

    #[test]
    fn an_id_names_both_ends() {
        let mut id = [0; ID_BYTES];
        id[..4].copy_from_slice(&[0, 80, 0x9c, 0x40]);
        id[4..20].copy_from_slice(&Ipv6Addr::LOCALHOST.octets());
        id[35] = 2;
        let (local, remote) = ends(&id);
        assert_eq!((local.to_string(), remote.to_string()), ("[::1]:80".into(), "[::2]:40000".into()));
    }

    #[test]
    fn a_condition_that_fails_jumps_past_the_end() {
        let both = Filter { remote: Some(Ipv6Addr::LOCALHOST), local: Some(Ipv6Addr::UNSPECIFIED) };
        let program = program(&both);
        assert_eq!(program.len(), 56);
        let jump = |at: usize| (program[at + 1], u16::from_ne_bytes([program[at + 2], program[at + 3]]));
        assert_eq!((jump(0), jump(28)), ((28, 60), (28, 32)));
    }
}
