//! What a request carries: some bytes, or the same bytes again and again, never more than a piece of it in memory.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, SizeHint};

/// How much of a generated body is in memory.
const PIECE: u64 = 64 << 10;

/// A body.
#[derive(Clone, Debug, Default)]
pub struct Payload {
    piece: Bytes,
    left: u64,
}

impl Payload {
    /// These bytes.
    #[must_use]
    pub fn of(bytes: Bytes) -> Self {
        Self { left: bytes.len() as u64, piece: bytes }
    }

    /// So many bytes, letters so that a text protocol takes them as well.
    #[must_use]
    pub fn generated(bytes: u64) -> Self {
        let piece = (b'a'..=b'z').cycle().take(bytes.min(PIECE) as usize).collect();
        Self { piece, left: bytes }
    }

    /// How many bytes there are.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.left
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// All of it, for what is sent in one piece.
    pub(super) fn whole(&self) -> Bytes {
        if self.left == self.piece.len() as u64 {
            return self.piece.clone();
        }
        self.piece.iter().copied().cycle().take(self.left as usize).collect()
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let length = self.left.min(self.piece.len() as u64);
        self.left -= length;
        Poll::Ready(Some(Ok(Frame::data(self.piece.slice(..length as usize)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn a_body_is_as_long_as_it_says() {
        for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7] {
            let payload = Payload::generated(length);
            assert_eq!((payload.len(), payload.size_hint().exact()), (length, Some(length)));
            assert_eq!(payload.whole().len() as u64, length);
            let sent = payload.clone().collect().await.unwrap().to_bytes();
            assert_eq!(sent, payload.whole());
        }
        assert_eq!(Payload::of("abc".into()).collect().await.unwrap().to_bytes(), "abc");
    }
}
