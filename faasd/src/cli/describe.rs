//! `faas describe`

use clap::Args;
use comfy_table::Cell;
use jiff::Timestamp;

use super::ago::relative;
use super::traffic::shares;
use super::ui::{printable, size, state_cell};
use super::{Context, Failure, Format, Output};
use crate::api::types::{EventQuery, Function, Instance, StartTimes};
use crate::core::name::FunctionName;
use crate::core::secret::SecretName;
use crate::core::spec::{Contract, Lane};

/// How many events are shown.
const EVENTS_SHOWN: usize = 10;

/// How many rules are shown.
const RULES_SHOWN: usize = 10;

/// Show everything about a function
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  faas describe hello\n  faas describe hello -o json | jq .connections")]
pub struct Describe {
    /// The function
    name: FunctionName,
    #[command(flatten)]
    output: Output,
}

impl Describe {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let function = context.client.function(&self.name).await?;
        if self.output.format == Format::Json {
            return context.ui.json(&function);
        }
        let ui = &context.ui;
        let now = Timestamp::now();
        ui.pairs(summary(&function, now))?;
        ui.print(&format!("\n{}\n", ui.bold("Connections")))?;
        let counts = &function.connections;
        ui.pairs([
            ("  steered", Cell::new(counts.steered)),
            ("  warm", Cell::new(counts.warm)),
            ("  accepted", Cell::new(counts.accepted)),
            ("  handed off", Cell::new(counts.handed_off)),
            ("  requeued", Cell::new(counts.requeued)),
            ("  refused", Cell::new(counts.refused)),
            ("  waiting", Cell::new(counts.waiting)),
        ])?;
        access(context, &self.name).await?;
        egress(context, &function)?;
        ui.print(&format!("\n{}\n", ui.bold("Instances")))?;
        if function.instances.is_empty() {
            ui.print("  none; the next connection starts one\n")?;
            return events(context, &self.name).await;
        }
        let rows = function.instances.iter().map(|instance| {
            vec![
                Cell::new(format!("  {}", instance.id)),
                state_cell(instance.phase.as_str()),
                Cell::new(instance.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string())),
                Cell::new(instance.revision),
                Cell::new(instance.in_flight),
                Cell::new(relative(instance.started_at, now)),
                Cell::new(if instance.adopted { "yes" } else { "no" }),
                Cell::new(start(instance)),
            ]
        });
        ui.table(["  ID", "PHASE", "PID", "REVISION", "IN FLIGHT", "STARTED", "ADOPTED", "START"], rows)?;
        events(context, &self.name).await
    }
}

/// Who may call it.
async fn access(context: &Context, name: &FunctionName) -> Result<(), Failure> {
    let ui = &context.ui;
    let policy = context.client.policy(name).await?;
    ui.print(&format!("\n{}\n", ui.bold("Access")))?;
    let rules = policy.rules.iter().map(|rule| format!("{} {}", rule.action.as_str(), rule.subject));
    let rules = rules.take(RULES_SHOWN).collect::<Vec<_>>().join(", ");
    let more = match policy.rules.len().saturating_sub(RULES_SHOWN) {
        0 => String::new(),
        more => format!(", and {more} more: `faas policy {name}`"),
    };
    let refused: u64 = policy.refused.iter().map(|refused| refused.connections).sum();
    ui.pairs([
        ("  default", Cell::new(policy.default.as_str())),
        ("  rules", Cell::new(if rules.is_empty() { "none".to_owned() } else { format!("{rules}{more}") })),
        ("  refused", Cell::new(refused)),
    ])
}

/// What it connects to, if it may.
fn egress(context: &Context, function: &Function) -> Result<(), Failure> {
    let (spec, counts, ui) = (&function.spec, &function.egress, &context.ui);
    if !spec.connects() {
        return Ok(());
    }
    let list = |grants: Vec<String>| match grants.is_empty() {
        true => "nothing".to_owned(),
        false => grants.join(", "),
    };
    let last = counts.last_refused.map_or_else(String::new, |to| format!(" (last: {to})"));
    ui.print(&format!("\n{}\n", ui.bold("Connects to")))?;
    ui.pairs([
        ("  allow", Cell::new(list(spec.allow.iter().map(ToString::to_string).collect()))),
        ("  outside", Cell::new(list(spec.outside.iter().map(ToString::to_string).collect()))),
        ("  made", Cell::new(format!("{} inside, {} outside", counts.inside, counts.outside))),
        ("  refused", Cell::new(format!("{}{last}", counts.refused))),
        ("  failed", Cell::new(counts.failed)),
    ])
}

/// What happened to it last.
async fn events(context: &Context, name: &FunctionName) -> Result<(), Failure> {
    let query = EventQuery { function: Some(name.clone()), limit: EVENTS_SHOWN, ..EventQuery::default() };
    let found = context.client.events(&query).await?;
    if found.events.is_empty() {
        return Ok(());
    }
    context.ui.print(&format!("\n{}\n", context.ui.bold("Events")))?;
    super::events::table(context, &found.events, false)
}

fn summary(function: &Function, now: Timestamp) -> Vec<(&'static str, Cell)> {
    let spec = &function.spec;
    let limits = &spec.limits;
    let runs = match spec.contract {
        Contract::Handler => {
            let handler = spec.handler_parts();
            format!("{handler} ({})", handler.language.as_str())
        }
        Contract::Fd | Contract::Port | Contract::ListenFds if spec.command.is_empty() => {
            "what its image runs".to_owned()
        }
        Contract::Fd | Contract::Port | Contract::ListenFds => spec.command.join(" "),
    };
    let mut pairs = vec![
        ("name", Cell::new(&function.name)),
        ("state", state_cell(function.state.as_str())),
        ("url", Cell::new(url(function))),
        ("address", Cell::new(function.address)),
        (
            "revision",
            Cell::new(format!("{}, deployed {}", function.revision, relative(function.deployed_at, now))),
        ),
        ("code", Cell::new(function.image.as_deref().unwrap_or("none"))),
        ("image", Cell::new(image(function))),
        ("contract", Cell::new(spec.contract.as_str())),
        ("runs", Cell::new(printable(&runs))),
        ("lane", Cell::new(lane(function))),
        (
            "memory",
            Cell::new(format!(
                "{}, of it up to {} in /tmp",
                size(limits.memory_bytes),
                size(limits.tmp_bytes)
            )),
        ),
        ("cpu", Cell::new(format!("{} cores", limits.cpu_cores))),
        ("processes", Cell::new(limits.pids_max)),
        ("files", Cell::new(limits.files_max)),
        (
            "instances",
            Cell::new(format!(
                "{} to {}, for {} connections each; {} prepared",
                spec.scale.min,
                spec.scale.max(),
                spec.scale.concurrency,
                spec.scale.prepared
            )),
        ),
        ("idle", Cell::new(format!("ends what is not needed for {} s", spec.scale.idle_ms / 1000))),
        (
            "deadlines",
            Cell::new(format!("start {} ms, drain {} ms", spec.deadlines.start_ms, spec.deadlines.drain_ms)),
        ),
    ];
    if !spec.env.is_empty() {
        // Values may be secret, and a screen is seen by others; `-o json` has them.
        let names: Vec<&str> = spec.env.keys().map(String::as_str).collect();
        pairs.push(("environment", Cell::new(printable(&names.join(", ")))));
    }
    if !spec.secrets.is_empty() {
        let names: Vec<&str> = spec.secrets.iter().map(SecretName::as_str).collect();
        pairs.push(("secrets", Cell::new(names.join(", "))));
    }
    if function.traffic.len() > 1 {
        pairs.insert(5, ("traffic", Cell::new(shares(&function.traffic))));
    }
    if let Some(retry) = function.retry_in_ms {
        let text =
            format!("{} in a row; the next try is due in {:.1} s", function.failures, retry as f64 / 1e3);
        pairs.insert(2, ("failures", Cell::new(text)));
    }
    if let Some(reason) = &function.reason {
        pairs.insert(2, ("reason", Cell::new(printable(reason))));
    }
    pairs
}

/// What its start took: its container, then its program until it was ready.
fn start(instance: &Instance) -> String {
    let ms = |us: u64| us as f64 / 1e3;
    match instance.start {
        None => "-".to_owned(),
        Some(StartTimes { create_us, release_us: Some(release), ready_us: Some(ready) }) => {
            format!("{:.1} + {:.1} ms", ms(create_us), ms(release + ready))
        }
        Some(StartTimes { create_us, .. }) => format!("{:.1} ms", ms(create_us)),
    }
}

/// The image that it runs in: the name that was deployed, and what that stood for then.
fn image(function: &Function) -> String {
    match (&function.spec.image, &function.root) {
        (Some(name), Some(digest)) if name != digest => format!("{}, {digest}", printable(name)),
        (_, Some(digest)) => digest.clone(),
        _ => "none: it sees the host's /usr".to_owned(),
    }
}

/// How a connection travels from the client to the code.
fn lane(function: &Function) -> &'static str {
    if function.instances.iter().any(|instance| instance.relayed) {
        return "a relay, which copies every byte: the server binds IPv4 alone; let it bind [::], as HOST says";
    }
    match function.spec.contract {
        Contract::Handler if function.spec.lane() == Lane::Warm => {
            "warm: sk_lookup straight to the runner's own listener, inherited as descriptor 3"
        }
        Contract::Handler => "hand-off: sk_lookup, io_uring accept, SCM_RIGHTS to the runner",
        Contract::Fd => "hand-off: sk_lookup, io_uring accept, SCM_RIGHTS to the program",
        Contract::Port => {
            "warm: sk_lookup straight to the server's own listener, put in place of what it bound"
        }
        Contract::ListenFds => {
            "warm: sk_lookup straight to the server's own listener, inherited as descriptor 3"
        }
    }
}

/// Where the function answers.
#[must_use]
pub fn url(function: &Function) -> String {
    match function.spec.port {
        80 => format!("http://{}.faas/", function.name),
        port => format!("http://{}.faas:{port}/", function.name),
    }
}
