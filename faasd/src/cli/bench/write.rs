//! A report as a file: JSON, CSV, a page, a picture.

use std::fmt::Write as _;
use std::path::Path;

use plotters::prelude::*;

use super::plot::{DrawError, Plot};
use super::text::{micros, ratio};
use crate::cli::{Exit, Failure};
use crate::core::load::report::{Report, TargetReport};

/// A plot's size.
const WIDTH: u32 = 760;
const HEIGHT: u32 = 380;

/// Of a picture: two plots beside each other, under a line that says what they are of.
const COLUMNS: u32 = 2;
const TITLE: u32 = 48;

const PAGE: &str = include_str!("page.html");

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// Everything
    Json,
    /// A line a target
    Csv,
    /// A page with plots, in one file
    Html,
    /// The plots as a picture
    Png,
}

impl Format {
    /// That of a file, by the end of its name.
    pub fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "json" => Some(Self::Json),
            "csv" => Some(Self::Csv),
            "html" => Some(Self::Html),
            "png" => Some(Self::Png),
            _ => None,
        }
    }

    /// A report in this format; tables are [`super::text`]'s.
    pub fn write(self, report: &Report) -> Result<Vec<u8>, Failure> {
        let failed = |what: &str, e: &dyn std::fmt::Display| {
            Failure::new(Exit::Failed, format!("cannot write {what}: {e}"))
        };
        match self {
            Self::Table | Self::Json => {
                let mut text = serde_json::to_vec_pretty(report).map_err(|e| failed("JSON", &e))?;
                text.push(b'\n');
                Ok(text)
            }
            Self::Csv => Ok(csv(report).into_bytes()),
            Self::Html => html(report).map(String::into_bytes).map_err(|e| failed("the page", &e)),
            Self::Png => picture(report).map_err(|e| failed("the picture", &e)),
        }
    }
}

/// The columns of a table of reports, the same for every run.
fn csv(report: &Report) -> String {
    let mut text = String::from(
        "started_at,name,url,mode,protocol,method,connections,threads,rate,seconds,answered,failed,unsent,\
         requests_per_second,sent_bytes,received_bytes,min_us,mean_us,stdev_us,p50_us,p75_us,p90_us,p99_us,\
         p999_us,max_us\n",
    );
    for target in &report.targets {
        let rate = report.rate.map(|rate| rate.to_string()).unwrap_or_default();
        let _ = write!(
            text,
            "{},{},{},{},{},{},{},{},{rate},{:.6},{},{},{},{:.3},{},{}",
            report.started_at,
            quoted(&target.name),
            quoted(&target.url),
            report.mode.as_str(),
            report.protocol.as_str(),
            report.method,
            report.connections,
            report.threads,
            target.seconds,
            target.answered,
            target.failed,
            target.unsent,
            target.requests_per_second,
            target.sent_bytes,
            target.received_bytes,
        );
        let times = target.latency.map(|l| {
            [l.min_us, l.mean_us, l.stdev_us, l.p50_us, l.p75_us, l.p90_us, l.p99_us, l.p999_us, l.max_us]
        });
        for column in 0..9 {
            text.push(',');
            if let Some(times) = times {
                let _ = write!(text, "{:.3}", times[column]);
            }
        }
        text.push('\n');
    }
    text
}

/// After RFC 4180.
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

fn html(report: &Report) -> Result<String, DrawError> {
    let mut plots = String::new();
    for plot in Plot::of(report) {
        let mut svg = String::new();
        {
            let root = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
            plot.draw(&root, report)?;
            root.present()?;
        }
        // A name for those who do not see it, and no XML declaration within a page.
        let svg = svg.trim_start_matches(|c| c != '<').replacen(
            "<svg ",
            &format!("<svg role=\"img\" aria-label=\"{}\" ", plot.title()),
            1,
        );
        let _ = write!(plots, "<figure>{svg}</figure>");
    }
    let mut tables = String::new();
    for target in &report.targets {
        table(&mut tables, target);
    }
    if let (Some(found), [first, second]) = (&report.comparison, report.targets.as_slice()) {
        let title = format!("{} / {}", second.name, first.name);
        let _ = write!(tables, "<h2>{}</h2><table><tr><th></th><th>ratio</th></tr>", escaped(&title));
        for (name, value) in
            [("p50", Some(found.p50)), ("p99", found.p99), ("requests/s", found.requests_per_second)]
        {
            if let Some(value) = value {
                let _ = write!(tables, "<tr><th>{name}</th><td>{}</td></tr>", ratio(&value));
            }
        }
        let _ = write!(
            tables,
            "</table><p>Median of {} pairs in turns, {} % interval by the bootstrap.</p>",
            found.pairs, found.confidence
        );
    }
    let rate =
        report.rate.map_or_else(|| "closed loop".to_owned(), |rate| format!("open loop, {rate} requests/s"));
    let about = format!(
        "{}, {}, {}, {} connections, {} threads, {rate}; {}; faas {}",
        report.mode.as_str(),
        report.protocol.as_str(),
        report.method,
        report.connections,
        report.threads,
        report.started_at,
        report.version,
    );
    let names: Vec<&str> = report.targets.iter().map(|target| target.name.as_str()).collect();
    // In this order: what comes from outside is put in last, and looked through no more.
    Ok(PAGE
        .replace("{plots}", &plots)
        .replace("{tables}", &tables)
        .replace("{about}", &escaped(&about))
        .replace("{title}", &escaped(&names.join(" and "))))
}

fn table(text: &mut String, target: &TargetReport) {
    let _ = write!(
        text,
        "<h2>{}</h2><p>{} answered in {}, {:.0} requests/s; {} failed</p>",
        escaped(&target.name),
        target.answered,
        micros(target.seconds * 1e6),
        target.requests_per_second,
        target.failed,
    );
    let head =
        ["", "mean", "p50", "p90", "p99", "p99.9", "max"].map(|title| format!("<th>{title}</th>")).concat();
    let _ = write!(text, "<table><tr>{head}</tr>");
    let whole = target.latency.iter().map(|latency| ("latency", latency));
    let parts = target.phases.iter().map(|phase| (phase.phase.as_str(), &phase.time));
    for (name, time) in whole.chain(parts) {
        let times = [time.mean_us, time.p50_us, time.p90_us, time.p99_us, time.p999_us, time.max_us];
        let cells = times.map(|us| format!("<td>{}</td>", micros(us))).concat();
        let _ = write!(text, "<tr><th>{}</th>{cells}</tr>", escaped(name));
    }
    text.push_str("</table>");
    if !target.faults.is_empty() {
        text.push_str("<table><tr><th>failed</th><th>count</th><th>the first</th></tr>");
        for fault in &target.faults {
            let _ = write!(
                text,
                "<tr><th>{}</th><td>{}</td><td>{}</td></tr>",
                escaped(&fault.kind),
                fault.count,
                escaped(&fault.example)
            );
        }
        text.push_str("</table>");
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // Nothing of what is still to be put in is looked for in it.
            '{' => out.push_str("&#123;"),
            c => out.push(c),
        }
    }
    out
}

fn picture(report: &Report) -> Result<Vec<u8>, DrawError> {
    let plots = Plot::of(report);
    let rows = (plots.len() as u32).div_ceil(COLUMNS).max(1);
    let (width, height) = (COLUMNS * WIDTH, TITLE + rows * HEIGHT);
    let mut pixels = vec![0; (width * height * 3) as usize];
    {
        let root = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
        super::plot::title(&root, report)?;
        let (_, below) = root.split_vertically(TITLE);
        for (area, plot) in below.split_evenly((rows as usize, COLUMNS as usize)).iter().zip(&plots) {
            plot.draw(area, report)?;
        }
        root.present()?;
    }
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&pixels)?;
    writer.finish()?;
    Ok(file)
}

#[cfg(test)]
mod tests;
