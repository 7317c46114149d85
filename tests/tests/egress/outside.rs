//! From a function to the outside: a client's machine, as the server's own network sees it.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use faasd::sys::netns::NetNs;
use faasd_tests::{Bed, eventually, get};
use rustix::process::Signal;
use serde_json::json;

use crate::inside::{answer_of, waits_in_connect};
use crate::python::{address as address_of, ask, deploy, eval};

pub const PORT: u16 = 7777;

/// The host, the machine outside, and one from which nothing comes back.
pub const HOST: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1);
pub const OUTSIDE: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2);
pub const SILENT: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 0x99);

/// A server that greets, and counts whom.
pub struct Greeter(Arc<AtomicU64>);

impl Greeter {
    pub fn start(ns: &NetNs, at: impl Into<SocketAddr>) -> Result<Self> {
        let at = at.into();
        let listener = ns.run(|| TcpListener::bind(at))?;
        let count = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&count);
        thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                counted.fetch_add(1, Ordering::Relaxed);
                thread::spawn(move || {
                    let _ = stream.write_all(b"hello from outside\n");
                    // Until the other side ends it.
                    let _ = stream.read(&mut [0]);
                });
            }
        });
        Ok(Self(count))
    }

    pub fn greeted(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// `ip` in the server's own namespace, or the client's.
pub fn ip(ns: &NetNs, arguments: &[&str]) -> Result<()> {
    let status = Command::new("nsenter")
        .arg(format!("--net={}", ns.path().display()))
        .arg("ip")
        .args(arguments)
        .status()?;
    ensure!(status.success(), "ip {arguments:?}");
    Ok(())
}

/// Makes [`SILENT`] what it is.
pub fn silence(bed: &Bed, word: &str) -> Result<()> {
    let device = format!("{}s", bed.name());
    let (silent, nobody) = (SILENT.to_string(), "02:00:00:00:00:99");
    ip(&bed.server()?, &["neigh", word, &silent, "lladdr", nobody, "dev", &device, "nud", "permanent"])
}

const GREETING: &str = "
def greeting(host, port, family=socket.AF_INET6):
    with socket.socket(family) as sock:
        sock.connect((host, port))
        return [sock.recv(100).decode(), sock.getpeername()[0]]
result = None";

pub fn address() -> Result<()> {
    let bed = Bed::joined()?;
    let (host, outside) = (bed.server()?, bed.client().netns()?);
    for (ns, letter, address) in [(&host, 's', "198.51.100.1/24"), (&outside, 'c', "198.51.100.2/24")] {
        let device = format!("{}{letter}", bed.name());
        ip(ns, &["addr", "add", address, "dev", &device])?;
    }
    let greeter = Greeter::start(&outside, (OUTSIDE, PORT))?;
    let v4: IpAddr = "198.51.100.2".parse()?;
    let greeter4 = Greeter::start(&outside, (v4, PORT))?;
    let elsewhere = [Greeter::start(&outside, (OUTSIDE, PORT + 1))?, Greeter::start(&host, (HOST, PORT))?];
    deploy(&bed, "caller", &format!("outside = ['[{OUTSIDE}]:{PORT}', '198.51.100.2:{PORT}']"))?;
    eval(&bed, "caller", GREETING)?;
    for (call, peer) in [
        (format!("greeting('{OUTSIDE}', {PORT})"), OUTSIDE.to_string()),
        (format!("greeting('198.51.100.2', {PORT}, socket.AF_INET)"), "198.51.100.2".to_owned()),
        (format!("greeting('::ffff:198.51.100.2', {PORT})"), "::ffff:198.51.100.2".to_owned()),
    ] {
        let greeting = eval(&bed, "caller", &format!("result = {call}"))?;
        ensure!(greeting == json!(["hello from outside\n", peer]), "{call}: {greeting}");
    }
    ensure!((greeter.greeted(), greeter4.greeted()) == (1, 2));
    for (host, port) in
        [(OUTSIDE, PORT + 1), (HOST, PORT), ("fd00:1::3".parse()?, PORT), ("2001:db8::1".parse()?, 443)]
    {
        let refused = ask(&bed, "caller", &format!("tried('{host}', {port})"))?;
        ensure!(refused == "ENETUNREACH", "[{host}]:{port}: {refused}");
    }
    ensure!(elsewhere.iter().all(|greeter| greeter.greeted() == 0));
    // Nobody listens there any more: an honest error.
    let egress = &bed.describe("caller")?["egress"];
    ensure!(egress["outside"] == 3 && egress["refused"] == 4, "{egress}");
    bed.finish()
}

/// Answers for names as it is told.
fn name_server(ns: &NetNs, answers: Vec<(&'static str, Vec<Ipv6Addr>)>) -> Result<()> {
    let socket = ns.run(|| UdpSocket::bind((HOST, 5353)))?;
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let question = &buffer[12..length];
            let mut labels = Vec::new();
            let mut at = 0;
            while question[at] != 0 {
                let next = at + 1 + usize::from(question[at]);
                labels.push(String::from_utf8_lossy(&question[at + 1..next]).to_ascii_lowercase());
                at = next;
            }
            let is_aaaa = question[at + 1..at + 3] == [0, 28];
            let name = labels.join(".");
            let found = answers.iter().find(|(known, _)| *known == name).map_or(&[][..], |(_, found)| found);
            let found = if is_aaaa { found } else { &[] };
            let mut answer = buffer[..2].to_vec();
            answer.extend([0x81, 0x80, 0, 1, 0, found.len() as u8, 0, 0, 0, 0]);
            answer.extend(&question[..at + 5]);
            for address in found {
                answer.extend([0xc0, 12, 0, 28, 0, 1, 0, 0, 0, 60, 0, 16]);
                answer.extend(address.octets());
            }
            let _ = socket.send_to(&answer, from);
        }
    });
    Ok(())
}

pub fn names() -> Result<()> {
    let mut bed = Bed::new()?;
    bed.config = format!("dns_upstreams = ['[{HOST}]:5353']\n");
    let (host, outside) = (bed.server()?, bed.client().netns()?);
    name_server(
        &host,
        vec![
            ("good.example.org", vec![OUTSIDE]),
            ("mixed.example.org", vec![Ipv6Addr::LOCALHOST, HOST, OUTSIDE]),
            ("second.example.org", vec!["fd00:1::7".parse()?, OUTSIDE]),
            ("loop.example.org", vec![Ipv6Addr::LOCALHOST]),
            ("host.example.org", vec![HOST]),
            ("inside.example.org", vec![address_of("db")?]),
            ("server.example.org", vec![faasd::core::address::VPN_PREFIX.server()]),
            ("mapped.example.org", vec!["::ffff:127.0.0.1".parse()?]),
        ],
    )?;
    bed.serve()?;
    bed.join()?;
    bed.deploy_hello("db", &format!("port = {PORT}"))?;
    let greeter = Greeter::start(&outside, (OUTSIDE, PORT))?;
    let lures = [Greeter::start(&host, (Ipv6Addr::UNSPECIFIED, PORT))?];
    let hosts = ["good", "mixed", "second", "loop", "host", "inside", "server", "mapped", "none"];
    let grants: Vec<String> = hosts.iter().map(|host| format!("'{host}.example.org:{PORT}'")).collect();
    deploy(&bed, "caller", &format!("outside = [{}]", grants.join(", ")))?;
    eval(&bed, "caller", GREETING)?;
    for name in ["good", "mixed", "second"] {
        let greeting = eval(&bed, "caller", &format!("result = greeting('{name}.example.org', {PORT})"))?;
        ensure!(greeting == json!(["hello from outside\n", OUTSIDE.to_string()]), "{name}: {greeting}");
    }
    for name in ["loop", "host", "inside", "server", "mapped"] {
        let refused = ask(&bed, "caller", &format!("tried('{name}.example.org', {PORT})"))?;
        ensure!(refused == "EACCES", "{name}: {refused}");
    }
    let unknown = ask(&bed, "caller", &format!("tried('none.example.org', {PORT})"))?;
    ensure!(unknown == "EHOSTUNREACH", "{unknown}");
    let port = ask(&bed, "caller", &format!("tried('good.example.org', {})", PORT + 1))?;
    ensure!(port == "ENETUNREACH", "{port}");
    ensure!(greeter.greeted() == 3 && lures.iter().all(|lure| lure.greeted() == 0));
    let egress = &bed.describe("caller")?["egress"];
    ensure!(egress["outside"] == 3 && egress["refused"] == 6, "{egress}");
    bed.finish()
}

pub fn daemon_killed() -> Result<()> {
    let mut bed = Bed::joined()?;
    silence(&bed, "add")?;
    deploy(&bed, "caller", &format!("outside = ['[{SILENT}]:{PORT}']"))?;
    let mut kept = bed.client().connect(address_of("caller")?, 80)?;
    get(&mut kept, "/")?;
    let code = format!("{GREETING}\nresult = greeting('{SILENT}', {PORT})");
    let length = code.len();
    write!(kept, "POST / HTTP/1.1\r\nhost: caller\r\ncontent-length: {length}\r\n\r\n{code}")?;
    eventually("the function waits in connect", || waits_in_connect(&bed).unwrap_or(false))?;
    // The daemon has taken the call by the time that its SYN is out.
    eventually("the daemon connects", || {
        let sockets = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}s", bed.name()))
            .args(["ss", "-Htn", "state", "syn-sent"])
            .output();
        sockets.is_ok_and(|sockets| String::from_utf8_lossy(&sockets.stdout).contains(&SILENT.to_string()))
    })?;
    bed.end_daemon(Signal::KILL)?;
    // Somebody comes to be there.
    let outside = bed.client().netns()?;
    let device = format!("{}c", bed.name());
    ip(&outside, &["addr", "add", &format!("{SILENT}/64"), "dev", &device, "nodad"])?;
    let greeter = Greeter::start(&outside, (SILENT, PORT))?;
    silence(&bed, "del")?;
    ensure!(waits_in_connect(&bed)?, "it does not wait any longer");
    bed.serve()?;
    let (status, body) = answer_of(&mut kept)?;
    ensure!(status == 200 && body.contains("hello from outside"), "{status}: {body}");
    ensure!(greeter.greeted() == 1);
    bed.finish()
}

pub fn silent() -> Result<()> {
    let bed = Bed::joined()?;
    silence(&bed, "add")?;
    bed.deploy_hello("db", "port = 5432")?;
    deploy(&bed, "caller", &format!("allow = ['db.faas:5432']\noutside = ['[{SILENT}]:{PORT}']"))?;
    let began = Instant::now();
    let code = format!(
        "
sock = socket.socket(socket.AF_INET6)
sock.setblocking(False)
began = time.monotonic()
first = name(sock.connect_ex(('{SILENT}', {PORT})))
took = time.monotonic() - began
result = [first, name(sock.connect_ex(('{SILENT}', {PORT}))), took < 2]
sock.close()"
    );
    let pending = eval(&bed, "caller", &code)?;
    ensure!(pending == json!(["EINPROGRESS", "EALREADY", true]), "{pending}");
    // Who says how long to wait waits no longer.
    let code = format!(
        "
sock = socket.socket(socket.AF_INET6)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack('ll', 1, 0))
result = connect(sock, v6('{SILENT}', {PORT}))"
    );
    let timed = eval(&bed, "caller", &code)?;
    ensure!(timed == "ETIMEDOUT" || timed == "EINPROGRESS", "{timed}");
    ensure!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    // As many as may wait do, more are told at once, and nobody else waits for them.
    let code = format!(
        "
outcomes = []
def one():
    sock = socket.socket(socket.AF_INET6)
    outcomes.append(connect(sock, v6('{SILENT}', {PORT})))
threads = [threading.Thread(target=one, daemon=True) for _ in range(80)]
for thread in threads: thread.start()
deadline = time.monotonic() + 10
while len(outcomes) < 16 and time.monotonic() < deadline: time.sleep(0.01)
result = sorted(outcomes)"
    );
    let crowded = eval(&bed, "caller", &code)?;
    ensure!(crowded == json!(vec!["EAGAIN"; 16]), "{crowded}");
    bed.faas(&["ls"])?.ok()?;
    ensure!(bed.client().curl("http://db.faas:5432/")? == "hello from faasd\n");
    // An instance's end ends its calls.
    bed.faas(&["rm", "caller", "--yes"])?.ok().or_else(|_| bed.faas(&["rm", "caller"])?.ok())?;
    bed.finish()
}
