//! The warm lane itself, by the simplest of servers.

use super::*;

/// A server that says which process answered.
const SERVER: &str = "
import os, socket, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        body = b'%d' % os.getpid()
        self.send_response(200)
        self.send_header('content-length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
class Server(HTTPServer):
    address_family = socket.AF_INET6
Server((os.environ['HOST'], int(os.environ['PORT'])), Handler).serve_forever()
";

fn deploy(bed: &Bed, name: &str, more: &str) -> Result<()> {
    let toml = format!("command = ['/usr/bin/python3', '-u', 'server.py']\n{more}\n");
    bed.deploy(name, &[("server.py", SERVER.as_bytes()), ("faas.toml", toml.as_bytes())])?.ok().map(drop)
}

pub fn answers() -> Result<()> {
    let bed = Bed::joined()?;
    deploy(&bed, "plain", "")?;
    for _ in 0..20 {
        ensure!(bed.client().curl("http://plain.faas/")? == "1");
    }
    let function = bed.describe("plain")?;
    let connections = &function["connections"];
    ensure!(connections["steered"] == 20 && connections["warm"] == 20, "{connections}");
    ensure!(connections["accepted"] == 0, "{connections}");
    bed.finish()
}

pub fn cold() -> Result<()> {
    let bed = Bed::joined()?;
    bed.finish()
}
