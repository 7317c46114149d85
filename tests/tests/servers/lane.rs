//! The warm lane itself, by simple servers.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use faasd_tests::{Bed, Load, address, eventually, get, only, ready, signal, until};
use rustix::process::Signal;

/// A server of Python's own that tells its name and, when it is to end, answers what it has accepted.
const SERVER: &str = "
import os, signal, socket, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    wbufsize = -1 # An answer is one segment: nothing of it waits for what says that the first part has come.
    def do_GET(self):
        body = NAME.encode()
        self.send_response(200)
        self.send_header('content-length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass

class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    request_queue_size = 1024
    daemon_threads = False

NAME = os.environ.get('NAME', 'plain')
";

/// Its start by the `port` contract.
const BINDS: &str = "
server = Server((os.environ['HOST'], int(os.environ['PORT'])), Handler)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever()
server.server_close()
";

/// Its start by the `listen-fds` contract.
const INHERITS: &str = "
assert os.environ['LISTEN_FDS'] == '1' and os.environ['LISTEN_PID'] == str(os.getpid())
assert os.environ['LISTEN_FDNAMES'] == 'faas'
server = Server(('::', 0), Handler, bind_and_activate=False)
server.socket = socket.socket(fileno=3)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever()
server.server_close()
";

fn deploy(bed: &Bed, name: &str, code: &str, more: &str) -> Result<()> {
    let toml = format!("command = ['/usr/bin/python3', '-u', 'server.py']\n{more}\n");
    let code = format!("{SERVER}{code}");
    bed.deploy(name, &[("server.py", code.as_bytes()), ("faas.toml", toml.as_bytes())])?.ok().map(drop)
}

/// The next answer on a connection.
fn ask(stream: &mut TcpStream) -> Result<String> {
    let (status, body) = get(stream, "/")?;
    ensure!(status == 200, "status {status}");
    Ok(String::from_utf8(body)?)
}

pub fn answers() -> Result<()> {
    let bed = Bed::joined()?;
    deploy(&bed, "plain", BINDS, "")?;
    for _ in 0..20 {
        ensure!(bed.client().curl("http://plain.faas/")? == "plain");
    }
    let connections = bed.describe("plain")?["connections"].clone();
    ensure!(connections["steered"] == 20 && connections["warm"] == 20, "{connections}");
    ensure!(connections["accepted"] == 0, "{connections}");
    bed.finish()
}

pub fn inherits() -> Result<()> {
    let bed = Bed::joined()?;
    deploy(&bed, "heir", INHERITS, "contract = 'listen-fds'")?;
    for _ in 0..20 {
        ensure!(bed.client().curl("http://heir.faas/")? == "plain");
    }
    ensure!(bed.describe("heir")?["connections"]["warm"] == 20);
    // From nothing, too: what comes while it starts waits at its own listener or at the function's.
    signal(only(&bed.describe("heir")?)?, Signal::KILL)?;
    ensure!(bed.client().curl("http://heir.faas/")? == "plain");
    bed.finish()
}

pub fn cold() -> Result<()> {
    let bed = Bed::joined()?;
    deploy(&bed, "sleeper", BINDS, "[scale]\nmin = 0")?;
    let address = address(&bed.describe("sleeper")?)?;
    for connections in [1, 16] {
        signal(only(&bed.describe("sleeper")?)?, Signal::KILL)?;
        let is_cold = |f: &serde_json::Value| faasd_tests::started(f) == 0;
        until(&bed, "sleeper", "its instance is gone", is_cold)?;
        let streams: Result<Vec<_>> =
            (0..connections).map(|_| Ok(bed.client().connect(address, 80)?)).collect();
        for stream in &mut streams? {
            ensure!(ask(stream)? == "plain");
        }
        ensure!(ask(&mut bed.client().connect(address, 80)?)? == "plain");
        let warm = bed.describe("sleeper")?;
        only(&warm)?;
        ensure!(warm["state"] == "warm" && warm["connections"]["refused"] == 0, "{warm}");
    }
    bed.finish()
}

pub fn daemon_killed() -> Result<()> {
    let mut bed = Bed::joined()?;
    deploy(&bed, "plain", BINDS, "[scale]\nmin = 2")?;
    let before = until(&bed, "plain", "two instances", |f| ready(f).len() == 2)?;
    let address = address(&before)?;
    let kept = Load::start(&bed.client(), address, 80, 8)?;
    let new = Load::reconnecting(&bed.client(), address, 80, 2)?;
    for round in 0..3 {
        kept.more(200)?;
        new.more(20)?;
        bed.end_daemon(Signal::KILL)?;
        // Nobody is there but the kernel and the servers, and new connections are answered all the same.
        new.more(50).with_context(|| format!("round {round}, without a daemon"))?;
        kept.more(200)?;
        bed.serve()?;
        new.more(20).with_context(|| format!("round {round}, with the next daemon"))?;
        let after = bed.describe("plain")?;
        ensure!(pids(&after) == pids(&before), "not adopted: {after}");
    }
    kept.finish()?;
    new.finish()?;
    // An instance that dies while nobody watches: the kernel takes its seat away.
    bed.end_daemon(Signal::KILL)?;
    let pids = ready(&before);
    signal(pids[0], Signal::KILL)?;
    eventually("the dead instance is gone", || !Path::new(&format!("/proc/{}/fd/0", pids[0])).exists())?;
    let new = Load::reconnecting(&bed.client(), address, 80, 2)?;
    new.more(100).context("by the instance that is left")?;
    bed.serve()?;
    until(&bed, "plain", "it is replaced", |f| ready(f).len() == 2 && !ready(f).contains(&pids[0]))?;
    new.more(100)?;
    new.finish()?;
    bed.finish()
}

pub fn least_busy() -> Result<()> {
    const KEPT: usize = 12;
    let mut bed = Bed::joined()?;
    deploy(&bed, "plain", BINDS, "[scale]\nmin = 3\nmax = 3")?;
    let before = until(&bed, "plain", "three instances", |f| ready(f).len() == 3)?;
    let address = address(&before)?;
    let counts = |function: &serde_json::Value| {
        let instances = function["instances"].as_array().cloned().unwrap_or_default();
        let mut counts: Vec<_> = instances.iter().filter_map(|i| i["in_flight"].as_u64()).collect();
        counts.sort_unstable();
        counts
    };
    let connect = |bed: &Bed, count: usize| -> Result<Vec<TcpStream>> {
        let connect = |_| {
            let mut stream = bed.client().connect(address, 80)?;
            ask(&mut stream)?;
            Ok(stream)
        };
        (0..count).map(connect).collect()
    };
    // Evenly, whatever was chosen before; and no less so by the kernel alone.
    let mut kept = connect(&bed, KEPT)?;
    until(&bed, "plain", "each has as many", |f| counts(f) == [4; 3])?;
    bed.end_daemon(Signal::KILL)?;
    kept.extend(connect(&bed, KEPT)?);
    bed.serve()?;
    until(&bed, "plain", "each has as many still", |f| counts(f) == [8; 3])?;
    // The connections of one that dies end with it, and its successor is given all until it has as many as the others.
    let victim = ready(&before)[0];
    signal(victim, Signal::KILL)?;
    until(&bed, "plain", "it is replaced", |f| ready(f).len() == 3 && !ready(f).contains(&victim))?;
    until(&bed, "plain", "its connections are gone", |f| counts(f) == [0, 8, 8])?;
    let new = connect(&bed, 8)?;
    until(&bed, "plain", "it has caught up", |f| counts(f) == [8; 3])?;
    drop((kept, new));
    until(&bed, "plain", "none is left", |f| counts(f) == [0; 3])?;
    bed.finish()
}

fn pids(function: &serde_json::Value) -> BTreeSet<u32> {
    ready(function).into_iter().collect()
}

pub fn moved() -> Result<()> {
    let bed = Bed::joined()?;
    deploy(&bed, "plain", BINDS, "[scale]\nmin = 2")?;
    let function = until(&bed, "plain", "two instances", |f| ready(f).len() == 2)?;
    let address = address(&function)?;
    // They go on taking connections, that is the kernel does, and answer none.
    for pid in ready(&function) {
        signal(pid, Signal::STOP)?;
    }
    let mut streams = (0..40)
        .map(|_| {
            let mut stream = bed.client().connect(address, 80)?;
            write!(stream, "GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
            Ok(stream)
        })
        .collect::<Result<Vec<_>>>()?;
    let pids = ready(&function);
    // One after the other: what waits at the first goes to the second or to the function's own queue, and from there
    // to its successor; and nothing is asked anew.
    signal(pids[0], Signal::KILL)?;
    until(&bed, "plain", "it is replaced", |f| ready(f).len() == 2 && !ready(f).contains(&pids[0]))?;
    signal(pids[1], Signal::KILL)?;
    for (n, stream) in streams.iter_mut().enumerate() {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).with_context(|| format!("connection {n}"))?;
        ensure!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with("plain"),
            "connection {n}: {answer:?}"
        );
    }
    bed.finish()
}

pub fn rolling() -> Result<()> {
    let bed = Bed::joined()?;
    deploy(&bed, "change", BINDS, "env = { NAME = '0' }")?;
    let address = address(&bed.describe("change")?)?;
    let load = Load::reconnecting(&bed.client(), address, 80, 4)?;
    for round in 1..=3 {
        load.more(50)?;
        deploy(&bed, "change", BINDS, &format!("env = {{ NAME = '{round}' }}"))?;
        ensure!(bed.client().curl("http://change.faas/")? == round.to_string());
        until(&bed, "change", "the old one is gone", |f| only(f).is_ok())?;
    }
    load.finish()?;
    bed.finish()
}

pub fn contracts() -> Result<()> {
    let bed = Bed::joined()?;
    let handler: &[u8] = b"def handle(event, context):\n    return 'handler'\n";
    bed.deploy("change", &[("handler.py", handler)])?.ok()?;
    let address = address(&bed.describe("change")?)?;
    let load = Load::reconnecting(&bed.client(), address, 80, 4)?;
    for _ in 0..2 {
        load.more(50)?;
        deploy(&bed, "change", BINDS, "")?;
        ensure!(bed.client().curl("http://change.faas/")? == "plain");
        load.more(50)?;
        deploy(&bed, "change", INHERITS, "contract = 'listen-fds'")?;
        load.more(50)?;
        bed.deploy("change", &[("handler.py", handler), ("faas.toml", b"")])?.ok()?;
        ensure!(bed.client().curl("http://change.faas/")? == "handler");
    }
    load.finish()?;
    bed.finish()
}

/// Two processes that bind the port each, as servers do that share it by SO_REUSEPORT, and serve one connection at a
/// time.
const WORKERS: &str = "
from http.server import HTTPServer
class Single(HTTPServer):
    address_family = socket.AF_INET6
def work():
    server = Single(('::', int(os.environ['PORT'])), Handler, bind_and_activate=False)
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    server.server_bind()
    server.server_activate()
    server.serve_forever()
for NAME in ('first', 'second'):
    if os.fork() == 0:
        work()
while True:
    os.wait()
";

pub fn workers() -> Result<()> {
    let mut bed = Bed::joined()?;
    deploy(&bed, "workers", WORKERS, "")?;
    let address = address(&bed.describe("workers")?)?;
    // A worker that has a connection to serve leaves the next one to the other.
    let both = |bed: &Bed| {
        let (mut one, mut two) = (bed.client().connect(address, 80)?, bed.client().connect(address, 80)?);
        let answers = (ask(&mut one)?, ask(&mut two)?);
        ensure!(answers.0 != answers.1, "{answers:?}");
        Ok(())
    };
    both(&bed)?;
    // A later daemon knows them as well.
    bed.end_daemon(Signal::KILL)?;
    both(&bed)?;
    bed.serve()?;
    both(&bed)?;
    bed.finish()
}

/// A server that has sockets of all other kinds besides, and uses them.
const ELSEWHERE: &str = "
port = int(os.environ['PORT'])
unix = socket.socket(socket.AF_UNIX)
unix.bind('/tmp/socket')
unix.listen()
client = socket.socket(socket.AF_UNIX)
client.connect('/tmp/socket')
other = socket.create_server(('::1', 9000), family=socket.AF_INET6)
own = socket.create_connection(('::1', 9000))
four = socket.create_server(('127.0.0.1', 9001))
socket.create_connection(('127.0.0.1', 9001))
datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
datagrams.bind(('::', port))
datagrams.sendto(b'x', ('::1', port))
assert datagrams.recv(1) == b'x'
accepted, address = other.accept()
assert address[0] == '::1' and other.getsockname()[1] == 9000
";

pub fn elsewhere() -> Result<()> {
    let bed = Bed::joined()?;
    let code = format!("{ELSEWHERE}{BINDS}");
    deploy(&bed, "many", &code, "listen_port = 9999")?;
    ensure!(bed.client().curl("http://many.faas/")? == "plain");
    bed.finish()
}

pub fn ipv4() -> Result<()> {
    let mut bed = Bed::joined()?;
    let code = BINDS.replace("os.environ['HOST']", "'127.0.0.1'");
    let four = format!("Server.address_family = socket.AF_INET\n{code}");
    deploy(&bed, "four", &four, "")?;
    let before = bed.describe("four")?;
    ensure!(before["instances"][0]["relayed"] == true, "{before}");
    let told = bed.faas(&["describe", "four"])?.ok()?;
    ensure!(told.contains("copies every byte") && told.contains("[::]"), "{told}");
    let (address, relay) = (address(&before)?, relays(only(&before)?)?);
    ensure!(relay.len() == 1, "{relay:?}");
    // With nothing to do it does nothing.
    eventually("the relay sleeps", || {
        let switches = || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", relay[0])).unwrap_or_default();
            status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).map(str::to_owned)
        };
        let before = switches();
        before.is_some() && bed.describe("four").is_ok() && switches() == before
    })?;
    let kept = Load::start(&bed.client(), address, 80, 4)?;
    let new = Load::reconnecting(&bed.client(), address, 80, 2)?;
    kept.more(100)?;
    new.more(50)?;
    // The relay needs no daemon, and the next daemon knows it.
    bed.end_daemon(Signal::KILL)?;
    kept.more(100).context("without a daemon")?;
    new.more(50).context("without a daemon")?;
    bed.serve()?;
    let after = bed.describe("four")?;
    ensure!(only(&after)? == only(&before)? && after["instances"][0]["relayed"] == true, "{after}");
    kept.more(50)?;
    kept.finish()?;
    // Its successor binds both, the other first: there is nothing to relay.
    let both = format!("four = socket.create_server(('0.0.0.0', int(os.environ['PORT'])))\n{BINDS}");
    deploy(&bed, "four", &both, "")?;
    new.more(50)?;
    new.finish()?;
    let after = until(&bed, "four", "the old one is gone", |f| only(f).is_ok())?;
    ensure!(after["instances"][0]["relayed"].is_null(), "{after}");
    eventually("the relay is gone", || !Path::new(&format!("/proc/{}", relay[0])).exists())?;
    bed.finish()
}

/// The relays that serve a container.
fn relays(container: u32) -> Result<Vec<u32>> {
    let argument = format!("--container\0{container}\0");
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else { continue };
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        if line.starts_with("faasd-relay\0") && line.ends_with(&argument) {
            found.push(pid);
        }
    }
    Ok(found)
}

pub fn never() -> Result<()> {
    let bed = Bed::joined()?;
    let toml = "command = ['/usr/bin/sleep', '60']\n[deadlines]\nstart = '1s'\n";
    let why = bed.deploy("never", &[("faas.toml", toml.as_bytes())])?.failed()?;
    for part in ["never", "was not ready", "8080"] {
        ensure!(why.contains(part), "it does not say '{part}': {why}");
    }
    // A mistake in the port is the likeliest of all.
    let code = format!("{SERVER}{}", BINDS.replace("int(os.environ['PORT'])", "3000"));
    let toml = "command = ['/usr/bin/python3', 'server.py']\n[deadlines]\nstart = '2s'\n";
    let why =
        bed.deploy("never", &[("server.py", code.as_bytes()), ("faas.toml", toml.as_bytes())])?.failed()?;
    ensure!(why.contains("listen_port") && why.contains("3000"), "{why}");
    bed.finish()
}
