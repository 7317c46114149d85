//! UDP messages by the batch: one call receives many, one sends their answers.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

/// Messages that are received by one call. More would wait for each other.
const MESSAGES: usize = 32;

/// Room for messages and their answers, of at most `IN` and `OUT` bytes. It is allocated once.
pub struct Batch<const IN: usize, const OUT: usize> {
    queries: Box<[[u8; IN]]>,
    answers: Box<[[u8; OUT]]>,
    sources: Box<[libc::sockaddr_in6]>,
    lengths: [Lengths; MESSAGES],
}

#[derive(Clone, Copy, Default)]
struct Lengths {
    query: usize,
    /// 0 for no answer.
    answer: usize,
}

impl<const IN: usize, const OUT: usize> std::fmt::Debug for Batch<IN, OUT> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch").finish_non_exhaustive()
    }
}

impl<const IN: usize, const OUT: usize> Default for Batch<IN, OUT> {
    #[expect(unsafe_code, reason = "libc's structures have no other initial value")]
    fn default() -> Self {
        // SAFETY: plain integers, for which all zeros is a value.
        let source: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
        Self {
            queries: vec![[0; IN]; MESSAGES].into(),
            answers: vec![[0; OUT]; MESSAGES].into(),
            sources: vec![source; MESSAGES].into(),
            lengths: [Lengths::default(); MESSAGES],
        }
    }
}

impl<const IN: usize, const OUT: usize> Batch<IN, OUT> {
    /// Waits for a message, and takes those that are there by then. Returns how many. A message longer than `IN` is cut.
    /// The socket is one of IPv6.
    ///
    /// # Errors
    /// Those of `recvmmsg(2)`.
    #[expect(unsafe_code, reason = "neither rustix nor the standard library has recvmmsg")]
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.lengths.fill(Lengths::default());
        let mut pieces = [libc::iovec { iov_base: ptr::null_mut(), iov_len: IN }; MESSAGES];
        // SAFETY: integers and pointers, for which all zeros is a value.
        let mut heads: [libc::mmsghdr; MESSAGES] = unsafe { std::mem::zeroed() };
        for (i, head) in heads.iter_mut().enumerate() {
            pieces[i].iov_base = self.queries[i].as_mut_ptr().cast();
            head.msg_hdr.msg_name = (&raw mut self.sources[i]).cast();
            head.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
            head.msg_hdr.msg_iov = &raw mut pieces[i];
            head.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: each of the heads leads to one piece of `IN` bytes and to an address, as long as it says, all of which
        // live until the call returns. No timeout is given.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                heads.as_mut_ptr(),
                MESSAGES as u32,
                libc::MSG_WAITFORONE as _,
                ptr::null_mut(),
            )
        };
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        for (lengths, head) in self.lengths.iter_mut().zip(&heads).take(received) {
            lengths.query = (head.msg_len as usize).min(IN);
        }
        Ok(received)
    }

    /// A message that was received, its sender, and room for the answer.
    pub fn exchange(&mut self, i: usize) -> (&[u8], SocketAddrV6, &mut [u8; OUT]) {
        let source = &self.sources[i];
        let address = Ipv6Addr::from(source.sin6_addr.s6_addr);
        let port = u16::from_be(source.sin6_port);
        let source = SocketAddrV6::new(address, port, source.sin6_flowinfo, source.sin6_scope_id);
        (&self.queries[i][..self.lengths[i].query], source, &mut self.answers[i])
    }

    /// Has so many bytes of the room for the answer sent to the message's sender.
    pub fn answer(&mut self, i: usize, length: usize) {
        self.lengths[i].answer = length.min(OUT);
    }

    /// Sends the answers. One that cannot be sent is left out: who asked will ask again.
    #[expect(unsafe_code, reason = "rustix's sendmmsg wants addresses in a form of its own")]
    pub fn send(&mut self, socket: BorrowedFd<'_>) {
        let mut pieces = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; MESSAGES];
        // SAFETY: integers and pointers, for which all zeros is a value.
        let mut heads: [libc::mmsghdr; MESSAGES] = unsafe { std::mem::zeroed() };
        let mut count = 0;
        for (i, lengths) in self.lengths.iter().enumerate().filter(|(_, lengths)| lengths.answer > 0) {
            pieces[count].iov_base = self.answers[i].as_mut_ptr().cast();
            pieces[count].iov_len = lengths.answer;
            let head = &mut heads[count].msg_hdr;
            head.msg_name = (&raw mut self.sources[i]).cast();
            head.msg_namelen = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
            head.msg_iov = &raw mut pieces[count];
            head.msg_iovlen = 1;
            count += 1;
        }
        let mut sent = 0;
        while sent < count {
            // SAFETY: the first `count` heads each lead to one piece of an answer and to an address, as long as they
            // say, all of which live until the call returns.
            let done = unsafe {
                libc::sendmmsg(
                    socket.as_raw_fd(),
                    heads[sent..].as_mut_ptr(),
                    (count - sent) as u32,
                    libc::MSG_DONTWAIT as _,
                )
            };
            // An error is that of the first one.
            sent += usize::try_from(done).unwrap_or(0).max(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn answers_go_where_the_messages_came_from() {
        let server = UdpSocket::bind("[::1]:0").unwrap();
        let clients = [(); 3].map(|()| UdpSocket::bind("[::1]:0").unwrap());
        for (i, client) in clients.iter().enumerate() {
            client.connect(server.local_addr().unwrap()).unwrap();
            client.send(&vec![i as u8; 10 + 10 * i]).unwrap();
        }
        let mut batch = Batch::<25, 8>::default();
        assert_eq!(batch.receive(server.as_fd()).unwrap(), 3);
        for (i, client) in clients.iter().enumerate() {
            let (query, source, answer) = batch.exchange(i);
            // The last one is longer than there is room for.
            assert_eq!(query, vec![i as u8; (10 + 10 * i).min(25)]);
            assert_eq!(std::net::SocketAddr::from(source), client.local_addr().unwrap());
            answer[0] = 100 + i as u8;
            // The second one is left without an answer.
            batch.answer(i, if i == 1 { 0 } else { 1 });
        }
        batch.send(server.as_fd());
        for (i, client) in clients.iter().enumerate() {
            client.set_nonblocking(true).unwrap();
            let mut answer = [0; 8];
            match client.recv(&mut answer) {
                Ok(length) => assert_eq!((length, answer[0]), (1, 100 + i as u8)),
                Err(error) => assert_eq!((i, error.kind()), (1, io::ErrorKind::WouldBlock)),
            }
        }
    }

    #[test]
    fn who_waits_is_woken_by_a_shutdown() {
        let server = UdpSocket::bind("[::1]:0").unwrap();
        let waiting = server.try_clone().unwrap();
        let thread = std::thread::spawn(move || Batch::<25, 8>::default().receive(waiting.as_fd()));
        // Either before or while it waits.
        while !thread.is_finished() {
            let _ = rustix::net::shutdown(&server, rustix::net::Shutdown::Read);
            std::thread::yield_now();
        }
        assert!(thread.join().unwrap().is_ok());
    }
}
