//! The runner for Python handlers, driven over real sockets from the daemon's end of the hand-off protocol.
#![expect(clippy::unwrap_used, reason = "a helper fails as its test does")]

use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use faasd_sdk::StatusPage;
use faasd_sdk::wire::{self, Kind, Record};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

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

struct Runner {
    child: Child,
    socket: OwnedFd,
    status: StatusPage,
    listener: TcpListener,
    dir: PathBuf,
}

fn command(dir: &Path) -> Command {
    let runner = concat!(env!("CARGO_MANIFEST_DIR"), "/../faasd/src/runtime/runners/python.py");
    // The system's own, as it is in a container, where there is one.
    let python = if Path::new("/usr/bin/python3").exists() { "/usr/bin/python3" } else { "python3" };
    let mut command = Command::new(python);
    command.args(["-B", runner, "handler.py", "handle"]).current_dir(dir).stderr(Stdio::piped());
    command
}

fn directory(name: &str, handler: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("handler.py"), handler).unwrap();
    dir
}

fn pair() -> (OwnedFd, OwnedFd, StatusPage, OwnedFd) {
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .unwrap();
    rustix::net::sockopt::set_socket_timeout(
        &ours,
        rustix::net::sockopt::Timeout::Recv,
        Some(Duration::from_secs(30)),
    )
    .unwrap();
    let (status, page) = StatusPage::create().unwrap();
    (ours, theirs, status, page)
}

impl Runner {
    fn start(name: &str) -> Self {
        let dir = directory(name, HANDLER);
        let (socket, theirs, status, page) = pair();
        let mut command = command(&dir);
        command
            .fd_mappings(vec![
                FdMapping { parent_fd: theirs, child_fd: wire::SOCKET_FD },
                FdMapping { parent_fd: page, child_fd: wire::STATUS_FD },
            ])
            .unwrap();
        let child = command.spawn().unwrap();
        drop(command);
        let runner = Self { child, socket, status, listener: TcpListener::bind("[::1]:0").unwrap(), dir };
        assert_eq!(runner.heard(), Kind::Ready);
        assert!(runner.status.ready());
        runner
    }

    fn heard(&self) -> Kind {
        let mut bytes = [0; 64];
        let (_, length) = rustix::net::recv(&self.socket, &mut bytes, RecvFlags::empty()).unwrap();
        wire::Message::parse(&bytes[..length]).unwrap().kind
    }

    fn accept(&self) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        (client, self.listener.accept().unwrap().0)
    }

    fn hand_over(&self, accepted: &[TcpStream]) {
        let mut bytes = wire::header(Kind::Connections, accepted.len() as u16).to_vec();
        accepted.iter().for_each(|_| bytes.extend(Record::default().encode()));
        let descriptors: Vec<_> = accepted.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(wire::CONNECTIONS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        self.status.add_sent(accepted.len() as u64);
        rustix::net::sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::empty())
            .unwrap();
    }

    fn dial(&self) -> BufReader<TcpStream> {
        let (client, accepted) = self.accept();
        self.hand_over(&[accepted]);
        BufReader::new(client)
    }

    fn drain(mut self) -> Output {
        rustix::net::send(&self.socket, &wire::header(Kind::Drain, 0), SendFlags::empty()).unwrap();
        assert_eq!(self.heard(), Kind::Drained);
        let mut stderr = Vec::new();
        self.child.stderr.take().unwrap().read_to_end(&mut stderr).unwrap();
        let status = self.child.wait().unwrap();
        assert_eq!(self.status.in_flight(), 0);
        Output { status, stdout: Vec::new(), stderr }
    }

    /// Waits until the counters say so: the runner counts after it has answered.
    fn until(&self, what: impl Fn(&StatusPage) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !what(&self.status) {
            assert!(Instant::now() < deadline, "{:?}", self.status);
            std::thread::yield_now();
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

fn answer(client: &mut BufReader<TcpStream>, head_only: bool) -> Answer {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(client.read_line(&mut head).unwrap(), 0, "the connection ended after {head:?}");
    }
    let lower = head.to_ascii_lowercase();
    let field = |name: &str| lower.lines().find_map(|l| Some(l.strip_prefix(name)?.trim().to_owned()));
    let mut body = Vec::new();
    if field("transfer-encoding:").is_some() {
        loop {
            let mut line = String::new();
            client.read_line(&mut line).unwrap();
            let size = usize::from_str_radix(line.trim(), 16).unwrap();
            let mut chunk = vec![0; size + 2];
            client.read_exact(&mut chunk).unwrap();
            if size == 0 {
                break;
            }
            body.extend(&chunk[..size]);
        }
    } else if let Some(length) = field("content-length:").filter(|_| !head_only) {
        body = vec![0; length.parse().unwrap()];
        client.read_exact(&mut body).unwrap();
    }
    Answer { status: head[9..12].parse().unwrap(), head, body }
}

fn ask(client: &mut BufReader<TcpStream>, request: &str) -> Answer {
    client.get_mut().write_all(request.as_bytes()).unwrap();
    answer(client, request.starts_with("HEAD"))
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
}

#[test]
fn one_connection_carries_every_kind_of_request() {
    let runner = Runner::start("kinds");
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
    let runner = Runner::start("pipelined");
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
    let runner = Runner::start("exception");
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
    let runner = Runner::start("refused");
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
    let runner = Runner::start("idle");
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
    let runner = Runner::start("drain");
    let mut slow = runner.dial();
    slow.get_mut().write_all(get("/slow").as_bytes()).unwrap();
    let mut fresh = runner.dial();
    let mut idle = runner.dial();
    ask(&mut idle, &get("/"));
    let drained = std::thread::scope(|scope| {
        let drained = scope.spawn(|| runner.drain());
        // Closed by the drain, which has begun thus; the fresh connection still has its first request.
        assert_eq!(idle.read(&mut [0]).unwrap(), 0);
        let late = ask(&mut fresh, &get("/"));
        assert!(late.body == b"hello\n" && late.head.contains("Connection: close"));
        assert_eq!(answer(&mut slow, false).body, b"slept\n");
        drained.join().unwrap()
    });
    assert!(drained.status.success());
}

#[test]
fn sigterm_is_a_drain() {
    let mut runner = Runner::start("sigterm");
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
        ("async", "async def handle(event, context): pass\n", "async"),
    ] {
        let dir = directory(name, handler);
        let output = command(&dir).env("FAAS_LISTEN", "[::1]:0").output().unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(why), "{text}");
    }
}
