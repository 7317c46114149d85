//! `faas revisions`

use clap::Args;
use comfy_table::Cell;
use jiff::Timestamp;

use super::ago::relative;
use super::{Context, Failure, Format, Output};
use crate::core::name::FunctionName;

/// List what was deployed, and who serves
///
/// Each deploy makes a revision, which is never changed. Those that serve, those that have an alias and the ten newest
/// are kept.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  faas revisions hello\n  faas revisions hello -o json | jq '.revisions[].spec'"
)]
pub struct Revisions {
    /// The function
    name: FunctionName,
    #[command(flatten)]
    output: Output,
}

impl Revisions {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let found = context.client.revisions(&self.name).await?;
        if self.output.format == Format::Json {
            return context.ui.json(&found);
        }
        let now = Timestamp::now();
        let rows = found.revisions.iter().map(|revision| {
            let aliases: Vec<&str> = revision.aliases.iter().map(|alias| alias.as_str()).collect();
            vec![
                Cell::new(format!("v{}", revision.revision)),
                Cell::new(format!("{}%", revision.weight)),
                Cell::new(revision.ready),
                Cell::new(relative(revision.deployed_at, now)),
                Cell::new(aliases.join(", ")),
                Cell::new(revision.image.as_deref().or(revision.root.as_deref()).map_or("none", short)),
            ]
        });
        context.ui.table(["REVISION", "TRAFFIC", "READY", "DEPLOYED", "ALIASES", "CODE"], rows)
    }
}

/// Enough of a digest to tell it from others.
fn short(digest: &str) -> &str {
    digest.get(..19).unwrap_or(digest)
}
