//! `faas image rm`

use clap::Args;
use serde_json::json;

use crate::cli::{Context, Failure, Format, Output};
use crate::core::image::ImageName;

/// Remove an image that no function runs
///
/// Layers that no other image has go with it. An image with several names stays until the last of them is removed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  faas image rm nginx:1.27\n  faas image rm app:1 app:2")]
pub struct Rm {
    /// The images
    #[arg(required = true, value_name = "NAME")]
    names: Vec<ImageName>,
    #[command(flatten)]
    output: Output,
}

impl Rm {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        for name in &self.names {
            context.client.remove_image(name).await?;
            if self.output.format == Format::Table {
                context.ui.note(&format!("removed {name}"));
            }
        }
        match self.output.format {
            Format::Json => context.ui.json(&json!({ "removed": self.names })),
            Format::Table => Ok(()),
        }
    }
}
