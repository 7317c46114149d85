//! `faas doctor`

use std::time::Duration;

use clap::Args;
use comfy_table::Cell;
use serde::Serialize;

use super::ui::{printable, state_cell};
use super::{Context, Exit, Failure, Format, Output};
use crate::api::client::ClientError;
use crate::runtime::doctor::{self, Verdict};
use crate::tunnel::client::{self, INTERFACE, Options, STATE};
use crate::tunnel::dns::{self, DnsMode};
use crate::tunnel::{Choice, Launch};

/// A live session's last handshake is no older.
const SESSION: Duration = Duration::from_secs(180);

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
        checks.extend(network(context).await);
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

/// Who encrypts for the daemon, and how this machine's own connection is, as far as there is one of them.
async fn network(context: &Context) -> Vec<Check> {
    let mut checks = Vec::new();
    let ok = |name: &str, found: String| Check { name: name.to_owned(), verdict: "ok", found, remedy: None };
    if let Ok(version) = context.client.version().await {
        let why = match version.wireguard.as_str() {
            "kernel" => "the kernel encrypts",
            _ => {
                "a process of faasd's encrypts: this kernel has no WireGuard, or `wireguard` in faasd.toml says so"
            }
        };
        checks.push(ok("the server's tunnel", why.to_owned()));
    }
    let options = Options {
        name: INTERFACE.to_owned(),
        state_dir: STATE.into(),
        launch: Launch::new("/proc/self/exe"),
        choice: Choice::Auto,
        dns: DnsMode::Auto,
    };
    // Without root, or without having joined, there is nothing to tell.
    let Ok(status) = client::status(&options) else { return checks };
    let name = "this machine's tunnel".to_owned();
    let Some((kind, interface)) = status.interface else {
        checks.push(Check {
            name,
            verdict: "warning",
            found: format!("disconnected from {}", status.membership.endpoint),
            remedy: Some("sudo faas vpn connect".to_owned()),
        });
        return checks;
    };
    let server = interface.peers.first();
    let last = server.and_then(|server| server.last_handshake).and_then(|at| at.elapsed().ok());
    let mtu = client::mtu_bytes(&options).map_or_else(|| "unknown".to_owned(), |bytes| bytes.to_string());
    let endpoint = &status.membership.endpoint;
    checks.push(match last {
        Some(ago) if ago < SESSION => Check {
            name,
            verdict: "ok",
            found: format!("{kind}, to {endpoint}, last handshake {} s ago, MTU {mtu}", ago.as_secs()),
            remedy: None,
        },
        _ => Check {
            name,
            verdict: "warning",
            found: format!("{kind}, MTU {mtu}; {endpoint} does not answer"),
            remedy: Some(
                "see that UDP gets to that port: firewalls at both ends, and the server's address".to_owned(),
            ),
        },
    });
    let names = "names in faas.".to_owned();
    let set = status.dns.map_or_else(|| "left alone".to_owned(), |(dns, _)| dns.describe());
    checks.push(match dns::probe() == Some(status.membership.server.into()) {
        true => Check { name: names, verdict: "ok", found: format!("they resolve; {set}"), remedy: None },
        false => Check {
            name: names,
            verdict: "warning",
            found: format!("they do not resolve; {set}"),
            remedy: Some(format!(
                "sudo faas vpn connect, or have your resolver ask {} for them",
                status.membership.server
            )),
        },
    });
    checks
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
