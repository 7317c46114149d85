//! `faas secret ls`

use clap::Args;
use comfy_table::Cell;
use jiff::Timestamp;

use super::{Context, Failure, Output};
use crate::cli::Format;
use crate::cli::ago::relative;
use crate::cli::ui::size;

/// List the secrets, not what they are
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  faas secret ls\n  faas secret ls -o json | jq -r '.secrets[].name'")]
pub struct Ls {
    #[command(flatten)]
    output: Output,
}

impl Ls {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let found = context.client.secrets().await?;
        if self.output.format == Format::Json {
            return context.ui.json(&found);
        }
        if found.secrets.is_empty() {
            context.ui.note("no secrets yet; `faas secret set NAME` sets one");
            return Ok(());
        }
        let now = Timestamp::now();
        let rows = found.secrets.iter().map(|secret| {
            let functions: Vec<_> = secret.functions.iter().map(|name| name.as_str()).collect();
            vec![
                Cell::new(&secret.name),
                Cell::new(size(secret.bytes as u64)),
                Cell::new(relative(secret.set_at, now)),
                Cell::new(functions.join(", ")),
            ]
        });
        context.ui.table(["NAME", "SIZE", "SET", "FUNCTIONS"], rows)
    }
}
