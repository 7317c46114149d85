use std::str::FromStr;

use proptest::prelude::*;

use super::*;
use crate::core::address::{FUNCTION_PREFIX, VPN_PREFIX};

mod messages;

fn address(n: u64) -> Ipv6Addr {
    FUNCTION_PREFIX.host(n)
}

fn name<T: FromStr<Err: fmt::Debug>>(name: &str) -> T {
    name.parse().unwrap()
}

fn function(text: &str, host: u64) -> FunctionNames {
    FunctionNames::new(name(text), address(host), None)
}

fn empty() -> Zone {
    Zone::new(ZoneSettings::new(VPN_PREFIX, FUNCTION_PREFIX), 7)
}

/// `hello` with everything that a function can have, `plain` with nothing more, and the peer `anna`.
fn zone() -> Zone {
    let hello = FunctionNames {
        port: Some(8080),
        revisions: [(2, address(0x22)), (13, address(0x1333))].into(),
        aliases: [(name("canary"), 13), (name("gone"), 5)].into(),
        ..function("hello", 0x2cf2_4dba_5fb0_a30e)
    };
    let zone = empty().with_function(&Arc::new(hello)).unwrap();
    let zone = zone.with_function(&Arc::new(function("plain", 1))).unwrap();
    zone.with_peer(&name("anna"), VPN_PREFIX.host(2)).unwrap()
}

/// What stands at a name, in words.
fn at(zone: &Zone, text: &str) -> String {
    match zone.find(&Labels::of(text).unwrap()) {
        None => "elsewhere".to_owned(),
        Some((_, _, found)) => match found {
            Found::Function(f) => f.address.to_string(),
            Found::Revision(a) | Found::Peer(a) => a.to_string(),
            Found::Alias(number, a) => format!("v{number} {a}"),
            Found::Service(f, port) => format!("{} {port}", f.name),
            Found::ToPeer(peer) => format!("peer {peer}"),
            Found::ToFunction(f, None) => f.name.to_string(),
            Found::ToFunction(f, Some(number)) => format!("v{number} {}", f.name),
            other => format!("{other:?}").to_lowercase(),
        },
    }
}

const FUNCTIONS: &str = "0.0.2.0.0.0.0.0.5.a.a.f.0.0.d.f.ip6.arpa";
const PEERS: &str = "0.0.1.0.0.0.0.0.5.a.a.f.0.0.d.f.ip6.arpa";

#[test]
fn every_name_has_what_it_has() {
    let zone = zone();
    for (name, expected) in [
        ("faas", "apex"),
        ("FaaS.", "apex"),
        ("ns.faas", "server"),
        ("x.ns.faas", "missing"),
        ("admin.faas", "missing"),
        ("hello.faas", "fd00:faa5:0:200:2cf2:4dba:5fb0:a30e"),
        ("HELLO.fAAs", "fd00:faa5:0:200:2cf2:4dba:5fb0:a30e"),
        ("hell.faas", "missing"),
        ("hello0.faas", "missing"),
        ("v2.hello.faas", "fd00:faa5:0:200::22"),
        ("V13.hello.faas", "fd00:faa5:0:200::1333"),
        ("v3.hello.faas", "missing"),
        ("v02.hello.faas", "missing"),
        ("v+2.hello.faas", "missing"),
        ("v.hello.faas", "missing"),
        ("2.hello.faas", "missing"),
        ("canary.hello.faas", "v13 fd00:faa5:0:200::1333"),
        // Of a revision that has no address.
        ("gone.hello.faas", "missing"),
        ("x.canary.hello.faas", "missing"),
        ("_tcp.hello.faas", "empty"),
        ("_http._tcp.hello.faas", "hello 8080"),
        ("_HTTP._tcp.hello.faas", "hello 8080"),
        ("_https._tcp.hello.faas", "missing"),
        ("x._http._tcp.hello.faas", "missing"),
        ("plain.faas", "fd00:faa5:0:200::1"),
        ("_tcp.plain.faas", "missing"),
        ("_http._tcp.plain.faas", "missing"),
        ("peers.faas", "empty"),
        ("anna.peers.faas", "fd00:faa5:0:100::2"),
        ("anna.faas", "missing"),
        ("x.anna.peers.faas", "missing"),
        ("bob.peers.faas", "missing"),
        ("xfaas", "elsewhere"),
        ("faas.example", "elsewhere"),
        (".", "elsewhere"),
    ] {
        assert_eq!(at(&zone, name), expected, "{name}");
    }
    // With nobody below it, it is not there.
    assert_eq!(at(&empty(), "peers.faas"), "missing");
}

#[test]
fn every_address_has_its_name() {
    let zone = zone();
    for (below, origin, expected) in [
        ("", FUNCTIONS, "apex"),
        ("e.0.3.a.0.b.f.5.a.b.d.4.2.f.c.2.", FUNCTIONS, "hello"),
        ("E.0.3.A.0.b.f.5.a.b.d.4.2.f.c.2.", FUNCTIONS, "hello"),
        ("2.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.", FUNCTIONS, "v2 hello"),
        ("3.3.3.1.0.0.0.0.0.0.0.0.0.0.0.0.", FUNCTIONS, "v13 hello"),
        ("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.", FUNCTIONS, "plain"),
        ("2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.", FUNCTIONS, "missing"),
        ("0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.", FUNCTIONS, "empty"),
        ("2.", FUNCTIONS, "empty"),
        ("f.", FUNCTIONS, "missing"),
        ("f.c.2.", FUNCTIONS, "empty"),
        ("f.d.2.", FUNCTIONS, "missing"),
        ("g.", FUNCTIONS, "missing"),
        ("00.", FUNCTIONS, "missing"),
        ("x.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.", FUNCTIONS, "missing"),
        ("", PEERS, "apex"),
        ("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.", PEERS, "toserver"),
        ("2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.", PEERS, "peer anna"),
        ("3.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.", PEERS, "missing"),
        ("0.0.", PEERS, "empty"),
        ("1.", PEERS, "missing"),
        // The prefixes' neighbours and parents are not ours.
        ("", "0.0.3.0.0.0.0.0.5.a.a.f.0.0.d.f.ip6.arpa", "elsewhere"),
        ("", "0.2.0.0.0.0.0.5.a.a.f.0.0.d.f.ip6.arpa", "elsewhere"),
        ("", "ip6.arpa", "elsewhere"),
        ("", "0.0.2.0.0.0.0.0.5.a.a.f.0.0.d.f.ip6.example", "elsewhere"),
        ("", "0.0.2.0.0.0.0.0.5.a.a.f.0.0.d.f.in-addr.arpa", "elsewhere"),
    ] {
        assert_eq!(at(&zone, &format!("{below}{origin}")), expected, "{below}{origin}");
    }
    assert_eq!(origin_name(Origin::Functions, zone.settings()), FUNCTIONS);
    assert_eq!(origin_name(Origin::Peers, zone.settings()), PEERS);
}

#[test]
fn bytes_that_no_name_has_match_none() {
    let zone = zone();
    let labels = |all: &[&[u8]]| {
        let mut labels = Labels::default();
        all.iter().try_for_each(|label| labels.push(label)).map(|()| labels)
    };
    for label in [&b"hello\0"[..], b"v2.hello", b"\0", b"\xff", b"\xc3\xa9", b"."] {
        let name = labels(&[label, b"faas"]).unwrap();
        assert!(matches!(zone.find(&name), Some((Origin::Names, 1, Found::Missing))), "{name:?}");
    }
    // A name has at most 255 bytes on the wire.
    let long = [b'x'; 63];
    assert!(labels(&[&long, &long, &long, &[b'x'; 61]]).is_some());
    assert!(labels(&[&long, &long, &long, &[b'x'; 62]]).is_none());
    assert!(labels(&[&[b'x'; 64]]).is_none() && labels(&[b""]).is_none());
    assert!(labels(&vec![&b"x"[..]; 127]).is_some() && labels(&vec![&b"x"[..]; 128]).is_none());
}

#[test]
fn a_change_leaves_the_old_zone_alone_and_counts() {
    let old = zone();
    assert_eq!((old.serial(), old.len()), (10, 1 + (1 + 1 + 2 + 1) + 1 + 1));
    let hello = Arc::new(FunctionNames { port: Some(80), ..function("hello", 5) });
    let new = old.with_function(&hello).unwrap();
    // What it had and has no longer is gone, with its addresses.
    assert_eq!((new.serial(), new.len()), (11, 1 + 2 + 1 + 1));
    assert_eq!(at(&new, "v2.hello.faas"), "missing");
    assert_eq!(at(&new, &format!("2.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.{FUNCTIONS}")), "missing");
    assert_eq!(at(&new, &format!("5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.{FUNCTIONS}")), "hello");
    assert_eq!(at(&old, "v2.hello.faas"), "fd00:faa5:0:200::22");
    // What changes nothing is no change.
    assert!(new.with_function(&hello).is_none());
    assert!(new.with_peer(&name("anna"), VPN_PREFIX.host(2)).is_none());
    assert!(new.without_peer(&name("bob")).is_none() && new.without_function(&name("bob")).is_none());

    let gone = new.without_function(&name("hello")).unwrap().without_peer(&name("anna")).unwrap();
    let gone = gone.without_function(&name("plain")).unwrap();
    assert_eq!((gone.serial(), gone.len()), (14, 1));
    assert_eq!(gone.records(Origin::Functions).count(), 0);
    assert_eq!(gone.records(Origin::Peers).count(), 1);

    // A peer that comes back with another address has one.
    let moved = old.with_peer(&name("anna"), VPN_PREFIX.host(3)).unwrap();
    assert_eq!((moved.serial(), moved.len()), (11, old.len()));
    assert_eq!(at(&moved, &format!("2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.{PEERS}")), "missing");
    // An address that somebody else has by now stays theirs.
    let taken = old.with_function(&Arc::new(function("other", 1))).unwrap();
    let taken = taken.without_function(&name("plain")).unwrap();
    assert_eq!(at(&taken, &format!("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.{FUNCTIONS}")), "other");
}

#[test]
fn serials_are_compared_past_32_bits() {
    assert!(serial_is_later(8, 7) && !serial_is_later(7, 7) && !serial_is_later(7, 8));
    assert!(serial_is_later(0, u32::MAX));
    let last = Zone::new(ZoneSettings::new(VPN_PREFIX, FUNCTION_PREFIX), u32::MAX);
    assert_eq!(last.with_peer(&name("anna"), VPN_PREFIX.host(2)).unwrap().serial(), 0);
}

fn file(zone: &Zone, origin: Origin) -> String {
    let mut text = Vec::new();
    write_zone_file(zone, origin, &mut text).unwrap();
    String::from_utf8(text).unwrap()
}

#[test]
fn zone_files_hold_every_record() {
    let zone = zone();
    let body = |origin| {
        let text = file(&zone, origin);
        let (head, body) = text.split_once("@ IN NS ns.faas.\n").unwrap();
        assert!(head.starts_with(BANNER) && head.contains("\t10 ; serial\n"), "{head}");
        body.to_owned()
    };
    assert_eq!(
        body(Origin::Names),
        "ns IN AAAA fd00:faa5:0:100::1\n\
         hello IN AAAA fd00:faa5:0:200:2cf2:4dba:5fb0:a30e\n\
         _http._tcp.hello IN SRV 0 0 8080 hello.faas.\n\
         v2.hello IN AAAA fd00:faa5:0:200::22\n\
         v13.hello IN AAAA fd00:faa5:0:200::1333\n\
         canary.hello IN CNAME v13.hello.faas.\n\
         plain IN AAAA fd00:faa5:0:200::1\n\
         anna.peers IN AAAA fd00:faa5:0:100::2\n"
    );
    assert_eq!(
        body(Origin::Peers),
        "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0 IN PTR ns.faas.\n\
         2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0 IN PTR anna.peers.faas.\n"
    );
    assert_eq!(body(Origin::Functions).lines().count(), 4);
}

proptest! {
    /// Against the records one by one: a name has what the file says, is empty if it says something below, and else is not
    /// there.
    #[test]
    fn names_are_found_as_they_are_written(
        steps in proptest::collection::vec((0..6u64, 0..4u64, 0..3u64, any::<bool>(), any::<bool>()), 0..40),
        asked in proptest::collection::vec("([a-c0-3v]|_tcp|_http|v1|peers|ns)(\\.([a-c0-3]|_tcp|peers|f1|f2|ns)){0,3}", 1..20),
    ) {
        let mut zone = empty();
        for (n, host, revisions, has_port, keep) in steps {
            let names = FunctionNames {
                port: has_port.then_some(80),
                revisions: (1..=revisions).map(|r| (r, address(16 + 16 * host + r))).collect(),
                aliases: [(name("a"), 1)].into(),
                ..function(&format!("f{n}"), host)
            };
            zone = zone.with_function(&Arc::new(names)).unwrap_or(zone);
            zone = zone.with_peer(&name(&format!("p{n}")), VPN_PREFIX.host(2 + host)).unwrap_or(zone);
            if !keep {
                zone = zone.without_function(&name(&format!("f{n}"))).unwrap_or(zone);
                zone = zone.without_peer(&name(&format!("p{n}"))).unwrap_or(zone);
            }
        }
        for origin in Origin::ALL {
            let records: Vec<String> = zone.records(origin).map(|record| record.name).collect();
            if origin == Origin::Names {
                prop_assert_eq!(zone.len(), records.len());
            }
            let apex = origin_name(origin, zone.settings());
            for below in records.iter().chain(&asked) {
                let (_, _, found) = zone.find(&Labels::of(&format!("{below}.{apex}")).unwrap()).unwrap();
                let is_there = records.contains(below);
                let is_above = records.iter().any(|record| record.ends_with(&format!(".{below}")));
                match found {
                    Found::Missing => prop_assert!(!is_there && !is_above, "{below}"),
                    Found::Empty => prop_assert!(!is_there && is_above, "{below}"),
                    _ => prop_assert!(is_there, "{below}"),
                }
            }
        }
    }
}
