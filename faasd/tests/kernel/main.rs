//! The kernel program on a real kernel, with real sockets in a namespace of its own: who is let in, how connections are
//! shared out, refused, counted and ended. Needs root: `cargo test -p faasd --test kernel -- --ignored`.

#![expect(clippy::unwrap_used, reason = "in a test, what fails should say where")]

mod access;
mod bed;
mod ended;
mod flows;
mod sources;
mod steering;
