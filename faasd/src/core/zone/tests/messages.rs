//! What is asked and answered, as hickory writes and reads it.

use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};

use super::*;

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.queries = vec![Query::query(Name::from_ascii(name).unwrap(), kind)];
    message
}

fn ask(message: &Message) -> Message {
    let mut out = [0; ANSWER_BYTES_MAX];
    match answer(&zone(), &message.to_vec().unwrap(), Caller { recursion: true }, &mut out) {
        Verdict::Answer(length, _) => Message::from_vec(&out[..length]).unwrap(),
        other => panic!("{message}: {other:?}"),
    }
}

fn lines(records: &[hickory_proto::rr::Record]) -> Vec<String> {
    records.iter().map(|r| format!("{} {} {} {}", r.name, r.ttl, r.record_type(), r.data)).collect()
}

const SOA: &str = "faas. 1 SOA ns.faas. admin.faas. 10 3600 1800 604800 1";

#[test]
fn every_record_is_answered() {
    use RecordType as T;
    let hello = "hello.faas. 60 AAAA fd00:faa5:0:200:2cf2:4dba:5fb0:a30e";
    let pointer = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.5.a.a.f.0.0.d.f.ip6.arpa.";
    let to_revision = format!("3.3.3.1.0.0.0.0.0.0.0.0.0.0.0.0.{FUNCTIONS}.");
    for (name, kind, expected) in [
        ("hello.faas.", T::AAAA, vec![hello]),
        ("hello.faas.", T::ANY, vec![hello]),
        ("ns.faas.", T::AAAA, vec!["ns.faas. 60 AAAA fd00:faa5:0:100::1"]),
        ("anna.peers.faas.", T::AAAA, vec!["anna.peers.faas. 60 AAAA fd00:faa5:0:100::2"]),
        ("v2.hello.faas.", T::AAAA, vec!["v2.hello.faas. 60 AAAA fd00:faa5:0:200::22"]),
        (
            "canary.hello.faas.",
            T::AAAA,
            vec![
                "canary.hello.faas. 60 CNAME v13.hello.faas.",
                "v13.hello.faas. 60 AAAA fd00:faa5:0:200::1333",
            ],
        ),
        ("canary.hello.faas.", T::CNAME, vec!["canary.hello.faas. 60 CNAME v13.hello.faas."]),
        ("_http._tcp.hello.faas.", T::SRV, vec!["_http._tcp.hello.faas. 60 SRV 0 0 8080 hello.faas."]),
        ("faas.", T::SOA, vec![SOA]),
        ("faas.", T::NS, vec!["faas. 60 NS ns.faas."]),
        ("faas.", T::ANY, vec![SOA]),
    ] {
        let answer = ask(&query(name, kind));
        assert_eq!(lines(&answer.answers), expected, "{name} {kind}");
        assert!(answer.metadata.authoritative && answer.authorities.is_empty(), "{answer}");
        assert!(answer.metadata.recursion_available && answer.metadata.recursion_desired);
    }
    let ns = ask(&query("faas.", T::NS));
    assert_eq!(lines(&ns.additionals), ["ns.faas. 60 AAAA fd00:faa5:0:100::1"]);
    assert_eq!(ask(&query(pointer, T::PTR)).answers[0].data.to_string(), "ns.faas.");
    assert_eq!(ask(&query(&to_revision, T::PTR)).answers[0].data.to_string(), "v13.hello.faas.");
    let soa = ask(&query(&format!("{PEERS}."), T::SOA));
    assert_eq!(lines(&soa.answers), [SOA.replace("faas. 1 SOA", &format!("{PEERS}. 1 SOA"))]);
    let ns = ask(&query(&format!("{FUNCTIONS}."), T::NS));
    assert_eq!(lines(&ns.answers), [format!("{FUNCTIONS}. 60 NS ns.faas.")]);
}

#[test]
fn what_is_not_there_is_denied_for_a_short_time() {
    use RecordType as T;
    for (name, kind, code) in [
        // There is no A, but there is the name: to deny it would hide the AAAA as well.
        ("hello.faas.", T::A, ResponseCode::NoError),
        ("_tcp.hello.faas.", T::SRV, ResponseCode::NoError),
        ("_http._tcp.hello.faas.", T::AAAA, ResponseCode::NoError),
        ("peers.faas.", T::ANY, ResponseCode::NoError),
        ("faas.", T::AAAA, ResponseCode::NoError),
        ("none.faas.", T::AAAA, ResponseCode::NXDomain),
        ("a.b.c.faas.", T::ANY, ResponseCode::NXDomain),
        ("_tcp.plain.faas.", T::SRV, ResponseCode::NXDomain),
    ] {
        let answer = ask(&query(name, kind));
        assert_eq!(answer.metadata.response_code, code, "{name} {kind}");
        assert!(answer.answers.is_empty() && answer.metadata.authoritative);
        assert_eq!(lines(&answer.authorities), [SOA]);
    }
    // The alias is there, what it stands for has no such type.
    let alias = ask(&query("canary.hello.faas.", T::MX));
    assert_eq!((alias.answers.len(), lines(&alias.authorities)), (1, vec![SOA.to_owned()]));
    let reverse = ask(&query(&format!("f.{FUNCTIONS}."), T::PTR));
    assert_eq!(reverse.metadata.response_code, ResponseCode::NXDomain);
    assert!(
        lines(&reverse.authorities)[0].starts_with(&format!("{FUNCTIONS}. 1 SOA ns.faas. admin.faas. 10 "))
    );
}

#[test]
fn the_question_comes_back_as_it_was() {
    let asked = query("cAnArY.HeLLo.fAAs.", RecordType::AAAA);
    let answer = ask(&asked);
    assert_eq!(answer.queries[0].name().to_ascii(), "cAnArY.HeLLo.fAAs.");
    assert_eq!(answer.answers[0].name.to_ascii(), "cAnArY.HeLLo.fAAs.");
    assert_eq!(answer.metadata.id, asked.metadata.id);
}

#[test]
fn options_are_answered_by_options() {
    let mut asked = query("hello.faas.", RecordType::AAAA);
    assert!(ask(&asked).edns.is_none());
    let mut edns = Edns::new();
    edns.set_version(0).set_max_payload(4096).set_dnssec_ok(true);
    asked.edns = Some(edns);
    let answer = ask(&asked);
    let edns = answer.edns.unwrap();
    assert_eq!((edns.max_payload(), edns.version(), edns.flags().dnssec_ok), (1232, 0, true));
    asked.edns.as_mut().unwrap().set_version(1);
    let answer = ask(&asked);
    // Code 16; hickory reads it back as BADSIG's, which has the same number.
    assert_eq!((u16::from(answer.metadata.response_code), answer.answers.len()), (16, 0));
    assert_eq!(answer.edns.unwrap().version(), 0);
}

#[test]
fn what_is_no_question_for_us_is_told() {
    let mut chaos = query("version.bind.", RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    let mut update = query("faas.", RecordType::SOA);
    update.metadata.op_code = OpCode::Update;
    let mut two = query("hello.faas.", RecordType::AAAA);
    two.queries.push(two.queries[0].clone());
    for (message, code) in [
        (chaos, ResponseCode::Refused),
        (update, ResponseCode::NotImp),
        (two, ResponseCode::FormErr),
        (query("hello.faas.", RecordType::AXFR), ResponseCode::Refused),
        (query("example.com.", RecordType::AXFR), ResponseCode::Refused),
    ] {
        let answer = ask(&message);
        assert_eq!((answer.metadata.response_code, answer.answers.len()), (code, 0), "{message}");
    }
    let verdict = |bytes: &[u8], recursion| {
        let mut out = [0; ANSWER_BYTES_MAX];
        match answer(&zone(), bytes, Caller { recursion }, &mut out) {
            Verdict::Answer(length, _) => format!("{} {length}", out[3] & 0xf),
            other => format!("{other:?}").split(['(', ' ']).next().unwrap().to_owned(),
        }
    };
    let other = query("example.com.", RecordType::A).to_vec().unwrap();
    assert_eq!(verdict(&other, true), "Elsewhere");
    assert_eq!(verdict(&other, false), format!("5 {}", other.len()));
    let own = query("hello.faas.", RecordType::AAAA).to_vec().unwrap();
    // Too much and too little, and a name that points: format errors, of which only a header comes back.
    assert_eq!(verdict(&[&own[..], b"x"].concat(), true), "1 12");
    assert_eq!(verdict(&own[..own.len() - 1], true), "1 12");
    assert_eq!(verdict(&[&own[..12], &[0xc0, 12, 0, 28, 0, 1]].concat(), true), "1 12");
    assert_eq!(verdict(&own[..11], true), "Silence");
    let mut response = own;
    response[2] |= 0x80;
    assert_eq!(verdict(&response, true), "Silence");
    let transfer = query("faas.", RecordType::AXFR).to_vec().unwrap();
    assert_eq!(verdict(&transfer, false), "Transfer");
}

#[test]
fn the_longest_answers_fit() {
    let label = "a".repeat(63);
    let names = FunctionNames {
        port: Some(65_535),
        revisions: [(u64::MAX, address(u64::MAX))].into(),
        aliases: [(name(&label), u64::MAX)].into(),
        ..function(&label, 1)
    };
    let zone = empty().with_function(&Arc::new(names)).unwrap();
    let last = format!("{}.{FUNCTIONS}.", ["f"; 16].join("."));
    let missing = format!("{}.faas.", ["b"; 124].join("."));
    for (name, kind) in [
        (format!("{label}.{label}.faas."), RecordType::AAAA),
        (format!("{label}.{label}.faas."), RecordType::MX),
        (format!("_http._tcp.{label}.faas."), RecordType::SRV),
        (last, RecordType::PTR),
        (format!("{FUNCTIONS}."), RecordType::NS),
        (format!("e.{FUNCTIONS}."), RecordType::PTR),
        (missing, RecordType::AAAA),
    ] {
        let mut message = query(&name, kind);
        message.edns = Some(Edns::new());
        let mut out = [0; ANSWER_BYTES_MAX];
        let verdict = answer(&zone, &message.to_vec().unwrap(), Caller { recursion: true }, &mut out);
        let Verdict::Answer(length, _) = verdict else { panic!("{name}: {verdict:?}") };
        let answer = Message::from_vec(&out[..length]).unwrap();
        assert!(!answer.metadata.truncation && answer.edns.is_some(), "{answer}");
        assert!(answer.answers.len() + answer.authorities.len() > 0, "{answer}");
    }
}
