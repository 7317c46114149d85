//! The name server against what other programs make of it: queries with bytes changed at random, the checkers of three other
//! servers, and one of them as a secondary.
//!
//! The random part is bounded and can be replayed: `FAASD_SEED=N` (printed by each failure) and `FAASD_ROUNDS=N`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use faasd::control::dns::{Dns, DnsConfig, DnsSockets, Names, ZoneFiles, keep};
use faasd::core::address::{FUNCTION_PREFIX, VPN_PREFIX};
use faasd::core::name::FunctionName;
use faasd::core::zone::{
    ANSWER_BYTES_MAX, Caller, FunctionNames, Origin, Outcome, Verdict, Zone, ZoneSettings, answer,
    origin_name, truncated_answer,
};
use hickory_proto::op::{Edns, Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use tokio::sync::watch;

/// What one run does, unless it is told.
const ROUNDS: u64 = 200_000;

/// No condition is waited for longer.
const DEADLINE: Duration = Duration::from_secs(60);

fn function(name: &str) -> FunctionNames {
    let name: FunctionName = name.parse().unwrap();
    let address = FUNCTION_PREFIX.function(&name);
    FunctionNames {
        revisions: [(1, FUNCTION_PREFIX.host(0x11)), (2, FUNCTION_PREFIX.host(0x12))].into(),
        aliases: [("canary".parse().unwrap(), 2)].into(),
        ..FunctionNames::new(name, address, Some(80))
    }
}

fn names(first_serial: u32) -> Names {
    let names = Names::new(Zone::new(ZoneSettings::new(VPN_PREFIX, FUNCTION_PREFIX), first_serial));
    names.publish_function(function("hello"));
    names.publish_peer(&"anna".parse().unwrap(), VPN_PREFIX.host(2));
    names
}

/// xorshift64*: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, max: usize) -> usize {
        (self.next() % max.max(1) as u64) as usize
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// A query as clients send it, of a name that is there or near to one.
fn query(random: &mut Random) -> Message {
    const NAMES: [&str; 16] = [
        "hello.faas.",
        "HeLLo.FaaS.",
        "faas.",
        "ns.faas.",
        "v1.hello.faas.",
        "canary.hello.faas.",
        "_http._tcp.hello.faas.",
        "_tcp.hello.faas.",
        "anna.peers.faas.",
        "peers.faas.",
        "nobody.faas.",
        "a.b.c.d.hello.faas.",
        "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.5.a.a.f.0.0.d.f.ip6.arpa.",
        "1.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.0.0.0.0.0.5.a.a.f.0.0.d.f.ip6.arpa.",
        "0.0.2.0.0.0.0.0.5.a.a.f.0.0.d.f.ip6.arpa.",
        "example.com.",
    ];
    const KINDS: [RecordType; 9] = [
        RecordType::AAAA,
        RecordType::A,
        RecordType::PTR,
        RecordType::SRV,
        RecordType::ANY,
        RecordType::SOA,
        RecordType::NS,
        RecordType::CNAME,
        RecordType::AXFR,
    ];
    let mut message = Message::query();
    message.metadata.id = random.next() as u16;
    message.metadata.recursion_desired = random.below(2) == 0;
    let name = Name::from_ascii(NAMES[random.below(NAMES.len())]).unwrap();
    message.queries = vec![Query::query(name, KINDS[random.below(KINDS.len())])];
    if random.below(16) == 0 {
        message.queries[0].set_query_class(DNSClass::CH);
    }
    if random.below(2) == 0 {
        let mut edns = Edns::new();
        edns.set_version(u8::from(random.below(8) == 0)).set_max_payload(random.next() as u16);
        edns.set_dnssec_ok(random.below(2) == 0);
        message.edns = Some(edns);
    }
    message
}

fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..random.below(4) {
        let at = random.below(bytes.len());
        match random.below(7) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            1 if !bytes.is_empty() => bytes[at] = random.next() as u8,
            2 if !bytes.is_empty() => bytes[at] = [0, 0x3f, 0x40, 0xc0, 0xff, 12, 41][random.below(7)],
            3 => bytes.truncate(at),
            4 => {
                let piece = bytes[at..(at + random.below(64)).min(bytes.len())].to_vec();
                bytes.splice(at..at, piece);
            }
            5 => bytes.extend((0..random.below(300)).map(|_| random.next() as u8)),
            // The counts, and the flags.
            _ if bytes.len() >= 12 => bytes[2 + random.below(10)] = random.below(4) as u8,
            _ => {}
        }
    }
}

/// What holds for whatever comes in, and returns whether there was an answer with records or a denial.
fn check(zone: &Zone, bytes: &[u8]) -> bool {
    let mut out = [0xaa; ANSWER_BYTES_MAX];
    let told = truncated_answer(bytes, true, &mut out);
    if let Some(length) = told {
        let cut = Message::from_vec(&out[..length]).unwrap();
        assert!(cut.metadata.truncation && cut.answers.is_empty());
        assert!(length <= bytes.len() + 11, "{length} of {}", bytes.len());
    }
    let mut out = [0xaa; ANSWER_BYTES_MAX];
    let (length, outcome) = match answer(zone, bytes, Caller { recursion: true }, &mut out) {
        Verdict::Answer(length, outcome) => (length, outcome),
        Verdict::Silence => {
            assert!(bytes.len() < 12 || bytes[2] & 0x80 != 0);
            return false;
        }
        Verdict::Elsewhere | Verdict::Transfer(..) => return false,
    };
    // Never more than anybody takes, and no means to make much of little.
    assert!((12..=ANSWER_BYTES_MAX).contains(&length));
    assert!(length <= bytes.len() + 200, "{length} bytes for {}", bytes.len());
    let said = Message::from_vec(&out[..length]).unwrap();
    assert_eq!((said.metadata.message_type, &out[..2]), (MessageType::Response, &bytes[..2]));
    assert!(!said.metadata.truncation);
    if length == 12 {
        assert!(matches!(said.metadata.response_code, ResponseCode::FormErr | ResponseCode::NotImp));
        return false;
    }
    // What we took for a question is one to hickory, and the same.
    let asked = Message::from_vec(bytes).unwrap_or_else(|e| panic!("{e}: {bytes:02x?}"));
    assert_eq!(said.queries, asked.queries);
    assert_eq!(said.queries[0].name().to_ascii(), asked.queries[0].name().to_ascii());
    assert_eq!(said.metadata.recursion_desired, asked.metadata.recursion_desired);
    match (&said.edns, &asked.edns) {
        (None, None) => {}
        (Some(said), Some(asked)) => {
            assert_eq!((said.version(), said.max_payload()), (0, 1232));
            assert_eq!(said.flags().dnssec_ok, asked.flags().dnssec_ok);
        }
        (said, asked) => panic!("{said:?} {asked:?}"),
    }
    let records = said.answers.len() + said.authorities.len();
    match outcome {
        Outcome::Answered => assert!(records > 0 && said.metadata.authoritative),
        Outcome::NxDomain => assert_eq!((said.answers.len(), said.authorities.len()), (0, 1)),
        Outcome::Refused | Outcome::Failed => assert_eq!(records, 0),
    }
    // Nothing is left unread, and nothing was counted that is not there.
    let again = said.to_vec().unwrap();
    assert_eq!(Message::from_vec(&again).unwrap(), said);
    records > 0
}

#[test]
fn whatever_is_asked_does_no_harm() {
    let names = names(1);
    let zone = names.load();
    let (first, rounds) = match number("FAASD_SEED") {
        Some(seed) => (seed, number("FAASD_ROUNDS").unwrap_or(1)),
        None => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            (now.as_nanos() as u64, number("FAASD_ROUNDS").unwrap_or(ROUNDS))
        }
    };
    let mut answered = 0;
    for seed in (0..rounds).map(|n| first.wrapping_add(n)) {
        // Neighbouring seeds are to have nothing in common.
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        random.next();
        let done = catch_unwind(AssertUnwindSafe(|| {
            let mut bytes = query(&mut random).to_vec().unwrap();
            mutate(&mut random, &mut bytes);
            check(&zone, &bytes)
        }));
        match done {
            Ok(is_answered) => answered += u64::from(is_answered),
            Err(panic) => {
                eprintln!("replay with FAASD_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{answered} of {rounds} were answered");
    assert!(rounds < ROUNDS || (rounds / 10 < answered && answered < rounds), "{answered} of {rounds}");
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output =
        output.unwrap_or_else(|e| panic!("{program}: {e}; `cargo xtask setup --for test` installs it"));
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{said}", output.status);
    said
}

#[test]
#[ignore = "needs root"]
fn other_servers_take_the_zone_files() {
    let dir = tempfile::tempdir().unwrap();
    let (mut files, serial) = ZoneFiles::open(dir.path(), 1_790_000_000).unwrap();
    let names = names(serial);
    files.write(&names.load()).unwrap();
    for origin in Origin::ALL {
        let zone = origin_name(origin, names.load().settings());
        let file = dir.path().join(format!("{zone}.db"));
        let file = file.to_str().unwrap();
        run("kzonecheck", &["-o", &zone, file]);
        run("/usr/sbin/nsd-checkzone", &[&zone, file]);
        run("named-checkzone", &["-k", "fail", "-n", "fail", "-i", "local", &zone, file]);
    }
}

/// A program that is ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    UdpSocket::bind("[::1]:0").unwrap().local_addr().unwrap().port()
}

fn knot(dir: &Path, port: u16, primary: SocketAddr, zones: &[String]) -> Running {
    let zones: String = zones.iter().map(|zone| format!("  - domain: {zone}\n")).collect();
    let config = format!(
        "server:\n    rundir: {dir}\n    listen: ::1@{port}\n\
         database:\n    storage: {dir}\n\
         log:\n  - target: stderr\n    any: info\n\
         remote:\n  - id: primary\n    address: ::1@{}\n\
         acl:\n  - id: notified\n    address: ::1\n    action: notify\n\
         template:\n  - id: default\n    storage: {dir}\n    master: primary\n    acl: notified\n\
         zone:\n{zones}",
        primary.port(),
        dir = dir.display(),
    );
    fs::write(dir.join("knot.conf"), config).unwrap();
    let log = fs::File::create(dir.join("knot.log")).unwrap();
    let child = Command::new("/usr/sbin/knotd")
        .args(["-c", dir.join("knot.conf").to_str().unwrap()])
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap_or_else(|e| panic!("knotd: {e}; `cargo xtask setup --for test` installs it"));
    Running(child)
}

/// Asks until the answer is the expected one, and returns how long that took.
fn wait_for(dir: &Path, port: u16, name: &str, kind: &str, expected: &str) -> Duration {
    let began = Instant::now();
    loop {
        let port = port.to_string();
        let output = Command::new("dig")
            .args(["@::1", "-p", &port, "+short", "+time=1", "+tries=1", name, kind])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if said.trim() == expected {
            return began.elapsed();
        }
        let log = || fs::read_to_string(dir.join("knot.log")).unwrap_or_default();
        assert!(began.elapsed() < DEADLINE, "{name} {kind}: {said}, not {expected}\n{}", log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// NOTIFY, transfer, and NOTIFY again, with a real secondary and a hundred thousand names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_knot_secondary_follows() {
    const FUNCTIONS: usize = 100_000;
    let dir = tempfile::tempdir().unwrap();
    let (files, serial) = ZoneFiles::open(&dir.path().join("dns"), 1_790_000_000).unwrap();
    let names = Arc::new(names(serial));
    for i in 0..FUNCTIONS {
        let name: FunctionName = format!("f{i}").parse().unwrap();
        let address = FUNCTION_PREFIX.function(&name);
        names.publish_function(FunctionNames::new(name, address, Some(80)));
    }
    let tcp = TcpListener::bind("[::1]:0").unwrap();
    let address = tcp.local_addr().unwrap();
    let secondary = free_port();
    let notify = UdpSocket::bind("[::1]:0").unwrap();
    let sockets = DnsSockets {
        udp: vec![UdpSocket::bind(address).unwrap()],
        tcp: vec![tcp],
        notify: vec![((Ipv6Addr::LOCALHOST, secondary).into(), notify)],
    };
    let config = DnsConfig {
        upstreams: Vec::new(),
        secondaries: vec![Ipv6Addr::LOCALHOST.into()],
        ..DnsConfig::default()
    };
    let (written, told) = watch::channel(names.load().serial());
    let dns = Dns::start(sockets, &config, &names, &told).unwrap();
    let (stop, stopped) = watch::channel(());
    let keeping = tokio::spawn(keep(files, Arc::clone(&names), written, stopped));
    let zones = Origin::ALL.map(|origin| origin_name(origin, names.load().settings()));
    let _knot = knot(dir.path(), secondary, address, &zones);

    let wait = |name: &'static str, kind: &'static str, expected: String| {
        let dir = dir.path().to_owned();
        async move {
            tokio::task::spawn_blocking(move || wait_for(&dir, secondary, name, kind, &expected))
                .await
                .unwrap()
        }
    };
    let address_of = |name: &str| FUNCTION_PREFIX.function(&name.parse().unwrap()).to_string();
    let took = wait("f99999.faas", "AAAA", address_of("f99999")).await;
    println!("{FUNCTIONS} functions are with the secondary after {took:?}");
    wait("_http._tcp.f7.faas", "SRV", "0 0 80 f7.faas.".to_owned()).await;
    wait("canary.hello.faas", "AAAA", format!("v2.hello.faas.\n{}", FUNCTION_PREFIX.host(0x12))).await;
    wait("anna.peers.faas", "AAAA", VPN_PREFIX.host(2).to_string()).await;
    let reverse = "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.5.a.a.f.0.0.d.f.ip6.arpa";
    wait(reverse, "PTR", "anna.peers.faas.".to_owned()).await;

    names.publish_function(function("later"));
    let took = wait("later.faas", "AAAA", address_of("later")).await;
    println!("a change is with the secondary after {took:?}");
    names.remove_function(&"later".parse().unwrap());
    wait("later.faas", "AAAA", String::new()).await;
    let transferred = dns.metrics().counts().transferred;
    assert!(transferred >= 5, "{transferred}");
    drop(stop);
    keeping.await.unwrap();
    dns.shutdown().await.unwrap();
}
