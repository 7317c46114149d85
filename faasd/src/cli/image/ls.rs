//! `faas image ls`

use clap::Args;
use comfy_table::Cell;
use jiff::Timestamp;

use crate::cli::ago::relative;
use crate::cli::ui::size;
use crate::cli::{Context, Failure, Format, Output};

/// Digits of a digest that a table shows.
const DIGITS: usize = 12;

/// List the images
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  faas image ls\n  faas image ls -o json | jq -r '.images[].name'")]
pub struct Ls {
    #[command(flatten)]
    output: Output,
}

impl Ls {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let found = context.client.images().await?;
        if self.output.format == Format::Json {
            return context.ui.json(&found);
        }
        if found.images.is_empty() {
            context.ui.note("no images yet; `faas image pull NAME` or `faas image import FILE` brings one");
            return Ok(());
        }
        let now = Timestamp::now();
        let rows = found.images.iter().map(|image| {
            let digits = image.digest.rsplit(':').next().unwrap_or_default();
            let functions: Vec<_> = image.functions.iter().map(|name| name.as_str()).collect();
            vec![
                Cell::new(&image.name),
                Cell::new(&digits[..DIGITS.min(digits.len())]),
                Cell::new(size(image.bytes)),
                Cell::new(image.layers),
                Cell::new(relative(image.imported_at, now)),
                Cell::new(functions.join(", ")),
            ]
        });
        context.ui.table(["NAME", "DIGEST", "SIZE", "LAYERS", "IMPORTED", "FUNCTIONS"], rows)
    }
}
