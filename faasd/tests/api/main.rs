//! The real client against the real router, over a real socket.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../fake/mod.rs"]
mod fake;

mod access;
mod observed;

use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use faasd::api::client::{Client, ClientError, Outcome, empty, full};
use faasd::api::condition::{Condition, etag};
use faasd::api::types::{Deploy, Function, Invite, JSON_BYTES_MAX, LogQuery, PAGE};
use faasd::control::api::{ApiError, CONNECTIONS_MAX, bind_unix};
use faasd::core::access::Role;
use faasd::core::name::FunctionName;
use faasd::core::spec::FunctionSpec;
use fake::Daemon;
use http_body_util::BodyExt;
use hyper::Request;

fn name(text: &str) -> FunctionName {
    text.parse().unwrap()
}

/// A tar archive with one file of the given size.
fn archive(bytes: usize) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "handler.py", vec![b'x'; bytes].as_slice()).unwrap();
    tar.into_inner().unwrap()
}

async fn deploy(client: &Client, function: &str) {
    let tar = archive(10);
    let image = client.add_image(std::io::Cursor::new(tar.clone()), tar.len() as u64).await.unwrap();
    assert_eq!(image.bytes, tar.len() as u64);
    let deploy = Deploy {
        image: Some(image.digest),
        dependencies: None,
        spec: FunctionSpec::default(),
        ..Deploy::default()
    };
    client.deploy(&name(function), &deploy).await.unwrap();
}

fn invite(peer: &str, expires_in_ms: u64) -> Invite {
    Invite { name: name(peer), expires_in_ms, role: Role::User, endpoint: None, plain: false }
}

fn lines(lines: usize) -> LogQuery {
    LogQuery { lines, since: None, instance: None }
}

fn problem(error: ClientError) -> (u16, String) {
    match error {
        ClientError::Problem(problem) => (problem.status, problem.title),
        other => panic!("no problem: {other:?}"),
    }
}

/// Sends bytes and reads the response to its end.
fn raw(mut stream: impl Read + Write, request: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen in time");
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn a_function_lives_and_dies() {
    let daemon = Daemon::start();
    let client = Client::new(&daemon.socket);
    assert_eq!(client.version().await.unwrap().runtime, "runc 1.1.5");
    deploy(&client, "hello").await;
    let image = client.function(&name("hello")).await.unwrap().image;
    let again = Deploy { image, force: true, ..Deploy::default() };
    client.deploy(&name("hello"), &again).await.unwrap();
    assert_eq!(daemon.spooled(), 0, "uploads are removed once they are taken in");
    let function = client.function(&name("hello")).await.unwrap();
    assert_eq!((function.revision, function.instances.len()), (2, 1));
    assert_eq!(client.functions().await.unwrap().functions.len(), 1);
    assert_eq!(client.logs(&name("hello"), &lines(2)).await.unwrap(), "line 1\nline 2\n");
    client.remove(&name("hello")).await.unwrap();
    assert!(client.functions().await.unwrap().functions.is_empty());
}

#[tokio::test]
async fn problems_arrive_as_they_were_meant() {
    let daemon = Daemon::start();
    let client = Client::new(&daemon.socket);
    deploy(&client, "hello").await;
    let error = client.function(&name("helo")).await.unwrap_err();
    assert_eq!(problem(error), (404, "no function 'helo'; did you mean 'hello'?".into()));

    *daemon.fake.deploy_fails.lock().unwrap() = Some(ApiError::Failed {
        title: "no instance became ready".into(),
        detail: Some("exit status 3".into()),
    });
    let image = client.function(&name("hello")).await.unwrap().image;
    let request = Deploy {
        image: image.clone(),
        dependencies: None,
        spec: FunctionSpec::default(),
        ..Deploy::default()
    };
    let Err(ClientError::Problem(found)) = client.deploy(&name("hello"), &request).await else { panic!() };
    assert_eq!((found.status, found.detail.as_deref()), (500, Some("exit status 3")));

    let spec = FunctionSpec { port: 0, ..FunctionSpec::default() };
    let error = client
        .deploy(&name("hello"), &Deploy { image, dependencies: None, spec, ..Deploy::default() })
        .await
        .unwrap_err();
    assert_eq!(problem(error).0, 400, "a declaration is checked before the service sees it");
    let request = Deploy {
        image: Some("latest".into()),
        dependencies: None,
        spec: FunctionSpec::default(),
        ..Deploy::default()
    };
    assert_eq!(problem(client.deploy(&name("hello"), &request).await.unwrap_err()).0, 400);
    assert_eq!(problem(client.logs(&name("hello"), &lines(100_000)).await.unwrap_err()).0, 400);
}

#[tokio::test]
async fn peers_come_and_go() {
    let daemon = Daemon::start();
    let client = Client::new(&daemon.socket);
    let invite = |ms| Invite { endpoint: Some("[2001:db8::1]:51820".into()), ..invite("laptop", ms) };
    let invited = client.invite(&invite(3_600_000)).await.unwrap();
    assert_eq!(invited.invitation, "faas1-[2001:db8::1]:51820");
    assert_eq!(problem(client.invite(&invite(3_600_000)).await.unwrap_err()).0, 409);
    assert_eq!(problem(client.invite(&invite(1)).await.unwrap_err()).0, 400);
    assert_eq!(client.peers().await.unwrap().peers.len(), 1);
    client.revoke(&name("laptop")).await.unwrap();
    assert_eq!(problem(client.revoke(&name("laptop")).await.unwrap_err()), (404, "no peer 'laptop'".into()));
}

#[tokio::test]
async fn an_invocation_reaches_the_function_as_it_was_sent() {
    let daemon = Daemon::start();
    let client = Client::new(&daemon.socket);
    deploy(&client, "hello").await;
    let request = Request::put("/a%20b?c=d").header("x-test", "yes").body(full("body")).unwrap();
    let response = client.invoke(&name("hello"), request).await.unwrap();
    let header = |key: &str| response.headers()[key].to_str().unwrap().to_owned();
    assert_eq!(
        (header("x-method"), header("x-test"), header("x-host")),
        ("PUT".into(), "yes".into(), "hello.faas".into())
    );
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "body");
    let response =
        client.invoke(&name("hello"), Request::get("/a%20b?c=d").body(empty()).unwrap()).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "/a%20b?c=d");

    // A function's own 404 is an answer; the daemon's is an error; and neither can be taken for the other.
    for path in ["/status/404", "/forge"] {
        let response =
            client.invoke(&name("hello"), Request::get(path).body(empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 404, "{path}");
    }
    let error = client.invoke(&name("other"), Request::get("/").body(empty()).unwrap()).await.unwrap_err();
    assert_eq!(problem(error).0, 404);
}

#[tokio::test]
async fn an_archive_over_the_limit_is_refused_while_it_comes() {
    let daemon = Daemon::with_archive_bytes_max(1 << 20);
    let client = Client::new(&daemon.socket);
    let tar = archive(8 << 20);
    let error = client.add_image(std::io::Cursor::new(tar.clone()), tar.len() as u64).await.unwrap_err();
    assert_eq!(problem(error), (413, "the archive is larger than 1048576 bytes".into()));
    // In chunks, so that its size is not known beforehand.
    let request =
        "POST /v1/images HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    let stream = UnixStream::connect(&daemon.socket).unwrap();
    let mut writer = stream.try_clone().unwrap();
    writer.write_all(request.as_bytes()).unwrap();
    let chunk = [b"10000\r\n".as_slice(), &[0; 0x10000], b"\r\n"].concat();
    while writer.write_all(&chunk).is_ok() {}
    let mut answer = String::new();
    let _ = (&stream).read_to_string(&mut answer);
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    until("the spool's emptying", || daemon.spooled() == 0);
    assert!(daemon.fake.images.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_cannot_be_kept_is_told_so_whenever_it_fails() {
    let daemon = Daemon::start();
    let client = Client::new(&daemon.socket);
    daemon.lose_spool();
    // Long before its end, so that the client is still writing; often, since it is a race that was lost one time in many.
    let tar = archive(4 << 20);
    for _ in 0..200 {
        let error = client.add_image(std::io::Cursor::new(tar.clone()), tar.len() as u64).await.unwrap_err();
        let (status, title) = problem(error);
        assert!(status == 500 && title.starts_with("cannot write the upload"), "{status} {title}");
    }
}

#[test]
fn requests_that_make_no_sense_get_problems() {
    let daemon = Daemon::start();
    let large = "x".repeat(JSON_BYTES_MAX + 1);
    for (head, body, status) in [
        ("GET /v2/x", "", 404),
        ("PUT /v1/images", "", 405),
        ("PATCH /v1/functions/a", "", 405),
        ("GET /v1/functions/A_b", "", 400),
        ("POST /v1/images", "", 400),
        ("POST /v1/peers\r\ncontent-type: application/json", "{\"name\":\"a\"}", 400),
        ("POST /v1/peers\r\ncontent-type: text/plain", "{}", 415),
        ("POST /v1/peers\r\ncontent-type: application/json", &large, 413),
    ] {
        let (line, headers) = head.split_once("\r\n").unwrap_or((head, "x-none: 1"));
        let length = body.len();
        let text = format!(
            "{line} HTTP/1.1\r\nhost: x\r\n{headers}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        let answer = raw(UnixStream::connect(&daemon.socket).unwrap(), &text);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{head}: {answer}");
        assert!(answer.contains("content-type: application/problem+json"), "{head}: {answer}");
        assert!(answer.contains(&format!("\"status\":{status}")), "{head}: {answer}");
    }
}

#[tokio::test]
async fn many_clients_at_once_are_all_answered() {
    let daemon = Daemon::start();
    let client = Client::new(&daemon.socket);
    deploy(&client, "hello").await;
    let mut all = tokio::task::JoinSet::new();
    for number in 0..CONNECTIONS_MAX + 100 {
        let client = client.clone();
        all.spawn(async move {
            let request = Request::post("/").body(full(number.to_string())).unwrap();
            let response = client.invoke(&name("hello"), request).await.unwrap();
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), number.to_string());
        });
    }
    all.join_all().await;
}

#[tokio::test]
async fn a_shutdown_lets_running_requests_finish() {
    let mut daemon = Daemon::start();
    let client = Client::new(&daemon.socket);
    deploy(&client, "hello").await;
    let asked = tokio::spawn({
        let client = client.clone();
        async move { client.invoke(&name("hello"), Request::get("/wait").body(empty()).unwrap()).await }
    });
    while daemon.fake.waiting.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    daemon.begin_stop();
    // New connections are refused as soon as the listener is closed.
    while client.version().await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(!daemon.finished(), "a request is still running");
    daemon.fake.release.notify_one();
    assert_eq!(asked.await.unwrap().unwrap().status(), 200);
    until("the end", || daemon.finished());
}

#[tokio::test]
async fn an_unreachable_daemon_is_told_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("faasd.sock");
    let error = Client::new(&socket).version().await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }));
    assert!(error.to_string().contains("systemctl start faasd"), "{error}");
    // One that dies without an answer.
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let gone = std::thread::spawn(move || drop(listener.accept().unwrap()));
    let error = Client::new(&socket).version().await.unwrap_err();
    assert!(matches!(error, ClientError::Broken(_)), "{error:?}");
    gone.join().unwrap();
}

#[test]
fn the_socket_is_closed_to_strangers_and_taken_over_from_the_dead_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("faasd.sock");
    let listener = bind_unix(&path).unwrap();
    let metadata = std::fs::metadata(&path).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o007, 0);
    assert_eq!(bind_unix(&path).unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
    drop(listener);
    bind_unix(&path).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn an_identical_declaration_changes_nothing() {
    let daemon = Daemon::start();
    let client = Client::new(&daemon.socket);
    deploy(&client, "hello").await;
    let first = client.function(&name("hello")).await.unwrap();
    let mut same = Deploy { image: first.image.clone(), ..Deploy::default() };
    let put = async |deploy: &Deploy| {
        let (function, outcome) = client.deploy_if(&name("hello"), deploy, &Condition::Always).await.unwrap();
        (function.revision, outcome)
    };
    assert_eq!(put(&same).await, (1, Outcome::Unchanged));
    assert_eq!(client.function(&name("hello")).await.unwrap().deployed_at, first.deployed_at);
    same.spec.env.insert("A".into(), "b".into());
    assert_eq!(put(&same).await, (2, Outcome::Updated));
    same.force = true;
    assert_eq!(put(&same).await, (3, Outcome::Updated));
    let deploy = Deploy { image: first.image, ..Deploy::default() };
    let (_, outcome) = client.deploy_if(&name("other"), &deploy, &Condition::Always).await.unwrap();
    assert_eq!(outcome, Outcome::Created);
}

#[tokio::test]
async fn of_two_who_edit_the_same_only_one_succeeds() {
    let daemon = Daemon::start();
    let client = Client::new(&daemon.socket);
    deploy(&client, "hello").await;
    let read = client.function(&name("hello")).await.unwrap();
    let asked = "GET /v1/functions/hello HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let answer = raw(UnixStream::connect(&daemon.socket).unwrap(), asked);
    assert!(answer.contains(&format!("etag: {}\r\n", etag(&read))), "{answer}");

    let seen = Condition::Tagged(vec![etag(&read)]);
    let edit = |value: &str| {
        let mut deploy = Deploy { image: read.image.clone(), ..Deploy::default() };
        deploy.spec.env.insert("BY".into(), value.into());
        deploy
    };
    client.deploy_if(&name("hello"), &edit("anna"), &seen).await.unwrap();
    let late = client.deploy_if(&name("hello"), &edit("bert"), &seen).await.unwrap_err();
    let ClientError::Problem(found) = late else { panic!("{late:?}") };
    assert_eq!(found.status, 412);
    assert!(found.detail.unwrap().contains("read it again"));
    assert_eq!(client.function(&name("hello")).await.unwrap().spec.env["BY"], "anna");
    assert_eq!(problem(client.remove_if(&name("hello"), &seen).await.unwrap_err()).0, 412);

    let absent = client.deploy_if(&name("hello"), &edit("x"), &Condition::Absent).await.unwrap_err();
    assert_eq!(problem(absent).0, 412, "it is there already");
    let exists = client.deploy_if(&name("new"), &edit("x"), &Condition::Exists).await.unwrap_err();
    assert_eq!(problem(exists).0, 412, "it is not there yet");
    client.deploy_if(&name("new"), &edit("x"), &Condition::Absent).await.unwrap();
    let now = Condition::Tagged(vec![etag(&client.function(&name("hello")).await.unwrap())]);
    client.remove_if(&name("hello"), &now).await.unwrap();
    for header in ["if-match: unquoted", "if-none-match: \"a\"", "if-match: *\r\nif-none-match: *"] {
        let text =
            format!("DELETE /v1/functions/new HTTP/1.1\r\nhost: x\r\n{header}\r\nconnection: close\r\n\r\n");
        let answer = raw(UnixStream::connect(&daemon.socket).unwrap(), &text);
        assert!(answer.starts_with("HTTP/1.1 400"), "{header}: {answer}");
    }
}

#[tokio::test]
async fn lists_come_in_pages() {
    let daemon = Daemon::start();
    let client = Client::new(&daemon.socket);
    deploy(&client, "f0000").await;
    let one = client.function(&name("f0000")).await.unwrap();
    let more = (1..PAGE + 7).map(|number| {
        let name = name(&format!("f{number:04}"));
        (name.clone(), Function { name, ..one.clone() })
    });
    daemon.fake.functions.lock().unwrap().extend(more);
    let all = client.functions().await.unwrap().functions;
    assert_eq!(all.len(), PAGE + 7);
    assert!(all.is_sorted_by(|a, b| a.name < b.name));
    assert_eq!(client.functions_with("f100").await.unwrap().functions.len(), 7);
    assert!(client.functions_with("?&%").await.unwrap().functions.is_empty());
    let ask = |query: &str| {
        let text = format!("GET /v1/functions?{query} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        raw(UnixStream::connect(&daemon.socket).unwrap(), &text)
    };
    let page = ask("limit=2&after=f0004&prefix=f000");
    assert!(page.contains("\"next\":\"f0006\"") && page.contains("f0005"), "{page}");
    assert!(!ask("limit=2&after=f1004").contains("\"next\""), "the last page has no next");
    for bad in ["limit=0", "limit=10001", "limit=x", "page=2"] {
        assert!(ask(bad).starts_with("HTTP/1.1 400"), "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_that_come_too_fast_are_told_when_to_come_again() {
    let daemon = Daemon::with_writes_per_second(5);
    let client = Client::new(&daemon.socket);
    let ask = |line: &str| {
        let text = format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        raw(UnixStream::connect(&daemon.socket).unwrap(), &text)
    };
    // More than the bucket holds, and faster than it fills.
    let refused = (0..200).map(|_| ask("DELETE /v1/peers/nobody")).find(|a| a.starts_with("HTTP/1.1 429"));
    let refused = refused.unwrap();
    assert!(refused.contains("retry-after: 1\r\n") && refused.contains("problem+json"), "{refused}");
    assert!(ask("GET /v1/functions").starts_with("HTTP/1.1 200"), "reads pass");
    assert!(ask("POST /v1/functions/x/invoke/").starts_with("HTTP/1.1 404"), "invocations pass");
    // The client waits, and then is heard.
    let invite = invite("laptop", 3_600_000);
    client.invite(&invite).await.unwrap();
    assert_eq!(problem(client.revoke(&name("nobody")).await.unwrap_err()).0, 404);
}

/// Compares answers with what the document says of them.
#[tokio::test]
async fn answers_are_as_the_document_says() {
    let daemon = Daemon::start();
    let client = Client::new(&daemon.socket);
    deploy(&client, "hello").await;
    client.invite(&invite("a", 60_000)).await.unwrap();
    let ask = |line: &str| {
        let text = format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let answer = raw(UnixStream::connect(&daemon.socket).unwrap(), &text);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status: String = head.chars().skip(9).take(3).collect();
        (status, body.to_owned())
    };
    let (status, document) = ask("GET /v1/openapi.json");
    assert_eq!((status.as_str(), document.as_str()), ("200", faasd::control::api::document()));
    let document: serde_json::Value = serde_json::from_str(&document).unwrap();
    for (method, path, described) in [
        ("GET", "/v1/version", "/v1/version"),
        ("GET", "/v1/functions", "/v1/functions"),
        ("GET", "/v1/functions/hello", "/v1/functions/{name}"),
        ("GET", "/v1/functions/hello/revisions", "/v1/functions/{name}/revisions"),
        ("GET", "/v1/functions/helo", "/v1/functions/{name}"),
        ("GET", "/v1/functions/H_", "/v1/functions/{name}"),
        ("GET", "/v1/images", "/v1/images"),
        ("GET", "/v1/peers", "/v1/peers"),
        ("GET", "/v1/policy", "/v1/policy"),
        ("GET", "/v1/policy/hello", "/v1/policy/{name}"),
        ("GET", "/v1/policy/helo", "/v1/policy/{name}"),
        ("GET", "/v1/groups", "/v1/groups"),
        ("GET", "/v1/groups/nobody", "/v1/groups/{name}"),
        ("DELETE", "/v1/groups/nobody", "/v1/groups/{name}"),
        ("PUT", "/v1/peers/a/role", "/v1/peers/{name}/role"),
        ("DELETE", "/v1/peers/nobody", "/v1/peers/{name}"),
        ("POST", "/v1/images/prune?names=true", "/v1/images/prune"),
        ("POST", "/v1/images/prune?names=maybe", "/v1/images/prune"),
        ("POST", "/v1/peers", "/v1/peers"),
    ] {
        let (status, body) = ask(&format!("{method} {path}"));
        let operation = &document["paths"][described][method.to_lowercase()];
        let content = operation["responses"][&status]["content"].as_object();
        let content = content.unwrap_or_else(|| panic!("{method} {path}: {status} is not described"));
        let schema = content.values().next().unwrap()["schema"]["$ref"].as_str().unwrap();
        let (mut schemas, mut compiler) = (boon::Schemas::new(), boon::Compiler::new());
        compiler.set_default_draft(boon::Draft::V2020_12);
        compiler.add_resource("mem:document", document.clone()).unwrap();
        let schema = compiler.compile(&format!("mem:document{schema}"), &mut schemas).unwrap();
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        let valid = schemas.validate(&body, schema).map_err(|e| format!("{e:#}"));
        assert_eq!(valid, Ok(()), "{method} {path}: {body}");
    }
    // Methods that the document does not know are none.
    for (path, item) in document["paths"].as_object().unwrap() {
        let is_tunnel = item.as_object().unwrap().values().any(|operation| operation["tags"][0] == "tunnel");
        if path.contains("/invoke/") || is_tunnel {
            continue;
        }
        let real = path.replace("{name}", "nothing").replace("{digest}", "sha256:0").replace("{alias}", "a");
        let real = real.replace("{secret}", "s");
        let real = real.split('{').next().unwrap();
        for method in ["GET", "PUT", "POST", "DELETE", "PATCH"] {
            let (status, _) = ask(&format!("{method} {real}"));
            let is_known = item[method.to_lowercase()].is_object();
            assert_eq!(status != "405", is_known, "{method} {path}: {status}");
        }
    }
}
