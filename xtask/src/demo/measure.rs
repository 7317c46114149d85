//! The demo's measurement: `cargo xtask bench` in short, on the demo's own daemon.

use std::time::Duration;

use anyhow::Result;

use super::lab::{Lab, Side, daemon_pid, run_directory, work};
use crate::bench::built;
use crate::bench::measure::{Server, command, deploy};

const MEASUREMENT_MAX: Duration = Duration::from_secs(5 * 60);

/// The client is the server's own machine: what the tunnel costs is not what the platform costs.
pub fn run(lab: &Lab) -> Result<()> {
    let server = Server {
        faas: Box::new(|arguments| lab.faas(Side::Server, arguments)),
        from: run_directory().join("ingress"),
        run: run_directory(),
        pid: daemon_pid()?,
        tunnel: Vec::new(),
        work: work(),
        hello: built("examples/hello"),
    };
    let target = deploy(&server)?;
    let arguments = ["--quick", "--subjects", "bare,nginx"].map(Into::into);
    lab.watch(Side::Server, &command(&target, &arguments), MEASUREMENT_MAX)
}
