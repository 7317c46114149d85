use std::time::Duration;

use super::*;
use crate::core::load::compare::{Shown, compare};
use crate::core::load::record::{Answer, Fault, Phase, Record};
use crate::core::load::{Mode, Protocol};

/// What nobody should be able to put into a page or between columns.
const NAME: &str = "http://x/?<script>,\"{tables}\"";

fn record(answers: u64) -> Record {
    let mut record = Record { elapsed: Duration::from_secs(1), ..Record::default() };
    for number in 1..=answers {
        let latency = Duration::from_micros(100 + number);
        let mut answer = Answer { latency, ..Answer::default() };
        answer.set(Phase::FirstByte, latency / 2);
        record.answer(Duration::from_millis(number), &answer);
    }
    record.fault(Duration::ZERO, Fault::Closed, || "<b>gone</b>".to_owned());
    record
}

fn report(answers: u64) -> Report {
    let target = |name: &str| {
        TargetReport::new(name.to_owned(), name.to_owned(), None, Mode::KeepAlive, &record(answers))
    };
    let shown = Shown { p50: 1.0, p99: 2.0, per_second: 3.0 };
    Report {
        version: "1".to_owned(),
        started_at: "2026-01-01T00:00:00Z".parse().unwrap(),
        mode: Mode::KeepAlive,
        protocol: Protocol::Http1,
        method: "GET".to_owned(),
        connections: 1,
        threads: 1,
        rate: None,
        interrupted: false,
        targets: vec![target(NAME), target("second")],
        comparison: compare(&[(shown, Shown { p50: 1.1, ..shown }); 10], true, true),
    }
}

#[test]
fn a_page_is_complete_in_itself_and_shows_what_it_was_given_as_text() {
    let page = html(&report(500)).unwrap();
    assert_eq!(page.matches("<svg ").count(), 6);
    for outside in ["<script", "src=", "href=", "@import", "<b>gone"] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("&lt;script&gt;") && page.contains("1.100"));
    assert!(!page.contains("{plots}") && !page.contains("{about}") && !page.contains("{title}"));
}

#[test]
fn a_report_of_nothing_can_be_drawn_too() {
    assert_eq!(html(&report(0)).unwrap().matches("<svg ").count(), 1, "the ratios alone");
    assert_eq!(html(&report(1)).unwrap().matches("<svg ").count(), 6 - 2, "one moment is no course of time");
    picture(&report(0)).unwrap();
}

#[test]
fn a_picture_has_letters_without_any_font_of_the_machine() {
    let file = picture(&report(500)).unwrap();
    let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    assert_eq!((info.width, info.height), (COLUMNS * WIDTH, TITLE + 3 * HEIGHT));
    let title = &pixels[..(info.width * TITLE * 3) as usize];
    let dark = title.chunks(3).filter(|pixel| pixel.iter().all(|part| *part < 128)).count();
    assert!(dark > 300, "{dark} dark pixels in the title");
}

#[test]
fn columns_stay_columns() {
    let text = csv(&report(10));
    let mut lines = text.lines();
    let columns = lines.next().unwrap().split(',').count();
    let second = text.lines().nth(2).unwrap();
    assert_eq!(second.split(',').count(), columns, "{second}");
    assert!(lines.next().unwrap().contains("\"http://x/?<script>,\"\"{tables}\"\"\""));
    assert_eq!(csv(&report(0)).lines().nth(2).unwrap().split(',').count(), columns);
}
