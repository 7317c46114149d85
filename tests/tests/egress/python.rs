//! A function that runs whatever Python it is sent, and keeps what it has made for the next time.

use std::net::Ipv6Addr;

use anyhow::{Context, Result, bail};
use faasd::core::address::FUNCTION_PREFIX;
use faasd_tests::Bed;
use serde_json::Value;

const HANDLER: &str = r#"
import ctypes, errno, json, os, socket, struct, threading, time, traceback

libc = ctypes.CDLL(None, use_errno=True)
names = globals()


def name(number):
    return errno.errorcode.get(number, str(number))


def outcome(result):
    return 'done' if result >= 0 else name(ctypes.get_errno())


def v6(address, port):
    return struct.pack('=H', socket.AF_INET6) + struct.pack('!HI', port, 0) + socket.inet_pton(socket.AF_INET6, address) + bytes(4)


def connect(sock, address):
    return outcome(libc.connect(sock.fileno(), address, len(address)))


def tried(host, port, family=socket.AF_INET6, kind=socket.SOCK_STREAM, seconds=8):
    with socket.socket(family, kind) as sock:
        sock.settimeout(seconds)
        try:
            sock.connect((host, port))
        except TimeoutError:
            return 'silence'
        except OSError as error:
            return name(error.errno)
        return 'done'


def handle(event, context):
    names['result'] = None
    try:
        exec(event.body.decode(), names)
    except BaseException:
        names['result'] = {'raised': traceback.format_exc()}
    return json.dumps(names['result'])
"#;

/// Deploys it with these lines in its declaration.
pub fn deploy(bed: &Bed, name: &str, more: &str) -> Result<()> {
    let toml = "[limits]\nmemory = '256MiB'\n[scale]\nmin = 1\nmax = 1\nconcurrency = 1000\n";
    let files = [("handler.py", HANDLER.as_bytes()), ("faas.toml", &*format!("{more}\n{toml}").into_bytes())];
    bed.deploy(name, &files)?.ok().map(drop)
}

/// What some code leaves as `result`.
pub fn eval(bed: &Bed, function: &str, code: &str) -> Result<Value> {
    let url = format!("http://{function}.faas/");
    let out = bed
        .client()
        .run(&["curl", "-sS", "--fail-with-body", "--max-time", "60", "--data-binary", code, &url])?
        .ok()?;
    let value: Value = serde_json::from_str(&out).with_context(|| format!("no JSON: {out}"))?;
    match value["raised"].as_str() {
        Some(raised) => bail!("{code}\n{raised}"),
        None => Ok(value),
    }
}

/// The same of one expression.
pub fn ask(bed: &Bed, function: &str, expression: &str) -> Result<String> {
    let value = eval(bed, function, &format!("result = {expression}"))?;
    Ok(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

/// A function's own address.
pub fn address(function: &str) -> Result<Ipv6Addr> {
    Ok(FUNCTION_PREFIX.function(&function.parse()?))
}
