//! A response that comes line by line.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::timeout;

use super::{ClientError, Result};

/// The daemon sends a blank line every 15 s when there is nothing else.
const SILENCE: Duration = Duration::from_secs(60);

/// The longest line: one of a log, or an event.
const LINE_BYTES_MAX: usize = 256 << 10;

/// Lines, the next at a time.
#[derive(Debug)]
pub struct Lines {
    body: Incoming,
    /// What has come and not been taken.
    buffer: Vec<u8>,
    /// How far it has been looked through for an end of line.
    searched: usize,
}

impl Lines {
    pub(super) fn new(body: Incoming) -> Self {
        Self { body, buffer: Vec::new(), searched: 0 }
    }

    /// The next line, without its end; blank ones are not shown. `None` at the end.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn next(&mut self) -> Result<Option<String>> {
        loop {
            if let Some(end) = self.buffer[self.searched..].iter().position(|b| *b == b'\n') {
                let end = self.searched + end;
                let line = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                self.buffer.drain(..=end);
                self.searched = 0;
                if !line.is_empty() {
                    return Ok(Some(line));
                }
                continue;
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > LINE_BYTES_MAX {
                return Err(ClientError::Answer(format!("a line is longer than {LINE_BYTES_MAX} bytes")));
            }
            match timeout(SILENCE, self.body.frame()).await.map_err(|_| ClientError::TimedOut(SILENCE))? {
                None => return Ok(None),
                Some(Err(e)) => return Err(ClientError::Broken(e)),
                Some(Ok(frame)) => {
                    self.buffer.extend(frame.into_data().unwrap_or_default());
                }
            }
        }
    }
}
