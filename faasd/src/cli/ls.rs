//! `faas ls`

use clap::Args;
use comfy_table::Cell;
use jiff::Timestamp;

use super::ago::relative;
use super::ui::{printable, state_cell};
use super::{Context, Failure, Format, Output};

/// List the functions
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  faas ls\n  faas ls shop-\n  faas ls -o json | jq -r '.functions[].name'"
)]
pub struct Ls {
    /// Only those whose names begin with this
    #[arg(default_value = "")]
    prefix: String,
    #[command(flatten)]
    output: Output,
}

impl Ls {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let found = context.client.functions_with(&self.prefix).await?;
        if self.output.format == Format::Json {
            return context.ui.json(&found);
        }
        if found.functions.is_empty() {
            match self.prefix.as_str() {
                "" => context.ui.note("no functions yet; `faas new hello` makes one"),
                prefix => context.ui.note(&format!("no function's name begins with '{prefix}'")),
            }
            return Ok(());
        }
        let now = Timestamp::now();
        let rows = found.functions.iter().map(|function| {
            let ready =
                function.instances.iter().filter(|i| i.phase == crate::api::types::Phase::Ready).count();
            // Instances write half of these numbers, and may write anything.
            let in_flight = function.instances.iter().fold(0, |sum: u64, i| sum.saturating_add(i.in_flight));
            vec![
                Cell::new(&function.name),
                state_cell(function.state.as_str()),
                Cell::new(format!("{ready}/{}", function.instances.len())),
                Cell::new(in_flight),
                Cell::new(function.connections.accepted),
                Cell::new(function.revision),
                Cell::new(relative(function.deployed_at, now)),
                Cell::new(function.address),
                Cell::new(printable(function.reason.as_deref().unwrap_or_default())),
            ]
        });
        let header =
            ["NAME", "STATE", "READY", "IN FLIGHT", "ACCEPTED", "REVISION", "DEPLOYED", "ADDRESS", "REASON"];
        // A column of nothing helps nobody.
        let reasons = found.functions.iter().any(|function| function.reason.is_some());
        let width = if reasons { header.len() } else { header.len() - 1 };
        context.ui.table(
            header.into_iter().take(width),
            rows.map(|mut row| {
                row.truncate(width);
                row
            }),
        )
    }
}
