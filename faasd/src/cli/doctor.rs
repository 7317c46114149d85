//! `faas doctor`

use clap::Args;
use comfy_table::Cell;
use serde::Serialize;

use super::ui::{printable, state_cell};
use super::{Context, Exit, Failure, Format, Output};
use crate::api::client::ClientError;
use crate::runtime::doctor::{self, Verdict};

/// Check what this machine has and lacks
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  faas doctor
  faas doctor -o json | jq '.checks[] | select(.verdict == \"failed\")'

Exits with 1 when a check fails.")]
pub struct Doctor {
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Serialize)]
struct Checks {
    checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Check {
    name: String,
    /// `ok`, `warning` or `failed`.
    verdict: &'static str,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl From<doctor::Check> for Check {
    fn from(check: doctor::Check) -> Self {
        let verdict = match check.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warning",
            Verdict::Fail => "failed",
        };
        Self { name: check.name.to_owned(), verdict, found: check.detail, remedy: check.remedy }
    }
}

impl Doctor {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let mut checks: Vec<Check> = doctor::checks().await.into_iter().map(Check::from).collect();
        checks.push(daemon(context).await);
        let failed = checks.iter().filter(|check| check.verdict == "failed").count();
        if self.output.format == Format::Json {
            context.ui.json(&Checks { checks })?;
        } else {
            let rows = checks.iter().map(|check| {
                vec![
                    state_cell(check.verdict),
                    Cell::new(&check.name),
                    // A remedy is a command to be copied: it gets a line to itself.
                    Cell::new(printable(&match &check.remedy {
                        Some(remedy) => format!("{}\n→ {remedy}", check.found),
                        None => check.found.clone(),
                    })),
                ]
            });
            context.ui.table(["VERDICT", "CHECK", "FOUND"], rows)?;
        }
        match failed {
            0 => Ok(()),
            1 => Err(Failure::new(Exit::Failed, "one check failed")),
            n => Err(Failure::new(Exit::Failed, format!("{n} checks failed"))),
        }
    }
}

/// Whether the daemon answers, and is of our version. That it does not run is no fault of the machine.
async fn daemon(context: &Context) -> Check {
    let name = "faasd".to_owned();
    let ours = env!("CARGO_PKG_VERSION");
    match context.client.version().await {
        Ok(version) if version.version == ours => Check {
            name,
            verdict: "ok",
            found: format!("{ours} answers, with {}", version.runtime),
            remedy: None,
        },
        Ok(version) => Check {
            name,
            verdict: "warning",
            found: format!("it is {}, this program is {ours}", version.version),
            remedy: Some("restart the older one's service after an upgrade: systemctl restart faasd".into()),
        },
        Err(ClientError::Unreachable { socket, source }) => Check {
            name,
            verdict: "warning",
            found: format!("nobody answers at {}: {source}", socket.display()),
            remedy: Some("systemctl start faasd".into()),
        },
        Err(e @ ClientError::ServerUnreachable { .. }) => {
            Check { name, verdict: "warning", found: e.to_string(), remedy: Some("faas vpn connect".into()) }
        }
        Err(e) => Check { name, verdict: "failed", found: e.to_string(), remedy: None },
    }
}
