//! The function's end of the hand-off protocol (`docs/HANDOFF.md`).

pub mod wire;
