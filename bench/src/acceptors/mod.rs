//! Three ways to accept connections and hand them over, everything else being equal: the same listener, the same
//! message, the same `sendmsg(2)`, the same function. They keep the choice of the daemon's acceptor provable.

mod tokio_listener;
mod tokio_uring_listener;
mod uring;

use std::net::SocketAddr;
use std::os::fd::AsFd;

use crate::wire::{self, Sender};

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Acceptor {
    /// The io-uring crate: multishot accept, a sweep's connections in one message. What the daemon does.
    Uring,
    /// tokio-uring 0.5: single-shot accept; `sendmsg(2)` by hand, as it has no call for SCM_RIGHTS.
    TokioUring,
    /// tokio's `TcpListener`.
    Tokio,
}

impl Acceptor {
    pub const ALL: [Self; 3] = [Self::Uring, Self::TokioUring, Self::Tokio];

    /// The subject's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Uring => "acceptor-uring",
            Self::TokioUring => "acceptor-tokio-uring",
            Self::Tokio => "acceptor-tokio",
        }
    }

    /// Accepts on `address` until the instance behind standard input is gone.
    ///
    /// # Errors
    /// If it cannot listen or accept, or the instance is gone.
    pub fn run(self, address: SocketAddr) -> anyhow::Result<()> {
        let sender = Sender::new(std::io::stdin().as_fd().try_clone_to_owned()?);
        let listener = wire::listen(address)?;
        match self {
            Self::Uring => uring::run(&listener, sender),
            Self::TokioUring => tokio_uring_listener::run(listener, sender),
            Self::Tokio => tokio_listener::run(listener, sender),
        }
    }
}
