//! What every [`Store`] promises, whatever is behind it. Each rule is given one that is empty.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::*;

pub(super) fn writes_are_versioned(store: &dyn Store) {
    assert_eq!((store.revision().unwrap(), store.get("a").unwrap()), (0, None));
    assert_eq!(store.put("a", b"1", Expect::Any).unwrap(), 1);
    assert_eq!(store.put("b", b"2", Expect::Absent).unwrap(), 2);
    assert_eq!(store.put("a", b"3", Expect::Version(1)).unwrap(), 3);
    assert!(store.delete("b", Expect::Version(2)).unwrap());
    assert!(!store.delete("b", Expect::Any).unwrap());
    // A deletion counts as a change, an empty one does not.
    assert_eq!(store.revision().unwrap(), 4);
    assert_eq!(store.get("a").unwrap(), Some(Versioned { value: b"3".to_vec(), version: 3 }));
    assert_eq!(store.get("b").unwrap(), None);
}

pub(super) fn a_write_that_expects_otherwise_changes_nothing(store: &dyn Store) {
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

pub(super) fn of_many_writers_who_expect_the_same_one_wins(store: &dyn Store) {
    let won: usize = std::thread::scope(|scope| {
        let write = |i: u8| scope.spawn(move || store.put("a", &[i], Expect::Absent).is_ok());
        let writers: Vec<_> = (0..8).map(write).collect();
        writers.into_iter().map(|writer| usize::from(writer.join().unwrap())).sum()
    });
    assert_eq!((won, store.revision().unwrap()), (1, 1));
}

pub(super) fn a_list_is_what_begins_with_the_prefix(store: &dyn Store) {
    for key in ["peers/a", "functions/b", "functions/a", "functions", "functions0"] {
        store.put(key, key.as_bytes(), Expect::Any).unwrap();
    }
    let keys = |prefix| store.list(prefix).unwrap().into_iter().map(|(key, _)| key).collect::<Vec<_>>();
    assert_eq!(keys("functions/"), ["functions/a", "functions/b"]);
    assert_eq!(keys("x"), [""; 0]);
    assert_eq!(keys("").len(), 5);
}

pub(super) fn several_writes_are_one_change(store: &dyn Store) {
    let put = |key: &str, value: &[u8]| Write::Put { key: key.to_owned(), value: value.to_vec() };
    let delete = |key: &str| Write::Delete { key: key.to_owned() };
    store.write_all(&[put("a", b"1"), put("b", b"2")]).unwrap();
    let version = |key: &str| store.get(key).unwrap().map(|found| found.version);
    assert_eq!((version("a"), version("b"), store.revision().unwrap()), (Some(1), Some(1), 1));
    store.write_all(&[delete("a"), put("b", b"3"), put("c", b"4"), delete("none")]).unwrap();
    assert_eq!([version("a"), version("b"), version("c")], [None, Some(2), Some(2)]);
    // Nothing is no change.
    store.write_all(&[delete("a"), delete("none")]).unwrap();
    store.write_all(&[]).unwrap();
    assert_eq!(store.revision().unwrap(), 2);
    // One that is refused takes all with it, wherever it stands.
    let large = vec![0; VALUE_BYTES_MAX + 1];
    for bad in [put("d", &large), put("a b", b""), delete("")] {
        for writes in [[put("a", b"5"), delete("b"), bad.clone()], [bad, put("a", b"5"), delete("b")]] {
            assert!(store.write_all(&writes).is_err());
        }
    }
    assert_eq!([version("a"), version("b"), version("c")], [None, Some(2), Some(2)]);
    assert_eq!(store.revision().unwrap(), 2);
}

pub(super) fn a_version_is_good_once(store: &dyn Store) {
    // None is no version.
    assert!(store.put("a", b"", Expect::Version(0)).is_err());
    let first = store.put("a", b"1", Expect::Any).unwrap();
    store.delete("a", Expect::Version(first)).unwrap();
    store.put("a", b"1", Expect::Absent).unwrap();
    assert!(store.put("a", b"2", Expect::Version(first)).is_err());
}

pub(super) fn limits_are_told(store: &dyn Store) {
    let longest = "k".repeat(KEY_BYTES_MAX);
    store.put(&longest, &vec![7; VALUE_BYTES_MAX], Expect::Any).unwrap();
    assert_eq!(store.get(&longest).unwrap().unwrap().value, vec![7; VALUE_BYTES_MAX]);
    let error = store.put("a", &vec![7; VALUE_BYTES_MAX + 1], Expect::Any).unwrap_err();
    assert!(error.to_string().contains("'a' has 1048577 bytes; at most 1048576"), "{error}");
    for bad in ["", "a b", "\u{e4}", "a\0", &"k".repeat(KEY_BYTES_MAX + 1)] {
        assert!(matches!(store.put(bad, b"", Expect::Any), Err(StoreError::Key(_))), "{bad}");
        assert!(matches!(store.get(bad), Err(StoreError::Key(_))), "{bad}");
        assert!(matches!(store.delete(bad, Expect::Any), Err(StoreError::Key(_))), "{bad}");
    }
}

pub(super) fn records_go_in_and_out_as_json(store: &dyn Store) {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Record {
        n: u64,
    }
    assert_eq!(get_json::<Record>(store, "r/a").unwrap(), None);
    put_json(store, "r/a", &Record { n: 1 }, Expect::Absent).unwrap();
    put_json(store, "r/b", &Record { n: 2 }, Expect::Absent).unwrap();
    assert_eq!(get_json(store, "r/b").unwrap(), Some(Stored { record: Record { n: 2 }, version: 2 }));
    let all = list_json::<Record>(store, "r/").unwrap();
    assert_eq!(
        all.iter().map(|(key, stored)| (key.as_str(), stored.record.n)).collect::<Vec<_>>(),
        [("r/a", 1), ("r/b", 2)]
    );
    store.put("r/a", b"{", Expect::Any).unwrap();
    let error = list_json::<Record>(store, "r/").unwrap_err();
    assert!(matches!(&error, StoreError::Value { key, .. } if key == "r/a"), "{error:?}");
}

/// Whatever is done in whatever order, it is what a map would be.
pub(super) fn it_is_a_map_with_versions(store: &dyn Store) {
    let mut map: BTreeMap<String, Versioned> = BTreeMap::new();
    let mut revision = 0;
    // Any sequence will do, and the same one each time.
    let mut draw = {
        let mut state = 7u64;
        move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        }
    };
    for n in 0..400u64 {
        let key = format!("{}/{}", ["a", "b"][draw(2) as usize], draw(4));
        let now = map.get(&key).map(|found| found.version);
        let expect = match draw(4) {
            0 => Expect::Any,
            1 => Expect::Absent,
            2 => Expect::Version(now.unwrap_or(1)),
            _ => Expect::Version(draw(revision + 2)),
        };
        let holds = match expect {
            Expect::Any => true,
            Expect::Absent => now.is_none(),
            Expect::Version(version) => now == Some(version),
        };
        if draw(3) > 0 {
            let put = store.put(&key, &n.to_le_bytes(), expect);
            assert_eq!(put.is_ok(), holds, "{n}: put {key} {expect}: {put:?}");
            if holds {
                revision += 1;
                assert_eq!(put.unwrap(), revision);
                map.insert(key, Versioned { value: n.to_le_bytes().to_vec(), version: revision });
            }
        } else {
            let deleted = store.delete(&key, expect);
            assert_eq!(deleted.is_ok(), holds, "{n}: delete {key} {expect}: {deleted:?}");
            if holds {
                assert_eq!(deleted.unwrap(), now.is_some());
                revision += u64::from(map.remove(&key).is_some());
            }
        }
        assert_eq!(store.revision().unwrap(), revision);
        for prefix in ["", "a/", "b/1"] {
            let listed = map.iter().filter(|(key, _)| key.starts_with(prefix));
            let listed: Vec<_> = listed.map(|(key, found)| (key.clone(), found.clone())).collect();
            assert_eq!(store.list(prefix).unwrap(), listed, "{n}: {prefix}");
        }
    }
}
