//! Becoming root, only where the work needs it.

use std::ffi::OsStr;
use std::process::Command;

use anyhow::{Result, bail};

use crate::run;

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A command that will run as root: as it is, or through sudo.
///
/// Variables for it go through `env`, because sudo resets the environment.
pub fn command(program: impl AsRef<OsStr>, variables: &[(&str, &OsStr)]) -> Result<Command> {
    if is_root() {
        let mut command = Command::new(program);
        command.envs(variables.iter().copied());
        return Ok(command);
    }
    if run::which("sudo").is_none() {
        bail!(
            "`{}` needs root, and there is no sudo here: run the same `cargo xtask` command as root",
            program.as_ref().to_string_lossy()
        );
    }
    let mut command = Command::new("sudo");
    if !variables.is_empty() {
        command.arg("env");
        for (name, value) in variables {
            let mut pair = std::ffi::OsString::from(name);
            pair.push("=");
            pair.push(value);
            command.arg(pair);
        }
    }
    command.arg(program);
    Ok(command)
}
