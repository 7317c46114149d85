//! `faas logs`

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, IsTerminal};

use clap::Args;
use jiff::Timestamp;

use super::events::moment;
use super::ui::printable;
use super::{Context, Failure};
use crate::api::types::{LOG_LINES_MAX, LogQuery};
use crate::core::name::FunctionName;

/// Print what a function wrote
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  faas logs hello
  faas logs hello -f --since 10m
  faas logs hello --instance hello-3-5f2a10
  faas logs hello --lines 1000 | grep -i error")]
pub struct Logs {
    /// The function
    name: FunctionName,
    /// Go on with what is written from now on, until the function is removed
    #[arg(short, long)]
    follow: bool,
    /// Only what was written from then on: how long ago, like 10m, or a time
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<Timestamp>,
    /// Only what one instance wrote, by its ID in `faas describe`
    #[arg(long, value_name = "ID", value_parser = instance)]
    instance: Option<String>,
    /// How many of the last lines
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=LOG_LINES_MAX as i64))]
    lines: u32,
}

impl Logs {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let is_terminal = io::stdout().is_terminal();
        let show = |line: &str| match is_terminal {
            true => colored(&printable(line), context.ui.color()),
            false => format!("{line}\n"),
        };
        let query = LogQuery { lines: self.lines as usize, since: self.since, instance: self.instance };
        if self.follow {
            let mut lines = context.client.follow_logs(&self.name, &query).await?;
            while let Some(line) = lines.next().await? {
                context.ui.print(&show(&line))?;
            }
            return Ok(());
        }
        let text = context.client.logs(&self.name, &query).await?;
        let text: String = String::from_utf8_lossy(&text).lines().map(show).collect();
        context.ui.print(&text)
    }
}

/// An instance's name, as it may stand in a query.
fn instance(text: &str) -> Result<String, String> {
    let is_name = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    is_name
        .then(|| text.to_owned())
        .ok_or_else(|| "an instance's ID has letters, digits and '-' alone".to_owned())
}

/// A line with its instance in a colour of the instance's own.
fn colored(line: &str, color: bool) -> String {
    const COLORS: [u8; 6] = [36, 33, 32, 35, 34, 31];
    let parts = line.split_once(' ').and_then(|(time, rest)| Some((time, rest.split_once(": ")?)));
    match parts {
        Some((time, (instance, text))) if color => {
            let mut hasher = DefaultHasher::new();
            instance.hash(&mut hasher);
            let color = COLORS[(hasher.finish() % COLORS.len() as u64) as usize];
            format!("\x1b[2m{time}\x1b[0m \x1b[{color}m{instance}:\x1b[0m {text}\n")
        }
        _ => format!("{line}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_has_a_colour_of_its_own() {
        let line = "2026-01-01T00:00:00.000000Z hello-1-a: text: more";
        assert_eq!(colored(line, false), format!("{line}\n"));
        let shown = colored(line, true);
        assert!(shown.contains("mhello-1-a:\x1b[0m text: more\n"), "{shown:?}");
        assert_eq!(colored("no time", true), "no time\n");
    }
}
