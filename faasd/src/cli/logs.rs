//! `faas logs`

use std::io::{self, IsTerminal};

use clap::Args;

use super::ui::printable;
use super::{Context, Failure};
use crate::api::types::LOG_LINES_MAX;
use crate::core::name::FunctionName;

/// Print what a function wrote
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  faas logs hello\n  faas logs hello --lines 1000 | grep -i error")]
pub struct Logs {
    /// The function
    name: FunctionName,
    /// How many of the last lines
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=LOG_LINES_MAX as i64))]
    lines: u32,
}

impl Logs {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let text = context.client.logs(&self.name, self.lines as usize).await?;
        let text = String::from_utf8_lossy(&text);
        if io::stdout().is_terminal() { context.ui.print(&printable(&text)) } else { context.ui.print(&text) }
    }
}
