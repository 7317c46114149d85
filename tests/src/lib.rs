//! A bed for end-to-end tests: a server and its clients on one machine, joined by cables and by the tunnel.
//!
//! Everything in it is real: the programs as they are installed, the kernel, runc, the tunnel, curl. Each bed has names
//! of its own (namespaces, cgroups, pins, directories), so that tests run beside each other and beside a real faasd,
//! and each checks on its way out that nothing is left over.

mod bed;
mod client;
mod leaks;
mod load;
mod process;
mod suite;
mod view;
pub mod wireguard;

pub use bed::{Bed, DEADLINE, Output, eventually, hello_program, program};
pub use client::{Client, exchange, get};
pub use leaks::Traces;
pub use load::Load;
pub use process::{anonymous_bytes_of, descriptors_of, established, signal, sockets_of};
pub use suite::{alone, run, shared};
pub use view::{address, only, ready, started, until};
