//! What people see. Results go to standard output, everything else to standard error; colour and progress are for
//! terminals alone.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use comfy_table::presets::NOTHING;
use comfy_table::{Attribute, Cell, Color, Table};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::{Exit, Failure, When};

/// The terminal, or what stands in for one.
#[derive(Clone, Copy, Debug)]
pub struct Ui {
    /// Standard output takes colour.
    color: bool,
    /// Standard error takes colour.
    color_stderr: bool,
    /// Standard error shows progress.
    progress: bool,
    /// Standard error takes what is neither result nor warning.
    notes: bool,
}

impl Ui {
    #[must_use]
    pub fn new(when: When) -> Self {
        // https://no-color.org: present and not empty.
        let no_color = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
        let stderr = io::stderr().is_terminal();
        let color = |terminal: bool| match when {
            When::Always => true,
            When::Never => false,
            When::Auto => terminal && !no_color && !dumb,
        };
        Self {
            color: color(io::stdout().is_terminal()),
            color_stderr: color(stderr),
            progress: stderr && !dumb,
            notes: true,
        }
    }

    /// For work among other work: warnings and failures alone.
    #[must_use]
    pub const fn quiet(self) -> Self {
        Self { progress: false, notes: false, ..self }
    }

    /// Prints a result.
    pub fn print(&self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }

    /// Prints a result as JSON.
    pub fn json(&self, value: &impl Serialize) -> Result<(), Failure> {
        let mut text = serde_json::to_string_pretty(value)
            .map_err(|e| Failure::new(Exit::Failed, format!("cannot write JSON: {e}")))?;
        text.push('\n');
        self.print(&text)
    }

    /// Prints a table: aligned columns, no borders, nothing that a pipe would have to strip.
    pub fn table<'a>(
        &self,
        header: impl IntoIterator<Item = &'a str>,
        rows: impl IntoIterator<Item = Vec<Cell>>,
    ) -> Result<(), Failure> {
        self.print(&self.table_text(header, rows))
    }

    /// The same as text.
    #[must_use]
    pub fn table_text<'a>(
        &self,
        header: impl IntoIterator<Item = &'a str>,
        rows: impl IntoIterator<Item = Vec<Cell>>,
    ) -> String {
        let mut table = self.grid();
        table.set_header(header.into_iter().map(|title| Cell::new(title).add_attribute(Attribute::Bold)));
        table.add_rows(rows);
        lines(&mut table)
    }

    /// Prints keys and values.
    pub fn pairs(&self, pairs: impl IntoIterator<Item = (&'static str, Cell)>) -> Result<(), Failure> {
        let mut table = self.grid();
        for (key, value) in pairs {
            table.add_row(vec![Cell::new(key).add_attribute(Attribute::Dim), value]);
        }
        self.print(&lines(&mut table))
    }

    fn grid(&self) -> Table {
        let mut table = Table::new();
        table.load_style(NOTHING);
        if self.color {
            table.enforce_styling()
        } else {
            table.force_no_tty()
        };
        table.style_text_only();
        table
    }

    /// Whether standard output takes colour.
    #[must_use]
    pub const fn color(&self) -> bool {
        self.color
    }

    /// Bold on standard output.
    #[must_use]
    pub fn bold(&self, text: &str) -> String {
        if self.color { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Says something that is no result.
    pub fn note(&self, text: &str) {
        if self.notes {
            say(text);
        }
    }

    /// Shows help to somebody who did not ask for it.
    pub fn help(&self, help: &clap::builder::StyledStr) {
        let text = if self.color_stderr { help.ansi().to_string() } else { help.to_string() };
        say(text.trim_end());
    }

    /// Says something that may become a failure.
    pub fn warn(&self, text: &str) {
        let (on, off) = if self.color_stderr { ("\x1b[1;33m", "\x1b[0m") } else { ("", "") };
        say(&format!("{on}warning{off}: {text}"));
    }

    /// Says why the verb failed.
    pub fn failure(&self, failure: &Failure) {
        if failure.message.is_empty() {
            return;
        }
        let (on, off) = if self.color_stderr { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
        say(&format!("{on}error{off}: {}", printable(&failure.message)));
        if let Some(hint) = &failure.hint {
            for line in printable(hint).lines() {
                say(&format!("  {line}"));
            }
        }
    }

    /// A bar over `bytes` bytes; invisible where there is no terminal.
    #[must_use]
    pub fn bar(&self, what: &'static str, bytes: u64) -> ProgressBar {
        let style = ProgressStyle::with_template("{msg} {bar:30} {binary_bytes}/{binary_total_bytes} {eta}");
        let bar = ProgressBar::with_draw_target(Some(bytes), self.target()).with_message(what);
        match style {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        }
    }

    /// A bar over a time, in milliseconds, with the message behind it; a spinner if nobody knows how long.
    #[must_use]
    pub fn gauge(&self, milliseconds: Option<u64>) -> ProgressBar {
        if milliseconds.is_none() {
            return self.spinner(String::new());
        }
        let bar = ProgressBar::with_draw_target(milliseconds, self.target());
        match ProgressStyle::with_template("{bar:30} {elapsed} {msg}") {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        }
    }

    /// A spinner while something runs.
    #[must_use]
    pub fn spinner(&self, what: String) -> ProgressBar {
        let spinner = ProgressBar::with_draw_target(None, self.target()).with_message(what);
        if self.progress {
            spinner.enable_steady_tick(Duration::from_millis(100));
        }
        spinner
    }

    fn target(&self) -> ProgressDrawTarget {
        if self.progress { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() }
    }
}

fn lines(table: &mut Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text: String = table.lines().flat_map(|line| [line.trim_end().to_owned(), "\n".into()]).collect();
    if text.trim().is_empty() { String::new() } else { text }
}

fn say(text: &str) {
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(io::stderr(), "{text}");
}

/// A cell in the colour of what it says: good, on its way, bad.
#[must_use]
pub fn state_cell(state: &str) -> Cell {
    let cell = Cell::new(state);
    match state {
        "warm" | "ready" | "ok" | "created" | "updated" => cell.fg(Color::Green),
        "starting" | "draining" | "withdrawn" | "prepared" | "warning" | "invited" => cell.fg(Color::Yellow),
        "failing" | "failed" | "overloaded" => cell.fg(Color::Red),
        _ => cell,
    }
}

/// A size with a binary unit: `12.3 KiB`.
#[must_use]
pub fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    let exact = unit == "B" || value.fract() == 0.0;
    if exact { format!("{value:.0} {unit}") } else { format!("{value:.1} {unit}") }
}

/// A duration as people say it: `850 µs`, `142 ms`, `3.2 s`, `2m 10s`.
#[must_use]
pub fn took(elapsed: Duration) -> String {
    match elapsed.as_secs_f64() {
        s if s < 0.001 => format!("{:.0} µs", s * 1e6),
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 60.0 => format!("{s:.1} s"),
        s => format!("{}m {}s", s as u64 / 60, s as u64 % 60),
    }
}

/// Makes text safe to show: what a function wrote must not steer the terminal. Tabs and line ends stay.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => out.push(c),
            // As `cat -v` and `less` write them.
            c if c.is_ascii_control() => out.extend(['^', char::from((c as u8) ^ 0x40)]),
            // C1 controls, and those that reorder what stands around them.
            '\u{80}'..='\u{9f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_are_short() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(128 << 20), "128 MiB");
        assert_eq!(size(12_600), "12.3 KiB");
        assert_eq!(took(Duration::from_micros(850)), "850 µs");
        assert_eq!(took(Duration::from_millis(142)), "142 ms");
        assert_eq!(took(Duration::from_millis(3210)), "3.2 s");
        assert_eq!(took(Duration::from_secs(130)), "2m 10s");
    }

    #[test]
    fn escape_codes_are_shown_and_not_obeyed() {
        assert_eq!(printable("a\x1b[31mb\r\n\tc"), "a^[[31mb^M\n\tc");
        assert_eq!(printable("\u{9b}x\u{202e}y"), "\u{fffd}x\u{fffd}y");
        assert_eq!(printable("naïve 漢"), "naïve 漢");
    }
}
