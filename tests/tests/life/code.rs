//! What the tests deploy: the same answer by either lane.

use anyhow::Result;
use faasd_tests::Bed;

/// A kind of function.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// On the hand-off lane.
    Handler,
    /// On the warm lane.
    Server,
}

pub const KINDS: [Kind; 2] = [Kind::Handler, Kind::Server];

/// Answers with its text; `?s=` seconds later, if asked.
const HANDLER: &str = "
import time
def handle(event, context):
    time.sleep(float(event.query.get('s', '0')))
    return TEXT
";

/// The same as a server, which finishes what it has accepted when it is told to stop, and says so by `Connection: close`.
const SERVER: &str = "
import os, signal, socket, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

stopping = threading.Event()

class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        query = parse_qs(urlparse(self.path).query)
        time.sleep(float(query.get('s', ['0'])[0]))
        body = TEXT.encode()
        self.send_response(200)
        self.send_header('content-length', str(len(body)))
        if stopping.is_set():
            self.send_header('connection', 'close')
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass

class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    request_queue_size = 1024
    daemon_threads = False

def stop(*_):
    stopping.set()
    threading.Thread(target=server.shutdown).start()

server = Server((os.environ['HOST'], int(os.environ['PORT'])), Handler)
signal.signal(signal.SIGTERM, stop)
server.serve_forever()
server.server_close()
";

/// Deploys a function that answers with a text. `more` is appended to its `faas.toml`, `flags` to the command.
pub fn deploy(bed: &Bed, kind: Kind, name: &str, text: &str, more: &str, flags: &[&str]) -> Result<()> {
    let (file, code, toml) = match kind {
        Kind::Handler => ("handler.py", HANDLER, String::new()),
        Kind::Server => ("server.py", SERVER, "command = ['/usr/bin/python3', 'server.py']\n".to_owned()),
    };
    let code = format!("TEXT = '{text}'\n{code}");
    let toml = format!("{toml}{more}\n");
    let files = [(file, code.as_bytes()), ("faas.toml", toml.as_bytes())];
    bed.deploy_with(name, &files, flags)?.ok().map(drop)
}
