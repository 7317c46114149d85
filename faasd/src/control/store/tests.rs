use std::collections::BTreeMap;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::*;

fn temporary() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("faasd.redb");
    (dir, path)
}

/// Each rule that every store keeps to is a test of this one.
macro_rules! conforms {
    ($($rule:ident),* $(,)?) => { $(
        #[test]
        fn $rule() {
            let (_dir, path) = temporary();
            conformance::$rule(&Embedded::open(&path).unwrap());
        }
    )* };
}

conforms!(
    writes_are_versioned,
    a_write_that_expects_otherwise_changes_nothing,
    of_many_writers_who_expect_the_same_one_wins,
    a_list_is_what_begins_with_the_prefix,
    several_writes_are_one_change,
    a_version_is_good_once,
    limits_are_told,
    records_go_in_and_out_as_json,
    it_is_a_map_with_versions,
);

#[test]
fn what_was_written_is_there_when_it_is_opened_again() {
    let (_dir, path) = temporary();
    let store = Embedded::open(&path).unwrap();
    store.put("a", b"1", Expect::Any).unwrap();
    store.put("b", b"2", Expect::Any).unwrap();
    store.delete("b", Expect::Any).unwrap();
    drop(store);
    let store = Embedded::open(&path).unwrap();
    assert_eq!(store.revision().unwrap(), 3);
    assert_eq!(store.get("a").unwrap(), Some(Versioned { value: b"1".to_vec(), version: 1 }));
    assert_eq!(store.get("b").unwrap(), None);
    assert_eq!(store.put("b", b"", Expect::Absent).unwrap(), 4);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
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
    if i % 2 == 1 {
        model.insert(PAIR.to_owned(), i.to_string().into_bytes());
    }
    (key, value)
}

/// What every second change changes as well.
const PAIR: &str = "pair";

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
        // In turn alone, and with a second key that is to change with it or not at all.
        match (change(&mut BTreeMap::new(), i), i % 2) {
            ((key, Some(value)), 0) => drop(store.put(&key, &value, Expect::Any).unwrap()),
            ((key, None), 0) => drop(store.delete(&key, Expect::Any).unwrap()),
            ((key, value), _) => {
                let pair = Write::Put { key: PAIR.to_owned(), value: i.to_string().into_bytes() };
                let change = match value {
                    Some(value) => Write::Put { key, value },
                    None => Write::Delete { key },
                };
                store.write_all(&[change, pair]).unwrap();
            }
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

    // With four pages more at each try: it fails at every write that it takes, and none leaves half of it.
    let both = ["one", "two"].map(|key| Write::Put { key: key.to_owned(), value: value.clone() });
    let before = (store.list("").unwrap(), store.revision().unwrap());
    let mut room = File::options().write(true).open(&ballast).unwrap().metadata().unwrap().len();
    let mut failures = 0;
    while let Err(error) = store.write_all(&both) {
        assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
        assert_eq!((store.list("").unwrap(), store.revision().unwrap()), before);
        failures += 1;
        room = room.saturating_sub(16 << 10);
        File::options().write(true).open(&ballast).unwrap().set_len(room).unwrap();
    }
    assert!(failures > 3, "{failures}");
    assert_eq!(store.list("one").unwrap().len() + store.list("two").unwrap().len(), 2);

    // With room again, the same store goes on, without a restart.
    fs::remove_file(&ballast).unwrap();
    let revision = store.put("after", &value, Expect::Any).unwrap();
    assert_eq!(revision, written as u64 + 3);
    drop(store);
    assert_eq!(Embedded::open(&path).unwrap().get("after").unwrap().unwrap().value, value);
    drop(mounted);
}
