//! `faas schema`

use clap::Args;

use super::{Context, Failure};
use crate::core::spec::file_schema;

/// Print the JSON schema of faas.toml, for editors
///
/// Editors that use taplo (Even Better TOML) read where it is from the first line of a file: `#:schema URL-OR-PATH`.
/// Templates of `faas new` have such a line.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  faas schema > faas.schema.json      # then `#:schema ./faas.schema.json` in faas.toml
  faas schema | jq .definitions.Scale")]
pub struct Schema {}

impl Schema {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        context.ui.json(&file_schema())
    }
}
