use std::time::Duration;

use super::*;

fn function() -> FunctionName {
    "hello".parse().unwrap()
}

async fn end(task: JoinHandle<io::Result<()>>) {
    tokio::time::timeout(Duration::from_secs(20), task).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn lines_of_several_instances_come_in_the_order_of_time() {
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs::new(dir.path().to_owned());
    for (instance, text) in [("a", "one\ntwo\n"), ("b", "three\nfo\u{fc}r without an end")] {
        let (read, write) = pipe().unwrap();
        let task = logs.capture(read, &function(), instance).unwrap();
        File::from(write).write_all(text.as_bytes()).unwrap();
        end(task).await;
    }
    let tail = logs.tail(&function(), &Query::last(3)).unwrap();
    let text: Vec<_> = tail.iter().map(|line| line.split_once(' ').unwrap().1).collect();
    assert_eq!(text, ["a: two", "b: three", "b: fo\u{fc}r without an end"]);
    let time = tail[0].split(' ').next().unwrap();
    assert!(time.parse::<Timestamp>().is_ok() && time.len() == "2026-01-01T00:00:00.000000Z".len(), "{time}");
    logs.remove(&function()).unwrap();
    assert!(logs.tail(&function(), &Query::last(3)).unwrap().is_empty());
}

#[tokio::test]
async fn a_flood_is_bounded_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs::new(dir.path().to_owned());
    let (read, write) = pipe().unwrap();
    let task = logs.capture(read, &function(), "a").unwrap();
    let written = tokio::task::spawn_blocking(move || {
        let mut write = File::from(write);
        let line = [b'x'; 1000];
        for _ in 0..20_000 {
            write.write_all(&line).unwrap();
            write.write_all(b"\n").unwrap();
        }
        write.write_all(b"last\n").unwrap();
    });
    written.await.unwrap();
    end(task).await;
    let sizes: Vec<_> =
        files(&dir.path().join("hello")).unwrap().iter().map(|f| f.metadata().unwrap().len()).collect();
    assert_eq!(sizes.len(), 2);
    assert!(sizes.iter().all(|bytes| *bytes <= FILE_BYTES_MAX), "{sizes:?}");
    assert!(logs.tail(&function(), &Query::last(1)).unwrap()[0].ends_with("a: last"));
}

#[test]
fn what_does_not_fit_is_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("a");
    let mut sink = Sink::new(&base);
    // Reading alone: every write fails, as on a full disk.
    fs::write(with_suffix(&base, SUFFIX), "").unwrap();
    sink.file = Some(File::open(with_suffix(&base, SUFFIX)).unwrap());
    sink.write(b"1 lost\n2 lost\n", 3);
    assert_eq!(sink.dropped, 5);
    sink.file = None;
    sink.write(b"3 kept\n", 0);
    let text = fs::read_to_string(with_suffix(&base, SUFFIX)).unwrap();
    let mut lines = text.lines();
    assert!(lines.next().unwrap().ends_with("[faasd dropped 5 lines here]"));
    assert_eq!(lines.next(), Some("3 kept"));
}

#[test]
fn lines_are_cut_and_dropped_at_the_limits() {
    let now = Timestamp::UNIX_EPOCH;
    let mut lines = Lines::default();
    lines.push(&vec![b'x'; LINE_BYTES_MAX * 2 + 1], now);
    lines.push(b"\n", now);
    let (text, _) = lines.take();
    let lengths: Vec<_> =
        String::from_utf8(text).unwrap().lines().map(|l| l.split_once(' ').unwrap().1.len()).collect();
    assert_eq!(lengths, [LINE_BYTES_MAX, LINE_BYTES_MAX, 1]);
    for _ in 0..PENDING_BYTES_MAX / 1024 + 10 {
        lines.push(&[&[b'y'; 1023][..], b"\n"].concat(), now);
    }
    let (text, dropped) = lines.take();
    assert!(text.len() <= PENDING_BYTES_MAX + 64 * 1024 && dropped >= 10, "{} {dropped}", text.len());
}

#[test]
fn only_the_last_ended_instances_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut live = HashSet::new();
    for n in 0..8 {
        let base = dir.path().join(format!("i{n}"));
        let file = File::create(with_suffix(&base, SUFFIX)).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(n)).unwrap();
        if n == 0 {
            live.insert(base);
        }
    }
    prune(dir.path(), &live).unwrap();
    let mut left: Vec<_> =
        files(dir.path()).unwrap().iter().map(|f| instance(f).unwrap().to_owned()).collect();
    left.sort();
    assert_eq!(left, ["i0", "i3", "i4", "i5", "i6", "i7"]);
}

fn last(lines: usize) -> Query {
    Query::last(lines)
}

/// The next line, without its time.
async fn next(follow: &mut Follow) -> Option<String> {
    let line = tokio::time::timeout(Duration::from_secs(20), follow.next()).await.unwrap()?;
    Some(line.split_once(' ').unwrap().1.to_owned())
}

#[tokio::test]
async fn what_is_there_and_what_comes_is_followed_once_each() {
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs::new(dir.path().to_owned());
    let (read, write) = pipe().unwrap();
    let first = logs.capture(read, &function(), "a").unwrap();
    let mut a = File::from(write);
    // While lines are being written, so that some are in the files, some are passed on, and some are both.
    let writer = tokio::task::spawn_blocking(move || {
        for n in 0..2000 {
            writeln!(a, "{n}").unwrap();
        }
        a
    });
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    let watch = logs.watch(&function());
    let (of, all) = (logs.clone(), Query::last(TAIL_LINES_MAX));
    let mut follow = tokio::task::spawn_blocking(move || watch.begin(&of, &all)).await.unwrap().unwrap();
    for n in 0..2000 {
        assert_eq!(next(&mut follow).await, Some(format!("a: {n}")));
    }
    // Another instance is followed as well.
    let (read, write) = pipe().unwrap();
    let second = logs.capture(read, &function(), "b").unwrap();
    File::from(write).write_all(b"hello\n").unwrap();
    assert_eq!(next(&mut follow).await.as_deref(), Some("b: hello"));
    end(second).await;
    drop(writer.await.unwrap());
    end(first).await;
    logs.remove(&function()).unwrap();
    assert_eq!(next(&mut follow).await, None);
}

#[tokio::test]
async fn one_instance_or_a_time_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs::new(dir.path().to_owned());
    for instance in ["a", "b"] {
        let (read, write) = pipe().unwrap();
        let task = logs.capture(read, &function(), instance).unwrap();
        File::from(write).write_all(b"1\n2\n").unwrap();
        end(task).await;
    }
    let own = Query { instance: Some("b".to_owned()), ..last(10) };
    let lines = logs.tail(&function(), &own).unwrap();
    assert!(lines.len() == 2 && lines[1].ends_with(" b: 2"), "{lines:?}");
    let time = split_time(&lines[0]).unwrap().0;
    let since = Query { since: Some(time), ..last(10) };
    assert_eq!(logs.tail(&function(), &since).unwrap().len(), 2);
    let later = Query { since: Some(time + Duration::from_secs(1)), ..last(10) };
    assert!(logs.tail(&function(), &later).unwrap().is_empty());

    let mut follow = logs.watch(&function()).begin(&logs, &own).unwrap();
    logs.watchers.pass(&function(), "a", marker(1).as_bytes());
    logs.watchers.pass(&function(), "b", marker(2).as_bytes());
    assert_eq!(next(&mut follow).await.as_deref(), Some("b: 1"));
    assert_eq!(next(&mut follow).await.as_deref(), Some("b: 2"));
    assert_eq!(next(&mut follow).await.as_deref(), Some("b: [faasd dropped 2 lines here]"));
}

#[tokio::test]
async fn who_does_not_keep_up_is_told_how_much_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let logs = Logs::new(dir.path().to_owned());
    let mut follow = logs.watch(&function()).begin(&logs, &last(10)).unwrap();
    let line = |n: usize| format!("{:.6} {n}\n", Timestamp::now());
    for n in 0..1000 {
        logs.watchers.pass(&function(), "a", line(n).as_bytes());
    }
    let marker = next(&mut follow).await.unwrap();
    let skipped: usize = marker.split(' ').nth(2).unwrap().parse().unwrap();
    assert!(marker.starts_with("faasd: [skipped ") && skipped > 900, "{marker}");
    for n in skipped..1000 {
        assert_eq!(next(&mut follow).await, Some(format!("a: {n}")));
    }
    drop(follow);
    assert!(logs.watchers.is_empty(), "nothing is kept for a watcher that is gone");
}
