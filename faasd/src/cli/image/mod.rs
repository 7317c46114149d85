//! `faas image`: root images, which functions run in instead of the host's `/usr`.

mod import;
mod ls;
mod prune;
mod pull;
mod rm;

use clap::{Args, Subcommand};
use comfy_table::Cell;

use super::ui::{printable, size};
use super::{Context, Failure, Format, Output};
use crate::api::types::ImportedImage;

/// Bring in, list and remove the images that functions run in
#[derive(Debug, Args)]
#[command(disable_help_subcommand = true)]
#[command(after_help = "Examples:
  faas image pull nginx:1.27
  docker save app:2 | faas image import -
  faas deploy web --image nginx:1.27
  faas image prune")]
pub struct Image {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Import(import::Import),
    Pull(pull::Pull),
    Ls(ls::Ls),
    Rm(rm::Rm),
    Prune(prune::Prune),
}

impl Image {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        match self.verb {
            Verb::Import(verb) => verb.run(context).await,
            Verb::Pull(verb) => verb.run(context).await,
            Verb::Ls(verb) => verb.run(context).await,
            Verb::Rm(verb) => verb.run(context).await,
            Verb::Prune(verb) => verb.run(context).await,
        }
    }
}

/// Says what has come in.
fn report(context: &Context, output: Output, imported: &ImportedImage) -> Result<(), Failure> {
    if output.format == Format::Json {
        return context.ui.json(imported);
    }
    for note in &imported.notes {
        context.ui.note(&printable(note));
    }
    let image = &imported.image;
    context.ui.pairs([
        ("image", Cell::new(&image.name)),
        ("digest", Cell::new(&image.digest)),
        ("layers", Cell::new(image.layers)),
        ("size", Cell::new(size(image.bytes))),
    ])
}
