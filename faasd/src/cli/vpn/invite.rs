//! `faas vpn invite`

use clap::Args;
use jiff::Timestamp;

use super::hand_over::HandOver;
use crate::api::types;
use crate::cli::ago::{parse_ms, relative};
use crate::cli::{Context, Exit, Failure, Format, Output};
use crate::core::access::Role;
use crate::core::name::FunctionName;

/// Make an invitation for a machine: a text, good once
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  faas vpn invite laptop
  faas vpn invite laptop --expires 1h --endpoint vpn.example.org:51820
  faas vpn invite laptop --role admin
  faas vpn invite laptop --out laptop.faas        a file that only you can read
  faas vpn invite laptop | ssh laptop sudo faas vpn connect -

Whoever has the invitation can join in the machine's stead until it has: send it by a way you trust.")]
pub struct Invite {
    /// The machine's name
    name: FunctionName,
    /// How long it is good for: 90s, 30m, 24h, 7d
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = parse_ms)]
    expires: u64,
    /// Where the machine reaches this server [default: the daemon's setting]
    #[arg(long, value_name = "HOST:PORT")]
    endpoint: Option<String>,
    /// What the machine may do: user (call functions), or admin (all that root may on the server, with `faas`)
    #[arg(long, value_name = "ROLE", default_value = "user")]
    role: Role,
    #[command(flatten)]
    hand_over: HandOver,
    #[command(flatten)]
    output: Output,
}

impl Invite {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        if self.output.format == Format::Json && self.hand_over.is_set() {
            return Err(Failure::new(
                Exit::Usage,
                "`-o json` prints the invitation: leave out --out and --qr",
            ));
        }
        let place = self.hand_over.open()?;
        let invite = types::Invite {
            name: self.name,
            expires_in_ms: self.expires,
            endpoint: self.endpoint,
            role: self.role,
            plain: false,
        };
        let invited = context.client.invite(&invite).await?;
        if self.output.format == Format::Json {
            return context.ui.json(&invited);
        }
        // The invitation alone is the result, so that it can be piped.
        let remedy = "ask again: another invitation for the same name replaces this one";
        let argument = place.give(context, &format!("{}\n", invited.invitation), remedy)?;
        context.ui.note(&format!(
            "{} gets {}; the invitation expires {}. There: sudo faas vpn connect {}",
            invited.name,
            invited.address,
            relative(invited.expires_at, Timestamp::now()),
            argument.as_deref().unwrap_or("INVITATION")
        ));
        Ok(())
    }
}
