//! Whole zones, and who is told that they changed.

use hickory_proto::rr::rdata::SOA;

use super::*;

fn to_loopback() -> DnsConfig {
    DnsConfig { secondaries: vec![Ipv6Addr::LOCALHOST.into()], ..alone() }
}

/// All messages of a transfer: until the SOA comes again.
async fn transfer(server: SocketAddr, query: &Message) -> Vec<Message> {
    let mut stream = TcpStream::connect(server).await.unwrap();
    let mut all: Vec<Message> = vec![timeout(PATIENCE, tcp_on(&mut stream, query)).await.unwrap().unwrap()];
    let soas = |all: &[Message]| {
        let records = all.iter().flat_map(|message| &message.answers);
        records.filter(|record| record.record_type() == RecordType::SOA).count()
    };
    while soas(&all) < 2 {
        let mut bytes = vec![0; timeout(PATIENCE, stream.read_u16()).await.unwrap().unwrap().into()];
        stream.read_exact(&mut bytes).await.unwrap();
        all.push(Message::from_vec(&bytes).unwrap());
    }
    all
}

fn incremental(serial: u32) -> Message {
    let mut query = question("faas.", RecordType::IXFR);
    let apex = Name::from_ascii("faas.").unwrap();
    let soa = SOA::new(apex.clone(), apex.clone(), serial, 1, 1, 1, 1);
    query.authorities = vec![Record::from_rdata(apex, 0, RData::SOA(soa))];
    query
}

#[tokio::test]
async fn a_zone_is_transferred_in_several_messages() {
    let running = start(&to_loopback());
    for i in 0..5_000 {
        running.names.publish_function(function(&format!("f{i}"), 1_000 + i));
    }
    for (zone, records) in [
        // SOA twice, NS, ns, and each function with its service.
        ("faas.", 2 + 2 + 2 * 5_001),
        ("0.0.2.0.0.0.0.0.5.a.a.f.0.0.d.f.ip6.arpa.", 2 + 1 + 5_001),
        ("0.0.1.0.0.0.0.0.5.a.a.f.0.0.d.f.ip6.arpa.", 2 + 1 + 1),
    ] {
        let query = question(zone, RecordType::AXFR);
        let all = transfer(running.address, &query).await;
        let found: Vec<_> = all.iter().flat_map(|message| &message.answers).collect();
        assert_eq!(found.len(), records, "{zone}");
        assert_eq!(found.first(), found.last());
        assert!(records < 100 || all.len() > 3, "{} messages", all.len());
        assert!(all.iter().all(|m| m.metadata.id == query.metadata.id && m.metadata.authoritative));
        assert_eq!(all[0].queries, query.queries);
    }
    assert_eq!(running.dns.metrics().counts().transferred, 3);
}

#[tokio::test]
async fn who_has_the_serial_is_told_so() {
    let running = start(&to_loopback());
    let serial = running.names.load().serial();
    let current = transfer_one(running.address, &incremental(serial)).await;
    assert_eq!(current.answers.len(), 1);
    assert!(transfer(running.address, &incremental(serial - 1)).await[0].answers.len() > 3);
    // By UDP the serial alone, which says whether it is worth a connection.
    let over_udp = udp(running.address, &incremental(serial - 1)).await;
    let RData::SOA(soa) = &over_udp.answers[0].data else { panic!("{over_udp}") };
    assert_eq!((over_udp.answers.len(), soa.serial), (1, serial));
    // There is no transfer by UDP, and none of what is not a zone.
    for query in [question("faas.", RecordType::AXFR), question("hello.faas.", RecordType::AXFR)] {
        assert_eq!(udp(running.address, &query).await.metadata.response_code, ResponseCode::Refused);
    }
}

async fn transfer_one(server: SocketAddr, query: &Message) -> Message {
    tcp(server, query).await
}

#[tokio::test]
async fn nobody_else_gets_a_zone() {
    let running = start(&DnsConfig { secondaries: vec!["fd00::5".parse().unwrap()], ..alone() });
    for query in [question("faas.", RecordType::AXFR), incremental(1)] {
        let answer = both(running.address, &query).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
        assert!(answer.answers.is_empty());
    }
    assert_eq!(running.dns.metrics().counts().refused, 4);
}

/// What arrives at a secondary: the zone and its serial, and the query to answer.
async fn notified(socket: &UdpSocket) -> (String, u32, Message, SocketAddr) {
    let mut buffer = [0; 512];
    let (len, server) = timeout(PATIENCE, socket.recv_from(&mut buffer)).await.unwrap().unwrap();
    let query = Message::from_vec(&buffer[..len]).unwrap();
    assert_eq!(query.metadata.op_code, OpCode::Notify);
    let RData::SOA(soa) = &query.answers[0].data else { panic!("{query}") };
    (query.queries[0].name().to_ascii(), soa.serial, query.clone(), server)
}

async fn confirm(socket: &UdpSocket, query: &Message, server: SocketAddr) {
    let mut answer = Message::response(query.metadata.id, OpCode::Notify);
    answer.queries = query.queries.clone();
    socket.send_to(&answer.to_vec().unwrap(), server).await.unwrap();
}

#[tokio::test]
async fn secondaries_are_notified_until_they_confirm() {
    let secondary = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).await.unwrap();
    let running = start_and_notify(&alone(), vec![secondary.local_addr().unwrap()]);
    // At the start, zone by zone; one that is not confirmed comes again.
    let (zone, serial, ..) = notified(&secondary).await;
    assert_eq!((zone.as_str(), serial), ("faas.", 42));
    let mut zones = Vec::new();
    for _ in Origin::ALL {
        let (zone, _, query, server) = notified(&secondary).await;
        confirm(&secondary, &query, server).await;
        zones.push(zone);
    }
    assert_eq!(zones[0], "faas.");
    assert!(zones[1].ends_with("f.ip6.arpa.") && zones[1] != zones[2]);
    // After a change that is written, with its serial.
    running.names.publish_function(function("new", 9));
    running.written.send_replace(43);
    let (zone, serial, query, server) = notified(&secondary).await;
    assert_eq!((zone.as_str(), serial), ("faas.", 43));
    // A later one while a secondary does not answer begins anew.
    running.names.publish_function(function("newer", 10));
    running.written.send_replace(44);
    loop {
        let (zone, serial, ..) = notified(&secondary).await;
        assert_eq!(zone, "faas.");
        if serial == 44 {
            break;
        }
    }
    confirm(&secondary, &query, server).await;
    assert_eq!(running.dns.metrics().counts().unconfirmed, 0);
}
