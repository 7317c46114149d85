//! Plots, drawn alike on every machine.

use anyhow::{Result, anyhow};
use plotters::coord::combinators::IntoLogRange;
use plotters::prelude::*;
use plotters::style::register_font;
use serde_json::Value;

const FONT: &str = "sans-serif";
const INK: RGBColor = RGBColor(31, 41, 55);
const GRID: RGBColor = RGBColor(229, 231, 235);
/// Ours, and everything else: told apart by nearly everybody.
const OURS: RGBColor = RGBColor(234, 88, 12);
const OTHERS: RGBColor = RGBColor(37, 99, 235);

/// Of a panel.
const WIDTH: u32 = 470;
const ROW_HEIGHT: u32 = 22;
const FRAME_HEIGHT: u32 = 78;
const COLUMNS: usize = 2;

/// One picture: its file's name, the part that it is of, what is shown of it, and how that is called.
const PICTURES: [(&str, &str, &str, &str); 6] = [
    ("lanes-p50.svg", "lanes", "p50", "p50 latency, bare = 1"),
    ("lanes-rps.svg", "lanes", "rps", "requests a second, bare = 1"),
    ("lanes-cpu.svg", "lanes", "cpu", "CPU a request, bare = 1"),
    ("bodies-rps.svg", "bodies", "rps", "transfers and messages a second, bare = 1"),
    ("bodies-cpu.svg", "bodies", "cpu", "CPU a transfer or message, bare = 1"),
    ("tunnelled-p50.svg", "tunnelled", "p50", "p50 latency through the tunnel, bare through one = 1"),
];

struct Panel {
    title: String,
    /// Name, ratio, interval.
    rows: Vec<(String, f64, [f64; 2])>,
}

/// Every picture that there is something to show in, with its file's name.
pub(super) fn all(results: &Value) -> Result<Vec<(&'static str, String)>> {
    register_font(FONT, FontStyle::Normal, dejavu::sans::regular())
        .map_err(|_| anyhow!("the built-in font cannot be read"))?;
    let mut drawn = Vec::new();
    for (file, part, metric, title) in PICTURES {
        let panels = panels(&results[part], metric);
        if !panels.is_empty() {
            drawn.push((file, picture(&panels, title).map_err(|e| anyhow!("{file}: {e}"))?));
        }
    }
    Ok(drawn)
}

/// Markdown that shows what is drawn of a part, from beside the document.
pub(super) fn links(results: &Value, name: &str) -> String {
    let of_part = PICTURES.iter().filter(|(_, part, ..)| *part == name);
    let drawn = of_part.filter(|(_, part, metric, _)| !panels(&results[*part], metric).is_empty());
    drawn.map(|(file, _, _, title)| format!("![{title}](benchmarks/{file})\n")).collect()
}

/// One for each scenario and number of clients, in the order of the results.
fn panels(part: &Value, metric: &str) -> Vec<Panel> {
    let mut panels: Vec<Panel> = Vec::new();
    for row in part["results"].as_array().into_iter().flatten() {
        let Some(ratio) = row[format!("{metric}_ratio")].as_f64().filter(|ratio| *ratio > 0.0) else {
            continue;
        };
        let subject = row["subject"].as_str().unwrap_or_default();
        if row["base"] == subject {
            continue;
        }
        let ci = &row[format!("{metric}_ratio_ci")];
        let interval = [0, 1].map(|end| ci[end].as_f64().filter(|end| *end > 0.0).unwrap_or(ratio));
        let clients = row["clients"].as_u64().unwrap_or_default();
        let plural = if clients == 1 { "client" } else { "clients" };
        let title = format!("{}, {clients} {plural}", row["scenario"].as_str().unwrap_or_default());
        let entry = (subject.to_owned(), ratio, interval);
        match panels.iter_mut().find(|panel| panel.title == title) {
            Some(panel) => panel.rows.push(entry),
            None => panels.push(Panel { title, rows: vec![entry] }),
        }
    }
    panels
}

fn picture(panels: &[Panel], title: &str) -> Result<String, Box<dyn std::error::Error>> {
    let rows = panels.iter().map(|panel| panel.rows.len()).max().unwrap_or_default();
    let height = FRAME_HEIGHT + ROW_HEIGHT * rows as u32;
    let lines = panels.len().div_ceil(COLUMNS);
    let ends =
        || panels.iter().flat_map(|panel| &panel.rows).flat_map(|(_, ratio, ci)| [*ratio, ci[0], ci[1]]);
    // The same for all panels, so that they can be compared.
    let low = ends().fold(0.9, f64::min) * 0.97;
    let high = ends().fold(1.1, f64::max) * 1.08;
    let mut svg = String::new();
    {
        let size = (WIDTH * COLUMNS as u32, 34 + height * lines as u32);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE)?;
        let root = root.titled(title, (FONT, 18).into_font().color(&INK))?;
        let areas = root.split_evenly((lines, COLUMNS));
        for (area, panel) in areas.iter().zip(panels) {
            let count = panel.rows.len() as f64;
            let mut chart = ChartBuilder::on(area)
                .margin(8)
                .caption(&panel.title, (FONT, 14).into_font().color(&INK))
                .x_label_area_size(24)
                .y_label_area_size(142)
                .build_cartesian_2d((low..high).log_scale(), 0.0..count)?;
            chart
                .configure_mesh()
                .disable_y_mesh()
                .disable_y_axis()
                .light_line_style(TRANSPARENT)
                .bold_line_style(GRID)
                .axis_style(INK)
                .x_labels(8)
                .label_style((FONT, 12).into_font().color(&INK))
                .x_label_formatter(&|ratio| format!("{ratio:.1}"))
                .draw()?;
            let equal = PathElement::new([(1.0, 0.0), (1.0, count)], INK.mix(0.6));
            chart.draw_series(std::iter::once(equal))?;
            let plane = chart.plotting_area();
            for (index, (name, ratio, interval)) in panel.rows.iter().enumerate() {
                let at = count - index as f64 - 0.5;
                let color =
                    if name.starts_with("handoff") || name.starts_with("warm") { OURS } else { OTHERS };
                let line = [(interval[0], at), (interval[1], at)];
                plane.draw(&PathElement::new(line, color.stroke_width(3)))?;
                plane.draw(&Circle::new((*ratio, at), 4, color.filled()))?;
                let (left, y) = plane.map_coordinate(&(low, at));
                let text = format!("{name} {ratio:.2}");
                let (dx, dy) = area.get_base_pixel();
                area.draw(&Text::new(
                    text,
                    (left - 134 - dx, y - 6 - dy),
                    (FONT, 12).into_font().color(&INK),
                ))?;
            }
        }
        root.present()?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_picture_has_a_panel_for_each_case_and_a_dot_for_each_subject() {
        let row = |clients: u64, subject: &str, ratio: f64| {
            json!({ "scenario": "new", "clients": clients, "subject": subject, "base": "bare", "p50_ratio": ratio,
                    "p50_ratio_ci": [ratio * 0.9, ratio * 1.1] })
        };
        let rows = [row(1, "bare", 1.0), row(1, "nginx", 1.8), row(1, "warm", 1.02), row(64, "warm", 1.0)];
        let drawn = all(&json!({ "lanes": { "results": rows } })).unwrap();
        let linked = links(&json!({ "lanes": { "results": [row(1, "warm", 1.0)] } }), "lanes");
        assert_eq!(linked, "![p50 latency, bare = 1](benchmarks/lanes-p50.svg)\n");
        let (file, svg) = &drawn[0];
        assert_eq!((*file, drawn.len()), ("lanes-p50.svg", 1));
        assert_eq!(svg.matches("<circle").count(), 3);
        for text in ["new, 1 client", "new, 64 clients", "nginx 1.80", "warm 1.02"] {
            assert!(svg.contains(text), "{text} in {svg}");
        }
        assert!(all(&json!({})).unwrap().is_empty());
    }
}
