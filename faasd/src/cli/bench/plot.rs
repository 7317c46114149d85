//! The plots of a report, on whatever can be drawn on.

use plotters::coord::Shift;
use plotters::coord::combinators::IntoLogRange;
use plotters::prelude::*;
use plotters::style::register_font;

use super::text::micros;
use crate::core::load::report::{PhaseReport, Point, Report, TargetReport};

/// Why a plot could not be drawn.
pub type DrawError = Box<dyn std::error::Error>;

type Area<B> = DrawingArea<B, Shift>;
type Of = fn(&Point) -> Option<f64>;
type Drawn = Result<(), DrawError>;

const FONT: &str = "sans-serif";
const INK: RGBColor = RGBColor(31, 41, 55);
const GRID: RGBColor = RGBColor(229, 231, 235);
/// Blue and orange are told apart by nearly everybody.
const TARGETS: [RGBColor; 2] = [RGBColor(37, 99, 235), RGBColor(234, 88, 12)];
/// By [`crate::core::load::record::Phase`].
const PHASES: [(&str, RGBColor); 5] = [
    ("wait", RGBColor(156, 163, 175)),
    ("dns", RGBColor(202, 138, 4)),
    ("connect", RGBColor(147, 51, 234)),
    ("first-byte", RGBColor(37, 99, 235)),
    ("transfer", RGBColor(22, 163, 74)),
];

/// A plot that a report may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plot {
    Percentiles,
    Distribution,
    Throughput,
    Timeline,
    Phases,
    Ratios,
}

impl Plot {
    /// Those that this report has something to show in.
    pub fn of(report: &Report) -> Vec<Self> {
        let answered = report.targets.iter().any(|target| target.latency.is_some());
        let lasts = report.targets.iter().any(|target| target.series.len() > 1);
        let all = [
            (Self::Percentiles, answered),
            (Self::Distribution, answered),
            (Self::Throughput, answered && lasts),
            (Self::Timeline, answered && lasts),
            (Self::Phases, answered),
            (Self::Ratios, report.comparison.is_some()),
        ];
        all.into_iter().filter_map(|(plot, shows)| shows.then_some(plot)).collect()
    }

    pub const fn title(self) -> &'static str {
        match self {
            Self::Percentiles => "Latency by percentile",
            Self::Distribution => "Distribution of latency",
            Self::Throughput => "Requests a second, over time",
            Self::Timeline => "Latency over time",
            Self::Phases => "Where the time goes (mean)",
            Self::Ratios => "Second target / first",
        }
    }

    pub fn draw<B: DrawingBackend>(self, area: &Area<B>, report: &Report) -> Drawn
    where
        B::ErrorType: 'static,
    {
        with_font()?;
        area.fill(&WHITE)?;
        let area = area.titled(self.title(), (FONT, 20).into_font().color(&INK))?.margin(6, 6, 6, 16);
        match self {
            Self::Percentiles => percentiles(&area, report),
            Self::Distribution => distribution(&area, report),
            Self::Throughput => throughput(&area, report),
            Self::Timeline => timeline(&area, report),
            Self::Phases => phases(&area, report),
            Self::Ratios => ratios(&area, report),
        }
    }
}

/// The line over a picture that says what it shows.
pub fn title<B: DrawingBackend>(area: &Area<B>, report: &Report) -> Drawn
where
    B::ErrorType: 'static,
{
    with_font()?;
    area.fill(&WHITE)?;
    let names: Vec<String> = report.targets.iter().map(|target| shown(&target.name)).collect();
    let text = format!(
        "{}: {}, {}, {} connections",
        names.join(" and "),
        report.mode.as_str(),
        report.protocol.as_str(),
        report.connections
    );
    Ok(area.draw(&Text::new(text, (16, 14), (FONT, 22).into_font().color(&INK)))?)
}

/// A machine that draws may have no fonts. Once is enough; again is no harm.
fn with_font() -> Drawn {
    let registered = register_font(FONT, FontStyle::Normal, dejavu::sans::regular());
    Ok(registered.map_err(|_| "the built-in font cannot be read")?)
}

fn colored(report: &Report) -> impl Iterator<Item = (&TargetReport, RGBColor)> {
    report.targets.iter().zip(TARGETS.into_iter().cycle())
}

fn small() -> TextStyle<'static> {
    (FONT, 13).into_font().color(&INK)
}

fn seconds_label(seconds: &f64) -> String {
    format!("{} s", (seconds * 100.0).round() / 100.0)
}

fn time_label(us: &f64) -> String {
    if *us == 0.0 { "0".to_owned() } else { micros(*us) }
}

/// The least and the greatest of some positive values, with room about them.
fn span(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values
        .filter(|value| *value > 0.0)
        .fold((f64::MAX, 0.0f64), |(low, high), value| (low.min(value), high.max(value)));
    if high == 0.0 { (1.0, 10.0) } else { (low * 0.8, (high * 1.25).max(low * 2.0)) }
}

/// 0 for the median's half, 1 for 90 %, 2 for 99 %: each step is ten times rarer.
fn nines(quantile: f64) -> f64 {
    -(1.0 - quantile).max(1e-9).log10()
}

/// Axes and grid; without labels of y, for rows that have names.
macro_rules! mesh {
    ($chart:expr, $x:expr, $y:expr) => {
        $chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(INK)
            .label_style(small())
            .y_labels(6)
            .x_label_formatter(&$x)
            .y_label_formatter(&$y)
            .draw()?
    };
    ($chart:expr, $x:expr) => {
        $chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(INK)
            .label_style(small())
            .x_label_formatter(&$x)
            .draw()?
    };
}

/// What a colour stands for.
macro_rules! legend {
    ($series:expr, $name:expr, $color:expr) => {{
        let color = $color;
        $series
            .label($name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], color.filled()));
    }};
}

/// The box with what the colours stand for.
macro_rules! finish {
    ($chart:expr, $position:ident) => {{
        $chart
            .configure_series_labels()
            .position(SeriesLabelPosition::$position)
            .background_style(WHITE.mix(0.85))
            .label_font(small())
            .draw()?;
        Ok(())
    }};
}

fn percentiles<B: DrawingBackend>(area: &Area<B>, report: &Report) -> Drawn
where
    B::ErrorType: 'static,
{
    let all = || report.targets.iter().flat_map(|target| &target.quantiles);
    let (low, high) = span(all().map(|quantile| quantile.us));
    let right = all().map(|quantile| nines(quantile.quantile)).fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .x_label_area_size(32)
        .y_label_area_size(72)
        .build_cartesian_2d((0.0..right).step(1.0), (low..high).log_scale())?;
    mesh!(chart, |nines: &f64| percent(1.0 - 10f64.powf(-nines)), time_label);
    for (target, color) in colored(report) {
        let line = target.quantiles.iter().map(|quantile| (nines(quantile.quantile), quantile.us));
        let series = chart.draw_series(LineSeries::new(line, color.stroke_width(2)))?;
        legend!(series, shown(&target.name), color);
    }
    finish!(chart, UpperLeft)
}

fn percent(part: f64) -> String {
    let text = format!("{:.4}", part * 100.0);
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}

fn distribution<B: DrawingBackend>(area: &Area<B>, report: &Report) -> Drawn
where
    B::ErrorType: 'static,
{
    let bins = || report.targets.iter().flat_map(|target| &target.histogram);
    let low = bins().map(|bin| bin.from_us).fold(f64::MAX, f64::min);
    // The last bin reaches to the very last value: the plot does not.
    let shown_to = |from: f64, to: f64| to.min(from * 1.6);
    let high = bins().map(|bin| shown_to(bin.from_us, bin.to_us)).fold(low, f64::max);
    let part = |target: &TargetReport, count: u64| 100.0 * count as f64 / target.answered.max(1) as f64;
    let highest = report
        .targets
        .iter()
        .flat_map(|target| target.histogram.iter().map(|bin| part(target, bin.count)))
        .fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .x_label_area_size(32)
        .y_label_area_size(72)
        .build_cartesian_2d((low..high.max(low * 1.1)).log_scale(), 0.0..highest * 1.1)?;
    mesh!(chart, time_label, |part: &f64| format!("{part:.0} %"));
    for (target, color) in colored(report) {
        let bars = target.histogram.iter().map(|bin| {
            let to = shown_to(bin.from_us, bin.to_us);
            Rectangle::new([(bin.from_us, 0.0), (to, part(target, bin.count))], color.mix(0.55).filled())
        });
        legend!(chart.draw_series(bars)?, shown(&target.name), color);
    }
    finish!(chart, UpperRight)
}

fn throughput<B: DrawingBackend>(area: &Area<B>, report: &Report) -> Drawn
where
    B::ErrorType: 'static,
{
    let points = || report.targets.iter().flat_map(|target| &target.series);
    let right = points().map(|point| point.at).fold(0.0, f64::max);
    let top = points().map(|point| point.requests_per_second).fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .x_label_area_size(32)
        .y_label_area_size(72)
        .build_cartesian_2d(0.0..right.max(0.1), 0.0..(top * 1.1).max(1.0))?;
    mesh!(chart, seconds_label, |count: &f64| short(*count));
    for (target, color) in colored(report) {
        let line = target.series.iter().map(|point| (point.at, point.requests_per_second));
        let series = chart.draw_series(LineSeries::new(line, color.stroke_width(2)))?;
        legend!(series, shown(&target.name), color);
    }
    finish!(chart, UpperRight)
}

fn timeline<B: DrawingBackend>(area: &Area<B>, report: &Report) -> Drawn
where
    B::ErrorType: 'static,
{
    let points = || report.targets.iter().flat_map(|target| &target.series);
    let right = points().map(|point| point.at).fold(0.0, f64::max);
    let (low, high) = span(points().flat_map(|point| [point.p50_us, point.p99_us]).flatten());
    let mut chart = ChartBuilder::on(area)
        .x_label_area_size(32)
        .y_label_area_size(72)
        .build_cartesian_2d(0.0..right.max(0.1), (low..high).log_scale())?;
    mesh!(chart, seconds_label, time_label);
    for (target, color) in colored(report) {
        let kinds: [(&str, f64, Of); 2] =
            [("p50", 1.0, |point| point.p50_us), ("p99", 0.5, |point| point.p99_us)];
        for (name, opacity, of) in kinds {
            let line = target.series.iter().filter_map(|point| Some((point.at, of(point)?)));
            let style = color.mix(opacity);
            let series = chart.draw_series(LineSeries::new(line, style.stroke_width(2)))?;
            legend!(series, format!("{name} {}", shown(&target.name)), style);
        }
    }
    finish!(chart, UpperRight)
}

fn phases<B: DrawingBackend>(area: &Area<B>, report: &Report) -> Drawn
where
    B::ErrorType: 'static,
{
    let shares = |target: &TargetReport| -> Vec<(usize, f64)> {
        let place = |name: &str| PHASES.iter().position(|(phase, _)| *phase == name);
        let mean = |phase: &PhaseReport| Some(phase.share? * target.latency?.mean_us);
        target.phases.iter().filter_map(|phase| Some((place(&phase.phase)?, mean(phase)?))).collect()
    };
    let longest = report.targets.iter().map(|target| shares(target).iter().map(|(_, us)| us).sum::<f64>());
    let rows = report.targets.len();
    let mut chart = ChartBuilder::on(area)
        .x_label_area_size(32)
        .y_label_area_size(32)
        .build_cartesian_2d(0.0..longest.fold(0.001, f64::max) * 1.05, 0.0..rows as f64)?;
    mesh!(chart, time_label);
    for (phase, (name, color)) in PHASES.into_iter().enumerate() {
        let bars = report.targets.iter().enumerate().filter_map(|(row, target)| {
            let shares = shares(target);
            let (_, us) = *shares.iter().find(|(place, _)| *place == phase)?;
            let before: f64 = shares.iter().filter(|(place, _)| *place < phase).map(|(_, us)| us).sum();
            let base = (rows - 1 - row) as f64;
            Some(Rectangle::new([(before, base + 0.15), (before + us, base + 0.65)], color.filled()))
        });
        let bars: Vec<_> = bars.collect();
        if !bars.is_empty() {
            legend!(chart.draw_series(bars)?, name, color);
        }
    }
    for (row, target) in report.targets.iter().enumerate() {
        let at = (0.0, (rows - 1 - row) as f64 + 0.82);
        chart.draw_series(std::iter::once(Text::new(shown(&target.name), at, small())))?;
    }
    finish!(chart, UpperRight)
}

fn ratios<B: DrawingBackend>(area: &Area<B>, report: &Report) -> Drawn
where
    B::ErrorType: 'static,
{
    let Some(found) = &report.comparison else { return Ok(()) };
    let all = [("requests/s", found.requests_per_second), ("p99", found.p99), ("p50", Some(found.p50))];
    let rows: Vec<_> = all.into_iter().filter_map(|(name, ratio)| Some((name, ratio?))).collect();
    let ends = rows.iter().flat_map(|(_, r)| [Some(r.ratio), r.low, r.high]).flatten();
    let (low, high) = ends.fold((1.0f64, 1.0f64), |(low, high), end| (low.min(end), high.max(end)));
    let room = ((high - low) * 0.15).max(0.05);
    let mut chart = ChartBuilder::on(area)
        .x_label_area_size(32)
        .y_label_area_size(32)
        .build_cartesian_2d((low - room)..(high + room), 0.0..rows.len() as f64)?;
    mesh!(chart, |ratio: &f64| format!("{ratio:.2}"));
    let equal = [(1.0, 0.0), (1.0, rows.len() as f64)];
    chart.draw_series(std::iter::once(PathElement::new(equal, INK.mix(0.5))))?;
    for (row, (name, ratio)) in rows.iter().enumerate() {
        let at = row as f64 + 0.4;
        let color = if ratio.differs() { TARGETS[1] } else { TARGETS[0] };
        if let (Some(low), Some(high)) = (ratio.low, ratio.high) {
            let line = PathElement::new([(low, at), (high, at)], color.stroke_width(3));
            chart.draw_series(std::iter::once(line))?;
        }
        chart.draw_series(std::iter::once(Circle::new((ratio.ratio, at), 5, color.filled())))?;
        let text = Text::new(
            format!("{name}  {}", super::text::ratio(ratio)),
            (low - room * 0.9, at + 0.4),
            small(),
        );
        chart.draw_series(std::iter::once(text))?;
    }
    Ok(())
}

/// A name that fits into a plot.
fn shown(name: &str) -> String {
    const CHARS_MAX: usize = 48;
    if name.chars().count() <= CHARS_MAX {
        return name.to_owned();
    }
    name.chars().take(CHARS_MAX - 1).chain(['…']).collect()
}

fn short(count: f64) -> String {
    match count {
        count if count >= 1e6 => format!("{:.1}M", count / 1e6),
        count if count >= 1e4 => format!("{:.0}k", count / 1e3),
        count if count >= 1e3 => format!("{:.1}k", count / 1e3),
        count => format!("{count:.0}"),
    }
}
