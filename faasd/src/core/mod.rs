//! Policy: what things are called, what is declared, what follows from an event. No I/O, no clock, no unsafe.

pub mod access;
pub mod address;
pub mod balance;
pub mod egress;
pub mod endpoint;
pub mod image;
pub mod invitation;
pub mod life;
pub mod load;
pub mod name;
pub mod paths;
pub mod revision;
pub mod secret;
pub mod spec;
pub mod zone;
