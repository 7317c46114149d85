//! Where the command line meets the tunnel's client: the four calls of `faas vpn connect`, `disconnect`, `status` and
//! of the userspace tunnel's own process.

use clap::Args;

use super::{Exit, Failure, Ui};

/// The userspace tunnel's process; `faas vpn connect` starts it
#[derive(Debug, Args)]
#[command(hide = true, disable_help_flag = true)]
pub struct Tunnel {
    /// What the parent passes
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

impl Tunnel {
    pub fn run(self) -> Result<(), Failure> {
        drop(self.args);
        Err(missing())
    }
}

/// Joins, or takes up an earlier connection; answers what to tell the user.
pub fn connect(_invitation: Option<&str>, _interface: &str, _dns: bool) -> Result<String, Failure> {
    Err(missing())
}

/// Leaves; answers what to tell the user.
pub fn disconnect(_interface: &str) -> Result<String, Failure> {
    Err(missing())
}

/// Prints the state of the connection.
pub fn status(_ui: &Ui, _interface: &str, _json: bool) -> Result<(), Failure> {
    Err(missing())
}

fn missing() -> Failure {
    Failure::new(Exit::Unavailable, "this build has no tunnel client")
}
