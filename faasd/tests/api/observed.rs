//! Logs, events and secrets.

use faasd::api::types::{Event, EventKind, EventLine, EventQuery, SECRET_BYTES_MAX};
use faasd::control::api::FOLLOWERS_MAX;
use faasd::core::secret::{SecretBytes, SecretName};

use super::*;

#[tokio::test]
async fn a_log_is_asked_for_and_followed() {
    let daemon = Daemon::start();
    let client = Client::new(&daemon.socket);
    deploy(&client, "hello").await;
    let since = Some("2026-01-01T00:00:00Z".parse().unwrap());
    let query = LogQuery { lines: 5, since, instance: Some("hello-1-a".into()) };
    assert_eq!(client.logs(&name("hello"), &query).await.unwrap(), "of hello-1-a, true\n");

    let mut follow = client.follow_logs(&name("hello"), &lines(2)).await.unwrap();
    assert_eq!(follow.next().await.unwrap().as_deref(), Some("line 1"));
    assert_eq!(follow.next().await.unwrap().as_deref(), Some("line 2"));
    assert_eq!(follow.next().await.unwrap(), None);
    let error = client.follow_logs(&name("helo"), &lines(2)).await.unwrap_err();
    assert_eq!(problem(error).0, 404);

    for (query, why) in [
        ("line=1", "unknown field `line`"),
        ("lines=x", "invalid digit"),
        ("lines=0", "use 1 to 10000"),
        ("since=yesterday", "like 90s, 10m"),
        ("follow=1", "provided string was not `true` or `false`"),
    ] {
        let request =
            format!("GET /v1/functions/hello/logs?{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let answer = raw(UnixStream::connect(&daemon.socket).unwrap(), &request);
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains(why), "{query}: {answer}");
    }
}

#[tokio::test]
async fn followers_are_bounded_and_end_with_the_daemon() {
    let mut daemon = Daemon::start();
    let client = Client::new(&daemon.socket);
    deploy(&client, "endless").await;
    let mut all = Vec::new();
    for _ in 0..FOLLOWERS_MAX {
        let mut follow = client.follow_logs(&name("endless"), &lines(1)).await.unwrap();
        assert_eq!(follow.next().await.unwrap().as_deref(), Some("line 1"));
        all.push(follow);
    }
    let error = client.follow_logs(&name("endless"), &lines(1)).await.unwrap_err();
    assert_eq!(problem(error).0, 503);
    let began = Instant::now();
    daemon.begin_stop();
    for mut follow in all {
        assert!(follow.next().await.unwrap().unwrap().ends_with(" faasd: [faasd is stopping]"));
        assert_eq!(follow.next().await.unwrap(), None);
    }
    until("the daemon's end", || daemon.finished());
    assert!(began.elapsed() < Duration::from_secs(8), "it did not wait for who would have stayed");
}

#[tokio::test]
async fn events_are_listed_and_followed() {
    let mut daemon = Daemon::start();
    let client = Client::new(&daemon.socket);
    let event = |id, function: &str| Event {
        id,
        time: "2026-01-01T00:00:00Z".parse().unwrap(),
        function: Some(name(function)),
        kind: EventKind::InstanceFailed,
        revision: Some(3),
        instance: None,
        message: format!("event {id}\nand why"),
    };
    daemon.fake.events.lock().unwrap().extend([event(1, "a"), event(2, "b"), event(3, "a")]);
    let query = EventQuery { function: Some(name("a")), after: Some(1), ..EventQuery::default() };
    assert_eq!(client.events(&query).await.unwrap().events, [event(3, "a")]);
    let query = EventQuery { limit: 2, ..EventQuery::default() };
    assert_eq!(client.events(&query).await.unwrap().events, [event(2, "b"), event(3, "a")]);
    let query = EventQuery { since: Some("2026-01-01T00:00:01Z".parse().unwrap()), ..EventQuery::default() };
    assert!(client.events(&query).await.unwrap().events.is_empty());

    let mut follow = client.follow_events(&EventQuery::default()).await.unwrap();
    for id in 1..=3 {
        let line = follow.next().await.unwrap().unwrap();
        let EventLine::Event(found) = serde_json::from_str(&line).unwrap() else { panic!("{line}") };
        assert_eq!(found.id, id);
    }
    daemon.begin_stop();
    let line = follow.next().await.unwrap().unwrap();
    assert!(
        matches!(serde_json::from_str(&line).unwrap(), EventLine::End(p) if p.title == "faasd is stopping")
    );
}

#[tokio::test]
async fn secrets_go_in_and_do_not_come_out() {
    let daemon = Daemon::start();
    let client = Client::new(&daemon.socket);
    let secret = |text: &str| text.parse::<SecretName>().unwrap();
    let value = vec![0xff; SECRET_BYTES_MAX];
    let set = client.set_secret(&secret("db.password"), &SecretBytes::new(value.clone())).await.unwrap();
    assert_eq!((set.name.as_str(), set.bytes), ("db.password", SECRET_BYTES_MAX));
    assert_eq!(daemon.fake.secrets.lock().unwrap()[&secret("db.password")].1.as_bytes(), value);
    let large = SecretBytes::new(vec![0; SECRET_BYTES_MAX + 1]);
    assert_eq!(problem(client.set_secret(&secret("x"), &large).await.unwrap_err()).0, 413);
    let empty = client.set_secret(&secret("empty"), &SecretBytes::new(Vec::new())).await.unwrap();
    assert_eq!(empty.bytes, 0);
    assert_eq!(client.secrets().await.unwrap().secrets, [set, empty]);
    for (method, path, status) in [
        ("GET", "/v1/secrets/db.password", "405"),
        ("PUT", "/v1/secrets/.hidden", "400"),
        ("PUT", "/v1/secrets/a%2Fb", "400"),
        ("DELETE", "/v1/secrets/empty?force=maybe", "400"),
    ] {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let answer = raw(UnixStream::connect(&daemon.socket).unwrap(), &request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{method} {path}: {answer}");
    }
    assert_eq!(problem(client.remove_secret(&secret("empty"), false).await.unwrap_err()).0, 409);
    client.remove_secret(&secret("empty"), true).await.unwrap();
    assert_eq!(problem(client.remove_secret(&secret("empty"), true).await.unwrap_err()).0, 404);
}
