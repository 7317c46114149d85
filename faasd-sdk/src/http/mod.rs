//! Serves HTTP/1.1 on the connections that the platform hands over.
//!
//! One service, one process, two ways in: started by faasd, connections come by the hand-off protocol. With
//! `FAAS_LISTEN=[::]:8080` in the environment the same program listens by itself, and the same code serves what it
//! accepts: for a run on one's own machine, and for measuring what the platform costs.
//!
//! A service may upgrade a connection ([`upgrade`]), to WebSocket for one; it counts as open until the service drops it.
//!
//! The platform reads and writes no byte of a connection, so there is no idle time-out here either: a client may
//! keep its connection as long as it likes. What is idle costs little, see [`connection`](self).

mod connection;
mod server;
mod stream;

pub use bytes::Bytes;
pub use connection::Addresses;
pub use http_body_util::{BodyExt, Empty, Full, StreamBody};
pub use hyper::body::{Body, Frame, Incoming};
pub use hyper::{HeaderMap, Method, Request, Response, StatusCode, Uri, header, upgrade};
pub use server::{Server, run};

/// What a service's errors are boxed as.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
