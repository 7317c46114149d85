//! `faas top`

mod fit;

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use clap::{Args, ValueEnum};
use comfy_table::Cell;
use crossterm::cursor::{Hide, MoveTo, Show};
use crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use crossterm::terminal::{self, Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen};
use crossterm::{execute, queue};
use serde::Serialize;

use super::ui::{printable, size, state_cell, took};
use super::{Context, Failure, Format, Output};
use crate::api::types::{FunctionUsage, Usage};
use crate::core::name::FunctionName;

/// The fastest that is looked: an answer may be half a second old.
const INTERVAL_MIN: f64 = 0.5;

/// How long a key may wait while nothing else is done.
const KEY: Duration = Duration::from_millis(50);

const HEADER: [&str; 13] = [
    "NAME", "STATE", "READY", "NEW/S", "OPEN", "WAIT", "REQ/S", "ERR/S", "CPU", "MEMORY", "RX/S", "TX/S",
    "RTT",
];

/// Show what functions use, live
///
/// On a terminal it goes on until `q`; c, o, u, m, t and n sort by new connections, open ones, CPU, memory, traffic and
/// name. Otherwise it prints a table once, of the time between two looks.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  faas top\n  faas top shop- --sort cpu\n  faas top --once --interval 5\n  \
              faas top -o json | jq '.functions[] | {name, new_per_second}'"
)]
pub struct Top {
    /// Only those whose names begin with this
    #[arg(default_value = "")]
    prefix: String,
    /// Print once, also on a terminal
    #[arg(long)]
    once: bool,
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = interval)]
    interval: f64,
    /// What comes first
    #[arg(long, value_name = "BY", default_value = "connections")]
    sort: Sort,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sort {
    /// New ones
    Connections,
    /// Those that are open
    Open,
    Cpu,
    Memory,
    /// Bytes received and sent
    Traffic,
    Name,
}

fn interval(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (INTERVAL_MIN..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err(format!("use {INTERVAL_MIN} to 3600")),
    }
}

/// What a function did between two looks.
#[derive(Clone, Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    now: FunctionUsage,
    new_per_second: f64,
    requests_per_second: f64,
    errors_per_second: f64,
    /// Of one CPU.
    cpu_percent: f64,
    received_per_second: f64,
    sent_per_second: f64,
    retransmits_per_second: f64,
    /// The mean of the connections that ended in between, or else of those that are open.
    #[serde(skip_serializing_if = "Option::is_none")]
    round_trip_us: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Report {
    taken_at: jiff::Timestamp,
    seconds: f64,
    functions: Vec<Row>,
}

impl Top {
    pub async fn run(mut self, context: &Context) -> Result<(), Failure> {
        let before = context.client.usage(&self.prefix).await?;
        let is_live = self.output.format == Format::Table
            && !self.once
            && io::stdout().is_terminal()
            && io::stdin().is_terminal();
        if is_live {
            return self.watch(context, before).await;
        }
        tokio::time::sleep(self.pause()).await;
        let report = report(&before, context.client.usage(&self.prefix).await?, self.sort);
        if self.output.format == Format::Json {
            return context.ui.json(&report);
        }
        if report.functions.is_empty() {
            context.ui.note("no functions to look at");
            return Ok(());
        }
        context.ui.table(HEADER, report.functions.iter().map(cells))
    }

    fn pause(&self) -> Duration {
        Duration::from_secs_f64(self.interval)
    }

    async fn watch(&mut self, context: &Context, mut before: Usage) -> Result<(), Failure> {
        let screen = Screen::open()?;
        let mut shown = report(&before, before.clone(), self.sort);
        let mut failure = None;
        let mut next = tokio::time::Instant::now();
        loop {
            if tokio::time::Instant::now() >= next {
                match context.client.usage(&self.prefix).await {
                    Ok(now) => {
                        failure = None;
                        shown = report(&before, now.clone(), self.sort);
                        if shown.seconds < INTERVAL_MIN / 2.0 {
                            // The first look shows what there is; its rates would be those of a very short time.
                            shown = report(&now, now.clone(), self.sort);
                        } else {
                            before = now;
                        }
                    }
                    // A daemon that is started anew is back in a moment.
                    Err(error) => failure = Some(error.to_string()),
                }
                next = tokio::time::Instant::now() + self.pause();
                self.draw(context, &shown, failure.as_deref())?;
            }
            // No call that waits for a key is ever left behind: what is typed at the shell afterwards is the shell's.
            if !event::poll(Duration::ZERO)? {
                tokio::time::sleep(KEY).await;
                continue;
            }
            match event::read()? {
                Event::Key(key) if key.kind == KeyEventKind::Press => {
                    let is_interrupt =
                        key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c');
                    if is_interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                        break;
                    }
                    self.sort = sort_of(key.code).unwrap_or(self.sort);
                    sort(&mut shown.functions, self.sort);
                    self.draw(context, &shown, failure.as_deref())?;
                }
                Event::Resize(..) => self.draw(context, &shown, failure.as_deref())?,
                _ => {}
            }
        }
        drop(screen);
        Ok(())
    }

    fn draw(&self, context: &Context, report: &Report, failure: Option<&str>) -> Result<(), Failure> {
        let (width, height) = terminal::size()?;
        let (width, height) = (usize::from(width), usize::from(height));
        let sum = |of: fn(&Row) -> f64| report.functions.iter().map(of).sum::<f64>();
        let sorted = self.sort.to_possible_value().map(|value| value.get_name().to_owned());
        let count = report.functions.len();
        let head = format!(
            "{}   {count} function{}   {:.0} new connections/s   {:.0}% CPU   {} in   {} out",
            report.taken_at.strftime("%H:%M:%SZ"),
            if count == 1 { "" } else { "s" },
            sum(|row| row.new_per_second),
            sum(|row| row.cpu_percent),
            rate(sum(|row| row.received_per_second)),
            rate(sum(|row| row.sent_per_second)),
        );
        let keys = match failure {
            Some(why) => format!("q ends   trying again: {}", printable(why).replace('\n', " ")),
            None => {
                format!("q ends   sorted by {}   c o u m t n: by something else", sorted.unwrap_or_default())
            }
        };
        // Two lines of head, an empty one, the titles, and one for what is below.
        let room = height.saturating_sub(5);
        let rows = report.functions.iter().take(room).map(cells).collect();
        let (titles, rows) = fit::fit(&HEADER, rows, width);
        let table = context.ui.table_text(titles.iter().map(String::as_str), rows);
        let below = match count.saturating_sub(room) {
            0 => String::new(),
            more => format!("{more} more"),
        };
        let mut out = io::stdout().lock();
        queue!(out, MoveTo(0, 0))?;
        // In raw mode a line's end alone does not go back to its beginning.
        for line in [&*fit::cut(&head, width), &*fit::cut(&keys, width), ""].into_iter().chain(table.lines())
        {
            write!(out, "{line}")?;
            queue!(out, Clear(ClearType::UntilNewLine))?;
            write!(out, "\r\n")?;
        }
        write!(out, "{}", fit::cut(&below, width))?;
        queue!(out, Clear(ClearType::FromCursorDown))?;
        Ok(out.flush()?)
    }
}

/// The terminal's other screen, with each key at once; what was there comes back in any case.
struct Screen;

impl Screen {
    fn open() -> Result<Self, Failure> {
        terminal::enable_raw_mode()?;
        let screen = Self;
        execute!(io::stdout(), EnterAlternateScreen, Hide)?;
        Ok(screen)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Nobody is left to tell.
        let _ = execute!(io::stdout(), Show, LeaveAlternateScreen);
        let _ = terminal::disable_raw_mode();
    }
}

const fn sort_of(key: KeyCode) -> Option<Sort> {
    Some(match key {
        KeyCode::Char('c') => Sort::Connections,
        KeyCode::Char('o') => Sort::Open,
        KeyCode::Char('u') => Sort::Cpu,
        KeyCode::Char('m') => Sort::Memory,
        KeyCode::Char('t') => Sort::Traffic,
        KeyCode::Char('n') => Sort::Name,
        _ => return None,
    })
}

fn report(before: &Usage, now: Usage, by: Sort) -> Report {
    let seconds = (now.taken_at - before.taken_at).total(jiff::Unit::Second).unwrap_or_default().max(1e-3);
    let old: HashMap<&FunctionName, &FunctionUsage> =
        before.functions.iter().map(|function| (&function.name, function)).collect();
    let row = |now: FunctionUsage| {
        // One that was not there has begun at nothing.
        let since = |of: fn(&FunctionUsage) -> u64| {
            of(&now).saturating_sub(old.get(&now.name).map_or(0, |before| of(before)))
        };
        let per_second = |of: fn(&FunctionUsage) -> u64| since(of) as f64 / seconds;
        let (rtt_sum, rtts) = (since(|f| f.ended_rtt_us_sum), since(|f| f.ended_rtts));
        Row {
            new_per_second: per_second(|f| f.connections),
            requests_per_second: per_second(|f| f.requests),
            errors_per_second: per_second(|f| f.errors),
            cpu_percent: per_second(|f| f.cpu_us) / 1e4,
            received_per_second: per_second(|f| f.received_bytes),
            sent_per_second: per_second(|f| f.sent_bytes),
            retransmits_per_second: per_second(|f| f.retransmits),
            round_trip_us: rtt_sum.checked_div(rtts).or(now.rtt_us),
            now,
        }
    };
    let taken_at = now.taken_at;
    let mut functions: Vec<Row> = now.functions.into_iter().map(row).collect();
    sort(&mut functions, by);
    Report { taken_at, seconds, functions }
}

/// The most first; what is the same by name.
fn sort(rows: &mut [Row], by: Sort) {
    let key = |row: &Row| match by {
        Sort::Connections => row.new_per_second,
        Sort::Open => row.now.in_flight as f64,
        Sort::Cpu => row.cpu_percent,
        Sort::Memory => row.now.memory_bytes as f64,
        Sort::Traffic => row.received_per_second + row.sent_per_second,
        Sort::Name => 0.0,
    };
    rows.sort_by(|a, b| key(b).total_cmp(&key(a)).then_with(|| a.now.name.cmp(&b.now.name)));
}

fn cells(row: &Row) -> Vec<Cell> {
    let now = &row.now;
    let number =
        |value: f64| Cell::new(if value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") });
    let rtt = row.round_trip_us.map_or_else(|| "-".to_owned(), |us| took(Duration::from_micros(us)));
    vec![
        Cell::new(&now.name),
        state_cell(now.state.as_str()),
        Cell::new(format!("{}/{}", now.ready, now.instances)),
        number(row.new_per_second),
        Cell::new(now.in_flight),
        Cell::new(now.queues.sum()),
        number(row.requests_per_second),
        number(row.errors_per_second),
        Cell::new(format!("{:.1}%", row.cpu_percent)),
        Cell::new(size(now.memory_bytes)),
        Cell::new(rate(row.received_per_second)),
        Cell::new(rate(row.sent_per_second)),
        Cell::new(rtt),
    ]
}

fn rate(bytes: f64) -> String {
    // From below what a u64 holds, whatever an instance has written.
    size(bytes.max(0.0) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::{Queues, State};

    fn usage(second: i64, functions: &[(&str, u64)]) -> Usage {
        let one = |(name, count): &(&str, u64)| FunctionUsage {
            name: name.parse().unwrap(),
            state: State::Warm,
            ready: 1,
            instances: 1,
            connections: *count,
            in_flight: 0,
            queues: Queues::default(),
            requests: 0,
            errors: 0,
            cpu_us: count * 1000,
            memory_bytes: 0,
            received_bytes: 10 * count,
            sent_bytes: 0,
            retransmits: 0,
            rtt_us: Some(900),
            ended_rtt_us_sum: 50 * count,
            ended_rtts: *count,
        };
        let taken_at = jiff::Timestamp::from_second(second).unwrap();
        Usage { taken_at, functions: functions.iter().map(one).collect(), next: None }
    }

    #[test]
    fn rates_are_what_grew_in_between() {
        let before = usage(100, &[("idle", 5), ("busy", 10)]);
        let after = usage(102, &[("idle", 5), ("busy", 30), ("new", 4)]);
        let report = report(&before, after, Sort::Connections);
        let rows: Vec<_> =
            report.functions.iter().map(|row| (row.now.name.as_str(), row.new_per_second)).collect();
        assert_eq!(rows, [("busy", 10.0), ("new", 2.0), ("idle", 0.0)]);
        let busy = &report.functions[0];
        assert_eq!((busy.cpu_percent, busy.received_per_second), (1.0, 100.0));
        // Of those that ended since; without any, of those that are open.
        assert_eq!((busy.round_trip_us, report.functions[2].round_trip_us), (Some(50), Some(900)));
    }

    #[test]
    fn counters_that_began_anew_give_no_rate() {
        let report = report(&usage(100, &[("a", 50)]), usage(101, &[("a", 3)]), Sort::Name);
        assert_eq!(report.functions[0].new_per_second, 0.0);
    }

    #[test]
    fn intervals_have_limits() {
        assert_eq!(interval("2.5"), Ok(2.5));
        assert!(["0", "0.4", "NaN", "1e9", "x"].iter().all(|text| interval(text).is_err()));
    }
}
