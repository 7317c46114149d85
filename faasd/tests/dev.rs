//! `faas dev`: the code runs, runs anew when it is saved, and ends with the verb.
#![expect(clippy::unwrap_used, reason = "a helper fails as its test does")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

struct Dev {
    child: Child,
    dir: tempfile::TempDir,
    address: SocketAddr,
    said: mpsc::Receiver<String>,
}

impl Dev {
    fn start(file: &str, text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(file), text).unwrap();
        let address = TcpListener::bind("[::1]:0").unwrap().local_addr().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_faas"))
            .args(["dev", "--listen", &address.to_string()])
            .arg(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, said) = mpsc::sync_channel(1000);
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, dir, address, said }
    }

    /// Waits for a line of what is printed.
    fn says(&self, what: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut seen = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.said.recv_timeout(left).unwrap_or_else(|_| panic!("no '{what}' in {seen:?}"));
            if line.contains(what) {
                return;
            }
            seen.push(line);
        }
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.dir.path().join(file), text).unwrap();
    }

    fn get(&self) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split("\r\n\r\n").nth(1).unwrap().to_owned()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // Not a kill: the code is to end with it.
        let _ = rustix::process::kill_process(Pid::from_child(&self.child), Signal::INT);
        let _ = self.child.wait();
    }
}

#[test]
fn a_saved_file_is_served_at_once_and_a_bad_one_told() {
    let mut dev = Dev::start("handler.py", "def handle(event, context): return 'one'\n");
    dev.says("python handler: there is handler.py");
    dev.says("listening on");
    assert_eq!(dev.get(), "one");
    dev.write("handler.py", "def handle(event, context): return 'two'\n");
    dev.says("handler.py changed");
    dev.says("listening on");
    assert_eq!(dev.get(), "two");
    dev.write("handler.py", "def handle(\n");
    dev.says("SyntaxError");
    dev.says("waiting for a change");
    dev.write("handler.py", "def handle(event, context): return 'three'\n");
    dev.says("listening on");
    assert_eq!(dev.get(), "three");
    dev.write("faas.toml", "[limits]\nmemroy = 1\n");
    dev.says("did you mean `memory");
    fs::remove_file(dev.dir.path().join("faas.toml")).unwrap();
    dev.says("listening on");

    rustix::process::kill_process(Pid::from_child(&dev.child), Signal::INT).unwrap();
    assert!(dev.child.wait().unwrap().success());
    assert!(TcpStream::connect(dev.address).is_err(), "the code runs on");
}

#[test]
fn a_script_and_a_program_that_is_built_run_too() {
    let dev = Dev::start("handler.sh", "echo from a script\n");
    dev.says("shell script: there is handler.sh");
    dev.says("listening on");
    assert_eq!(dev.get(), "from a script\n");
    drop(dev);

    let server = "import http.server, os, socket\n\
                  class Server(http.server.HTTPServer): address_family = socket.AF_INET6\n\
                  class Handler(http.server.SimpleHTTPRequestHandler): pass\n\
                  server = Server((os.environ['HOST'], int(os.environ['PORT'])), Handler)\n\
                  import sys; print('up', file=sys.stderr, flush=True)\n\
                  server.serve_forever()\n";
    let dev = Dev::start("made.py", server);
    dev.write("index.html", "built");
    dev.says("holds no function");
    dev.write("faas.toml", "build = 'cp made.py server.py'\ncommand = ['python3', 'server.py']\n");
    dev.says("build: done");
    dev.says("up");
    assert_eq!(dev.get(), "built");
}
