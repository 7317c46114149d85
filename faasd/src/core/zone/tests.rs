use proptest::prelude::*;

use super::*;

const SERVER: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xfaa5, 0, 0x100, 0, 0, 0, 1);

fn address(n: u64) -> Ipv6Addr {
    Ipv6Addr::from_bits((0xfd00_faa5_0000_0200_u128 << 64) | u128::from(n))
}

fn name(name: &str) -> RecordName {
    name.parse().unwrap()
}

fn zone(names: &[&str]) -> Zone {
    let names = names.iter().enumerate().map(|(i, n)| (name(n), address(i as u64)));
    Zone::new(ZoneSettings::new(SERVER), 7, names)
}

fn ask(zone: &Zone, name: &str, kind: Kind) -> Answer {
    zone.lookup(name.split('.').filter(|label| !label.is_empty()).map(str::as_bytes), kind)
}

#[test]
fn every_answer_has_its_question() {
    let zone = zone(&["hello", "v1.deep.down"]);
    for (name, kind, expected) in [
        ("hello.faas.", Kind::Aaaa, Answer::Aaaa(address(0))),
        ("HELLO.FaaS.", Kind::Aaaa, Answer::Aaaa(address(0))),
        ("hello.faas.", Kind::Any, Answer::Aaaa(address(0))),
        ("hello.faas.", Kind::Other, Answer::NoData),
        ("hello.faas.", Kind::Soa, Answer::NoData),
        ("x.hello.faas.", Kind::Aaaa, Answer::NxDomain),
        ("hell.faas.", Kind::Aaaa, Answer::NxDomain),
        ("hello0.faas.", Kind::Aaaa, Answer::NxDomain),
        ("ns.faas.", Kind::Aaaa, Answer::Aaaa(SERVER)),
        ("v1.deep.down.faas.", Kind::Aaaa, Answer::Aaaa(address(1))),
        ("deep.down.faas.", Kind::Aaaa, Answer::NoData),
        ("down.faas.", Kind::Any, Answer::NoData),
        ("eep.down.faas.", Kind::Aaaa, Answer::NxDomain),
        ("dow.faas.", Kind::Aaaa, Answer::NxDomain),
        ("faas.", Kind::Soa, Answer::Soa),
        ("FAAS.", Kind::Ns, Answer::Ns),
        ("faas.", Kind::Any, Answer::Apex),
        ("faas.", Kind::Aaaa, Answer::NoData),
        ("hello.faas.example.", Kind::Aaaa, Answer::Outside),
        ("xfaas.", Kind::Aaaa, Answer::Outside),
        (".", Kind::Ns, Answer::Outside),
    ] {
        assert_eq!(ask(&zone, name, kind), expected, "{name} {kind:?}");
    }
}

#[test]
fn bytes_that_no_name_has_match_none() {
    let zone = zone(&["b.a"]);
    let labels = |labels: &[&'static [u8]], kind| zone.lookup(labels.iter().copied(), kind);
    assert_eq!(labels(&[b"b", b"a", b"faas"], Kind::Aaaa), Answer::Aaaa(address(0)));
    // The key of `b.a` as one label.
    assert_eq!(labels(&[b"a\0b", b"faas"], Kind::Aaaa), Answer::NxDomain);
    assert_eq!(labels(&[b"\0", b"faas"], Kind::Aaaa), Answer::NxDomain);
    assert_eq!(labels(&[b"\xff", b"faas"], Kind::Aaaa), Answer::NxDomain);
    // Longer than any name: refused before it meets the buffer's end.
    let long = vec![&[b'x'; 63][..]; 200];
    assert_eq!(zone.lookup(long.into_iter().chain([&b"faas"[..]]), Kind::Aaaa), Answer::NxDomain);
}

#[test]
fn the_longest_name_fits() {
    let longest =
        [&"a".repeat(63), &"b".repeat(63), &"c".repeat(63), &"d".repeat(56)].map(String::as_str).join(".");
    assert_eq!(longest.len(), RECORD_NAME_BYTES_MAX);
    let zone = zone(&[&longest]);
    assert_eq!(ask(&zone, &format!("{longest}.faas."), Kind::Aaaa), Answer::Aaaa(address(0)));
    assert_eq!(format!("d{longest}").parse::<RecordName>(), Err(RecordNameError::TooLong(249)));
    for bad in ["", ".", "a..b", ".a", "a.", "A", "a_b", "*"] {
        assert!(bad.parse::<RecordName>().is_err(), "{bad}");
    }
}

#[test]
fn a_change_leaves_the_old_zone_alone() {
    let old = zone(&["a"]);
    let hello: FunctionName = "hello".parse().unwrap();
    let new = old.with(&hello, address(9), 8);
    assert_eq!(ask(&old, "hello.faas", Kind::Aaaa), Answer::NxDomain);
    assert_eq!(ask(&new, "hello.faas", Kind::Aaaa), Answer::Aaaa(address(9)));
    assert_eq!((old.serial(), new.serial(), old.len(), new.len()), (7, 8, 2, 3));
    let gone = new.without(&hello, 9);
    assert_eq!(ask(&gone, "hello.faas", Kind::Aaaa), Answer::NxDomain);
    assert_eq!((gone.len(), gone.without(&hello, 10).len()), (2, 2));
    assert_eq!(gone.names(), old.names());
}

#[test]
fn serials_follow_the_stores_revision_past_32_bits() {
    assert!(serial_is_later(serial(8), serial(7)));
    assert!(serial_is_later(serial(1 << 32), serial((1 << 32) - 1)));
    assert!(!serial_is_later(7, 7) && !serial_is_later(7, 8));
}

#[test]
fn the_zone_file_is_read_back_the_same() {
    use hickory_server::proto::rr::{Name, RData};
    use hickory_server::proto::serialize::txt::Parser;

    let zone = zone(&["hello", "v1.hello", "0"]);
    let text = zone.to_zone_file();
    assert_eq!(zone_file_serial(&text), Some(7));
    let (origin, records) = Parser::new(text.as_str(), None, None).parse().unwrap();
    assert_eq!(origin.to_string(), "faas.");
    let mut read: Vec<(String, Ipv6Addr, u32)> = Vec::new();
    for set in records.values() {
        for record in set.records_without_rrsigs() {
            match &record.data {
                RData::AAAA(a) => read.push((record.name.to_string(), a.0, record.ttl)),
                RData::NS(ns) => {
                    assert_eq!(ns.0, Name::from_ascii("ns.faas.").unwrap());
                    assert_eq!(record.ttl, 60);
                }
                RData::SOA(soa) => {
                    assert_eq!(
                        (soa.mname.to_string(), soa.rname.to_string()),
                        ("ns.faas.".into(), "admin.faas.".into())
                    );
                    assert_eq!((soa.serial, soa.refresh, soa.retry, soa.expire), (7, 3600, 1800, 604_800));
                    assert_eq!((soa.minimum, record.ttl), (1, 1));
                }
                other => panic!("unexpected {:?} {other:?}", other.record_type()),
            }
        }
    }
    let mut expected: Vec<_> = zone.names().into_iter().map(|(n, a)| (format!("{n}.faas."), a, 60)).collect();
    read.sort();
    expected.sort();
    assert_eq!(read, expected);
    assert_eq!(expected.len(), 4);
}

#[test]
fn named_checkzone_accepts_the_zone_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("faas.db");
    std::fs::write(&path, zone(&["hello", "v1.hello", "0"]).to_zone_file()).unwrap();
    match std::process::Command::new("named-checkzone").arg("-k").arg("fail").arg("faas").arg(&path).output()
    {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout)),
        Err(e) => println!("skipped: named-checkzone (bind9-utils): {e}"),
    }
}

fn label() -> impl Strategy<Value = String> {
    // Few letters, so that names meet as ancestors and siblings.
    prop_oneof!["[ab]{1,2}", "[a-c0-9]([a-c-]{0,3}[a-c])?"]
}

proptest! {
    /// Against the definition in words: an address if stored, nothing if a stored name lies below, else no name.
    #[test]
    fn lookups_agree_with_a_plain_list(
        stored in proptest::collection::vec((proptest::collection::vec(label(), 1..4), any::<u64>(), any::<bool>()), 0..40),
        asked in proptest::collection::vec(proptest::collection::vec(label(), 1..4), 1..20),
    ) {
        let mut zone = zone(&[]);
        let mut list: BTreeMap<String, Ipv6Addr> = [("ns".to_owned(), SERVER)].into();
        for (labels, n, keep) in stored {
            let text = labels.join(".");
            zone = zone.with(name(&text), address(n), zone.serial() + 1);
            list.insert(text.clone(), address(n));
            if !keep {
                zone = zone.without(name(&text), zone.serial() + 1);
                list.remove(&text);
            }
        }
        prop_assert_eq!(zone.len(), list.len());
        for labels in asked {
            let text = labels.join(".");
            let expected = match list.get(&text) {
                Some(address) => Answer::Aaaa(*address),
                None if list.keys().any(|k| k.ends_with(&format!(".{text}"))) => Answer::NoData,
                None => Answer::NxDomain,
            };
            prop_assert_eq!(ask(&zone, &format!("{}.faas.", text.to_uppercase()), Kind::Aaaa), expected);
        }
    }
}
