//! `faas events`

use clap::Args;
use comfy_table::{Cell, Color};
use jiff::Timestamp;

use super::ago::relative;
use super::ui::printable;
use super::{Context, Exit, Failure, Format, Output};
use crate::api::since;
use crate::api::types::{EVENTS_MAX, Event, EventKind, EventLine, EventQuery};
use crate::core::name::FunctionName;

/// Show what happened to functions, and why
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  faas events
  faas events hello --since 1h
  faas events -f -o json | jq -r 'select(.kind == \"instance-failed\").message'")]
pub struct Events {
    /// Only those of a function, which may have been removed since
    name: Option<FunctionName>,
    /// Go on with those that come
    #[arg(short, long)]
    follow: bool,
    /// Only those from then on: how long ago, like 10m, or a time
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<Timestamp>,
    /// How many of the last ones
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=EVENTS_MAX as i64))]
    limit: u32,
    #[command(flatten)]
    output: Output,
}

/// A moment on the command line.
///
/// # Errors
/// A sentence that says what is allowed.
pub fn moment(text: &str) -> Result<Timestamp, String> {
    since::parse(text, Timestamp::now())
}

impl Events {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let Self { name, since, limit, .. } = self;
        let query = EventQuery { function: name, since, limit: limit as usize, ..EventQuery::default() };
        let is_json = self.output.format == Format::Json;
        if self.follow {
            return follow(context, &query, is_json).await;
        }
        let found = context.client.events(&query).await?;
        if is_json {
            return context.ui.json(&found);
        }
        if found.events.is_empty() {
            context.ui.note("no events");
            return Ok(());
        }
        table(context, &found.events, true)
    }
}

async fn follow(context: &Context, query: &EventQuery, is_json: bool) -> Result<(), Failure> {
    let mut lines = context.client.follow_events(query).await?;
    while let Some(line) = lines.next().await? {
        let event = match serde_json::from_str(&line) {
            Ok(EventLine::Event(event)) => event,
            Ok(EventLine::End(problem)) => {
                let failure = Failure::new(Exit::Unavailable, problem.title);
                return Err(match problem.detail {
                    Some(detail) => failure.hint(detail),
                    None => failure,
                });
            }
            Err(e) => return Err(Failure::new(Exit::Protocol, format!("an event is not understood: {e}"))),
        };
        if is_json {
            context.ui.print(&format!("{line}\n"))?;
        } else {
            let message = printable(&event.message).replace('\n', "\n    ");
            context.ui.print(&format!(
                "{:.3} {} {}: {message}\n",
                event.time,
                whose(&event),
                event.kind.as_str()
            ))?;
        }
    }
    Ok(())
}

/// Events in a table, with or without the function's name.
pub fn table(context: &Context, events: &[Event], names: bool) -> Result<(), Failure> {
    let now = Timestamp::now();
    let rows = events.iter().map(|event| {
        let mut row = vec![Cell::new(relative(event.time, now)), kind(event.kind)];
        if names {
            row.push(Cell::new(whose(event)));
        }
        row.push(Cell::new(event.revision.map_or_else(|| "-".to_owned(), |revision| revision.to_string())));
        row.push(Cell::new(printable(&event.message)));
        row
    });
    match names {
        true => context.ui.table(["TIME", "EVENT", "OF", "REVISION", "WHAT"], rows),
        false => context.ui.table(["TIME", "EVENT", "REVISION", "WHAT"], rows),
    }
}

/// The instance, or else the function, or else the daemon.
fn whose(event: &Event) -> &str {
    let function = event.function.as_ref().map(FunctionName::as_str);
    event.instance.as_deref().or(function).unwrap_or("faasd")
}

fn kind(kind: EventKind) -> Cell {
    let cell = Cell::new(kind.as_str());
    match kind {
        EventKind::DeployFailed | EventKind::InstanceFailed => cell.fg(Color::Red),
        EventKind::BackingOff | EventKind::Overloaded => cell.fg(Color::Yellow),
        EventKind::Deployed | EventKind::InstanceReady | EventKind::Relieved => cell.fg(Color::Green),
        _ => cell,
    }
}
