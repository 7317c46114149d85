//! From function to function.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use faasd_tests::{Bed, eventually, get, program};
use rustix::process::Signal;
use serde_json::json;

use crate::python::{address, ask, deploy, eval};

/// A function at another port than 80 that tells who asks.
const TARGET: &str = "def handle(event, context):\n    return f'to {context.peer}\\n'\n";

fn target(bed: &Bed, more: &str) -> Result<()> {
    let toml = format!("port = 5432\n{more}\n");
    bed.deploy("db", &[("handler.py", TARGET.as_bytes()), ("faas.toml", toml.as_bytes())])?.ok().map(drop)
}

/// Fails unless the target has seen who calls, which goes by the function's own address.
fn comes_from(function: &str, answer: &str) -> Result<()> {
    ensure!(answer.contains(&format!("to fn:{function}\n")), "not from {function}: {answer}");
    Ok(())
}

pub fn python() -> Result<()> {
    let bed = Bed::joined()?;
    target(&bed, "")?;
    deploy(&bed, "caller", "allow = ['db.faas:5432']")?;
    let code = "import urllib.request\n\
        result = [urllib.request.urlopen('http://db.faas:5432/').read().decode() for _ in range(20)]";
    let answers = eval(&bed, "caller", code)?;
    for answer in answers.as_array().context("no list")? {
        comes_from("caller", answer.as_str().unwrap_or_default())?;
    }
    // An event loop, which does not wait in `connect`.
    let code = "
import asyncio
async def one():
    reader, writer = await asyncio.open_connection('db.faas', 5432)
    writer.write(b'GET / HTTP/1.1\\r\\nhost: db\\r\\nconnection: close\\r\\n\\r\\n')
    text = (await reader.read()).decode()
    writer.close()
    return text
async def all():
    return await asyncio.gather(*[one() for _ in range(20)])
result = asyncio.run(all())";
    for answer in eval(&bed, "caller", code)?.as_array().context("no list")? {
        comes_from("caller", answer.as_str().unwrap_or_default())?;
    }
    let view = bed.describe("caller")?;
    ensure!(view["egress"]["inside"] == 40 && view["egress"]["refused"] == 0, "{}", view["egress"]);
    let text = bed.faas(&["describe", "caller"])?.ok()?;
    ensure!(text.contains("db.faas:5432") && text.contains("40 inside"), "{text}");
    bed.finish()
}

pub fn node() -> Result<()> {
    const HANDLER: &str = "
const http = require('node:http');
exports.handle = async () => {
  const plain = await new Promise((resolve, reject) => http.get('http://db.faas:5432/', (answer) => {
    let text = '';
    answer.on('data', (part) => { text += part; }).on('end', () => resolve(text));
  }).on('error', reject));
  return plain + await (await fetch('http://db.faas:5432/')).text();
};
";
    let bed = Bed::joined()?;
    target(&bed, "")?;
    let toml = b"handler = 'handler.js:handle'\nallow = ['db.faas:5432']\n[limits]\nmemory = '256MiB'\n";
    bed.deploy("caller", &[("handler.js", HANDLER.as_bytes()), ("faas.toml", toml)])?.ok()?;
    for _ in 0..5 {
        let answer = bed.client().curl("http://caller.faas/")?;
        ensure!(answer.lines().count() == 2, "{answer}");
        comes_from("caller", &answer)?;
    }
    bed.finish()
}

pub fn script() -> Result<()> {
    const HANDLER: &str =
        "#!/bin/sh\nprintf 'content-type: text/plain\\r\\n\\r\\n'\ncurl -sS http://db.faas:5432/ 2>&1\n";
    let bed = Bed::joined()?;
    target(&bed, "")?;
    let toml = b"handler = 'handler.sh'\nallow = ['db.faas:5432']\n";
    bed.deploy("caller", &[("handler.sh", HANDLER.as_bytes()), ("faas.toml", toml)])?.ok()?;
    for _ in 0..5 {
        comes_from("caller", &bed.client().curl("http://caller.faas/")?)?;
    }
    bed.finish()
}

/// A server that binds its port and connects: both go by the same descriptor.
pub fn go() -> Result<()> {
    const MAIN: &str = r#"package main

import (
	"io"
	"log"
	"net/http"
	"os"
)

func main() {
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		answer, err := http.Get("http://db.faas:5432/")
		if err != nil {
			http.Error(w, err.Error(), 502)
			return
		}
		defer answer.Body.Close()
		io.Copy(w, answer.Body)
	})
	log.Fatal(http.ListenAndServe(":"+os.Getenv("PORT"), nil))
}
"#;
    let bed = Bed::joined()?;
    target(&bed, "")?;
    let directory = bed.path("go");
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("main.go"), MAIN)?;
    fs::write(directory.join("go.mod"), "module caller\n\ngo 1.19\n")?;
    let mut go = Command::new("go");
    go.args(["build", "-o", "server", "."]).current_dir(&directory);
    go.env("CGO_ENABLED", "0").env("GOTOOLCHAIN", "local").env("GOCACHE", directory.with_extension("cache"));
    let built = go.output().context("go: run `cargo xtask setup --for test`")?;
    ensure!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let toml = b"command = ['./server']\nallow = ['db.faas:5432']\n";
    let files = [("server", &*fs::read(directory.join("server"))?), ("faas.toml", toml)];
    bed.deploy("caller", &files)?.ok()?;
    for _ in 0..5 {
        comes_from("caller", &bed.client().curl("http://caller.faas/")?)?;
    }
    bed.finish()
}

pub fn rust() -> Result<()> {
    let bed = Bed::joined()?;
    target(&bed, "")?;
    bed.deploy_program("caller", &program("examples/caller"), "allow = ['db.faas:5432']")?.ok()?;
    for _ in 0..5 {
        comes_from("caller", &bed.client().curl("http://caller.faas/db.faas:5432")?)?;
    }
    let refused = bed.client().run(&["curl", "-sS", "http://caller.faas/db.faas:80"])?.ok()?;
    ensure!(refused.contains("unreachable"), "{refused}");
    bed.finish()
}

pub fn example() -> Result<()> {
    let bed = Bed::joined()?;
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/handler-calls");
    bed.deploy_hello("hello", "")?;
    bed.faas(&["deploy", "caller", &example.display().to_string()])?.ok()?;
    let answer = bed.client().curl("http://caller.faas/")?;
    ensure!(answer.contains("hello from faasd"), "{answer}");
    bed.finish()
}

pub fn refused() -> Result<()> {
    let bed = Bed::joined()?;
    target(&bed, "")?;
    bed.deploy_hello("other", "")?;
    deploy(&bed, "caller", "allow = ['db.faas:5432']")?;
    deploy(&bed, "alone", "")?;
    let (db, other) = (address("db")?, address("other")?);
    let granted = ask(&bed, "caller", &format!("tried('{db}', 5432)"))?;
    ensure!(granted == "done", "{granted}");
    for (host, port) in [(db, 80), (other, 80)] {
        let refused = ask(&bed, "caller", &format!("tried('{host}', {port})"))?;
        ensure!(refused == "ENETUNREACH", "[{host}]:{port}: {refused}");
    }
    let alone = ask(&bed, "alone", &format!("tried('{db}', 5432)"))?;
    ensure!(alone == "ENETUNREACH", "{alone}");
    // What is within the container stays what it is.
    let within = eval(
        &bed,
        "caller",
        "
inner = socket.create_server(('::1', 0), family=socket.AF_INET6)
path = '/tmp/within'
unix = socket.socket(socket.AF_UNIX); unix.bind(path); unix.listen()
inner4 = socket.create_server(('127.0.0.1', 0))
client = socket.socket(socket.AF_UNIX); client.connect(path)
result = [tried('::1', inner.getsockname()[1]), tried('127.0.0.1', inner4.getsockname()[1], socket.AF_INET),
          tried('::1', 1), tried('::1', 9, kind=socket.SOCK_DGRAM)]",
    )?;
    ensure!(within == json!(["done", "done", "ECONNREFUSED", "done"]), "{within}");
    // A name that was not granted is none, at once.
    let began = Instant::now();
    let unknown = eval(
        &bed,
        "caller",
        "
try:
    socket.getaddrinfo('other.faas', 80)
except socket.gaierror as error:
    result = 'unknown'",
    )?;
    ensure!(unknown == "unknown" && began.elapsed() < Duration::from_secs(2), "{unknown}");
    let egress = &bed.describe("caller")?["egress"];
    ensure!(egress["refused"] == 2 && egress["inside"] == 1, "{egress}");
    ensure!(egress["last_refused"] == format!("[{other}]:80"), "{egress}");
    let metrics =
        bed.client().curl(&format!("http://[{}]:9464/metrics", faasd::core::address::VPN_PREFIX.server()))?;
    let line = "faasd_egress_connections_total{function=\"caller\",outcome=\"refused\"} 2";
    ensure!(metrics.contains(line), "no {line} in\n{metrics}");
    ensure!(bed.log().contains("not granted"), "nothing is logged");
    bed.finish()
}

/// Who calls is a subject like any other: the function that is called may be closed to it, also while they are connected.
pub fn policy() -> Result<()> {
    let bed = Bed::joined()?;
    target(&bed, "")?;
    for caller in ["caller", "friend"] {
        deploy(&bed, caller, "allow = ['db.faas:5432']")?;
    }
    let tried = |caller: &str| ask(&bed, caller, "tried(socket.getaddrinfo('db.faas', 5432)[0][4][0], 5432)");
    let code = "kept = socket.create_connection(('db.faas', 5432)); kept.settimeout(10)";
    eval(&bed, "caller", code)?;
    bed.faas(&["deny", "fn:caller", "db"])?.ok()?;
    let cut = "
try: result = kept.recv(1).decode() or 'closed'
except OSError as error: result = name(error.errno)";
    let cut = eval(&bed, "caller", cut)?;
    ensure!(cut == "ECONNABORTED" || cut == "ECONNRESET", "{cut}");
    let outcomes = [tried("caller")?, tried("friend")?];
    ensure!(outcomes == ["ECONNREFUSED", "done"], "{outcomes:?}");
    bed.faas(&["policy", "forget", "fn:caller", "db"])?.ok()?;
    bed.faas(&["policy", "default", "closed", "db"])?.ok()?;
    bed.faas(&["allow", "fn:caller", "db"])?.ok()?;
    let outcomes = [tried("caller")?, tried("friend")?];
    ensure!(outcomes == ["done", "ECONNREFUSED"], "{outcomes:?}");
    let egress = &bed.describe("friend")?["egress"];
    ensure!(egress["inside"] == 1 && egress["failed"] == 1, "{egress}");
    bed.finish()
}

pub fn cold() -> Result<()> {
    let bed = Bed::joined()?;
    target(&bed, "[scale]\nmin = 0\nprepared = 0\nidle = '1s'")?;
    eventually("it is cold", || bed.describe("db").is_ok_and(|db| db["state"] == "cold"))?;
    deploy(&bed, "caller", "allow = ['db.faas:5432']")?;
    let code =
        "import urllib.request\nresult = urllib.request.urlopen('http://db.faas:5432/').read().decode()";
    let answer = eval(&bed, "caller", code)?;
    comes_from("caller", answer.as_str().unwrap_or_default())?;
    ensure!(bed.describe("db")?["state"] == "warm");
    bed.finish()
}

/// Each call waits for the one that it makes itself.
pub fn itself() -> Result<()> {
    const HANDLER: &str = "
import http.client
def handle(event, context):
    depth = int(event.path[1:] or 0)
    if depth == 0:
        return 'bottom'
    connection = http.client.HTTPConnection('caller.faas', 80, timeout=20)
    connection.request('GET', f'/{depth - 1}')
    return connection.getresponse().read().decode() + f' {depth}'
";
    let bed = Bed::joined()?;
    bed.deploy_hello("other", "")?;
    let toml = b"allow = ['caller.faas']\n[scale]\nmin = 0\nmax = 4\nconcurrency = 2\n";
    bed.deploy("caller", &[("handler.py", HANDLER.as_bytes()), ("faas.toml", toml)])?.ok()?;
    let answer = bed.client().curl("http://caller.faas/5")?;
    ensure!(answer == "bottom 1 2 3 4 5", "{answer}");
    ensure!(bed.client().curl("http://other.faas/")? == "hello from faasd\n");
    bed.finish()
}

pub fn options() -> Result<()> {
    let bed = Bed::joined()?;
    target(&bed, "")?;
    deploy(&bed, "caller", "allow = ['db.faas:5432']")?;
    let code = "
sock = socket.socket(socket.AF_INET6)
sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 33)
sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 4444)
before = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 30000)
import fcntl
# Half of Python's sockets are closed on exec, this one is not.
os.set_inheritable(sock.fileno(), True)
number = sock.fileno()
sock.connect(socket.getaddrinfo('db.faas', 5432)[0][4])
options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY), (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
           (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE), (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
           (socket.SOL_SOCKET, socket.SO_SNDBUF), (socket.SOL_SOCKET, socket.SO_MARK)]
result = [sock.getsockopt(*option) for option in options]
result += [sock.fileno() == number, os.get_inheritable(number), os.get_blocking(number)]
again = socket.socket(socket.AF_INET6)
again.setblocking(False)
code = again.connect_ex(('db.faas', 5432))
result += [code in (0, errno.EINPROGRESS), os.get_inheritable(again.fileno()), os.get_blocking(again.fileno())]
import select
select.select([], [again], [], 5)
result += [again.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), name(again.connect_ex(('db.faas', 5432)))]";
    let options = eval(&bed, "caller", code)?;
    let expected = json!([1, 1, 33, 4444, 60000, 0, true, true, true, true, false, false, 0, "EISCONN"]);
    ensure!(options == expected, "{options}");
    bed.finish()
}

pub fn daemon_killed() -> Result<()> {
    let mut bed = Bed::joined()?;
    target(&bed, "")?;
    deploy(&bed, "caller", "allow = ['db.faas:5432']")?;
    // A connection that is there already, by which the function is told to connect.
    let mut kept = bed.client().connect(address("caller")?, 80)?;
    get(&mut kept, "/")?;
    let code =
        "import urllib.request\nresult = urllib.request.urlopen('http://db.faas:5432/').read().decode()";
    bed.end_daemon(Signal::KILL)?;
    let length = code.len();
    write!(kept, "POST / HTTP/1.1\r\nhost: caller\r\ncontent-length: {length}\r\n\r\n{code}")?;
    eventually("the function waits in connect", || waits_in_connect(&bed).unwrap_or(false))?;
    bed.serve()?;
    let (status, body) = answer_of(&mut kept)?;
    ensure!(status == 200, "{status}");
    let answer: serde_json::Value = serde_json::from_str(&body)?;
    comes_from("caller", answer.as_str().unwrap_or_default())?;
    bed.finish()
}

/// Whether a process of the bed's containers waits in `connect`.
pub fn waits_in_connect(bed: &Bed) -> Result<bool> {
    let group = Path::new("/sys/fs/cgroup");
    let places = ["pids", "memory", "unified", ""].map(|hierarchy| group.join(hierarchy).join(bed.name()));
    for entry in places.iter().filter_map(|place| fs::read_dir(place).ok()).flatten().flatten() {
        let processes = fs::read_to_string(entry.path().join("cgroup.procs")).unwrap_or_default();
        if processes.lines().filter_map(|pid| pid.parse().ok()).any(faasd::sys::notify::waits_in_call) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The answer to a request that was sent.
pub fn answer_of(stream: &mut std::net::TcpStream) -> Result<(u16, String)> {
    use std::io::Read;
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        text.push(byte[0]);
    }
    let head = String::from_utf8(text)?.to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).context("no status")?;
    let length = head.lines().find_map(|l| l.strip_prefix("content-length:")?.trim().parse().ok());
    let mut body = vec![0; length.context("no length")?];
    stream.read_exact(&mut body)?;
    Ok((status, String::from_utf8(body)?))
}
