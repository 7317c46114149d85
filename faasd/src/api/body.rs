//! A request's body that is read from somewhere while it is sent.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use tokio::io::{AsyncRead, ReadBuf};

/// A body that is read while it is sent.
pub(super) struct ReadBody<R> {
    reader: R,
    /// What is still to come, when that is known.
    left: Option<u64>,
    buffer: Box<[u8]>,
}

impl<R> ReadBody<R> {
    const CHUNK_BYTES: usize = 64 << 10;

    pub(super) fn new(reader: R, bytes: Option<u64>) -> Self {
        Self { reader, left: bytes, buffer: vec![0; Self::CHUNK_BYTES].into() }
    }
}

impl<R> fmt::Debug for ReadBody<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadBody").field("left", &self.left).finish_non_exhaustive()
    }
}

impl<R: AsyncRead + Unpin> HttpBody for ReadBody<R> {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        if this.left == Some(0) {
            return Poll::Ready(None);
        }
        let mut read = ReadBuf::new(&mut this.buffer);
        ready!(Pin::new(&mut this.reader).poll_read(cx, &mut read))?;
        let mut data = read.filled();
        if let Some(left) = &mut this.left {
            data = &data[..data.len().min(usize::try_from(*left).unwrap_or(usize::MAX))];
            if data.is_empty() {
                let text = "the file became shorter while it was sent";
                return Poll::Ready(Some(Err(io::Error::new(io::ErrorKind::UnexpectedEof, text))));
            }
            *left -= data.len() as u64;
        } else if data.is_empty() {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(Ok(Frame::data(Bytes::copy_from_slice(data)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
