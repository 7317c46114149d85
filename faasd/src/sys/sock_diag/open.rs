//! What has passed so far in the connections that are open: the kernel's own books of each, listed in one go.

use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use faasd_common::Owner;

use super::{
    BUFFER_BYTES, HEADER_BYTES, ID_BYTES, SOCK_DIAG_BY_FAMILY, STATES, ends, error_of, open, receive,
    request, send_message, truncated,
};
use crate::sys::netns::NetNs;

/// The most connections that are looked at: some 30 ms of a CPU. Beyond it none of them counts before its end.
pub const OPEN_MAX: usize = 32_768;

/// A connection of a function's, as its server sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// The address that was dialled.
    pub local: Ipv6Addr,
    /// Who dialled.
    pub remote: Ipv6Addr,
    pub received_bytes: u64,
    /// That have arrived.
    pub sent_bytes: u64,
    /// Segments that were sent again.
    pub retransmits: u64,
    /// Smoothed; 0 before there was one.
    pub rtt_us: u32,
}

const TCP_SYN_RECV: u32 = 3;
const INET_DIAG_INFO: u16 = 2;
const INET_DIAG_REQ_SK_BPF_STORAGES: u16 = 2;
const INET_DIAG_SK_BPF_STORAGES: u16 = 20;
const SK_DIAG_BPF_STORAGE_REQ_MAP_FD: u16 = 1;
const SK_DIAG_BPF_STORAGE: u16 = 1;
const SK_DIAG_BPF_STORAGE_MAP_VALUE: u16 = 3;

/// What an attribute's type has beside its number: that it holds others, and the order of its bytes.
const NLA_TYPE_MASK: u16 = 0x3fff;
const ATTRIBUTE_HEADER_BYTES: usize = 4;

/// Bytes of `struct inet_diag_msg`, behind which the attributes begin.
const MESSAGE_BYTES: usize = 72;

/// Where what is asked for stands in `struct tcp_info`.
const RTT: usize = 68;
const TOTAL_RETRANS: usize = 100;
const BYTES_ACKED: usize = 120;
const BYTES_RECEIVED: usize = 128;

/// The connections over IPv6 in `ns` that came in at a function's listener, by the mark that they have in the map
/// `marks`: an end from which a function called another has none that is counted. `None` if there are more than
/// [`OPEN_MAX`].
///
/// # Errors
/// Those of `sock_diag(7)`. It takes `CAP_BPF` and `CAP_NET_ADMIN`.
pub fn list(ns: &NetNs, marks: BorrowedFd<'_>) -> io::Result<Option<Vec<Open>>> {
    let socket = ns.run(open)?;
    let mut request =
        request(SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP, STATES & !(1 << TCP_SYN_RECV), &[0; ID_BYTES]);
    // `idiag_ext`
    request[HEADER_BYTES + 2] = 1 << (INET_DIAG_INFO - 1);
    let map = attribute(SK_DIAG_BPF_STORAGE_REQ_MAP_FD, &marks.as_raw_fd().to_ne_bytes());
    request.extend(attribute(INET_DIAG_REQ_SK_BPF_STORAGES, &map));
    send_message(&socket, request)?;

    let mut found = Vec::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        for message in receive(&socket, &mut buffer)? {
            let (kind, body) = message?;
            match i32::from(kind) {
                libc::NLMSG_DONE => return Ok(Some(found)),
                libc::NLMSG_ERROR => error_of(body)?,
                _ if kind == SOCK_DIAG_BY_FAMILY => found.extend(read(body)?),
                _ => {}
            }
        }
        if found.len() > OPEN_MAX {
            return Ok(None);
        }
    }
}

/// One of the list's, if it is a function's.
fn read(body: &[u8]) -> io::Result<Option<Open>> {
    let id = body.get(super::BEFORE_ID_BYTES..).and_then(|rest| rest.first_chunk()).ok_or_else(truncated)?;
    let attributes = body.get(MESSAGE_BYTES..).ok_or_else(truncated)?;
    let is_counted = |mark: &[u8]| word(mark, std::mem::offset_of!(Owner, counted)) == Some(Owner::OPENED);
    let mark = find(attributes, INET_DIAG_SK_BPF_STORAGES)
        .and_then(|storages| find(storages, SK_DIAG_BPF_STORAGE))
        .and_then(|storage| find(storage, SK_DIAG_BPF_STORAGE_MAP_VALUE));
    let Some(info) = find(attributes, INET_DIAG_INFO).filter(|_| mark.is_some_and(is_counted)) else {
        return Ok(None);
    };
    let long = |at: usize| info.get(at..).and_then(|rest| rest.first_chunk()).map(|b| u64::from_ne_bytes(*b));
    let (local, remote) = ends(id);
    Ok(Some(Open {
        local: *local.ip(),
        remote: *remote.ip(),
        received_bytes: long(BYTES_RECEIVED).ok_or_else(truncated)?,
        sent_bytes: long(BYTES_ACKED).ok_or_else(truncated)?,
        retransmits: u64::from(word(info, TOTAL_RETRANS).ok_or_else(truncated)?),
        rtt_us: word(info, RTT).ok_or_else(truncated)?,
    }))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|bytes| u32::from_ne_bytes(*bytes))
}

/// `struct nlattr` and what it holds.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((ATTRIBUTE_HEADER_BYTES + value.len()) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The first attribute of this kind.
fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let Some(&[l0, l1, k0, k1]) = attributes.first_chunk() {
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = attributes.get(ATTRIBUTE_HEADER_BYTES..length)?;
        if u16::from_ne_bytes([k0, k1]) & NLA_TYPE_MASK == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_is_found_among_others_and_within_others() {
        let inner = [attribute(2, b"id: "), attribute(3, b"value")].concat();
        let all = [attribute(2, &[7; 5]), attribute(0x8000 | 20, &attribute(1, &inner))].concat();
        let value = find(&all, 20).and_then(|all| find(all, 1)).and_then(|one| find(one, 3));
        assert_eq!(value, Some(&b"value"[..]));
        assert_eq!((find(&all, 2), find(&all, 9)), (Some(&[7; 5][..]), None));
    }

    #[test]
    fn what_is_cut_short_is_not_read_past_its_end() {
        let whole = attribute(3, b"value");
        for length in 0..whole.len() {
            assert!(find(&whole[..length], 3).is_none_or(|value| value == b"value"), "{length}");
        }
        assert_eq!(find(&[0, 0, 0, 0], 3), None);
        assert!(read(&[0; MESSAGE_BYTES - 1]).is_err());
    }
}
