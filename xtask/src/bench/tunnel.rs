//! `cargo xtask bench tunnel`: needs no platform, only the tunnel processes and two network namespaces.

use std::process::Command;

use anyhow::{Context, Result};

use super::{Job, built};
use crate::tools::BORINGTUN;
use crate::{repo, run};

/// Rounds of a quick run.
const QUICK: &str = "3";

/// About a minute.
pub fn run(job: &Job) -> Result<()> {
    let wireguard_go =
        run::which("wireguard-go").context("wireguard-go is missing: run `cargo xtask setup`")?;
    let mut command = Command::new(built("faasd-bench"));
    // The harness names the commit that it finds where it runs.
    command.current_dir(repo::root()).arg("tunnel");
    command.arg("--faasd").arg(built("faasd"));
    command.arg("--boringtun").arg(BORINGTUN.require()?);
    command.arg("--wireguard-go").arg(wireguard_go);
    command.arg("--out").arg(&job.out);
    if job.quick {
        command.args(["--rounds", QUICK]);
    }
    run::run(command.args(&job.rest))
}
