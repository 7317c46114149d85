//! `faas vpn status`

use clap::Args;

use super::INTERFACE;
use crate::cli::{Context, Failure, Format, Output, tunnel};

/// Show this machine's own connection
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  faas vpn status\n  faas vpn status -o json")]
pub struct Status {
    /// The interface's name
    #[arg(long, value_name = "NAME", default_value = INTERFACE)]
    interface: String,
    #[command(flatten)]
    output: Output,
}

impl Status {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        tunnel::status(&context.ui, &self.interface, self.output.format == Format::Json)
    }
}
