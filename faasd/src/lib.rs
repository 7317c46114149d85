//! faasd serves functions over a private network with nothing in the way of a connection.
//!
//! The modules read in one direction (`docs/ARCHITECTURE.md` has the map, `cargo xtask check` enforces it):
//! `control` builds on `runtime`, `tunnel`, `dataplane`'s command queue, `core`, `api` and `sys`;
//! `dataplane`, `runtime`, `tunnel` and `load` on `core` and `sys`; `core` on nothing of ours, `sys` on `core` for its
//! types at most.

pub mod api;
pub mod cli;
pub mod control;
pub mod core;
pub mod dataplane;
pub mod load;
pub mod runtime;
pub mod sys;
pub mod telemetry;
pub mod tunnel;
