//! Measures faasd against a bare server, and against what else one could put in front of a function, interleaved in
//! one run. `faasd-bench run` is the whole interface; the results are ratios to the bare server.

pub mod acceptors;
pub mod access;
pub mod cli;
pub mod cold;
pub mod declare;
pub mod hello;
pub mod host;
pub mod idle;
pub mod load;
pub mod render;
pub mod report;
pub mod rounds;
pub mod scrape;
pub mod stats;
pub mod subject;
pub mod tunnel;
pub mod wire;
