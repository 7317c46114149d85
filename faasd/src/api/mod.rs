//! The API's shapes, and the client that every `faas` verb uses.

pub mod client;
pub mod condition;
pub mod types;
