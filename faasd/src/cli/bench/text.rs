//! A report for the terminal.

use std::fmt::Write as _;

use comfy_table::Cell;

use super::super::ui::size;
use super::super::{Failure, Ui};
use crate::core::load::bins::Bin;
use crate::core::load::compare::Ratio;
use crate::core::load::report::{Report, Summary, TargetReport};

/// Rows of the histogram, and columns of its longest bar.
const ROWS: usize = 20;
const COLUMNS: usize = 40;

/// A load that is busier than this may be what is measured.
const BUSY: f64 = 0.9;

/// A time as people say it, with three digits: `43.1 µs`, `1.20 ms`, `12.0 s`.
pub fn micros(us: f64) -> String {
    match us {
        us if us < 999.5 => format!("{} µs", digits(us)),
        us if us < 999_500.0 => format!("{} ms", digits(us / 1e3)),
        us => format!("{} s", digits(us / 1e6)),
    }
}

fn digits(value: f64) -> String {
    match value {
        v if v < 9.995 => format!("{v:.2}"),
        v if v < 99.95 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

/// A ratio with its interval: `1.02 (0.99–1.05)`.
pub fn ratio(ratio: &Ratio) -> String {
    match (ratio.low, ratio.high) {
        (Some(low), Some(high)) => format!("{:.3} ({low:.3}–{high:.3})", ratio.ratio),
        _ => format!("{:.3}", ratio.ratio),
    }
}

pub fn print(ui: &Ui, report: &Report) -> Result<(), Failure> {
    ui.print(&format!("{}\n", settings(report)))?;
    for target in &report.targets {
        ui.print(&format!("\n{}\n", ui.bold(&target.name)))?;
        one(ui, report, target)?;
    }
    compared(ui, report)
}

fn settings(report: &Report) -> String {
    let mut text = format!("{}, {}, {}", report.mode.as_str(), report.protocol.as_str(), report.method);
    let plural = |count: u32| if count == 1 { "" } else { "s" };
    let _ = write!(text, ", {} connection{}", report.connections, plural(report.connections));
    let _ = write!(text, ", {} thread{}", report.threads, plural(report.threads));
    if let Some(rate) = report.rate {
        let _ = write!(text, ", {rate} requests/s wanted");
    }
    if report.interrupted {
        text.push_str("; ended early");
    }
    text
}

fn one(ui: &Ui, report: &Report, target: &TargetReport) -> Result<(), Failure> {
    let mut pairs = Vec::new();
    if let Some(via) = &target.via {
        pairs.push(("via", Cell::new(via)));
    }
    let answered = format!(
        "{} in {}, {} requests/s",
        target.answered,
        micros(target.seconds * 1e6),
        whole(target.requests_per_second)
    );
    pairs.push(("answered", Cell::new(answered)));
    if target.failed > 0 {
        let all = (target.answered + target.failed) as f64;
        let part = 100.0 * target.failed as f64 / all;
        pairs.push(("failed", Cell::new(format!("{} ({})", target.failed, percent(part)))));
    }
    if target.unsent > 0 {
        let text = format!("{}: no connection was free; give more with -c", target.unsent);
        pairs.push(("not sent", Cell::new(text)));
    }
    if target.client_busy > BUSY {
        let text = format!(
            "{} of a thread's time: it is the load that is measured",
            percent(100.0 * target.client_busy)
        );
        pairs.push(("busy", Cell::new(format!("{text}; give it --threads, or a machine of its own"))));
    }
    for (title, bytes) in [("sent", target.sent_bytes), ("received", target.received_bytes)] {
        if bytes > 0 {
            let per_second = if target.seconds > 0.0 { bytes as f64 / target.seconds } else { 0.0 };
            pairs.push((title, Cell::new(format!("{}, {}/s", size(bytes), size(per_second as u64)))));
        }
    }
    if !report.mode.connects_each_time() {
        pairs.push(("connections", Cell::new(format!("{} opened", target.connections_opened))));
    }
    ui.pairs(pairs)?;
    if let Some(latency) = &target.latency {
        ui.print("\n")?;
        times(ui, target, latency)?;
        ui.print(&format!("\n{}", histogram(&target.histogram)))?;
    }
    if !target.faults.is_empty() {
        ui.print("\n")?;
        let rows = target.faults.iter().map(|fault| {
            let example = super::super::ui::printable(&fault.example);
            vec![Cell::new(&fault.kind), Cell::new(fault.count), Cell::new(example)]
        });
        ui.table(["FAILED", "COUNT", "THE FIRST"], rows)?;
    }
    Ok(())
}

/// The whole latency, and under it where it went.
fn times(ui: &Ui, target: &TargetReport, latency: &Summary) -> Result<(), Failure> {
    let row = |name: &str, count: String, time: &Summary, share: String| {
        let times = [time.mean_us, time.p50_us, time.p90_us, time.p99_us, time.p999_us, time.max_us];
        let mut cells = vec![Cell::new(name)];
        cells.extend(times.into_iter().map(|us| Cell::new(micros(us))));
        cells.extend([Cell::new(share), Cell::new(count)]);
        cells
    };
    let mut rows = vec![row("latency", target.answered.to_string(), latency, String::new())];
    for phase in &target.phases {
        let share = phase.share.map(|share| percent(100.0 * share)).unwrap_or_default();
        rows.push(row(&format!("  {}", phase.phase), phase.count.to_string(), &phase.time, share));
    }
    ui.table(["", "MEAN", "P50", "P90", "P99", "P99.9", "MAX", "SHARE", "COUNT"], rows)
}

fn compared(ui: &Ui, report: &Report) -> Result<(), Failure> {
    let (Some(found), [first, second]) = (&report.comparison, report.targets.as_slice()) else {
        return Ok(());
    };
    ui.print(&format!("\n{}\n", ui.bold(&format!("{} / {}", second.name, first.name))))?;
    let all = [("p50", Some(found.p50)), ("p99", found.p99), ("requests/s", found.requests_per_second)];
    let rows = all.into_iter().filter_map(|(name, ratio)| {
        let ratio = ratio?;
        let says = match (ratio.low, ratio.differs()) {
            (None, _) => "too few pairs for an interval",
            (Some(_), true) => "differs",
            (Some(_), false) => "no difference shown",
        };
        Some(vec![Cell::new(name), Cell::new(self::ratio(&ratio)), Cell::new(says)])
    });
    ui.table(["", "RATIO", ""], rows)?;
    let about = format!("median of {} pairs in turns, {} % interval", found.pairs, found.confidence);
    ui.print(&format!("{about}\n"))
}

fn percent(part: f64) -> String {
    if part >= 0.095 || part == 0.0 { format!("{part:.1} %") } else { format!("{part:.4} %") }
}

fn whole(rate: f64) -> String {
    if rate < 100.0 { format!("{rate:.2}") } else { format!("{rate:.0}") }
}

/// Bars, one for two bins or so, in eighths of a column.
fn histogram(bins: &[Bin]) -> String {
    const EIGHTHS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let rows: Vec<Bin> = bins
        .chunks(bins.len().div_ceil(ROWS).max(1))
        .filter_map(|bins| {
            let (first, last) = (bins.first()?, bins.last()?);
            let count = bins.iter().map(|bin| bin.count).sum();
            Some(Bin { from_us: first.from_us, to_us: last.to_us, count })
        })
        .collect();
    let most = rows.iter().map(|row| row.count).max().unwrap_or(0).max(1) as f64;
    let mut text = String::new();
    for row in rows {
        let eighths = (row.count as f64 / most * (COLUMNS * 8) as f64).round() as usize;
        let mut bar = "█".repeat(eighths / 8);
        if !eighths.is_multiple_of(8) {
            bar.push(EIGHTHS[eighths % 8]);
        } else if eighths == 0 && row.count > 0 {
            bar.push(EIGHTHS[1]);
        }
        let line = format!("{:>8} {bar} {}", micros(row.from_us), row.count);
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits() {
        let shown: Vec<String> =
            [0.5, 9.999, 43.12, 99.96, 999.6, 1200.0, 999_600.0, 12_000_000.0].map(micros).into();
        assert_eq!(
            shown,
            ["0.50 µs", "10.0 µs", "43.1 µs", "100 µs", "1.00 ms", "1.20 ms", "1.00 s", "12.0 s"]
        );
    }

    #[test]
    fn bars_are_as_long_as_their_counts() {
        let bin = |from_us: f64, count| Bin { from_us, to_us: from_us * 2.0, count };
        let text = histogram(&[bin(1.0, 800), bin(2.0, 400), bin(4.0, 1), bin(8.0, 0)]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], format!(" 1.00 µs {} 800", "█".repeat(40)));
        assert_eq!(lines[1], format!(" 2.00 µs {} 400", "█".repeat(20)));
        assert_eq!(lines[2], " 4.00 µs ▏ 1", "what is there is seen");
        assert_eq!(lines[3], " 8.00 µs  0");
    }
}
