//! `faas vpn role`

use clap::Args;

use crate::cli::{Context, Failure, Format, Output};
use crate::core::access::Role;
use crate::core::name::FunctionName;

/// Make a machine an admin, or a user again
///
/// An admin may do by the API, through the tunnel, whatever root may by it on the server. A user calls functions.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  faas vpn role laptop admin\n  faas vpn role laptop user")]
pub struct SetRole {
    /// The machine's name
    name: FunctionName,
    /// user or admin
    role: Role,
    #[command(flatten)]
    output: Output,
}

impl SetRole {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let peer = context.client.set_role(&self.name, self.role).await?;
        if self.output.format == Format::Json {
            return context.ui.json(&peer);
        }
        context.ui.note(&format!("{} is {}", peer.name, peer.role.as_str()));
        Ok(())
    }
}
