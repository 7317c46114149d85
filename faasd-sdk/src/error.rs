//! What can go wrong at the function's end.

use std::io;

use crate::wire::{SOCKET_FD, STATUS_FD, WireError};

/// Why connections cannot be received or served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "descriptor {SOCKET_FD} is not faasd's socket: this program is to be started by faasd, or with FAAS_LISTEN=[::]:8080 \
         to serve by itself"
    )]
    NotASocket(#[source] io::Error),
    #[error("descriptor {STATUS_FD} is not faasd's status page")]
    Status(#[source] io::Error),
    #[error("the descriptors {SOCKET_FD} and {STATUS_FD} were taken before")]
    Taken,
    #[error("receiving connections")]
    Receive(#[source] io::Error),
    #[error("telling faasd `{0:?}`")]
    Send(crate::wire::Kind, #[source] io::Error),
    #[error("a message from faasd was malformed")]
    Wire(#[from] WireError),
    /// The kernel closed them: the process is at its limit of open files. Receiving can go on.
    #[error("{lost} connections were lost: this process is at its limit of open files; raise `limits.files`")]
    Truncated { lost: usize },
    #[error("'{0}' is no function's name")]
    Name(String),
    #[error("this program listens by itself: there is no platform to pass a connection on")]
    NoPlatform,
    #[error("{open} connections were still open at the deadline")]
    StillOpen { open: u64 },
    #[error("FAAS_LISTEN is `{0}`; write an address and a port, like [::]:8080")]
    ListenAddress(String),
    #[error("listening on {0}")]
    Listen(std::net::SocketAddr, #[source] io::Error),
    #[error("starting the async runtime")]
    Runtime(#[source] io::Error),
}
