//! `faas version`

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use super::ago::span;
use super::{Context, Failure, Format, Output};
use crate::api::types;

/// Show the versions of this program and of the daemon
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  faas version\n  faas version -o json | jq -r .daemon.runtime")]
pub struct Version {
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Serialize)]
struct Versions {
    client: &'static str,
    /// Nothing when it cannot be reached.
    daemon: Option<types::Version>,
}

impl Version {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let client = env!("CARGO_PKG_VERSION");
        let daemon = context.client.version().await;
        if self.output.format == Format::Json {
            return context.ui.json(&Versions { client, daemon: daemon.ok() });
        }
        let daemon = match daemon {
            Ok(daemon) => {
                let up = Timestamp::now().as_second().saturating_sub(daemon.started_at.as_second());
                format!(
                    "{}, up {}, {}, WireGuard in the {}, map layout {}",
                    daemon.version,
                    span(up.max(0).unsigned_abs()),
                    daemon.runtime,
                    if daemon.wireguard == "userspace" { "daemon (userspace)" } else { "kernel" },
                    daemon.layout
                )
            }
            Err(e) => e.to_string(),
        };
        context.ui.print(&format!("faas   {client}\nfaasd  {daemon}\n"))
    }
}
