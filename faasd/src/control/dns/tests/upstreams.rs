//! What is asked elsewhere, and what is made of the answers.

use hickory_proto::rr::rdata::svcb::{IpHint, SVCB, SvcParamKey, SvcParamValue};
use hickory_proto::rr::rdata::{CNAME, HTTPS, PTR, SOA};

use super::*;

#[tokio::test]
async fn answers_that_point_inside_are_stripped() {
    let upstream = upstream(|query| {
        let name = query.queries[0].name().clone();
        let own = |data| Record::from_rdata(name.clone(), 60, data);
        let mut answer = respond(&query, ResponseCode::NoError);
        answer.metadata.authentic_data = true;
        let hint = SvcParamValue::Ipv6Hint(IpHint(vec![AAAA(FUNCTION_PREFIX.host(9))]));
        let service = |target: &str, parameters| {
            RData::HTTPS(HTTPS(SVCB::new(1, Name::from_ascii(target).unwrap(), parameters)))
        };
        answer.answers = vec![
            own(RData::AAAA(AAAA(HELLO))),
            own(RData::AAAA(AAAA(SERVER))),
            own(RData::AAAA(AAAA("2001:db8::1".parse().unwrap()))),
            own(RData::CNAME(CNAME(Name::from_ascii("Hello.FAAS.").unwrap()))),
            own(service("hello.faas.", Vec::new())),
            own(service(".", vec![(SvcParamKey::Ipv6Hint, hint)])),
        ];
        answer.additionals = vec![own(RData::AAAA(AAAA(HELLO)))];
        vec![answer]
    })
    .await;
    let Running { address, dns, .. } = start(&via(&[upstream]));
    for _ in 0..2 {
        let answer = udp(address, &question("evil.example.", RecordType::AAAA)).await;
        assert_eq!(answer.answers.len(), 1, "{answer}");
        assert_eq!(answer.answers[0].data.to_string(), "2001:db8::1");
        assert!(answer.additionals.is_empty() && !answer.metadata.authentic_data);
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
    }
    let expected = DnsCounts { forwarded: 1, cached: 1, rebinds: 1, ..DnsCounts::default() };
    assert_eq!(dns.metrics().counts(), expected);
}

#[tokio::test]
async fn our_own_zones_are_asked_nowhere() {
    let upstream = upstream(|query| panic!("{query}")).await;
    let running = start(&via(&[upstream]));
    let ours = "7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.0.0.0.0.0.5.a.a.f.0.0.d.f.ip6.arpa.";
    let answer = udp(running.address, &question(ours, RecordType::PTR)).await;
    let hello = RData::PTR(PTR(Name::from_ascii("hello.faas.").unwrap()));
    assert_eq!(answer.answers[0].data, hello);
    for (name, kind) in [
        (ours, RecordType::TXT),
        ("8.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.0.0.0.0.0.5.a.a.f.0.0.d.f.ip6.arpa.", RecordType::PTR),
        ("x.0.0.1.0.0.0.0.0.5.a.a.f.0.0.d.f.ip6.arpa.", RecordType::PTR),
        ("x.y.hello.faas.", RecordType::A),
    ] {
        let answer = udp(running.address, &question(name, kind)).await;
        assert!(answer.metadata.authoritative && answer.answers.is_empty(), "{answer}");
    }
}

#[tokio::test]
async fn what_does_not_exist_is_kept_as_well() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let upstream = upstream(move |query| {
        counter.fetch_add(1, Ordering::Relaxed);
        let mut answer = respond(&query, ResponseCode::NXDomain);
        let apex = Name::from_ascii("example.").unwrap();
        let soa = SOA::new(apex.clone(), apex.clone(), 1, 2, 3, 4, 300);
        answer.authorities = vec![Record::from_rdata(apex, 600, RData::SOA(soa))];
        vec![answer]
    })
    .await;
    let running = start(&via(&[upstream]));
    for name in ["no.example.", "NO.example.", "no.EXAMPLE."] {
        let answer = udp(running.address, &question(name, RecordType::A)).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!((answer.queries[0].name().to_ascii(), answer.authorities.len()), (name.to_owned(), 1));
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    // With signatures, it is another question.
    let mut signed = with_edns(question("no.example.", RecordType::A), 0, 1232);
    signed.edns.as_mut().unwrap().set_dnssec_ok(true);
    let answer = udp(running.address, &signed).await;
    assert!(answer.edns.unwrap().flags().dnssec_ok);
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn one_source_cannot_have_all_places() {
    let arrived = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&arrived);
    let silent = upstream(move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
        Vec::new()
    })
    .await;
    let config = DnsConfig { forwarded_max: 8, upstream_timeout: PATIENCE, ..via(&[silent]) };
    let running = start(&config);
    let socket = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).await.unwrap();
    socket.connect(running.address).await.unwrap();
    for i in 0..3 {
        let query = question(&format!("n{i}.example."), RecordType::A);
        socket.send(&query.to_vec().unwrap()).await.unwrap();
    }
    // Two of eight wait; the third is told at once.
    let mut buffer = [0; 512];
    let len = timeout(PATIENCE, socket.recv(&mut buffer)).await.unwrap().unwrap();
    let answer = Message::from_vec(&buffer[..len]).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(running.dns.metrics().counts().failed, 1);
}

#[tokio::test]
async fn who_asks_too_much_is_sent_to_tcp() {
    let running = start(&DnsConfig { rate_limit: 10, ..alone() });
    let socket = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).await.unwrap();
    socket.connect(running.address).await.unwrap();
    let query = question("hello.faas.", RecordType::AAAA);
    let bytes = query.to_vec().unwrap();
    let mut buffer = [0; 512];
    let (mut answered, mut sent) = (0, 0);
    // One at a time, so that none is lost for another reason.
    let cut = loop {
        socket.send(&bytes).await.unwrap();
        sent += 1;
        match timeout(Duration::from_millis(200), socket.recv(&mut buffer)).await {
            Ok(len) => match Message::from_vec(&buffer[..len.unwrap()]).unwrap() {
                answer if answer.metadata.truncation => break answer,
                _ => answered += 1,
            },
            // Every second one of them gets no answer.
            Err(_) => assert!(sent < 40, "{answered} of {sent}"),
        }
    };
    assert!(answered >= 10 && cut.answers.is_empty() && cut.queries == query.queries, "{cut}");
    assert_eq!(tcp(running.address, &query).await.answers.len(), 1);
    assert!(running.dns.metrics().counts().limited >= 2);
}
