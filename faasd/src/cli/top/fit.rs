//! The live table: what fits on the screen, where it stands still while its numbers change.

use comfy_table::Cell;

/// What a column takes at least, so that the ones behind it do not move with each look.
const WIDTHS: [usize; 13] = [8, 8, 5, 6, 5, 4, 6, 5, 6, 9, 9, 9, 6];

/// Names and states begin where their columns do, numbers end where they do.
const LEFT: usize = 2;

/// What is left out first where there is no room.
const SPARED: [usize; 10] = [11, 10, 2, 5, 7, 12, 6, 1, 9, 8];

/// As much of a name is shown before a column is left out for it.
const NAME: usize = 20;

const GAP: usize = 2;

/// The columns of `rows` that fit, with their titles, as cells of their widths.
pub(super) fn fit(
    titles: &[&str; 13],
    mut rows: Vec<Vec<Cell>>,
    width: usize,
) -> (Vec<String>, Vec<Vec<Cell>>) {
    let len = |text: &str| text.chars().count();
    let widths: Vec<usize> = (0..titles.len())
        .map(|at| {
            let widest = rows.iter().filter_map(|row| Some(len(&row.get(at)?.content()))).max();
            widest.unwrap_or(0).max(WIDTHS[at])
        })
        .collect();
    let mut kept: Vec<usize> = (0..titles.len()).collect();
    let mut spared = SPARED.iter();
    let others = |kept: &[usize]| kept.iter().skip(1).map(|at| widths[*at] + GAP).sum::<usize>();
    while others(&kept) + widths[0].min(NAME) > width
        && let Some(next) = spared.next()
    {
        kept.retain(|at| at != next);
    }
    let name = widths[0].min(width.saturating_sub(others(&kept))).max(1);
    let placed = |at: usize, text: &str| match at {
        0 if len(text) > name => text.chars().take(name - 1).chain(['…']).collect(),
        0 => format!("{text:name$}"),
        at if at < LEFT => text.to_owned(),
        at => format!("{text:>0$}", widths[at]),
    };
    let header = kept.iter().map(|&at| placed(at, titles[at])).collect();
    for row in &mut rows {
        let cells = std::mem::take(row).into_iter().enumerate().filter(|(at, _)| kept.contains(at));
        *row = cells
            .map(|(at, cell)| match at {
                // It has a colour.
                1 => cell,
                at => Cell::new(placed(at, &cell.content())),
            })
            .collect();
    }
    (header, rows)
}

/// As much of a line as fits.
pub(super) fn cut(line: &str, width: usize) -> String {
    line.chars().take(width).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TITLES: [&str; 13] = [
        "NAME", "STATE", "READY", "NEW/S", "OPEN", "WAIT", "REQ/S", "ERR/S", "CPU", "MEMORY", "RX/S", "TX/S",
        "RTT",
    ];

    fn row(name: &str, bytes: &str) -> Vec<Cell> {
        let texts =
            [name, "warm", "1/1", "0.0", "0", "0", "0.0", "0.0", "0.0%", "12.9 MiB", bytes, "0 B", "-"];
        texts.map(Cell::new).to_vec()
    }

    /// The line's width as it is laid out.
    fn widths(width: usize, bytes: &str) -> (Vec<String>, usize) {
        let rows = vec![row("a", bytes), row("a-name-of-no-fewer-than-forty-characters-x", "0 B")];
        let (header, rows) = fit(&TITLES, rows, width);
        let column = |at: usize| {
            let all = rows.iter().map(|row| row[at].content().chars().count());
            all.chain([header[at].chars().count()]).max().unwrap()
        };
        let total = (0..header.len()).map(|at| column(at) + GAP).sum::<usize>() - GAP;
        (header.iter().map(|title| title.trim().to_owned()).collect(), total)
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_the_rest_fits() {
        let (all, total) = widths(200, "0 B");
        assert_eq!((all.as_slice(), total <= 200), (TITLES.map(str::to_owned).as_slice(), true));
        let (some, total) = widths(80, "0 B");
        assert!(total <= 80 && some.len() < 13 && some.contains(&"CPU".to_owned()), "{some:?} {total}");
        let (least, total) = widths(40, "0 B");
        assert!(total <= 40, "{least:?} {total}");
        assert_eq!(least, ["NAME", "NEW/S", "OPEN"]);
    }

    #[test]
    fn columns_stand_still() {
        assert_eq!(widths(200, "0 B").1, widths(200, "961.8 KiB").1);
    }
}
