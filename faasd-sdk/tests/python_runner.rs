//! The runner for Python handlers, driven over real sockets from the daemon's end of the hand-off protocol.
#![expect(clippy::unwrap_used, reason = "a helper fails as its test does")]

mod runner;

use std::io::{BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use faasd_sdk::wire::Kind;
use runner::{Runner, answer, ask, directory, get};

const HANDLER: &str = r#"
import time
def handle(event, context):
    if event.path == "/": return "hello\n"
    if event.path == "/echo": return event.body
    if event.path == "/json": return {"query": event.query, "x": event.headers["x-a"], "got": event.json()}
    if event.path == "/none": return None
    if event.path == "/made": return 201, {"X-A": "b"}, "made\n"
    if event.path == "/fail": raise RuntimeError("as it was asked to")
    if event.path == "/stream": return (b"part %d\n" % i for i in range(3))
    if event.path == "/slow":
        time.sleep(0.2)
        return "slept\n"
    return 404, "nothing\n"
"#;

fn command(dir: &Path, file: &str, name: &str) -> Command {
    let mut command = Command::new(runner::program("python3"));
    command.args(["-B", &runner::runner("python.py"), file, name]).current_dir(dir).stderr(Stdio::piped());
    command
}

fn start(name: &str) -> Runner {
    let dir = directory(name, "handler.py", HANDLER);
    let command = command(&dir, "handler.py", "handle");
    Runner::start(dir, command)
}

#[test]
fn one_connection_carries_every_kind_of_request() {
    let runner = start("kinds");
    let mut client = runner.dial();
    assert_eq!(ask(&mut client, &get("/")).body, b"hello\n");
    let none = ask(&mut client, &get("/none"));
    assert_eq!((none.status, none.head.contains("Content-Length")), (204, false));
    let made = ask(&mut client, &get("/made"));
    assert!(made.status == 201 && made.head.contains("X-A: b\r\n") && made.body == b"made\n");
    assert_eq!(ask(&mut client, &get("/stream")).body, b"part 0\npart 1\npart 2\n");
    let head = ask(&mut client, "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(head.head.contains("Content-Length: 6") && head.body.is_empty());
    let json = ask(
        &mut client,
        "PUT /json?a=%20b HTTP/1.1\r\nHost: x\r\nX-A: c\r\nContent-Length: 10\r\n\r\n{\"d\": [1]}",
    );
    assert_eq!(json.body, b"{\"query\": {\"a\": \" b\"}, \"x\": \"c\", \"got\": {\"d\": [1]}}\n");
    let chunked = "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\nT: 1\r\n\r\n";
    assert_eq!(ask(&mut client, chunked).body, b"abcde");
    client
        .get_mut()
        .write_all(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        .unwrap();
    assert_eq!(answer(&mut client, false).status, 100);
    assert_eq!(ask(&mut client, "ok").body, b"ok");
    runner.until(|s| s.requests() == 8 && s.errors() == 0);
    assert_eq!((runner.status.received(), runner.status.in_flight()), (1, 1));
    assert!(runner.drain().status.success());
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let runner = start("pipelined");
    let mut client = runner.dial();
    let post = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc";
    client
        .get_mut()
        .write_all([&get("/"), post, &get("/slow"), &get("/nothing")].map(String::from).concat().as_bytes())
        .unwrap();
    let bodies: Vec<_> = (0..4).map(|_| answer(&mut client, false).body).collect();
    assert_eq!(bodies, [&b"hello\n"[..], b"abc", b"slept\n", b"nothing\n"]);
}

#[test]
fn an_exception_is_answered_with_an_id_that_the_log_has() {
    let runner = start("exception");
    let mut client = runner.dial();
    let failed = ask(&mut client, &get("/fail"));
    assert_eq!(failed.status, 500);
    let id = failed.head.lines().find_map(|l| l.strip_prefix("X-Request-Id: ")).unwrap().to_owned();
    assert_eq!(ask(&mut client, &get("/")).body, b"hello\n");
    runner.until(|s| s.requests() == 2 && s.errors() == 1);
    let log = String::from_utf8(runner.drain().stderr).unwrap();
    assert!(log.contains(&format!("[{id}] GET /fail failed")) && log.contains("as it was asked to"), "{log}");
}

#[test]
fn what_is_no_proper_request_is_refused_and_the_connection_closed() {
    let runner = start("refused");
    let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(70_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: aaaaaaaaaaaaaaaaaaaaaaaaa\r\n".repeat(101));
    for (request, status) in [
        ("nonsense\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
        ("POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n", 400),
        ("POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", 413),
        ("POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 99999999\r\n\r\n", 413),
        (&long, 431),
        (&many, 431),
    ] {
        let mut client = runner.dial();
        let refused = ask(&mut client, request);
        assert_eq!(refused.status, status, "{}", &request[..request.len().min(80)]);
        assert!(refused.head.contains("Connection: close"));
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }
    let mut client = runner.dial();
    assert_eq!(ask(&mut client, "GET /stream HTTP/1.0\r\n\r\n").status, 200);
    let mut rest = String::new();
    client.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "part 0\npart 1\npart 2\n");
    runner.until(|s| s.in_flight() == 0);
}

#[test]
fn a_thousand_idle_connections_cost_no_thread() {
    let runner = start("idle");
    let mut clients = Vec::new();
    while clients.len() < 1000 {
        let (some, accepted): (Vec<_>, Vec<_>) = (0..50).map(|_| runner.accept()).unzip();
        runner.hand_over(&accepted);
        clients.extend(some.into_iter().map(BufReader::new));
    }
    runner.until(|s| s.received() == 1000);
    // Half of them have never said anything; all others are asked twice.
    for _ in 0..2 {
        for client in clients.iter_mut().step_by(2) {
            assert_eq!(ask(client, &get("/")).body, b"hello\n");
        }
    }
    let threads = std::fs::read_dir(format!("/proc/{}/task", runner.child.id())).unwrap().count();
    assert!(threads <= 33, "{threads}");
    clients.truncate(500);
    runner.until(|s| s.in_flight() == 500);
    assert!(runner.drain().status.success());
    for client in &mut clients {
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn the_drain_answers_what_has_begun() {
    let runner = start("drain");
    let mut slow = runner.dial();
    slow.get_mut().write_all(get("/slow").as_bytes()).unwrap();
    let mut fresh = runner.dial();
    let mut idle = runner.dial();
    ask(&mut idle, &get("/"));
    let mut silent = runner.dial();
    ask(&mut silent, &get("/"));
    let drained = std::thread::scope(|scope| {
        let drained = scope.spawn(|| runner.drain());
        // The drain has begun with the first answer that says that it is the last.
        while !ask(&mut idle, &get("/")).head.contains("Connection: close") {}
        assert_eq!(idle.read(&mut [0]).unwrap(), 0);
        let late = ask(&mut fresh, &get("/"));
        assert!(late.body == b"hello\n" && late.head.contains("Connection: close"));
        assert_eq!(answer(&mut slow, false).body, b"slept\n");
        // Who asks for nothing more is waited for a while, and then closed.
        assert_eq!(silent.read(&mut [0]).unwrap(), 0);
        drained.join().unwrap()
    });
    assert!(drained.status.success());
}

#[test]
fn sigterm_is_a_drain() {
    let mut runner = start("sigterm");
    let mut idle = runner.dial();
    ask(&mut idle, &get("/"));
    let pid = rustix::process::Pid::from_child(&runner.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(runner.heard(), Kind::Drained);
    assert!(runner.child.wait().unwrap().success());
}

#[test]
fn a_handler_that_cannot_be_loaded_says_why() {
    for (name, handler, why) in [
        ("syntax", "def handle(:\n", "SyntaxError"),
        ("import", "import nothing_of_this_name\n", "nothing_of_this_name"),
        ("missing", "def handel(event, context): pass\n", "no function handle; it has: handel"),
        ("async", "async def handle(event, context): pass\n", "an async function of 2 parameters"),
    ] {
        let dir = directory(name, "handler.py", handler);
        let output = command(&dir, "handler.py", "handle").env("FAAS_LISTEN", "[::1]:0").output().unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(why), "{text}");
    }
}

const WSGI: &str = r#"
def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/fail": raise RuntimeError("as it was asked to")
    if path == "/stream":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return (b"part %d\n" % i for i in range(3))
    if path == "/short":
        start_response("200 OK", [("Content-Length", "9")])
        return iter([b"short"])
    if path == "/refused":
        start_response("503 Not Now", [])
        return [b"later"]
    body = environ["wsgi.input"].read()
    told = f"{environ['REQUEST_METHOD']} {environ['QUERY_STRING']} {environ['HTTP_X_A']} {environ['SERVER_NAME']} "
    start_response("201 Created", [("X-B", "c"), ("X-B", "d")])
    return [told.encode(), body]
"#;

const ASGI: &str = r#"
import asyncio
state = []
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        state.append((await receive())["type"])
        await send({"type": "lifespan.startup.complete"})
        await receive()
        print("shut down", flush=True)
        await send({"type": "lifespan.shutdown.complete"})
        return
    async def start(status):
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    path = scope["path"]
    if path == "/fail": raise RuntimeError("as it was asked to")
    if path == "/broken":
        await start(200)
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError("half-way")
    if path == "/stream":
        await start(200)
        for i in range(3):
            await asyncio.sleep(0.001)
            await send({"type": "http.response.body", "body": b"part %d\n" % i, "more_body": True})
        await send({"type": "http.response.body"})
        return
    body = (await receive())["body"]
    await start(200)
    told = f"{scope['method']} {scope['query_string'].decode()} {dict(scope['headers'])[b'x-a'].decode()} {state[0]} "
    await send({"type": "http.response.body", "body": told.encode() + body})
"#;

fn start_app(name: &str, text: &str) -> Runner {
    let dir = directory(name, "main.py", text);
    let mut command = command(&dir, "main.py", "app");
    // Without packages of the machine's, uvicorn among them.
    command.env("PYTHONNOUSERSITE", "1").env("PYTHONPATH", "");
    Runner::start(dir, command)
}

const POST: &str = "POST /a%20b?x=1 HTTP/1.1\r\nHost: hello.faas\r\nX-A: y\r\nContent-Length: 3\r\n\r\nabc";

#[test]
fn a_wsgi_application_is_served_unmodified() {
    let runner = start_app("wsgi", WSGI);
    let mut client = runner.dial();
    let made = ask(&mut client, POST);
    assert_eq!((made.status, made.body.as_slice()), (201, &b"POST x=1 y hello.faas abc"[..]));
    assert_eq!(made.head.matches("X-B: ").count(), 2);
    assert_eq!(ask(&mut client, &get("/stream")).body, b"part 0\npart 1\npart 2\n");
    let failed = ask(&mut client, &get("/fail"));
    assert!(failed.status == 500 && failed.head.contains("X-Request-Id: "), "{}", failed.head);
    let refused = ask(&mut client, &get("/refused"));
    assert!(refused.status == 503 && refused.head.contains("X-Request-Id: "), "{}", refused.head);
    // Half an answer must not look like a whole.
    client.get_mut().write_all(get("/short").as_bytes()).unwrap();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    assert!(rest.ends_with(b"short"));
    runner.until(|s| s.requests() == 5 && s.errors() == 3);
    let ended = runner.drain();
    let log = String::from_utf8(ended.stderr).unwrap();
    assert!(
        ended.status.success() && log.contains("GET /fail failed") && log.contains("shorter than"),
        "{log}"
    );
}

#[test]
fn an_asgi_application_is_served_without_a_server_of_its_own() {
    let runner = start_app("asgi", ASGI);
    let mut client = runner.dial();
    assert_eq!(ask(&mut client, POST).body, b"POST x=1 y lifespan.startup abc");
    assert_eq!(ask(&mut client, &get("/stream")).body, b"part 0\npart 1\npart 2\n");
    let failed = ask(&mut client, &get("/fail"));
    assert!(failed.status == 500 && failed.head.contains("X-Request-Id: "), "{}", failed.head);
    client.get_mut().write_all(get("/broken").as_bytes()).unwrap();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    assert!(rest.ends_with(b"\r\nhalf\r\n"), "{}", String::from_utf8_lossy(&rest));
    runner.until(|s| s.requests() == 4 && s.errors() == 2);
    let ended = runner.drain();
    let log = String::from_utf8(ended.stderr).unwrap();
    assert!(ended.status.success() && log.contains("half-way"), "{log}");
}

fn hold(name: &str) -> (Runner, std::path::PathBuf) {
    // Without the handler: a runner that is held has not even looked for it.
    let dir = directory(name, "README", "");
    let mut command = command(&dir, "handler.py", "handle");
    command.env("FAAS_HOLD", "1");
    let runner = Runner::spawn(dir.clone(), command);
    assert_eq!(runner.heard(), Kind::Held);
    (runner, dir)
}

#[test]
fn a_held_runner_loads_the_code_when_it_is_told_to() {
    let (runner, dir) = hold("held");
    assert!(!runner.status.ready());
    let code =
        "import os\ndef handle(event, context): return os.environ.get('FAAS_HOLD', 'nothing of that')\n";
    std::fs::write(dir.join("handler.py"), code).unwrap();
    runner.say(Kind::Go);
    assert_eq!(runner.heard(), Kind::Ready);
    assert_eq!(ask(&mut runner.dial(), &get("/")).body, b"nothing of that");
    assert!(runner.drain().status.success());
}

#[test]
fn a_held_runner_that_is_not_needed_ends() {
    let (mut runner, _) = hold("not-needed");
    rustix::net::shutdown(&runner.socket, rustix::net::Shutdown::Write).unwrap();
    assert!(runner.child.wait().unwrap().success());
    // Connections are for those that have said that they are ready.
    let (mut runner, _) = hold("too-early");
    let (_client, accepted) = runner.accept();
    runner.hand_over(&[accepted]);
    assert!(!runner.child.wait().unwrap().success());
}
