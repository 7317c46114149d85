//! What went wrong, as one of a few kinds and in a sentence.

use std::error::Error;
use std::io;

use tokio_tungstenite::tungstenite;

use crate::core::load::record::Fault;

/// A request that failed.
#[derive(Debug)]
pub(super) struct Failed {
    pub fault: Fault,
    pub example: String,
    /// No connection could be opened: the next one should wait for a moment.
    pub connecting: bool,
}

impl Failed {
    pub(super) fn new(fault: Fault, example: impl Into<String>) -> Self {
        Self { fault, example: example.into(), connecting: false }
    }

    /// While connecting.
    pub(super) fn connecting(self) -> Self {
        Self { connecting: true, ..self }
    }

    pub(super) fn dns(error: &io::Error) -> Self {
        Self::new(Fault::Dns, error.to_string())
    }

    pub(super) fn io(error: &io::Error) -> Self {
        use io::ErrorKind as Kind;
        let fault = match error.kind() {
            Kind::ConnectionRefused => Fault::Refused,
            Kind::HostUnreachable | Kind::NetworkUnreachable | Kind::NetworkDown => Fault::Unreachable,
            Kind::AddrNotAvailable | Kind::AddrInUse => Fault::Ports,
            Kind::TimedOut => Fault::ConnectTimeout,
            Kind::ConnectionReset | Kind::BrokenPipe | Kind::ConnectionAborted => Fault::Reset,
            Kind::UnexpectedEof | Kind::NotConnected => Fault::Closed,
            _ => match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
                Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) => Fault::Descriptors,
                _ => Fault::Other,
            },
        };
        Self::new(fault, error.to_string())
    }

    pub(super) fn hyper(error: &hyper::Error) -> Self {
        // What the socket said comes first: hyper wraps it.
        let mut cause = error.source();
        while let Some(inner) = cause {
            if let Some(io) = inner.downcast_ref::<io::Error>() {
                return Self::io(io);
            }
            cause = inner.source();
        }
        let fault = if error.is_timeout() {
            Fault::Timeout
        } else if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
            Fault::Closed
        } else {
            // HTTP/2 tells the reason beneath it.
            Fault::Protocol
        };
        let example = error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"));
        Self::new(fault, example)
    }

    pub(super) fn websocket(error: &tungstenite::Error) -> Self {
        match error {
            tungstenite::Error::Io(error) => Self::io(error),
            tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => {
                Self::new(Fault::Closed, error.to_string())
            }
            tungstenite::Error::Http(response) => {
                let status = response.status();
                let text = format!("the server answered {status} rather than becoming a WebSocket");
                let is_error = status.as_u16() >= 400;
                Self::new(if is_error { Fault::Status(status.as_u16()) } else { Fault::Protocol }, text)
            }
            tungstenite::Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake) => {
                Self::new(Fault::Reset, error.to_string())
            }
            other => Self::new(Fault::Protocol, other.to_string()),
        }
    }
}
