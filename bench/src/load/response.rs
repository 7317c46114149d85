//! How far one response has come.

use rustix::io::Errno;

/// The longest head of a response, in bytes.
const HEAD_BYTES_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 32;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("{call}: {errno}")]
    Call { call: &'static str, errno: Errno },
    #[error("the connection was closed before the answer was complete")]
    Closed,
    #[error("the connection stayed open after `Connection: close`: somebody keeps a copy of it")]
    KeptOpen,
    #[error("no answer in time")]
    Silence,
    #[error("status {0}")]
    Status(u16),
    #[error("the answer is not HTTP/1.1: {0}")]
    Malformed(httparse::Error),
    #[error("the answer has no Content-Length, which the load needs to know its end")]
    NoLength,
    #[error("the answer's head is longer than {HEAD_BYTES_MAX} bytes")]
    HeadTooLong,
    #[error("more bytes came than the answer's Content-Length says")]
    Overrun,
}

impl Fault {
    pub(super) fn call(call: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self::Call { call, errno }
    }
}

/// Reads a response as its bytes arrive; the body is counted, not kept.
#[derive(Debug, Default)]
pub(super) struct Response {
    /// A WebSocket's echo is known by its length alone.
    fixed: Option<u64>,
    /// Used only when the head comes in pieces.
    head: Vec<u8>,
    body_left: Option<u64>,
}

impl Response {
    /// Answers of HTTP, or of so many bytes each.
    pub(super) fn new(fixed: Option<u64>) -> Self {
        Self { fixed, ..Self::default() }
    }

    pub(super) fn clear(&mut self) {
        self.head.clear();
        self.body_left = self.fixed;
    }

    /// Takes what has arrived; true once the response is complete.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<bool, Fault> {
        let body = match self.body_left {
            Some(_) => bytes.len(),
            None if self.head.is_empty() => match read_head(bytes)? {
                Some((head, length)) => {
                    self.body_left = Some(length);
                    bytes.len() - head
                }
                None => return self.keep(bytes),
            },
            None => {
                self.keep(bytes)?;
                let Some((head, length)) = read_head(&self.head)? else { return Ok(false) };
                self.body_left = Some(length);
                self.head.len() - head
            }
        };
        let left = self.body_left.unwrap_or_default().checked_sub(body as u64).ok_or(Fault::Overrun)?;
        self.body_left = Some(left);
        Ok(left == 0)
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<bool, Fault> {
        if self.head.len() + bytes.len() > HEAD_BYTES_MAX {
            return Err(Fault::HeadTooLong);
        }
        self.head.extend_from_slice(bytes);
        Ok(false)
    }
}

/// The length of the head and of the body that it announces; `None` while the head is incomplete.
fn read_head(bytes: &[u8]) -> Result<Option<(usize, u64)>, Fault> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(bytes).map_err(Fault::Malformed)? else {
        return Ok(None);
    };
    match response.code {
        Some(200) => {}
        // Switching protocols, as it was asked to.
        Some(101) => return Ok(Some((head, 0))),
        other => return Err(Fault::Status(other.unwrap_or_default())),
    }
    let length = response
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"))
        .and_then(|header| std::str::from_utf8(header.value).ok()?.trim().parse().ok())
        .ok_or(Fault::NoLength)?;
    Ok(Some((head, length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n";

    #[test]
    fn an_answer_is_complete_however_it_is_cut() {
        for cut in 1..ANSWER.len() {
            let mut response = Response::default();
            assert!(!response.feed(&ANSWER[..cut]).unwrap(), "{cut}");
            assert!(response.feed(&ANSWER[cut..]).unwrap(), "{cut}");
        }
        let mut response = Response::default();
        assert!(response.feed(ANSWER).unwrap());
        response.clear();
        assert!(response.feed(ANSWER).unwrap());
    }

    #[test]
    fn a_wrong_answer_is_a_fault() {
        let feed = |bytes: &[u8]| Response::default().feed(bytes).unwrap_err();
        assert!(matches!(feed(b"HTTP/1.1 502 Bad Gateway\r\n\r\n"), Fault::Status(502)));
        assert!(matches!(feed(b"HTTP/1.1 200 OK\r\n\r\n"), Fault::NoLength));
        assert!(matches!(feed(b"SSH-2.0-OpenSSH\r\n"), Fault::Malformed(_)));
        assert!(matches!(feed(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab"), Fault::Overrun));
        assert!(matches!(
            feed(&[&b"HTTP/1.1 200 OK\r\nA: "[..], &[b'a'; HEAD_BYTES_MAX]].concat()),
            Fault::HeadTooLong
        ));
    }
}
