//! The API's shapes, and the client that every `faas` verb uses.

mod body;
pub mod client;
pub mod condition;
pub mod egress;
pub mod since;
pub mod types;
