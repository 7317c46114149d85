//! The function's end of the hand-off protocol (`docs/HANDOFF.md`).
//!
//! An HTTP function is one call:
//!
//! ```no_run
//! use faasd_sdk::http::{self, Full, Response};
//!
//! fn main() -> Result<(), faasd_sdk::Error> {
//!     http::run(|_request| async { Ok::<_, std::convert::Infallible>(Response::new(Full::from("hello\n"))) })
//! }
//! ```
//!
//! Anything else that speaks TCP takes its connections from a [`Receiver`] (blocking) or an `AsyncReceiver` (tokio).
//! `default-features = false` leaves the protocol alone: no async runtime, no HTTP.

mod error;
#[cfg(feature = "http")]
pub mod http;
mod receiver;
pub mod status;
mod sys;
#[cfg(feature = "tokio")]
mod tokio_receiver;
pub mod wire;

pub use error::Error;
pub use receiver::{Batch, Connection, Event, Guard, Open, Receiver};
pub use status::StatusPage;
#[cfg(feature = "tokio")]
pub use tokio_receiver::AsyncReceiver;
