//! A function that was granted something, and wants something else.

use std::io::{ErrorKind, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{fs, io};

use anyhow::{Context, Result, bail, ensure};
use faasd::core::address::VPN_PREFIX;
use faasd::sys::notify::duplicate;
use faasd_tests::{Bed, eventually, get};
use serde_json::json;

use crate::outside::{Greeter, HOST, OUTSIDE, PORT, SILENT, silence};
use crate::python::{address, ask, deploy, eval};

const SILENCE: Duration = Duration::from_millis(700);

/// The attacker, with one function and one place outside granted, and listeners that nobody is to reach.
struct Scene {
    bed: Bed,
    granted: Greeter,
    lures: Vec<Greeter>,
}

impl Scene {
    fn set() -> Result<Self> {
        let bed = Bed::joined()?;
        silence(&bed, "add")?;
        bed.deploy_hello("db", "port = 5432")?;
        bed.deploy_hello("other", "")?;
        deploy(&bed, "inner", "allow = ['db.faas:5432']")?;
        let outside = format!("outside = ['[{OUTSIDE}]:{PORT}', '[{SILENT}]:{PORT}']");
        deploy(&bed, "attacker", &format!("allow = ['db.faas:5432']\n{outside}"))?;
        let (host, client) = (bed.server()?, bed.client().netns()?);
        let granted = Greeter::start(&client, (OUTSIDE, PORT))?;
        let lures = vec![
            Greeter::start(&client, (Ipv6Addr::UNSPECIFIED, PORT + 1))?,
            Greeter::start(&host, (Ipv6Addr::UNSPECIFIED, PORT))?,
        ];
        Ok(Self { bed, granted, lures })
    }

    fn untouched(&self) -> Result<()> {
        std::thread::sleep(SILENCE);
        ensure!(self.lures.iter().all(|lure| lure.greeted() == 0), "somebody came who was not to come");
        Ok(())
    }

    fn finish(self) -> Result<()> {
        self.untouched()?;
        ensure!(self.bed.client().curl("http://other.faas/")? == "hello from faasd\n");
        self.bed.finish()
    }
}

/// Where it would go: the host, the API's machine, DNS, the metrics, another function, itself, the internet.
fn targets() -> Result<Vec<(Ipv6Addr, u16)>> {
    Ok(vec![
        (HOST, PORT),
        (OUTSIDE, PORT + 1),
        (VPN_PREFIX.server(), 53),
        (VPN_PREFIX.server(), 9464),
        (address("other")?, 80),
        (address("attacker")?, 80),
        (address("db")?, 80),
        ("2606:4700:4700::1111".parse()?, 443),
        ("::ffff:169.254.169.254".parse()?, 80),
        ("100::7".parse()?, PORT),
    ])
}

fn list(targets: &[(Ipv6Addr, u16)]) -> String {
    let list: Vec<String> = targets.iter().map(|(host, port)| format!("('{host}', {port})")).collect();
    format!("[{}]", list.join(", "))
}

fn decided(bed: &Bed, decision: &str) -> Result<u64> {
    let metrics = bed.client().curl(&format!("http://[{}]:9464/metrics", VPN_PREFIX.server()))?;
    let name = format!("faasd_kernel_decisions_total{{decision=\"{decision}\"}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
    line.with_context(|| format!("no {name} in\n{metrics}"))?.trim().parse().context("no number")
}

pub fn nowhere() -> Result<()> {
    let scene = Scene::set()?;
    let targets = targets()?;
    for function in ["inner", "attacker"] {
        let code = format!(
            "result = sorted(set(tried(host, port, kind=kind) for host, port in {} \
             for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)))",
            list(&targets)
        );
        let outcomes = eval(&scene.bed, function, &code)?;
        ensure!(outcomes == json!(["ENETUNREACH"]), "{function}: {outcomes}");
        // Paths of the host's, and abstract names, are not there.
        let code = "
result = []
for path in ('/run/faasd/faasd.sock', '/var/run/docker.sock', '\\0/run/faasd/faasd.sock'):
    with socket.socket(socket.AF_UNIX) as sock:
        result.append(name(sock.connect_ex(path)))";
        let outcomes = eval(&scene.bed, function, code)?;
        ensure!(outcomes == json!(["ENOENT", "ENOENT", "ECONNREFUSED"]), "{function}: {outcomes}");
        let egress = scene.bed.describe(function)?["egress"].clone();
        // Those at an address that is granted, at another port, are no attempt over UDP.
        ensure!(egress["refused"].as_u64() >= Some(2 * targets.len() as u64 - 2), "{function}: {egress}");
        ensure!(egress["inside"] == 0 && egress["outside"] == 0, "{egress}");
    }
    scene.finish()
}

/// A connection to a function, taken apart.
pub fn inside() -> Result<()> {
    let scene = Scene::set()?;
    let targets = targets()?;
    let denied = (decided(&scene.bed, "denied_connect")?, decided(&scene.bed, "denied_bind")?);
    let code = format!(
        "
result = []
for host, port in {}:
    sock = socket.socket(socket.AF_INET6)
    sock.settimeout(None)
    sock.connect(('db.faas', 5432))
    mark = sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK)
    again = connect(sock, v6(host, port))
    apart = connect(sock, bytes(28))
    elsewhere = connect(sock, v6(host, port))
    fast = outcome(libc.sendto(sock.fileno(), b'x', 1, 0x20000000, v6(host, port), 28))
    bound = outcome(libc.bind(sock.fileno(), v6('::', 0), 28))
    marked = outcome(libc.setsockopt(sock.fileno(), socket.SOL_SOCKET, socket.SO_MARK, b'\\xa5\\xfa\\0\\0', 4))
    result.append([mark, again, apart, elsewhere, fast, bound, marked])",
        list(&targets)
    );
    let outcomes = eval(&scene.bed, "inner", &code)?;
    let expected = json!([0, "EISCONN", "done", "EPERM", "EPERM", "EPERM", "EPERM"]);
    for outcome in outcomes.as_array().context("no list")? {
        ensure!(*outcome == expected, "{outcome}");
    }
    let tried = targets.len() as u64;
    ensure!(decided(&scene.bed, "denied_connect")? >= denied.0 + tried, "connects are not counted");
    ensure!(decided(&scene.bed, "denied_bind")? >= denied.1 + tried, "binds are not counted");
    // Taken apart and made to listen, it hears nobody; and a granted call by it is a call like any other.
    let code = "
apart = connect(sock, bytes(28))
listening = outcome(libc.listen(sock.fileno(), 16))
port = sock.getsockname()[1]
other = socket.socket(socket.AF_INET6)
other.connect(('db.faas', 5432))
connect(other, bytes(28))
result = [apart, listening, port, connect(other, v6(socket.getaddrinfo('db.faas', 5432)[0][4][0], 5432))]";
    let outcomes = eval(&scene.bed, "inner", code)?;
    ensure!(outcomes[0] == "done" && outcomes[3] == "done", "{outcomes}");
    if outcomes[1] == "done" {
        let port = outcomes[2].as_u64().context("no port")? as u16;
        match scene.bed.client().connect(address("inner")?, port) {
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => {}
            other => bail!("{other:?}"),
        }
    }
    scene.finish()
}

/// What Python code has to find in `sock`: a connection to the outside.
const CONNECTED: &str = "
sock = socket.socket(socket.AF_INET6)
sock.settimeout(None)
sock.connect((OUTSIDE, PORT))
";

fn connected() -> String {
    CONNECTED.replace("OUTSIDE", &format!("'{OUTSIDE}'")).replace("PORT", &PORT.to_string())
}

pub fn outside() -> Result<()> {
    let scene = Scene::set()?;
    let targets = targets()?;
    let code = format!(
        "
result = []
for host, port in {}:{}
    again = connect(sock, v6(host, port))
    apart = connect(sock, bytes(28))
    fast = outcome(libc.sendto(sock.fileno(), b'x', 1, 0x20000000, v6(host, port), 28))
    bound = outcome(libc.bind(sock.fileno(), v6('::', 0), 28))
    listening = outcome(libc.listen(sock.fileno(), 16))
    off = outcome(libc.setsockopt(sock.fileno(), socket.SOL_SOCKET, 27, bytes(4), 4))
    unlocked = outcome(libc.setsockopt(sock.fileno(), socket.SOL_SOCKET, 44, bytes(4), 4))
    result.append([again, apart, fast, bound, listening, off, unlocked])
    greeting = sock.recv(100)",
        list(&targets),
        connected().replace('\n', "\n    ")
    );
    let outcomes = eval(&scene.bed, "attacker", &code)?;
    let expected = json!(["EPERM", "EPERM", "EPERM", "EPERM", "EINVAL", "EPERM", "EPERM"]);
    for outcome in outcomes.as_array().context("no list")? {
        ensure!(*outcome == expected, "{outcome}");
    }
    ensure!(scene.granted.greeted() == targets.len() as u64);
    // One that is on its way comes apart by `shutdown`, and may be made to listen. It hears nobody.
    let code = format!(
        "
pending = socket.socket(socket.AF_INET6)
pending.setblocking(False)
first = name(pending.connect_ex(('{SILENT}', {PORT})))
shut = outcome(libc.shutdown(pending.fileno(), 2))
elsewhere = connect(pending, v6('{HOST}', {PORT}))
bound = outcome(libc.bind(pending.fileno(), v6('::', 0), 28))
listening = outcome(libc.listen(pending.fileno(), 16))
result = [first, shut, elsewhere, bound, listening, pending.getsockname()[1]]"
    );
    let outcomes = eval(&scene.bed, "attacker", &code)?;
    println!("{outcomes}");
    ensure!(outcomes[0] == "EINPROGRESS" && outcomes[2] == "EPERM" && outcomes[3] == "EPERM", "{outcomes}");
    if outcomes[4] == "done" {
        let port = outcomes[5].as_u64().context("no port")? as u16;
        for (ns, host) in [
            (scene.bed.server()?, Ipv6Addr::LOCALHOST),
            (scene.bed.server()?, HOST),
            (scene.bed.client().netns()?, HOST),
        ] {
            let heard = ns.run(|| TcpStream::connect_timeout(&SocketAddr::from((host, port)), SILENCE));
            ensure!(heard.is_err(), "somebody listens on the host, at [{host}]:{port}");
        }
    }
    scene.finish()
}

/// `connect` with the family that takes a connection apart.
fn take_apart(socket: &OwnedFd) -> io::Result<()> {
    let unspecified = [0u8; 28];
    #[expect(unsafe_code, reason = "no library lets a connection be taken apart")]
    // SAFETY: the pointer leads to as many bytes as are told.
    match unsafe { libc::connect(socket.as_raw_fd(), unspecified.as_ptr().cast(), 28) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The attacker's socket in our own hand, so that nobody is asked about what is done with it: without the agent, and then
/// without the guards either.
pub fn locks() -> Result<()> {
    let scene = Scene::set()?;
    let number = eval(&scene.bed, "attacker", &format!("{}\nresult = sock.fileno()", connected()))?;
    let pid = scene.bed.describe("attacker")?["instances"][0]["pid"].as_u64().context("no process")?;
    let taken = || duplicate(pid as u32, number.as_i64().unwrap_or(-1) as i32);
    let socket = taken()?;
    let made = socket2::SockRef::from(&socket);
    take_apart(&socket)?;
    let denied = decided(&scene.bed, "denied_connect")?;
    // Connecting to the granted place again is no exception.
    for to in [SocketAddr::from((HOST, PORT)), SocketAddr::from((OUTSIDE, PORT))] {
        let refused = made.connect(&to.into()).map_err(|e| e.kind());
        ensure!(refused == Err(ErrorKind::PermissionDenied), "{to}: {refused:?}");
    }
    ensure!(decided(&scene.bed, "denied_connect")? == denied + 2, "they are not counted");

    // Without the guards, the socket's own filter.
    let dir = PathBuf::from("/sys/fs/bpf").join(scene.bed.name());
    let pins: Vec<PathBuf> = fs::read_dir(dir)?.flatten().map(|entry| entry.path()).collect();
    let is_guard = |pin: &&PathBuf| pin.to_string_lossy().contains("/link_deny_");
    ensure!(pins.iter().filter(is_guard).count() == 4, "{pins:?}");
    pins.iter().filter(is_guard).try_for_each(fs::remove_file)?;
    eventually("the guards are gone", || {
        let tried = made.connect_timeout(&SocketAddr::from((HOST, PORT)).into(), Duration::from_millis(50));
        tried.map_err(|e| e.kind()) != Err(ErrorKind::PermissionDenied)
    })?;
    take_apart(&socket)?;
    for to in [(HOST, PORT), (Ipv6Addr::LOCALHOST, PORT), (OUTSIDE, PORT + 1)] {
        let silent = made.connect_timeout(&SocketAddr::from(to).into(), SILENCE).map_err(|e| e.kind());
        ensure!(silent == Err(ErrorKind::TimedOut), "{to:?}: {silent:?}");
        take_apart(&socket)?;
    }
    ensure!(made.detach_filter().is_err(), "the filter came off");
    made.listen(16)?;
    let port = made.local_addr()?.as_socket().context("no address")?.port();
    for host in [HOST, Ipv6Addr::LOCALHOST] {
        let heard =
            scene.bed.server()?.run(|| TcpStream::connect_timeout(&SocketAddr::from((host, port)), SILENCE));
        ensure!(heard.is_err(), "it listens on the host");
    }
    take_apart(&socket)?;
    // The attack is real: what the filter lets through, it reaches.
    made.set_nonblocking(false)?;
    made.connect(&SocketAddr::from((OUTSIDE, PORT)).into())?;
    scene.finish()
}

pub fn races() -> Result<()> {
    let scene = Scene::set()?;
    let db = address("db")?;
    for function in ["inner", "attacker"] {
        let code = format!(
            "
import itertools
granted = v6('{db}', 5432)
wanted = [v6(host, port) for host, port in {}]
memory = ctypes.create_string_buffer(28)
ends = time.monotonic() + 4
def changes():
    for address in itertools.cycle(wanted):
        if time.monotonic() > ends: return
        memory.raw = granted
        memory.raw = address
numbers = []
def swaps():
    given = socket.socket(socket.AF_INET6); given.connect(('db.faas', 5432)); connect(given, bytes(28))
    while time.monotonic() < ends:
        for number in list(numbers):
            libc.dup2(given.fileno(), number)
outcomes = {{}}
def calls():
    while time.monotonic() < ends:
        sock = socket.socket(socket.AF_INET6)
        numbers[:] = [sock.fileno()]
        libc.connect.argtypes = None
        became = outcome(libc.connect(sock.fileno(), memory, 28))
        outcomes[became] = outcomes.get(became, 0) + 1
        if became == 'done':
            try:
                host, port = sock.getpeername()[:2]
                if (host, port) != ('{db}', 5432): outcomes['elsewhere'] = [host, port]
            except OSError: pass
        sock.close()
threads = [threading.Thread(target=work) for work in (changes, swaps, calls, calls)]
for thread in threads: thread.start()
for thread in threads: thread.join()
result = outcomes",
            list(&targets()?)
        );
        let outcomes = eval(&scene.bed, function, &code)?;
        println!("{function}: {outcomes}");
        ensure!(outcomes["elsewhere"].is_null() && outcomes["done"].as_u64() > Some(0), "{outcomes}");
    }
    scene.finish()
}

pub fn flood() -> Result<()> {
    let scene = Scene::set()?;
    let used = || -> Result<u64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", scene.bed.daemon()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
    };
    let (before, began) = (used()?, Instant::now());
    let code = format!(
        "
ends = time.monotonic() + 4
address = v6('{HOST}', {PORT})
def calls():
    sock = socket.socket(socket.AF_INET6)
    while time.monotonic() < ends: libc.connect(sock.fileno(), address, 28)
threads = [threading.Thread(target=calls) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()"
    );
    let url = "http://attacker.faas/";
    let mut flooding =
        scene.bed.client().beside(&["curl", "-sS", "--max-time", "60", "--data-binary", &code, url])?;
    let mut stream = scene.bed.client().connect(address("other")?, 80)?;
    let mut slowest = Duration::ZERO;
    while flooding.try_wait()?.is_none() {
        let asked = Instant::now();
        get(&mut stream, "/")?;
        scene.bed.faas(&["ls"])?.ok()?;
        slowest = slowest.max(asked.elapsed());
    }
    let share = (used()? - before) as f64 / 100.0 / began.elapsed().as_secs_f64();
    println!("the daemon used {share:.2} of a processor; the slowest answer took {slowest:?}");
    ensure!(share < 0.8 && slowest < Duration::from_secs(2), "{share:.2}, {slowest:?}");
    let refused = scene.bed.describe("attacker")?["egress"]["refused"].as_u64();
    ensure!(refused > Some(1000), "{refused:?}");
    // Its log does not grow with it.
    let told = scene.bed.log().matches("not granted").count();
    ensure!((1..=8).contains(&told), "{told} lines");
    let after = ask(&scene.bed, "attacker", &format!("tried('{}', 5432)", address("db")?))?;
    ensure!(after == "done", "{after}");
    io::stdout().flush()?;
    scene.finish()
}
