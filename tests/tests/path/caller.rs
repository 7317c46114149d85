//! Who called, as functions are told: by name and address, whatever anybody claims.

use std::io::Write;

use anyhow::{Context, Result, ensure};
use faasd_tests::{Bed, eventually, program};
use rustix::process::Signal;

use crate::{address, ask};

/// In each language: name, address and port.
const KINDS: [(&str, &str, &str); 5] = [
    (
        "python",
        "handler.py",
        "def handle(event, context):\n    \
             return f'{context.peer} {context.client[0]} {context.client[1]}'\n",
    ),
    (
        "wsgi",
        "app.py",
        "def app(environ, start_response):\n    \
             start_response('200 OK', [('Content-Type', 'text/plain')])\n    \
             assert environ.get('REMOTE_USER') == environ['faas.peer']\n    \
             return [f\"{environ['faas.peer']} {environ['REMOTE_ADDR']} {environ['REMOTE_PORT']}\".encode()]\n",
    ),
    (
        "asgi",
        "app.py",
        "async def app(scope, receive, send):\n    \
             body = '{} {} {}'.format(scope['extensions']['faas.peer']['name'], *scope['client']).encode()\n    \
             await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n    \
             await send({'type': 'http.response.body', 'body': body})\n",
    ),
    (
        "node",
        "handler.mjs",
        "export const handle = (event, context) =>\n  \
             `${context.peer ?? 'None'} ${context.client.address} ${context.client.port}`;\n",
    ),
    ("script", "handler.sh", "#!/bin/sh\nprintf %s \"${FAAS_PEER:-None} $REMOTE_ADDR $REMOTE_PORT\"\n"),
];

/// What the function says of a connection that is dialled now.
fn told(bed: &Bed, function: &str) -> Result<(String, String)> {
    let mut stream = bed.client().connect(address(&bed.describe(function)?)?, 80)?;
    let own = stream.local_addr()?;
    let said = String::from_utf8(ask(&mut stream, "/")?)?;
    let (name, rest) = said.split_once(' ').with_context(|| format!("{function}: {said}"))?;
    ensure!(rest == format!("{} {}", own.ip(), own.port()), "{function}: {said}, and it is {own}");
    Ok((name.to_owned(), own.ip().to_string()))
}

/// Every language is told, and is told anew when the address is somebody else's.
pub fn told_by_name() -> Result<()> {
    let mut bed = Bed::joined()?;
    for (name, file, code) in KINDS {
        bed.deploy(name, &[(file, code.as_bytes())])?.ok().context(name)?;
    }
    let check = |bed: &Bed, expected: &str| -> Result<()> {
        for (kind, ..) in KINDS {
            let (name, _) = told(bed, kind)?;
            ensure!(name == expected, "{kind}: {name}, and it is {expected}");
        }
        Ok(())
    };
    check(&bed, "client")?;
    // A client cannot give itself another name.
    let url = "http://script.faas/";
    let forged =
        bed.client().run(&["curl", "-sS", "-H", "Faas-Peer: root", "-H", "Remote-User: root", url])?;
    ensure!(forged.ok()?.starts_with("client "));

    // The same machine by another name, to the same instances; also after a restart of the daemon.
    bed.leave(1)?;
    bed.faas(&["vpn", "revoke", "client"])?.ok()?;
    bed.join_as(1, "other-name", &[])?;
    check(&bed, "other-name")?;
    let node = address(&bed.describe("node")?)?;
    bed.end_daemon(Signal::KILL)?;
    let mut stream = bed.client().connect(node, 80)?;
    ensure!(ask(&mut stream, "/")?.starts_with(b"other-name "), "without a daemon");
    bed.serve()?;
    eventually("the tunnel is up", || told(&bed, "python").is_ok())?;
    check(&bed, "other-name")?;
    // The directory tells the names of those whose addresses one knows, and no others.
    let spy = "import os\ndef handle(event, context):\n    \
               try:\n        return repr(os.listdir('/run/faasd-callers'))\n    \
               except OSError as e:\n        return type(e).__name__\n";
    bed.deploy("spy", &[("handler.py", spy.as_bytes())])?.ok()?;
    ensure!(bed.client().curl("http://spy.faas/")? == "FileNotFoundError", "it has no use for the directory");
    let spy = "import fs from 'node:fs';\nexport const handle = () => {\n  \
               try { return fs.readdirSync('/run/faasd-callers').join(); } catch (e) { return e.code; }\n};\n";
    bed.deploy("node", &[("handler.mjs", spy.as_bytes())])?.ok()?;
    let refused = || bed.client().curl("http://node.faas/").is_ok_and(|said| said == "EACCES");
    eventually("the directory cannot be listed", refused)?;
    bed.finish()
}

/// Passes every connection on, with a lie about who dialled it.
const LIAR: &str = r#"#!/usr/bin/python3
import mmap, socket, struct
control = socket.socket(fileno=3)
status = memoryview(mmap.mmap(4, 4096)).cast("Q")
status[12] = 1
control.send(struct.pack("<HHHH", 1, 3, 0, 32))
while True:
    data, fds, _, _ = socket.recv_fds(control, 8192, 64)
    if not data or data[2] == 2:
        break
    status[8] += len(fds)
    record = data[8:40] + struct.pack("<16sHHHH", bytes(15) + b"\x01", 7, 0, 5, 0)
    socket.send_fds(control, [struct.pack("<HHHH", 1, 5, 1, 56) + record + b"hello"], fds)
    for fd in fds:
        socket.close(fd)
    status[9] += len(fds)
"#;

/// A connection that a function passes on keeps its caller, whom the function cannot make another.
pub fn passed_on() -> Result<()> {
    let bed = Bed::joined()?;
    let (_, _, code) = KINDS[0];
    bed.deploy("hello", &[("handler.py", code.as_bytes())])?.ok()?;
    let declared = "contract = 'fd'\ncommand = ['./liar.py']\nforward = ['hello']\n";
    let liar = bed.path("functions/liar");
    std::fs::create_dir_all(&liar)?;
    std::fs::write(liar.join("liar.py"), LIAR)?;
    std::fs::set_permissions(liar.join("liar.py"), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    std::fs::write(liar.join("faas.toml"), declared)?;
    bed.faas(&["deploy", "liar", &liar.display().to_string()])?.ok()?;
    let (name, own) = told(&bed, "liar")?;
    ensure!((name.as_str(), own.as_str()) == ("client", "fd00:faa5:0:100::2"), "{name} {own}");
    ensure!(bed.describe("hello")?["connections"]["forwarded"] == 1);

    // A function in Rust knows whom it answers, and passes on whom it had.
    bed.deploy_program("router", &program("examples/router"), "forward = ['hello']")?.ok()?;
    let mut stream = bed.client().connect(address(&bed.describe("router")?)?, 80)?;
    let (status, said) = faasd_tests::get(&mut stream, "/")?;
    let said = String::from_utf8(said)?;
    ensure!(status == 404 && said.starts_with("whose, client? "), "{said}");
    let mut stream = bed.client().connect(address(&bed.describe("router")?)?, 80)?;
    let own = stream.local_addr()?;
    let said = String::from_utf8(ask(&mut stream, "/hello")?)?;
    ensure!(said == format!("client {} {}", own.ip(), own.port()), "{said}");
    stream.flush()?;
    bed.finish()
}
