use super::super::address::{FUNCTION_PREFIX, VPN_PREFIX};
use super::*;

fn grants(allow: &[&str], outside: &[&str]) -> Grants {
    let allow: Vec<Grant> = allow.iter().map(|text| text.parse().unwrap()).collect();
    let outside: Vec<Outside> = outside.iter().map(|text| text.parse().unwrap()).collect();
    Grants::new(&allow, &outside, FUNCTION_PREFIX)
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn grants_are_read_and_written() {
    for (text, written) in [("db.faas:5432", "db.faas:5432"), ("hello.faas", "hello.faas:80")] {
        let grant: Grant = text.parse().unwrap();
        assert_eq!(grant.to_string(), written);
        assert_eq!(serde_json::from_str::<Grant>(&serde_json::to_string(&grant).unwrap()).unwrap(), grant);
    }
    for (text, written) in [
        ("API.example.com:443", "api.example.com:443"),
        ("203.0.113.7:443", "203.0.113.7:443"),
        ("[2001:db8::1]:443", "[2001:db8::1]:443"),
        // One host, one grant, however it is written.
        ("[::ffff:203.0.113.7]:443", "203.0.113.7:443"),
    ] {
        assert_eq!(text.parse::<Outside>().unwrap().to_string(), written);
    }
}

#[test]
fn what_is_no_grant_says_why() {
    for (text, why) in [
        ("db", "no function's name"),
        ("faas", "no function's name"),
        ("db.example.com:80", "`outside`"),
        ("Db.faas:80", "did you mean 'db'"),
        ("a.db.faas", "has '.'"),
        ("db.faas:0", "port"),
        ("db.faas:", "port"),
        ("db.faas:+80", "port"),
        ("db.faas:65536", "port"),
    ] {
        let error = text.parse::<Grant>().unwrap_err().to_string();
        assert!(error.contains(why), "{text}: {error}");
    }
    for (text, why) in [
        ("api.example.com", "port"),
        ("api.example.com:0", "port"),
        ("api:443", "a full name"),
        ("api.example.com.:443", "a full name"),
        ("*.example.com:443", "a full name"),
        ("1.2.3:443", "a full name"),
        ("1.2.3.256:443", "a full name"),
        ("[::g]:443", "a full name"),
        ("2001:db8::1", "[2001:db8::1]:443"),
        ("2001:db8::1:443", "[2001:db8::1]:443"),
        ("db.faas:443", "`allow`"),
        ("[::1]:443", "not outside"),
        ("[::ffff:127.0.0.1]:443", "not outside"),
        ("127.0.0.2:443", "not outside"),
        ("0.0.0.0:443", "not outside"),
        ("169.254.169.254:80", "not outside"),
        ("[fe80::1]:443", "not outside"),
        ("[ff02::1]:443", "not outside"),
        ("[100::1]:443", "not outside"),
        ("224.0.0.1:443", "not outside"),
    ] {
        let error = text.parse::<Outside>().unwrap_err().to_string();
        assert!(error.contains(why), "{text}: {error}");
    }
}

#[test]
fn only_what_was_granted_is_let_through_and_only_at_its_port() {
    let grants = grants(
        &["db.faas:5432", "hello.faas"],
        &[
            "api.example.com:443",
            "b.example.com:1",
            "b.example.com:2",
            "203.0.113.7:443",
            "[2001:db8::1]:443",
        ],
    );
    let db = FUNCTION_PREFIX.function(&"db".parse().unwrap());
    assert_eq!(grants.judge(SocketAddr::new(db.into(), 5432)), Verdict::Function(db));
    assert_eq!(grants.judge(SocketAddr::new(db.into(), 80)), Verdict::Refused);
    let other = FUNCTION_PREFIX.function(&"other".parse().unwrap());
    assert_eq!(grants.judge(SocketAddr::new(other.into(), 80)), Verdict::Refused);
    for (to, verdict) in [
        ("[100::1]:443", Verdict::Name("api.example.com")),
        ("[100::2]:1", Verdict::Name("b.example.com")),
        ("[100::2]:2", Verdict::Name("b.example.com")),
        ("[100::2]:3", Verdict::Refused),
        ("[100::1]:444", Verdict::Refused),
        ("[100::3]:443", Verdict::Refused),
        ("[100::]:443", Verdict::Refused),
        ("[100:0:0:1::1]:443", Verdict::Refused),
        ("203.0.113.7:443", Verdict::Address(at("203.0.113.7:443"))),
        ("[::ffff:203.0.113.7]:443", Verdict::Address(at("203.0.113.7:443"))),
        ("203.0.113.7:80", Verdict::Refused),
        ("203.0.113.8:443", Verdict::Refused),
        ("[2001:db8::1]:443", Verdict::Address(at("[2001:db8::1]:443"))),
        ("[fd00:faa5:0:100::1]:53", Verdict::Refused),
        ("127.0.0.1:9000", Verdict::Own),
        ("[::1]:9000", Verdict::Own),
        ("[::ffff:127.0.0.1]:9000", Verdict::Own),
        ("[::]:9000", Verdict::Own),
    ] {
        assert_eq!(grants.judge(at(to)), verdict, "{to}");
    }
    assert!(grants.know("100::2".parse().unwrap()) && grants.know(db.into()));
    assert!(!grants.know("100::3".parse().unwrap()) && !grants.know(other.into()));
}

#[test]
fn without_grants_nothing_is_let_through() {
    let none = Grants::default();
    assert!(!none.lead_outside());
    assert_eq!(none.judge(at("[100::1]:443")), Verdict::Refused);
    assert_eq!(none.hosts(), HOSTS);
}

#[test]
fn the_hosts_file_has_each_name_once() {
    let text = grants(
        &["hello.faas:81", "hello.faas", "db.faas:5432"],
        &["b.example.com:2", "b.example.com:1", "a.example.com:443", "203.0.113.7:443"],
    )
    .hosts();
    let lines: Vec<&str> = text.lines().skip(2).collect();
    let hello = FUNCTION_PREFIX.function(&"hello".parse().unwrap());
    let db = FUNCTION_PREFIX.function(&"db".parse().unwrap());
    let functions = [format!("{db} db.faas"), format!("{hello} hello.faas")];
    assert_eq!(lines, [&functions[0], &functions[1], "100::1 a.example.com", "100::2 b.example.com"]);
}

#[test]
fn a_name_outside_does_not_lead_inside() {
    let ours = [VPN_PREFIX, FUNCTION_PREFIX];
    let may = |text: &str| {
        let own: IpAddr = "198.51.100.1".parse().unwrap();
        may_resolve_to(text.parse().unwrap(), &ours, |address| address == own)
    };
    for outside in ["203.0.113.7", "10.0.0.1", "2001:db8::1", "fd12::1", "::ffff:203.0.113.7", "64:ff9b::1"] {
        assert!(may(outside), "{outside}");
    }
    for inside in [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "0.1.2.3",
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
        "198.51.100.1",
        "::ffff:198.51.100.1",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "fe80::1",
        "ff02::1",
        "100::1",
        "fd00:faa5:0:100::1",
        "fd00:faa5:0:200::1",
    ] {
        assert!(!may(inside), "{inside}");
    }
}
