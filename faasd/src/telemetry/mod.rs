//! What the daemon says about itself: metrics and logs.

pub mod logging;
pub mod names;
