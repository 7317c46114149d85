//! What an instance says to the daemon, which believes none of it.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use faasd_sdk::wire::{self, Kind, Record};
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use crate::core::name::FunctionName;
use crate::sys::readiness::watch;
use crate::sys::scm;

/// The longest message of an instance: one record and a name.
const MESSAGE_BYTES_MAX: usize = wire::HEADER_BYTES + wire::RECORD_BYTES + wire::NAME_BYTES_MAX;

/// Messages that are heard of one instance in each [`WINDOW`]: an instance's messages are no way to keep the daemon busy.
const MESSAGES_PER_WINDOW: u32 = 1_000;
const WINDOW: Duration = Duration::from_millis(100);

/// What an instance says.
#[derive(Debug)]
pub(super) enum Said {
    Ready,
    Drained,
    Room,
    /// Of a runner: it waits to be let go.
    Held,
    Forward {
        to: FunctionName,
        record: Record,
        connection: OwnedFd,
    },
    /// It has shut its end, and says no more.
    Nothing,
}

/// The next message of an instance.
pub(super) async fn next(messages: &mut Option<Messages>) -> io::Result<Said> {
    let Some(messages) = messages else { return std::future::pending().await };
    messages.next().await
}

/// An instance's messages, no more of them at a time than the daemon has time for.
pub(super) struct Messages {
    socket: AsyncFd<OwnedFd>,
    window: Instant,
    heard: u32,
}

impl Messages {
    /// Listens to the daemon's end of an instance's socket. Needs to be called within a tokio runtime.
    pub(super) fn of(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self { socket: watch(socket)?, window: Instant::now(), heard: 0 })
    }

    async fn next(&mut self) -> io::Result<Said> {
        if self.heard >= MESSAGES_PER_WINDOW {
            // The rest stays in the socket, whose room ends: whoever says more waits for himself.
            tokio::time::sleep_until(self.window + WINDOW).await;
        }
        if self.window.elapsed() >= WINDOW {
            (self.window, self.heard) = (Instant::now(), 0);
        }
        let mut bytes = [0; MESSAGE_BYTES_MAX];
        loop {
            let mut guard = self.socket.readable().await?;
            match guard.try_io(|socket| scm::recv_untrusted(socket.get_ref(), &mut bytes)) {
                Err(_would_block) => {}
                Ok(received) => {
                    self.heard += 1;
                    let (length, descriptors) = received?;
                    return understand(&bytes[..length], descriptors);
                }
            }
        }
    }
}

fn understand(bytes: &[u8], mut descriptors: Vec<OwnedFd>) -> io::Result<Said> {
    let said = (|| {
        if bytes.is_empty() {
            return Ok(Said::Nothing);
        }
        let message = wire::Message::parse(bytes).map_err(|e| e.to_string())?;
        match (message.kind, descriptors.len()) {
            (Kind::Ready, 0) => Ok(Said::Ready),
            (Kind::Drained, 0) => Ok(Said::Drained),
            (Kind::Room, 0) => Ok(Said::Room),
            (Kind::Held, 0) => Ok(Said::Held),
            (Kind::Forward, 1) => {
                let name = std::str::from_utf8(message.rest).ok().and_then(|name| name.parse().ok());
                match (name, message.records().next(), descriptors.pop()) {
                    (Some(to), Some(record), Some(connection)) => {
                        Ok(Said::Forward { to, record, connection })
                    }
                    _ => Err("it passed a connection on to what is no function's name".to_owned()),
                }
            }
            (Kind::Connections | Kind::Drain | Kind::Go, _) => {
                Err("it sent a message that only faasd sends".to_owned())
            }
            (kind, count) => Err(format!("it sent {count} descriptors with `{kind:?}`")),
        }
    })();
    if !descriptors.is_empty() {
        // Whatever closing them waits for, nobody else is to wait for it.
        tokio::task::spawn_blocking(move || drop(descriptors));
    }
    said.map_err(io::Error::other)
}
