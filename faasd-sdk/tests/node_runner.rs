//! The runner for node handlers, with a real listener as descriptor 3 and the control socket as descriptor 4.
#![expect(clippy::unwrap_used, reason = "a helper fails as its test does")]

mod runner;

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use faasd_sdk::wire::{self, Kind};
use runner::{answer, ask, directory, get, pair};
use rustix::net::{RecvFlags, SendFlags};
use rustix::process::{Pid, Signal};

const HANDLER: &str = r#"
import { setTimeout as sleep } from 'node:timers/promises';
export async function handle(event, context) {
  switch (event.path) {
    case '/': return 'hello\n';
    case '/echo': return event.body;
    case '/json': return { query: event.query, x: event.headers['x-a'], got: event.json(), function: context.function };
    case '/none': return;
    case '/made': return new Response('made\n', { status: 201, headers: { 'X-A': 'b' } });
    case '/fail': throw new Error('as it was asked to');
    case '/later': setTimeout(() => { throw new Error('later on'); }, 1); await sleep(60_000); return;
    case '/rejected': Promise.reject(new Error('rejected')); await sleep(60_000); return;
    case '/stream': return (function* () { for (let i = 0; i < 3; i++) yield `part ${i}\n`; })();
    case '/broken': return (async function* () { yield 'half'; await sleep(1); throw new Error('half-way'); })();
    case '/slow': await sleep(200); return 'slept\n';
  }
  return new Response('nothing\n', { status: 404 });
}
"#;

struct Node {
    child: Child,
    control: OwnedFd,
    address: SocketAddr,
    dir: PathBuf,
}

fn command(dir: &Path, file: &str) -> Command {
    let mut command = Command::new(runner::program("node"));
    command.args([&runner::runner("node.cjs"), file]).current_dir(dir).stderr(Stdio::piped());
    command.env("FAAS_FUNCTION", "it");
    command
}

impl Node {
    fn start(name: &str, file: &str, text: &str) -> Self {
        let dir = directory(name, file, text);
        let node = Self::spawn(command(&dir, file), dir);
        assert_eq!(node.heard(), Kind::Ready);
        node
    }

    /// Starts one that says by itself how far it is.
    fn spawn(mut command: Command, dir: PathBuf) -> Self {
        let listener = TcpListener::bind("[::1]:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (control, theirs, ..) = pair();
        command.env("LISTEN_FDS", "1");
        command
            .fd_mappings(vec![
                FdMapping { parent_fd: listener.into(), child_fd: 3 },
                FdMapping { parent_fd: theirs, child_fd: 4 },
            ])
            .unwrap();
        let child = command.spawn().unwrap();
        drop(command);
        Self { child, control, address, dir }
    }

    fn heard(&self) -> Kind {
        let mut bytes = [0; 64];
        let (_, length) = rustix::net::recv(&self.control, &mut bytes, RecvFlags::empty()).unwrap();
        wire::Message::parse(&bytes[..length]).unwrap().kind
    }

    fn dial(&self) -> BufReader<TcpStream> {
        let client = TcpStream::connect(self.address).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        BufReader::new(client)
    }

    fn terminate(&self) {
        rustix::process::kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
    }

    /// Waits for the end; returns the log.
    fn ended(mut self) -> String {
        assert_eq!(self.heard(), Kind::Drained);
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        assert!(self.child.wait().unwrap().success(), "{log}");
        log
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[test]
fn one_connection_carries_every_kind_of_request() {
    let node = Node::start("node-kinds", "handler.mjs", HANDLER);
    let mut client = node.dial();
    assert_eq!(ask(&mut client, &get("/")).body, b"hello\n");
    assert_eq!(ask(&mut client, &get("/none")).status, 204);
    let made = ask(&mut client, &get("/made"));
    assert!(
        made.status == 201 && made.head.contains("x-a: b\r\n") && made.body == b"made\n",
        "{}",
        made.head
    );
    assert_eq!(ask(&mut client, &get("/stream")).body, b"part 0\npart 1\npart 2\n");
    let json = ask(
        &mut client,
        "PUT /json?a=%20b HTTP/1.1\r\nHost: x\r\nX-A: c\r\nContent-Length: 10\r\n\r\n{\"d\": [1]}",
    );
    assert_eq!(
        json.body,
        b"{\"query\":{\"a\":\" b\"},\"x\":\"c\",\"got\":{\"d\":[1]},\"function\":\"it\"}\n"
    );
    let bad = ask(&mut client, "PUT /json HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n{");
    assert_eq!(bad.status, 400);
    let chunked = "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    assert_eq!(ask(&mut client, chunked).body, b"abcde");
    // Pipelined.
    client.get_mut().write_all([get("/slow"), get("/"), get("/x")].concat().as_bytes()).unwrap();
    let bodies: Vec<_> = (0..3).map(|_| answer(&mut client, false).body).collect();
    assert_eq!(bodies, [&b"slept\n"[..], b"hello\n", b"nothing\n"]);
}

#[test]
fn a_large_body_comes_back_and_one_too_large_is_refused() {
    let node = Node::start("node-large", "handler.mjs", HANDLER);
    let mut client = node.dial();
    let body: Vec<u8> = (0..12 << 20).map(|i| (i % 251) as u8).collect();
    let head = format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    client.get_mut().write_all(&[head.as_bytes(), &body].concat()).unwrap();
    assert!(answer(&mut client, false).body == body);
    let refused = ask(&mut client, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n");
    assert_eq!(refused.status, 413);
}

#[test]
fn a_failure_is_answered_with_an_id_that_the_log_has_and_the_process_lives_on() {
    let node = Node::start("node-failure", "handler.mjs", HANDLER);
    let mut client = node.dial();
    let ids: Vec<String> = ["/fail", "/later", "/rejected"]
        .map(|path| {
            let failed = ask(&mut client, &get(path));
            assert_eq!(failed.status, 500, "{path}");
            failed.head.lines().find_map(|l| l.strip_prefix("X-Request-Id: ")).unwrap().to_owned()
        })
        .into();
    // Within an answer there is nothing left but to cut it short.
    let mut broken = node.dial();
    broken.get_mut().write_all(get("/broken").as_bytes()).unwrap();
    let mut rest = Vec::new();
    let _ = broken.read_to_end(&mut rest);
    assert!(rest.windows(4).any(|w| w == b"half") && !rest.ends_with(b"0\r\n\r\n"));
    assert_eq!(ask(&mut client, &get("/")).body, b"hello\n");
    drop(client);
    node.terminate();
    let log = node.ended();
    for (id, why) in ids.iter().zip(["as it was asked to", "later on", "rejected"]) {
        assert!(log.contains(&format!("[{id}] GET /")) && log.contains(why), "{log}");
    }
}

#[test]
fn the_drain_answers_what_has_begun() {
    let node = Node::start("node-drain", "handler.mjs", HANDLER);
    let mut slow = node.dial();
    let mut fresh = node.dial();
    let mut idle = node.dial();
    ask(&mut idle, &get("/"));
    slow.get_mut().write_all(get("/slow").as_bytes()).unwrap();
    // Its first part proves that node has it.
    let mut began = node.dial();
    began.get_mut().write_all(get("/slow").as_bytes()).unwrap();
    ask(&mut idle, &get("/"));
    let mut silent = node.dial();
    ask(&mut silent, &get("/"));
    node.terminate();
    // The drain has begun with the first answer that says that it is the last.
    while !ask(&mut idle, &get("/")).head.contains("Connection: close") {}
    assert_eq!(idle.read(&mut [0]).unwrap(), 0);
    let late = ask(&mut fresh, &get("/"));
    assert!(late.body == b"hello\n" && late.head.contains("Connection: close"), "{}", late.head);
    assert_eq!(answer(&mut slow, false).body, b"slept\n");
    assert_eq!(answer(&mut began, false).body, b"slept\n");
    // Who asks for nothing more is waited for a while, and then closed.
    assert_eq!(silent.read(&mut [0]).unwrap(), 0);
    node.ended();
}

#[test]
fn what_a_file_may_export() {
    for (name, file, text) in [
        ("listener", "a.cjs", "module.exports = (req, res) => res.end(`ok ${req.url}`)"),
        ("default", "a.mjs", "export default async (req, res) => res.end(`ok ${req.url}`)"),
        ("named", "a.cjs", "exports.handle = (event) => `ok ${event.target}`"),
        ("server", "a.cjs", "module.exports = require('http').createServer((q, s) => s.end(`ok ${q.url}`))"),
        ("fetch", "a.mjs", "export default { fetch: (q) => new Response(`ok ${new URL(q.url).pathname}`) }"),
        (
            "object",
            "a.cjs",
            "class App { use() {} handle(req, res) { res.end(`ok ${req.url}`); } }; exports.app = new App()",
        ),
    ] {
        let node = Node::start(&format!("node-{name}"), file, text);
        let mut client = node.dial();
        client.get_mut().write_all(b"GET /x HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("ok /x"), "{name}: {answer}");
    }
}

#[test]
fn an_upgraded_connection_is_the_applications() {
    let text = "const server = require('http').createServer();\n\
                server.on('upgrade', (req, socket) => {\n\
                  socket.write('HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: x\\r\\nConnection: Upgrade\\r\\n\\r\\n');\n\
                  socket.pipe(socket);\n\
                });\n\
                module.exports = server;";
    let node = Node::start("node-upgrade", "a.cjs", text);
    let mut client = node.dial();
    let request = "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n";
    assert_eq!(ask(&mut client, request).status, 101);
    client.get_mut().write_all(b"raw").unwrap();
    let mut echo = [0; 3];
    client.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"raw");
    drop(client);
    node.terminate();
    node.ended();
}

#[test]
fn a_file_that_cannot_be_served_says_why() {
    for (name, file, text, why) in [
        ("node-syntax", "a.cjs", "module.exports = (", "SyntaxError"),
        ("node-module", "a.cjs", "export default 1", "name it *.mjs"),
        ("node-import", "a.mjs", "import 'nothing-of-this-name'", "nothing-of-this-name"),
        ("node-empty", "a.cjs", "exports.handel = 1", "it exports: handel"),
        ("node-absent", "b.cjs", "", "there is no a.cjs among: b.cjs"),
        (
            "node-listens",
            "a.cjs",
            "const s = require('http').createServer(); s.listen(0, '::1'); module.exports = s",
            "listens by itself",
        ),
    ] {
        let dir = directory(name, file, text);
        let file = if name == "node-absent" { "a.cjs" } else { file };
        let output = command(&dir, file).env("FAAS_LISTEN", "[::1]:0").output().unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{name}: {text}");
        assert!(text.contains(why), "{name}: {text}");
    }
    let dir = directory("node-nowhere", "a.cjs", "");
    let output = command(&dir, "a.cjs").output().unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("FAAS_LISTEN"));
}

fn hold(name: &str) -> Node {
    // Without the handler: a runner that is held has not even looked for it.
    let dir = directory(name, "README", "");
    let mut command = command(&dir, "handler.mjs");
    command.env("FAAS_HOLD", "1");
    let node = Node::spawn(command, dir);
    assert_eq!(node.heard(), Kind::Held);
    node
}

#[test]
fn a_held_runner_loads_the_code_when_it_is_told_to() {
    let node = hold("node-held");
    let code = "export const handle = (_, context) => `${process.env.FAAS_HOLD} ${context.requestId.split('-')[1]}`;\n";
    std::fs::write(node.dir.join("handler.mjs"), code).unwrap();
    rustix::net::send(&node.control, &wire::header(Kind::Go, 0), SendFlags::empty()).unwrap();
    assert_eq!(node.heard(), Kind::Ready);
    // Nothing is left of the rehearsal: no variable, no request that was counted, no line in the log.
    assert_eq!(ask(&mut node.dial(), &get("/")).body, b"undefined 1");
    node.terminate();
    assert_eq!(node.ended(), "");
}

#[test]
fn a_held_runner_that_is_not_needed_ends() {
    let mut node = hold("node-not-needed");
    rustix::net::shutdown(&node.control, rustix::net::Shutdown::Write).unwrap();
    assert!(node.child.wait().unwrap().success());
    let mut node = hold("node-too-early");
    rustix::net::send(&node.control, &wire::header(Kind::Drain, 0), SendFlags::empty()).unwrap();
    assert!(!node.child.wait().unwrap().success());
}
