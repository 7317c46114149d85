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

#[tokio::test]
async fn what_renames_others_into_our_zones_is_stripped() {
    let dname = |target: &[u8]| RData::Unknown {
        code: RecordType::DNAME,
        rdata: hickory_proto::rr::rdata::NULL::with(target.to_vec()),
    };
    let targets: [(&[u8], bool); 6] = [
        (b"\x04FAAS\x00", false),
        (b"\x05hello\x04faas\x00", false),
        // Above a reverse zone of ours, and above everything.
        (b"\x03ip6\x04arpa\x00", false),
        (b"\x00", false),
        // Written by reference to elsewhere in the message.
        (b"\xc0\x0c", false),
        (b"\x07example\x03org\x00", true),
    ];
    let upstream = upstream(move |query| {
        let number: usize = query.queries[0].name().to_ascii()[1..2].parse().unwrap();
        let owner = Name::from_ascii("evil.example.").unwrap();
        let mut answer = respond(&query, ResponseCode::NoError);
        answer.answers = vec![Record::from_rdata(owner, 60, dname(targets[number].0))];
        vec![answer]
    })
    .await;
    let Running { address, dns, .. } = start(&via(&[upstream]));
    for (number, (target, passes)) in targets.into_iter().enumerate() {
        let answer = udp(address, &question(&format!("x{number}.evil.example."), RecordType::AAAA)).await;
        assert_eq!(answer.answers.len(), usize::from(passes), "{}: {answer}", target.escape_ascii());
    }
    assert_eq!(dns.metrics().counts().rebinds, 5);
}

#[tokio::test]
async fn what_was_asked_without_recursion_is_for_nobody_else() {
    let upstream = upstream(|query| {
        let answer = a(&query, if query.metadata.recursion_desired { 1 } else { 66 });
        vec![answer]
    })
    .await;
    let running = start(&via(&[upstream]));
    let address = running.address;
    let with = question("example.com.", RecordType::A);
    let mut without = with.clone();
    without.metadata.recursion_desired = false;
    let last = |answer: &Message| answer.answers[0].data.to_string();
    assert_eq!(last(&udp(address, &without).await), "192.0.2.66");
    assert_eq!(last(&udp(address, &with).await), "192.0.2.1");
    // What is known is told to everybody.
    assert_eq!(last(&udp(address, &without).await), "192.0.2.1");
}

#[tokio::test]
async fn equal_questions_are_asked_once() {
    const CLIENTS: usize = 20;
    let (arrived, asked) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let (upstream_socket, _tcp, upstream) = bind();
    upstream_socket.set_nonblocking(true).unwrap();
    let upstream_socket = UdpSocket::from_std(upstream_socket).unwrap();
    let running = start(&via(&[upstream]));
    let (counter, there) = (Arc::clone(&asked), Arc::clone(&arrived));
    let (go, mut wait) = watch::channel(false);
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            let (len, client) = upstream_socket.recv_from(&mut buffer).await.unwrap();
            counter.fetch_add(1, Ordering::SeqCst);
            there.notify_one();
            wait.wait_for(|go| *go).await.unwrap();
            let answer = a(&Message::from_vec(&buffer[..len]).unwrap(), 1);
            upstream_socket.send_to(&answer.to_vec().unwrap(), client).await.unwrap();
        }
    });
    let mut clients = JoinSet::new();
    for i in 0..CLIENTS {
        // Case is no difference, and each has its own back.
        let name = if i % 2 == 0 { "example.com." } else { "EXAMPLE.com." };
        let address = running.address;
        clients.spawn(async move {
            let answer = udp(address, &question(name, RecordType::A)).await;
            assert_eq!(answer.queries[0].name().to_ascii(), name);
            assert_eq!(answer.answers.len(), 1);
        });
    }
    arrived.notified().await;
    // Each holds a place, whether it asks or waits for one that does.
    timeout(PATIENCE, async {
        while running.dns.shared.forwarder.waiting() < CLIENTS {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("not all of them wait");
    go.send_replace(true);
    while let Some(done) = clients.join_next().await {
        done.unwrap();
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_upstream_that_knows_no_edns_is_asked_without() {
    for repeats in [true, false] {
        for code in [ResponseCode::FormErr, ResponseCode::NotImp] {
            let upstream = upstream(move |query| {
                if query.edns.is_none() {
                    assert!(query.metadata.recursion_desired);
                    return vec![a(&query, 1)];
                }
                let mut answer = respond(&query, code);
                if !repeats {
                    answer.queries.clear();
                }
                vec![answer]
            })
            .await;
            let running = start(&via(&[upstream]));
            let address = running.address;
            let answer = both(address, &question("example.com.", RecordType::A)).await;
            assert_eq!(answer.answers.len(), 1, "{code} {repeats}: {answer}");
        }
    }
    // One that does not answer without either is passed by, and not waited for.
    let deaf = upstream(|query| {
        let mut answer = respond(&query, ResponseCode::FormErr);
        answer.queries.clear();
        vec![answer]
    })
    .await;
    let begun = Instant::now();
    let running = start(&via(&[deaf]));
    let answer = udp(running.address, &question("example.com.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::FormErr);
    assert!(begun.elapsed() < DnsConfig::default().upstream_timeout, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn who_wants_to_know_is_told_whether_it_was_validated() {
    let upstream = upstream(|query| {
        let mut answer = a(&query, 1);
        answer.metadata.authentic_data = query.metadata.authentic_data;
        vec![answer]
    })
    .await;
    let running = start(&via(&[upstream]));
    let address = running.address;
    let plain = question("example.com.", RecordType::A);
    let mut asking = plain.clone();
    asking.metadata.authentic_data = true;
    // Whoever asks first.
    assert!(!udp(address, &plain).await.metadata.authentic_data);
    assert!(udp(address, &asking).await.metadata.authentic_data);
}
