//! The API's shapes, and the client that every `faas` verb uses.

pub mod client;
pub mod since;
pub mod types;
