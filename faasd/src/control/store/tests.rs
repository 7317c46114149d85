use std::collections::BTreeMap;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::*;

fn temporary() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("faasd.redb");
    (dir, path)
}

#[test]
fn writes_are_versioned_and_survive_reopening() {
    let (_dir, path) = temporary();
    let store = Embedded::open(&path).unwrap();
    assert_eq!((store.revision().unwrap(), store.get("a").unwrap()), (0, None));
    assert_eq!(store.put("a", b"1", Expect::Any).unwrap(), 1);
    assert_eq!(store.put("b", b"2", Expect::Absent).unwrap(), 2);
    assert_eq!(store.put("a", b"3", Expect::Version(1)).unwrap(), 3);
    assert!(store.delete("b", Expect::Version(2)).unwrap());
    assert!(!store.delete("b", Expect::Any).unwrap());
    // A deletion counts as a change, an empty one does not.
    assert_eq!(store.revision().unwrap(), 4);
    drop(store);
    let store = Embedded::open(&path).unwrap();
    assert_eq!(store.revision().unwrap(), 4);
    assert_eq!(store.get("a").unwrap(), Some(Versioned { value: b"3".to_vec(), version: 3 }));
    assert_eq!(store.get("b").unwrap(), None);
    assert_eq!(store.put("b", b"", Expect::Absent).unwrap(), 5);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_write_that_expects_otherwise_changes_nothing() {
    let (_dir, path) = temporary();
    let store = Embedded::open(&path).unwrap();
    store.put("a", b"1", Expect::Any).unwrap();
    for (key, expect, why) in [
        ("a", Expect::Absent, "was to have no value, but has version 1"),
        ("a", Expect::Version(2), "was to have version 2, but has version 1"),
        ("b", Expect::Version(1), "was to have version 1, but does not exist"),
    ] {
        for error in [store.put(key, b"2", expect).unwrap_err(), store.delete(key, expect).unwrap_err()] {
            assert!(matches!(error, StoreError::Conflict { .. }), "{error:?}");
            assert!(error.to_string().contains(why), "{error}");
        }
    }
    assert_eq!(store.list("").unwrap(), [("a".to_owned(), Versioned { value: b"1".to_vec(), version: 1 })]);
    assert_eq!(store.revision().unwrap(), 1);
}

#[test]
fn of_many_writers_who_expect_the_same_one_wins() {
    let (_dir, path) = temporary();
    let store = Embedded::open(&path).unwrap();
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..8u8)
            .map(|i| {
                scope.spawn({
                    let store = &store;
                    move || store.put("a", &[i], Expect::Absent).is_ok()
                })
            })
            .collect();
        let won = writers
            .into_iter()
            .filter(|_| true)
            .map(|writer| writer.join().unwrap())
            .filter(|won| *won)
            .count();
        assert_eq!(won, 1);
    });
    assert_eq!(store.revision().unwrap(), 1);
}

#[test]
fn a_list_is_what_begins_with_the_prefix() {
    let (_dir, path) = temporary();
    let store = Embedded::open(&path).unwrap();
    for key in ["peers/a", "functions/b", "functions/a", "functions", "functions0"] {
        store.put(key, key.as_bytes(), Expect::Any).unwrap();
    }
    let keys = |prefix| store.list(prefix).unwrap().into_iter().map(|(key, _)| key).collect::<Vec<_>>();
    assert_eq!(keys("functions/"), ["functions/a", "functions/b"]);
    assert_eq!(keys("x"), [""; 0]);
    assert_eq!(keys("").len(), 5);
}

#[test]
fn limits_are_told() {
    let (_dir, path) = temporary();
    let store = Embedded::open(&path).unwrap();
    let longest = "k".repeat(KEY_BYTES_MAX);
    store.put(&longest, &vec![7; VALUE_BYTES_MAX], Expect::Any).unwrap();
    assert_eq!(store.get(&longest).unwrap().unwrap().value, vec![7; VALUE_BYTES_MAX]);
    let error = store.put("a", &vec![7; VALUE_BYTES_MAX + 1], Expect::Any).unwrap_err();
    assert!(error.to_string().contains("'a' has 1048577 bytes; at most 1048576"), "{error}");
    for bad in ["", "a b", "ä", "a\0", &"k".repeat(KEY_BYTES_MAX + 1)] {
        assert!(matches!(store.put(bad, b"", Expect::Any), Err(StoreError::Key(_))), "{bad}");
        assert!(matches!(store.get(bad), Err(StoreError::Key(_))), "{bad}");
    }
}

#[test]
fn records_go_in_and_out_as_json() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Record {
        n: u64,
    }
    let (_dir, path) = temporary();
    let store = Embedded::open(&path).unwrap();
    assert_eq!(get_json::<Record>(&store, "r/a").unwrap(), None);
    put_json(&store, "r/a", &Record { n: 1 }, Expect::Absent).unwrap();
    put_json(&store, "r/b", &Record { n: 2 }, Expect::Absent).unwrap();
    assert_eq!(get_json(&store, "r/b").unwrap(), Some(Stored { record: Record { n: 2 }, version: 2 }));
    let all = list_json::<Record>(&store, "r/").unwrap();
    assert_eq!(
        all.iter().map(|(key, stored)| (key.as_str(), stored.record.n)).collect::<Vec<_>>(),
        [("r/a", 1), ("r/b", 2)]
    );
    store.put("r/a", b"{", Expect::Any).unwrap();
    let error = list_json::<Record>(&store, "r/").unwrap_err();
    assert!(matches!(&error, StoreError::Value { key, .. } if key == "r/a"), "{error:?}");
}

#[test]
fn a_second_daemon_is_told_so() {
    let (_dir, path) = temporary();
    let first = Embedded::open(&path).unwrap();
    let error = Embedded::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error:?}");
    assert!(error.to_string().contains("faasd.redb is in use by another faasd"), "{error}");
    drop(first);
    Embedded::open(&path).unwrap();
}

#[test]
fn what_is_no_store_is_left_alone() {
    let (_dir, path) = temporary();
    for bytes in [Vec::new(), b"not a database".to_vec(), vec![0; 1 << 16], b"x".repeat(1 << 16)] {
        fs::write(&path, &bytes).unwrap();
        let error = Embedded::open(&path).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
        assert!(error.to_string().contains("faasd.redb is damaged"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
    let missing = path.parent().unwrap().join("none/faasd.redb");
    assert!(Embedded::open(&missing).unwrap_err().to_string().contains("none/faasd.redb"));
}

#[test]
fn damage_is_found_at_opening() {
    let (_dir, path) = temporary();
    let store = Embedded::open(&path).unwrap();
    let value = b"recognisable".repeat(1000);
    for i in 0..20 {
        store.put(&format!("k{i}"), &value, Expect::Any).unwrap();
    }
    drop(store);
    // One bit of each value's beginning, so that at least one page in use is hit.
    let mut bytes = fs::read(&path).unwrap();
    let hits: Vec<_> = bytes.windows(value.len()).enumerate().filter(|(_, found)| *found == value).collect();
    let hits: Vec<usize> = hits.into_iter().map(|(at, _)| at).collect();
    assert!(!hits.is_empty());
    hits.into_iter().for_each(|at| bytes[at] ^= 1);
    fs::write(&path, &bytes).unwrap();
    let error = Embedded::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
}

#[test]
fn another_layout_is_refused() {
    let (_dir, path) = temporary();
    drop(Embedded::open(&path).unwrap());
    let database = Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(META).unwrap().insert(META_FORMAT, 2).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = Embedded::open(&path).unwrap_err().to_string();
    assert!(error.contains("has layout 2, and this faasd reads 1"), "{error}");
}

/// What the crash test's writer does as its `i`-th change, and what the store then holds.
fn change(model: &mut BTreeMap<String, Vec<u8>>, i: u64) -> (String, Option<Vec<u8>>) {
    let key = format!("k{}", i % 13);
    // From a few bytes to many pages.
    let value = (i % 5 != 4).then(|| i.to_string().repeat(1 + (i * 7919 % 4096) as usize).into_bytes());
    match &value {
        Some(value) => model.insert(key.clone(), value.clone()),
        None => model.remove(&key),
    };
    (key, value)
}

const CRASH_FILE: &str = "FAASD_TEST_CRASH_FILE";
const CRASH_FROM: &str = "FAASD_TEST_CRASH_FROM";

/// Writes until killed, and says on standard output what has been acknowledged.
#[test]
#[ignore = "the other half of acknowledged_writes_survive_kills, which runs it"]
fn crash_writer() {
    let (Ok(path), Ok(from)) = (std::env::var(CRASH_FILE), std::env::var(CRASH_FROM)) else {
        println!("skipped: acknowledged_writes_survive_kills runs this");
        return;
    };
    let store = Embedded::open(Path::new(&path)).unwrap();
    let mut out = io::stdout().lock();
    for i in from.parse::<u64>().unwrap().. {
        match change(&mut BTreeMap::new(), i) {
            (key, Some(value)) => drop(store.put(&key, &value, Expect::Any).unwrap()),
            (key, None) => drop(store.delete(&key, Expect::Any).unwrap()),
        }
        writeln!(out, "acknowledged {i}").unwrap();
        out.flush().unwrap();
    }
}

/// Killed when dropped, so that a failed assertion leaves no writer behind.
struct Writer(Child);

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_writer(path: &Path, from: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "control::store::tests::crash_writer", "--ignored", "--nocapture"])
        .env(CRASH_FILE, path)
        .env(CRASH_FROM, from.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn acknowledged_writes_survive_kills() {
    const KILLS: u64 = 30;
    let (dir, path) = temporary();
    let random = RandomState::new();
    let mut model = BTreeMap::new();
    let mut done = 0;
    let mut revision = 0;
    let mut unacknowledged = 0;
    for round in 0..KILLS {
        let mut writer = Writer(start_writer(&path, done));
        let mut lines = BufReader::new(writer.0.stdout.take().unwrap()).lines().map(Result::unwrap);
        let acknowledged =
            |line: String| line.split_once("acknowledged ").map(|(_, i)| i.parse::<u64>().unwrap());
        let mut last = None;
        // Every fifth is killed without waiting: while it opens the file, or repairs it after the kill before.
        if round % 5 != 0 {
            let wanted = random.hash_one(round) % 20;
            while last.is_none_or(|last| last < done + wanted) {
                last = acknowledged(lines.next().expect("the writer ended by itself")).or(last);
            }
        }
        // Anywhere within the writes that follow: a moment is what is wanted here, not a condition.
        let pause_us = if last.is_some() { 4_000 } else { 20_000 };
        std::thread::sleep(Duration::from_micros(random.hash_one((round, "pause")) % pause_us));
        writer.0.kill().unwrap();
        last = lines.filter_map(acknowledged).last().or(last);
        assert!(!writer.0.wait().unwrap().success());

        let store = Embedded::open(&path).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a half-made store was left behind");
        let found: BTreeMap<_, _> =
            store.list("").unwrap().into_iter().map(|(key, found)| (key, found.value)).collect();
        while last.is_some_and(|last| done <= last) {
            change(&mut model, done);
            done += 1;
        }
        // Either nothing of the write under way when the kill came is there, or all of it.
        if found != model {
            change(&mut model, done);
            done += 1;
            unacknowledged += 1;
            assert!(found == model, "round {round}: the store is not what {done} changes make");
        }
        let now = store.revision().unwrap();
        assert!(now >= revision, "the revision fell from {revision} to {now}");
        revision = now;
    }
    println!("{KILLS} kills, {done} changes, {unacknowledged} done and not acknowledged");
}

#[test]
fn a_store_is_made_whole_or_not_at_all() {
    let random = RandomState::new();
    for round in 0..20 {
        let (dir, path) = temporary();
        let mut writer = Writer(start_writer(&path, 0));
        let pause = Duration::from_micros(random.hash_one(round) % 10_000);
        // From the moment that a file of the store's, under either name, is there.
        let deadline = Instant::now() + Duration::from_secs(10);
        while fs::read_dir(dir.path()).unwrap().next().is_none() {
            assert!(Instant::now() < deadline, "the writer made no file");
        }
        std::thread::sleep(pause);
        writer.0.kill().unwrap();
        writer.0.wait().unwrap();
        let store = Embedded::open(&path).unwrap();
        store.put("after", b"", Expect::Any).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

#[test]
fn of_several_that_make_the_store_one_gets_it() {
    for _ in 0..20 {
        let (dir, path) = temporary();
        let stores: Vec<_> = std::thread::scope(|scope| {
            let openers: Vec<_> = (0..4).map(|_| scope.spawn(|| Embedded::open(&path))).collect();
            openers.into_iter().map(|opener| opener.join().unwrap()).collect()
        });
        assert_eq!(stores.iter().filter(|store| store.is_ok()).count(), 1, "{stores:?}");
        assert_eq!(
            stores.iter().filter(|s| matches!(s, Err(StoreError::InUse { .. }))).count(),
            3,
            "{stores:?}"
        );
        stores
            .into_iter()
            .flatten()
            .for_each(|store| assert_eq!(store.put("a", b"", Expect::Absent).unwrap(), 1));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

/// Unmounts when dropped.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_is_told_and_passes() {
    let dir = tempfile::tempdir().unwrap();
    let size = c"size=8m,mode=700";
    if let Err(e) =
        rustix::mount::mount("faasd-test", dir.path(), "tmpfs", rustix::mount::MountFlags::empty(), size)
    {
        println!("skipped: needs the right to mount: {e}");
        return;
    }
    let mounted = Mounted(dir.path());
    let path = dir.path().join("faasd.redb");
    let ballast = dir.path().join("ballast");
    let store = Embedded::open(&path).unwrap();
    store.put("before", b"here", Expect::Any).unwrap();

    // Takes every byte that is left.
    let mut file = File::create(&ballast).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    drop(file);
    let value = vec![1; 256 << 10];
    let mut written = 0;
    let error = loop {
        match store.put(&format!("k{written}"), &value, Expect::Any) {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 64, "8 MiB are full by now");
    };
    assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
    assert!(error.to_string().contains("faasd.redb; nothing was changed"), "{error}");
    // What was there is still served, while there is no room for more.
    assert_eq!(store.get("before").unwrap().unwrap().value, b"here");
    assert_eq!(store.list("k").unwrap().len(), written);
    assert!(matches!(store.put("more", &value, Expect::Any), Err(StoreError::Full { .. })));

    // With room again, the same store goes on, without a restart.
    fs::remove_file(&ballast).unwrap();
    let revision = store.put("after", &value, Expect::Any).unwrap();
    assert_eq!(revision, written as u64 + 2);
    drop(store);
    assert_eq!(Embedded::open(&path).unwrap().get("after").unwrap().unwrap().value, value);
    drop(mounted);
}
