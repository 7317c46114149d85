//! What a function connects to.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A function's own connections, since the daemon started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Egress {
    /// Connections to functions.
    pub inside: u64,
    /// Connections to the outside.
    pub outside: u64,
    /// Attempts to connect to what it was not granted. Counted of functions that have a grant: others have nobody who is
    /// asked.
    pub refused: u64,
    /// Granted, and not made: nobody was there, or not in time, or too many at a time.
    pub failed: u64,
    /// Where the last attempt that was refused was to lead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub last_refused: Option<SocketAddr>,
}
