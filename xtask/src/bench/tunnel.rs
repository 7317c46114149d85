//! `cargo xtask bench --tunnel`: needs no platform, only the tunnel processes and two network namespaces.

use std::process::Command;

use anyhow::{Context, Result};

use super::{Args, built};
use crate::tools::BORINGTUN;
use crate::{repo, run};

/// About two minutes.
pub fn run(args: &Args) -> Result<()> {
    let wireguard_go =
        run::which("wireguard-go").context("wireguard-go is missing: run `cargo xtask setup`")?;
    let mut command = Command::new(built("faasd-bench"));
    // The harness names the commit that it finds where it runs.
    command.current_dir(repo::root()).arg("tunnel");
    command.arg("--faasd").arg(built("faasd"));
    command.arg("--boringtun").arg(BORINGTUN.require()?);
    command.arg("--wireguard-go").arg(wireguard_go);
    if let Some(file) = &args.out {
        let whole = std::path::absolute(file).with_context(|| format!("finding {}", file.display()))?;
        command.arg("--out").arg(whole);
    }
    run::run(command.args(&args.rest))
}
