//! The control plane: desired state, names, and what brings the machine there.

pub mod api;
pub mod dns;
pub mod records;
pub mod store;
