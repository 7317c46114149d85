//! No way out through a passed socket: an attacker that runs as a function tries, and each attempt must fail, and be
//! counted where the kernel program is what refuses it. `docs/SECURITY.md` says which lock each test is about.

use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use faasd::core::address::{FUNCTION_PREFIX, VPN_PREFIX};
use faasd_tests::{Bed, eventually, get, program, run, shared};
use libc::{
    AF_INET, AF_INET6, AF_UNIX, EADDRINUSE, EAGAIN, ECONNREFUSED, EINPROGRESS, EINVAL, EISCONN, ENOENT,
    ENOSYS, EPERM, EROFS, ESRCH, MSG_DONTWAIT, MSG_FASTOPEN, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET,
};
use serde_json::{Value, json};

/// The port of everything that an attacker must not reach.
const PORT: u16 = 7777;

/// How long a packet that is to be dropped is given to arrive all the same.
const SILENCE: Duration = Duration::from_millis(700);

const HTTP_PORT: u16 = 9464;

/// The descriptors that the attacker's program has besides its connections.
const SOCKET_FD: i64 = 3;
const PAGE_FD: i64 = 100;

fn main() {
    run(vec![
        shared("a_passed_connection_leads_nowhere", a_passed_connection_leads_nowhere),
        shared("an_inherited_listener_leads_nowhere", an_inherited_listener_leads_nowhere),
        shared("a_socket_made_to_listen_is_not_reachable", a_socket_made_to_listen_is_not_reachable),
        shared("each_lock_holds_alone", each_lock_holds_alone),
        shared("options_and_interfaces_are_out_of_reach", options_and_interfaces_are_out_of_reach),
        shared("a_descriptor_cannot_be_sent_on", a_descriptor_cannot_be_sent_on),
        shared("a_removed_function_keeps_nothing", a_removed_function_keeps_nothing),
        shared("the_container_is_closed", the_container_is_closed),
        shared("a_malicious_instance_harms_itself_alone", a_malicious_instance_harms_itself_alone),
        shared(
            "a_close_that_lingers_does_not_stop_the_daemon",
            a_close_that_lingers_does_not_stop_the_daemon,
        ),
        shared("runtimes_work_under_the_filter", runtimes_work_under_the_filter),
        shared("a_peer_reaches_what_is_declared_alone", a_peer_reaches_what_is_declared_alone),
    ])
}

/// A connection to code that does whatever it is told.
struct Agent {
    reader: BufReader<TcpStream>,
    /// The connection's descriptor, on the function's side.
    fd: i64,
}

/// What became of a call.
#[derive(Debug)]
struct Outcome {
    /// What it returned, or the negative error.
    result: i64,
    outs: Vec<Vec<u8>>,
}

impl Agent {
    fn connect(bed: &Bed, function: &str) -> Result<Self> {
        let stream = bed.client().connect(address_of(function)?, 80)?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let fd = line.trim().parse().with_context(|| format!("no descriptor: {line}"))?;
        Ok(Self { reader, fd })
    }

    fn tell(&mut self, order: &Value) -> io::Result<()> {
        let stream = self.reader.get_mut();
        stream.write_all(format!("{order}\n").as_bytes())
    }

    #[expect(clippy::needless_pass_by_value, reason = "each caller builds it in place")]
    fn repeat(&mut self, times: u64, call: i64, args: Value) -> Result<Outcome> {
        self.tell(&json!({ "call": call, "args": args, "repeat": times }))?;
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        let answer: Value =
            serde_json::from_str(&line).with_context(|| format!("call {call} {args}: {line}"))?;
        Ok(Outcome {
            result: answer["result"].as_i64().context("no result")?,
            outs: serde_json::from_value(answer["out"].clone())?,
        })
    }

    fn outcome(&mut self, call: i64, args: Value) -> Result<Outcome> {
        self.repeat(1, call, args)
    }

    fn call(&mut self, call: i64, args: Value) -> Result<i64> {
        Ok(self.outcome(call, args)?.result)
    }

    /// Fails unless the call fails by one of `errors`.
    fn refused(&mut self, what: &str, call: i64, args: Value, errors: &[i32]) -> Result<()> {
        let result = self.call(call, args)?;
        ensure!(errors.iter().any(|&e| result == -i64::from(e)), "{what}: {result}, not one of {errors:?}");
        Ok(())
    }

    fn granted(&mut self, what: &str, call: i64, args: Value) -> Result<i64> {
        let result = self.call(call, args)?;
        ensure!(result >= 0, "{what} is the attack's precondition and failed: {result}");
        Ok(result)
    }

    /// Leaves the connection open and to itself; what is on the client's side is returned.
    fn keep(mut self) -> Result<(i64, TcpStream)> {
        self.tell(&json!({ "keep": true }))?;
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        ensure!(line == "kept\n", "not kept: {line}");
        Ok((self.fd, self.reader.into_inner()))
    }

    /// The first bytes of a file, by the attacker's eyes.
    fn read_file(&mut self, path: &str) -> Result<Result<Vec<u8>, i64>> {
        let fd = self.call(libc::SYS_openat, json!([libc::AT_FDCWD, text(path), 0, 0]))?;
        if fd < 0 {
            return Ok(Err(fd));
        }
        let mut read = self.outcome(libc::SYS_read, json!([fd, { "out": 4096 }, 4096]))?;
        self.call(libc::SYS_close, json!([fd]))?;
        if read.result < 0 {
            return Ok(Err(read.result));
        }
        let mut bytes = read.outs.swap_remove(0);
        bytes.truncate(read.result as usize);
        Ok(Ok(bytes))
    }

    /// The names in a directory.
    fn list(&mut self, path: &str) -> Result<Vec<String>> {
        let fd =
            self.granted(path, libc::SYS_openat, json!([libc::AT_FDCWD, text(path), libc::O_DIRECTORY, 0]))?;
        let room = 32 << 10;
        let read = self.outcome(libc::SYS_getdents64, json!([fd, { "out": room }, room]))?;
        self.call(libc::SYS_close, json!([fd]))?;
        let mut names = Vec::new();
        let mut rest = &read.outs[0][..read.result.max(0) as usize];
        while rest.len() > 19 {
            let length = usize::from(u16::from_ne_bytes([rest[16], rest[17]]));
            let name = rest[19..length].split(|&b| b == 0).next().unwrap_or_default();
            names.push(String::from_utf8_lossy(name).into_owned());
            rest = &rest[length..];
        }
        Ok(names)
    }
}

/// A new connection to the attacker that is his alone to take apart: its descriptor on his side, the client's end.
fn victim(bed: &Bed) -> Result<(i64, TcpStream)> {
    Agent::connect(bed, "attacker")?.keep()
}

fn attacked_bed() -> Result<(Bed, Agent)> {
    let bed = Bed::joined()?;
    bed.deploy_program("attacker", &program("escape-function"), "")?.ok()?;
    let agent = Agent::connect(&bed, "attacker")?;
    Ok((bed, agent))
}

fn address_of(function: &str) -> Result<Ipv6Addr> {
    Ok(FUNCTION_PREFIX.function(&function.parse()?))
}

fn text(text: &str) -> Value {
    json!({ "in": text.bytes().chain([0]).collect::<Vec<u8>>() })
}

fn sockaddr(address: Ipv6Addr, port: u16) -> Value {
    let mut bytes = (AF_INET6 as u16).to_ne_bytes().to_vec();
    bytes.extend(port.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(address.octets());
    bytes.extend([0; 4]);
    json!({ "in": bytes })
}

fn disconnect(agent: &mut Agent, fd: i64) -> Result<()> {
    agent.granted("connect(AF_UNSPEC)", libc::SYS_connect, json!([fd, { "in": vec![0; 28] }, 28])).map(drop)
}

/// `sendmsg` of `bytes` with descriptors along.
fn message(bytes: &[u8], descriptors: &[i64]) -> Value {
    let rights: Vec<u8> = descriptors.iter().flat_map(|&fd| (fd as i32).to_ne_bytes()).collect();
    let length = 16 + rights.len();
    let mut control = (length as u64).to_ne_bytes().to_vec();
    control.extend(SOL_SOCKET.to_ne_bytes());
    control.extend(libc::SCM_RIGHTS.to_ne_bytes());
    control.extend(rights);
    let control_length = if descriptors.is_empty() { 0 } else { control.len().next_multiple_of(8) };
    json!({ "words": [0, 0, { "words": [{ "in": bytes }, bytes.len()] }, 1, { "in": control }, control_length, 0] })
}

fn hand_off(kind: u16) -> Vec<u8> {
    [1u16, kind, 0, 32].into_iter().flat_map(u16::to_le_bytes).collect()
}

fn metrics(bed: &Bed) -> Result<String> {
    bed.client().curl(&format!("http://[{}]:{HTTP_PORT}/metrics", VPN_PREFIX.server()))
}

/// How often the kernel program took a decision.
fn decided(bed: &Bed, decision: &str) -> Result<u64> {
    let metrics = metrics(bed)?;
    let name = format!("faasd_kernel_decisions_total{{decision=\"{decision}\"}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
    line.with_context(|| format!("no {name} in\n{metrics}"))?.trim().parse().context("no number")
}

/// The client's address in the tunnel.
fn client_address(bed: &Bed) -> Result<Ipv6Addr> {
    let stream = bed.client().connect(VPN_PREFIX.server(), HTTP_PORT)?;
    match stream.local_addr()? {
        SocketAddr::V6(address) => Ok(*address.ip()),
        SocketAddr::V4(_) => bail!("an IPv4 connection"),
    }
}

/// Listeners that nobody is to reach.
struct Lures(Vec<TcpListener>);

impl Lures {
    /// One on each address of the client and of the server's own namespace.
    fn set(bed: &Bed) -> Result<Self> {
        let listen = || {
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        Ok(Self(vec![bed.client().within(listen)?, bed.server()?.run(listen)?]))
    }

    fn caught(&self) -> bool {
        self.0.iter().any(|listener| listener.accept().is_ok())
    }

    fn untouched(&self) -> Result<()> {
        ensure!(!self.caught(), "somebody came to a listener that nobody can reach");
        Ok(())
    }
}

fn is_refused<T>(what: &str, result: &io::Result<T>) -> Result<()> {
    match result {
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(e) => bail!("{what}: {e}, not refused"),
        Ok(_) => bail!("{what}: it was let in"),
    }
}

/// Where an attacker would go.
fn targets(bed: &Bed) -> Result<[(&'static str, Ipv6Addr, u16); 8]> {
    Ok([
        ("the ingress's loopback", Ipv6Addr::LOCALHOST, PORT),
        ("IPv4 loopback", "::ffff:127.0.0.1".parse()?, PORT),
        ("DNS", VPN_PREFIX.server(), 53),
        ("the metrics", VPN_PREFIX.server(), HTTP_PORT),
        ("another function", address_of("other")?, 80),
        ("itself", address_of("attacker")?, 80),
        ("a peer", client_address(bed)?, PORT),
        ("the host", "fd00:1::1".parse()?, PORT),
    ])
}

fn a_passed_connection_leads_nowhere() -> Result<()> {
    let (bed, mut agent) = attacked_bed()?;
    bed.deploy_hello("other", "")?;
    let lures = Lures::set(&bed)?;
    let targets = targets(&bed)?;
    let (connects, binds) = (decided(&bed, "denied_connect")?, decided(&bed, "denied_bind")?);
    let mut clients = Vec::new();
    for (what, address, port) in targets {
        let (fd, client) = victim(&bed)?;
        clients.push(client);
        let to = sockaddr(address, port);
        agent.refused(what, libc::SYS_connect, json!([fd, to, 28]), &[EISCONN])?;
        agent.refused(what, libc::SYS_bind, json!([fd, to, 28]), &[EPERM, EINVAL])?;
        disconnect(&mut agent, fd)?;
        agent.refused(what, libc::SYS_connect, json!([fd, to, 28]), &[EPERM])?;
        agent.refused(what, libc::SYS_sendto, json!([fd, text("x"), 1, MSG_FASTOPEN, to, 28]), &[EPERM])?;
        agent.refused(what, libc::SYS_bind, json!([fd, to, 28]), &[EPERM, EINVAL])?;
        // As an IPv4 address, which an IPv6 socket may not take.
        let four = json!({ "in": [AF_INET, 0, 0x1e, 0x61, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0] });
        let result = agent.call(libc::SYS_connect, json!([fd, four, 16]))?;
        ensure!(result < 0, "connect to an IPv4 address: {result}");
        // Once more, after the failures.
        disconnect(&mut agent, fd)?;
        agent.refused(what, libc::SYS_connect, json!([fd, to, 28]), &[EPERM])?;

        // A socket of the container's own is in a namespace with nothing in it.
        let own = agent.granted("socket", libc::SYS_socket, json!([AF_INET6, SOCK_STREAM, 0]))?;
        if address != Ipv6Addr::LOCALHOST {
            let result = agent.call(libc::SYS_connect, json!([own, to, 28]))?;
            ensure!(result < 0, "{what} by a socket of its own: {result}");
        }
        agent.call(libc::SYS_close, json!([own]))?;
    }
    let tried = targets.len() as u64;
    ensure!(decided(&bed, "denied_connect")? >= connects + 3 * tried, "connects are not counted");
    ensure!(decided(&bed, "denied_bind")? >= binds + tried, "binds are not counted");
    lures.untouched()?;
    drop((agent, clients));
    bed.finish()
}

fn an_inherited_listener_leads_nowhere() -> Result<()> {
    const LISTENER: i64 = 3;
    let bed = Bed::joined()?;
    bed.deploy_hello("other", "")?;
    let toml = b"contract = 'listen-fds'\ncommand = ['./program']\n";
    let code = fs::read(program("escape-function"))?;
    bed.deploy("attacker", &[("program", &code), ("faas.toml", toml)])?.ok()?;
    let lures = Lures::set(&bed)?;
    let mut agent = Agent::connect(&bed, "attacker")?;
    let targets = targets(&bed)?;
    let (connects, binds) = (decided(&bed, "denied_connect")?, decided(&bed, "denied_bind")?);
    for (what, address, port) in targets {
        let to = sockaddr(address, port);
        agent.refused(what, libc::SYS_connect, json!([LISTENER, to, 28]), &[EISCONN])?;
        agent.refused(what, libc::SYS_bind, json!([LISTENER, to, 28]), &[EPERM, EINVAL])?;
    }
    // Taken apart it is a plain socket, still bound to the function's own address and still marked.
    disconnect(&mut agent, LISTENER)?;
    for (what, address, port) in targets {
        let to = sockaddr(address, port);
        agent.refused(what, libc::SYS_connect, json!([LISTENER, to, 28]), &[EPERM])?;
        agent.refused(
            what,
            libc::SYS_sendto,
            json!([LISTENER, text("x"), 1, MSG_FASTOPEN, to, 28]),
            &[EPERM],
        )?;
        agent.refused(what, libc::SYS_bind, json!([LISTENER, to, 28]), &[EPERM, EINVAL])?;
    }
    let tried = targets.len() as u64;
    ensure!(decided(&bed, "denied_connect")? >= connects + 2 * tried, "connects are not counted");
    ensure!(decided(&bed, "denied_bind")? >= binds + tried, "binds are not counted");
    lures.untouched()?;
    // What it does to its listener it does to itself: others are served, and so is it once it listens again.
    ensure!(bed.client().curl("http://other.faas/")? == "hello from faasd\n");
    agent.granted("listen", libc::SYS_listen, json!([LISTENER, 16]))?;
    Agent::connect(&bed, "attacker")?;
    drop(agent);
    bed.finish()
}

fn a_socket_made_to_listen_is_not_reachable() -> Result<()> {
    let (bed, mut agent) = attacked_bed()?;
    let mut listening = 0;
    // Taken apart at once; taken apart once the client has gone.
    for client_stays in [true, false] {
        let (fd, client) = victim(&bed)?;
        let client = client_stays.then_some(client);
        disconnect(&mut agent, fd)?;
        let listen = agent.call(libc::SYS_listen, json!([fd, 16]))?;
        if listen == -i64::from(EADDRINUSE) {
            // It still stands at the function's own address and port, which its true listener holds.
            continue;
        }
        ensure!(listen == 0, "listen: {listen}");
        listening += 1;
        let name =
            agent.outcome(libc::SYS_getsockname, json!([fd, { "out": 28 }, { "in": [28, 0, 0, 0] }]))?;
        let port = u16::from_be_bytes([name.outs[0][2], name.outs[0][3]]);
        let bound: [u8; 16] = name.outs[0][8..24].try_into()?;
        println!("listens on [{}]:{port}", Ipv6Addr::from(bound));
        let unknown = decided(&bed, "unknown")?;
        let addresses = [address_of("attacker")?, VPN_PREFIX.server(), address_of("nobody")?];
        let mut tried = 0;
        for address in addresses {
            // Port 80 of the function's own address is its true listener's.
            if (address, port) != (addresses[0], 80) {
                is_refused(&format!("[{address}]:{port}"), &bed.client().connect(address, port))?;
                tried += 1;
            }
        }
        ensure!(decided(&bed, "unknown")? >= unknown + tried, "they are not counted");
        agent.granted("O_NONBLOCK", libc::SYS_fcntl, json!([fd, libc::F_SETFL, libc::O_NONBLOCK]))?;
        agent.refused("accept", libc::SYS_accept4, json!([fd, 0, 0, SOCK_NONBLOCK]), &[EAGAIN, EINVAL])?;
        let queue =
            agent.outcome(libc::SYS_poll, json!([{ "in": [fd & 0xff, fd >> 8, 0, 0, 1, 0, 0, 0] }, 1, 0]))?;
        ensure!(queue.result == 0, "something waits at the attacker's listener");
        drop(client);
    }
    println!("{listening} of 2 could be made to listen");
    // The function's own listener is not disturbed.
    Agent::connect(&bed, "attacker")?;
    drop(agent);
    bed.finish()
}

/// Takes pins of the bed away, which detaches what they hold.
fn detach(bed: &Bed, prefix: &str) -> Result<()> {
    let dir = PathBuf::from("/sys/fs/bpf").join(bed.name());
    let mut found = 0;
    for entry in fs::read_dir(&dir)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            fs::remove_file(entry.path())?;
            found += 1;
        }
    }
    ensure!(found > 0, "no pin {prefix}* under {}", dir.display());
    Ok(())
}

fn each_lock_holds_alone() -> Result<()> {
    let (mut bed, mut agent) = attacked_bed()?;
    let lures = Lures::set(&bed)?;
    let to = sockaddr(client_address(&bed)?, PORT);
    let mut clients = Vec::new();
    // A socket of the attacker's that only `connect` is needed for, without waiting for its success.
    let mut taken_apart = |bed: &Bed, agent: &mut Agent| -> Result<i64> {
        let (fd, client) = victim(bed)?;
        clients.push(client);
        disconnect(agent, fd)?;
        agent.granted("O_NONBLOCK", libc::SYS_fcntl, json!([fd, libc::F_SETFL, libc::O_NONBLOCK]))?;
        Ok(fd)
    };

    // Without the guard on the way out, the guards on calls refuse.
    detach(&bed, "link_guard_egress").or_else(|_| detach(&bed, "guard_egress"))?;
    let denied = decided(&bed, "denied_connect")?;
    let fd = taken_apart(&bed, &mut agent)?;
    agent.refused("by the cgroup's guard", libc::SYS_connect, json!([fd, to, 28]), &[EPERM])?;
    agent.refused(
        "by the cgroup's guard",
        libc::SYS_sendto,
        json!([fd, text("x"), 1, MSG_FASTOPEN, to, 28]),
        &[EPERM],
    )?;
    ensure!(decided(&bed, "denied_connect")? == denied + 2);
    lures.untouched()?;

    // A new daemon puts everything back in its place; what is taken away then is the guards on calls.
    bed.end_daemon(rustix::process::Signal::TERM)?;
    bed.serve()?;
    let mut agent = Agent::connect(&bed, "attacker")?;
    detach(&bed, "link_deny_")?;
    let (denied, dropped) = (decided(&bed, "denied_connect")?, decided(&bed, "dropped_syn")?);
    let loopback = sockaddr(VPN_PREFIX.server(), HTTP_PORT);
    for target in [&to, &loopback] {
        let fd = taken_apart(&bed, &mut agent)?;
        agent.refused("by nobody yet", libc::SYS_connect, json!([fd, target, 28]), &[EINPROGRESS])?;
    }
    let fd = taken_apart(&bed, &mut agent)?;
    let fast = json!([fd, text("x"), 1, MSG_FASTOPEN | MSG_DONTWAIT, to, 28]);
    agent.refused("by nobody yet", libc::SYS_sendto, fast, &[EINPROGRESS])?;
    eventually("each first packet is dropped", || {
        decided(&bed, "dropped_syn").is_ok_and(|now| now >= dropped + 3)
    })?;
    ensure!(decided(&bed, "denied_connect")? == denied, "the guards on calls are still there");
    // Hidden behind an extension header: the one that takes no privilege is the routing header.
    let dropped = decided(&bed, "dropped_syn")?;
    let fd = taken_apart(&bed, &mut agent)?;
    let mut routing = vec![0, 2, 2, 1, 0, 0, 0, 0];
    routing.extend(client_address(&bed)?.octets());
    let length = routing.len();
    let option = |option: i32| json!([fd, libc::IPPROTO_IPV6, option, { "in": routing }, length]);
    println!("IPV6_RTHDR: {}", agent.call(libc::SYS_setsockopt, option(libc::IPV6_RTHDR))?);
    for privileged in [libc::IPV6_HOPOPTS, libc::IPV6_RTHDRDSTOPTS, libc::IPV6_DSTOPTS] {
        agent.refused("an extension header", libc::SYS_setsockopt, option(privileged), &[EPERM])?;
    }
    agent.refused("by nobody yet", libc::SYS_connect, json!([fd, to, 28]), &[EINPROGRESS])?;
    eventually("it is dropped as well", || decided(&bed, "dropped_syn").is_ok_and(|now| now > dropped))?;
    lures.untouched()?;

    // The attack is real: with neither lock, it reaches the peer.
    detach(&bed, "link_guard_egress").or_else(|_| detach(&bed, "guard_egress"))?;
    let fd = taken_apart(&bed, &mut agent)?;
    agent.refused("by nobody", libc::SYS_connect, json!([fd, to, 28]), &[EINPROGRESS])?;
    eventually("without either lock the peer is reached", || lures.caught())?;

    drop((agent, clients));
    bed.finish()
}

fn options_and_interfaces_are_out_of_reach() -> Result<()> {
    let (bed, mut agent) = attacked_bed()?;
    let (fd, client) = victim(&bed)?;
    let room = || json!({ "out": 64 });
    for request in [
        libc::SIOCGIFCONF,
        libc::SIOCGIFNAME,
        libc::SIOCGIFINDEX,
        libc::SIOCGIFFLAGS,
        libc::SIOCSIFFLAGS,
        libc::SIOCGIFADDR,
        libc::SIOCSIFADDR,
        libc::SIOCGIFHWADDR,
        libc::SIOCETHTOOL,
        libc::SIOCADDRT,
        libc::SIOCDELRT,
        libc::SIOCGIFMTU,
        libc::SIOCSIFMTU,
        libc::SIOCSIFNAME,
        0x89a0, // SIOCBRADDBR
        0x89ff, // the last of the drivers' own
        0x8b01, // SIOCGIWNAME
        0x894c, // SIOCGSKNS: the socket's network namespace, as a descriptor
    ] {
        for upper in [0, 1 << 32, -1 << 32] {
            let what = format!("ioctl {:#x}", request as i64 | upper);
            agent.refused(&what, libc::SYS_ioctl, json!([fd, request as i64 | upper, room()]), &[EPERM])?;
        }
    }
    agent.granted("FIONREAD", libc::SYS_ioctl, json!([fd, libc::FIONREAD, room()]))?;
    agent.granted("FIONBIO", libc::SYS_ioctl, json!([fd, libc::FIONBIO, { "in": [1, 0, 0, 0] }]))?;

    let one = || json!({ "in": [1, 0, 0, 0] });
    let interface = || text("wg0");
    const TCP_REPAIR: i32 = 19;
    const TCP_ULP: i32 = 31;
    const IPV6_TRANSPARENT: i32 = 75;
    const SO_RCVBUFFORCE: i32 = 33;
    const SO_BINDTOIFINDEX: i32 = 62;
    let (tcp, six) = (libc::IPPROTO_TCP, libc::IPPROTO_IPV6);
    for (what, level, option, value, length) in [
        ("SO_MARK", SOL_SOCKET, libc::SO_MARK, json!({ "in": 0xfaa5u32.to_ne_bytes() }), 4),
        ("SO_RCVBUFFORCE", SOL_SOCKET, SO_RCVBUFFORCE, one(), 4),
        ("SO_DEBUG", SOL_SOCKET, libc::SO_DEBUG, one(), 4),
        ("TCP_REPAIR", tcp, TCP_REPAIR, one(), 4),
        ("IPV6_TRANSPARENT", six, IPV6_TRANSPARENT, one(), 4),
        ("IPV6_ADDRFORM", six, libc::IPV6_ADDRFORM, json!({ "in": AF_INET.to_ne_bytes() }), 4),
        ("SO_ATTACH_BPF", SOL_SOCKET, 50, one(), 4),
        ("SO_ATTACH_REUSEPORT_EBPF", SOL_SOCKET, 52, one(), 4),
        ("TCP_ULP smc", tcp, TCP_ULP, text("smc"), 3),
        ("TCP_ULP mptcp", tcp, TCP_ULP, text("mptcp"), 5),
        ("TCP_ULP espintcp", tcp, TCP_ULP, text("espintcp"), 8),
    ] {
        let result = agent.call(libc::SYS_setsockopt, json!([fd, level, option, value, length]))?;
        ensure!(result < 0, "{what}: {result}");
        println!("{what}: {result}");
    }
    // The first binding to an interface takes no privilege; the name must not tell what there is, and no packet goes
    // further by it.
    for (what, option, value, length) in [
        ("SO_BINDTODEVICE", libc::SO_BINDTODEVICE, interface(), 4),
        ("SO_BINDTOIFINDEX", SO_BINDTOIFINDEX, json!({ "in": [1, 0, 0, 0] }), 4),
    ] {
        let (fd, client) = victim(&bed)?;
        println!(
            "{what}: {}",
            agent.call(libc::SYS_setsockopt, json!([fd, SOL_SOCKET, option, value, length]))?
        );
        disconnect(&mut agent, fd)?;
        let to = sockaddr(client_address(&bed)?, PORT);
        agent.refused(what, libc::SYS_connect, json!([fd, to, 28]), &[EPERM])?;
        drop(client);
    }
    // A classic filter may be put on one's own connection, and a chooser among one's own listeners: neither is a
    // listener that anybody else's connections come to.
    let pass_nothing = json!({ "words": [1, { "in": [6, 0, 0, 0, 0, 0, 0, 0] }] });
    let chooser = agent.call(libc::SYS_setsockopt, json!([fd, SOL_SOCKET, 51, pass_nothing, 16]))?;
    println!("SO_ATTACH_REUSEPORT_CBPF: {chooser}");
    Agent::connect(&bed, "attacker")?;
    drop((agent, client));
    bed.finish()
}

fn open_descriptors(pid: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

fn a_descriptor_cannot_be_sent_on() -> Result<()> {
    let (bed, mut agent) = attacked_bed()?;
    bed.deploy_hello("other", "")?;
    let (fd, client) = victim(&bed)?;

    // To the daemon, which neither keeps nor wants it, and ends the instance for it, perhaps before it can tell.
    let before = open_descriptors(bed.daemon())?;
    let pid = bed.describe("attacker")?["instances"][0]["pid"].clone();
    let _ =
        agent.repeat(1000, libc::SYS_sendmsg, json!([SOCKET_FD, message(&hand_off(4), &[fd]), MSG_DONTWAIT]));
    eventually("it is ended for it", || {
        bed.describe("attacker").is_ok_and(|f| {
            f["instances"]
                .as_array()
                .is_some_and(|all| all.iter().all(|i| i["phase"] == "ready" && i["pid"] != pid))
        })
    })?;
    eventually("the daemon is back to its own descriptors", || {
        bed.describe("other").is_ok() && open_descriptors(bed.daemon()).is_ok_and(|now| now <= before)
    })?;
    ensure!(bed.client().curl("http://other.faas/")?.contains("hello"));
    drop(client);

    // By names: abstract ones are each namespace's own, and there is no directory in common.
    let name = format!("faasd-{}", bed.name());
    let listener = bed.server()?.run(|| {
        use std::os::linux::net::SocketAddrExt;
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name)?;
        std::os::unix::net::UnixListener::bind_addr(&address)
    })?;
    let mut agent = Agent::connect(&bed, "attacker")?;
    let unix = agent.granted("socket", libc::SYS_socket, json!([AF_UNIX, SOCK_STREAM, 0]))?;
    let abstract_name: Vec<u8> = [1, 0, 0].into_iter().chain(name.bytes()).collect();
    let length = abstract_name.len();
    let connect = json!([unix, { "in": abstract_name }, length]);
    agent.refused("an abstract name of the host's", libc::SYS_connect, connect, &[ECONNREFUSED])?;
    drop(listener);
    for path in [bed.path("run/faasd.sock"), "/run/runc".into(), "/sys".into()] {
        let stat = json!([libc::AT_FDCWD, text(&path.display().to_string()), 0]);
        agent.refused(&path.display().to_string(), libc::SYS_faccessat, stat, &[ENOENT])?;
    }

    // By processes: it sees its own alone, and takes descriptors from none.
    let own = agent.granted("pidfd_open", libc::SYS_pidfd_open, json!([1, 0]))?;
    agent.refused("pidfd_getfd", libc::SYS_pidfd_getfd, json!([own, 3, 0]), &[EPERM])?;
    agent.refused("pidfd_open", libc::SYS_pidfd_open, json!([bed.daemon(), 0]), &[ESRCH, EINVAL])?;
    ensure!(agent.read_file(&format!("/proc/{}/fd/3", bed.daemon()))?.is_err());
    let others: Vec<_> = agent
        .list("/proc")?
        .into_iter()
        .filter(|name| name.parse::<u32>().is_ok_and(|pid| pid != 1))
        .collect();
    ensure!(others.is_empty(), "/proc shows {others:?}");
    drop(agent);
    bed.finish()
}

fn a_removed_function_keeps_nothing() -> Result<()> {
    let (bed, agent) = attacked_bed()?;
    let pid = bed.describe("attacker")?["instances"][0]["pid"].as_u64().context("no pid")?;
    let (_, mut client) = victim(&bed)?;
    drop(agent);
    let started = Instant::now();
    bed.faas(&["rm", "attacker"])?.ok()?;
    println!("removed in {:?}", started.elapsed());
    ensure!(!PathBuf::from(format!("/proc/{pid}")).exists(), "its process goes on");
    let end = client.read(&mut [0; 16]);
    ensure!(
        matches!(&end, Ok(0)) || end.as_ref().is_err_and(|e| e.kind() == ErrorKind::ConnectionReset),
        "its client sees {end:?}"
    );
    is_refused("a removed function", &bed.client().connect(address_of("attacker")?, 80))?;
    bed.finish()
}

fn the_container_is_closed() -> Result<()> {
    let (bed, mut agent) = attacked_bed()?;
    bed.deploy_hello("other", "")?;
    let other = bed.describe("other")?;
    let empty = || text("");
    const NEW_USER: i64 = 0x1000_0000;
    for (what, call, args) in [
        ("unshare", libc::SYS_unshare, json!([NEW_USER])),
        ("clone into a user namespace", libc::SYS_clone, json!([NEW_USER | 17, 0, 0, 0, 0])),
        ("setns", libc::SYS_setns, json!([3, 0])),
        ("mount", libc::SYS_mount, json!([empty(), text("/tmp"), text("tmpfs"), 0, 0])),
        ("umount", libc::SYS_umount2, json!([text("/usr"), 0])),
        ("open_tree", libc::SYS_open_tree, json!([libc::AT_FDCWD, text("/"), 1])),
        ("fsopen", libc::SYS_fsopen, json!([text("tmpfs"), 0])),
        ("pivot_root", libc::SYS_pivot_root, json!([text("/tmp"), text("/tmp")])),
        ("chroot", libc::SYS_chroot, json!([text("/tmp")])),
        ("ptrace", libc::SYS_ptrace, json!([0, 0, 0, 0])),
        ("process_vm_readv", libc::SYS_process_vm_readv, json!([1, 0, 0, 0, 0, 0])),
        ("keyctl", libc::SYS_keyctl, json!([0, -3, 0])),
        ("add_key", libc::SYS_add_key, json!([text("user"), text("x"), empty(), 1, -3])),
        ("bpf", libc::SYS_bpf, json!([0, { "out": 64 }, 64])),
        ("perf_event_open", libc::SYS_perf_event_open, json!([{ "out": 128 }, 0, -1, -1, 0])),
        ("io_uring_setup", libc::SYS_io_uring_setup, json!([8, { "out": 128 }])),
        ("userfaultfd", libc::SYS_userfaultfd, json!([1])),
        (
            "name_to_handle_at",
            libc::SYS_name_to_handle_at,
            json!([-100, text("/"), { "out": 128 }, { "out": 8 }, 0]),
        ),
        ("netlink", libc::SYS_socket, json!([libc::AF_NETLINK, 3, 0])),
        ("packet sockets", libc::SYS_socket, json!([libc::AF_PACKET, 3, 0])),
        ("raw sockets", libc::SYS_socket, json!([AF_INET6, libc::SOCK_RAW, 58])),
        ("vsock", libc::SYS_socket, json!([libc::AF_VSOCK, SOCK_STREAM, 0])),
        ("a device node", libc::SYS_mknodat, json!([-100, text("/tmp/sda"), libc::S_IFBLK | 0o600, 0x800])),
        ("becoming root", libc::SYS_setresuid, json!([0, 0, 0])),
    ] {
        agent.refused(what, call, args, &[EPERM])?;
    }
    agent.refused("clone3", libc::SYS_clone3, json!([{ "out": 88 }, 88]), &[ENOSYS])?;
    let write = libc::O_WRONLY | libc::O_CREAT;
    for path in ["/x", "/app/x", "/usr/x", "/etc/passwd", "/run/x", "/dev/x", "/proc/x", "/app/program"] {
        let result = agent.call(libc::SYS_openat, json!([libc::AT_FDCWD, text(path), write, 0o600]))?;
        let refusals = [EROFS, libc::EACCES, ENOENT, EPERM].map(|e| -i64::from(e));
        ensure!(refusals.contains(&result), "writing {path}: {result}");
    }
    let tmp = json!([libc::AT_FDCWD, text("/tmp/x"), write, 0o600]);
    agent.granted("/tmp, which is for writing", libc::SYS_openat, tmp)?;

    // Others: neither their code nor their processes.
    for dir in [bed.path("state"), bed.path("run"), bed.path("functions"), "/var".into(), "/root".into()] {
        ensure!(agent.read_file(&dir.display().to_string())?.is_err(), "it sees {}", dir.display());
    }
    let pid = other["instances"][0]["pid"].as_u64().context("no pid")?;
    for signal in [0, libc::SIGKILL] {
        agent.refused("a signal to another function", libc::SYS_kill, json!([pid, signal]), &[ESRCH])?;
        agent.refused("a signal to the daemon", libc::SYS_kill, json!([bed.daemon(), signal]), &[ESRCH])?;
    }
    let status = agent.read_file("/proc/self/status")?;
    let status = String::from_utf8(status.unwrap_or_default())?;
    for line in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        ensure!(status.contains(line), "{line} is not in\n{status}");
    }
    // Users differ from function to function, as the host sees them.
    let uid = |view: &Value| -> Result<u32> {
        use std::os::unix::fs::MetadataExt;
        let pid = view["instances"][0]["pid"].as_u64().context("no pid")?;
        Ok(fs::metadata(format!("/proc/{pid}"))?.uid())
    };
    let (theirs, ours) = (uid(&other)?, uid(&bed.describe("attacker")?)?);
    ensure!(theirs != ours && ours > 65_536 && theirs > 65_536, "users {ours} and {theirs}");
    drop(agent);
    bed.finish()
}

/// Processor time of a process, in ticks.
fn ticks(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = stat.rsplit(')').next().context("no stat")?;
    let fields: Vec<&str> = after.split_whitespace().collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

/// The platform works, and does not work itself up.
fn is_well(bed: &Bed, what: &str) -> Result<()> {
    let mut quick = Duration::ZERO;
    for _ in 0..5 {
        let started = Instant::now();
        ensure!(bed.client().curl("http://other.faas/")?.contains("hello"), "{what}: the other function");
        bed.describe("other")?;
        quick = quick.max(started.elapsed());
    }
    ensure!(quick < Duration::from_secs(2), "{what}: the platform answers after {quick:?}");
    // Over a while, the daemon uses but a part of it.
    let (before, started) = (ticks(bed.daemon())?, Instant::now());
    std::thread::sleep(SILENCE);
    let used = Duration::from_millis(10 * (ticks(bed.daemon())? - before));
    ensure!(used < started.elapsed() / 3, "{what}: the daemon used {used:?} of {:?}", started.elapsed());
    Ok(())
}

fn a_malicious_instance_harms_itself_alone() -> Result<()> {
    let bed = Bed::joined()?;
    bed.deploy_hello("other", "")?;
    let deploy = || bed.deploy_program("attacker", &program("escape-function"), "")?.ok();
    deploy()?;
    let log_bytes = || bed.log().len();
    let send = |bytes: &[u8]| json!([SOCKET_FD, message(bytes, &[]), 0]);
    let flood = |kind: u16| json!([SOCKET_FD, message(&hand_off(kind), &[]), MSG_DONTWAIT]);
    let mut version = hand_off(3);
    version[0] = 9;
    let huge = vec![0xff; 100 << 10];
    let page_of_ones = json!([PAGE_FD, { "in": vec![0xff; 4096] }, 4096, 0]);
    let finished_ahead = json!([PAGE_FD, { "in": u64::MAX.to_ne_bytes() }, 8, 72]);
    let attacks: [(&str, u64, i64, Value); 14] = [
        ("Drained without Drain", 1, libc::SYS_sendmsg, send(&hand_off(4))),
        ("Ready again", 1, libc::SYS_sendmsg, send(&hand_off(3))),
        ("what only the daemon says", 1, libc::SYS_sendmsg, send(&hand_off(1))),
        ("an empty message", 1, libc::SYS_sendmsg, send(&[])),
        ("garbage", 1, libc::SYS_sendmsg, send(b"\xff\xfe\xfd")),
        ("a huge message", 1, libc::SYS_sendmsg, send(&huge)),
        ("another version", 1, libc::SYS_sendmsg, send(&version)),
        ("a flood of Ready", 200_000, libc::SYS_sendmsg, flood(3)),
        ("a flood of Drained", 200_000, libc::SYS_sendmsg, flood(4)),
        ("a flood of Drain", 200_000, libc::SYS_sendmsg, flood(2)),
        ("the page full of ones", 1, libc::SYS_pwrite64, page_of_ones),
        ("more finished than sent", 1, libc::SYS_pwrite64, finished_ahead),
        ("its end shut for reading", 1, libc::SYS_shutdown, json!([SOCKET_FD, 0])),
        ("its end shut", 1, libc::SYS_shutdown, json!([SOCKET_FD, 2])),
    ];
    for (what, times, call, args) in attacks {
        let before = log_bytes();
        let mut agent = Agent::connect(&bed, "attacker").with_context(|| format!("before {what}"))?;
        let first = bed.describe("attacker")?["instances"][0]["pid"].clone();
        if let Err(error) = agent.repeat(times, call, args) {
            // It may be ended for what it did before it can tell.
            eventually("it is replaced", || {
                bed.describe("attacker").is_ok_and(|f| {
                    let pid = &f["instances"][0]["pid"];
                    pid.is_number() && *pid != first
                })
            })
            .with_context(|| format!("{what}: {error:#}"))?;
        }
        // One connection more, which nobody may be there to take.
        let waiting = bed.client().connect(address_of("attacker")?, 80)?;
        is_well(&bed, what)?;
        let metrics = metrics(&bed)?;
        ensure!(metrics.contains("faasd_connections_in_flight"), "{what}: {metrics}");
        ensure!(log_bytes() - before < 16 << 10, "{what}: the daemon logs {} bytes", log_bytes() - before);
        drop((agent, waiting));
        // The next attack begins anew.
        deploy().with_context(|| format!("after {what}"))?;
    }
    // Two instances whose pages say that they have all the connections in the world.
    bed.deploy_program("attacker", &program("escape-function"), "[scale]\nmin = 2")?.ok()?;
    eventually("two instances", || {
        bed.describe("attacker").is_ok_and(|f| {
            f["instances"]
                .as_array()
                .is_some_and(|all| all.iter().filter(|i| i["phase"] == "ready").count() == 2)
        })
    })?;
    let (mut a, mut b) = (Agent::connect(&bed, "attacker")?, Agent::connect(&bed, "attacker")?);
    for agent in [&mut a, &mut b] {
        agent.granted("the page", libc::SYS_pwrite64, json!([PAGE_FD, { "in": vec![0xff; 64] }, 64, 0]))?;
    }
    is_well(&bed, "all ones twice")?;
    metrics(&bed)?;
    bed.faas(&["ls"])?.ok()?;
    drop((a, b));
    bed.finish()
}

fn a_close_that_lingers_does_not_stop_the_daemon() -> Result<()> {
    let (bed, mut agent) = attacked_bed()?;
    bed.deploy_hello("other", "")?;
    let mut clients = Vec::new();
    // More than the daemon has threads. Each socket has more to say than its client hears, and would wait an hour at
    // its last close; the last descriptor is to be the daemon's.
    let mut sockets = Vec::new();
    for _ in 0..32 {
        let (fd, client) = victim(&bed)?;
        agent.granted(
            "SO_LINGER",
            libc::SYS_setsockopt,
            json!([fd, SOL_SOCKET, libc::SO_LINGER, { "in": [1, 0, 0, 0, 16, 14, 0, 0] }, 8]),
        )?;
        let room = 60 << 10;
        agent.repeat(200, libc::SYS_sendto, json!([fd, { "room": room }, room, MSG_DONTWAIT, 0, 0]))?;
        sockets.push(fd);
        clients.push(client);
    }
    // It is ended for it, perhaps before it can tell; the descriptors in the message are then the last ones.
    let _ = agent.call(libc::SYS_sendmsg, json!([SOCKET_FD, message(&hand_off(4), &sockets), MSG_DONTWAIT]));
    eventually("it is ended for it", || bed.log().contains("broke the hand-off protocol"))?;
    is_well(&bed, "lingering sockets")?;
    bed.faas(&["rm", "attacker"])?.ok()?;
    bed.deploy_hello("third", "")?;
    is_well(&bed, "after its end")?;
    drop((agent, clients));
    bed.finish()
}

fn runtimes_work_under_the_filter() -> Result<()> {
    let bed = Bed::joined()?;
    // What python asks its descriptors and terminals.
    let handler = br#"
import asyncio, os, socket, subprocess, tempfile

def handle(event, context):
    said = []
    r, w = os.pipe()
    os.set_inheritable(r, True)
    os.set_inheritable(r, False)
    os.set_blocking(r, False)
    said.append(os.isatty(0))
    a, b = socket.socketpair()
    a.settimeout(1)
    b.send(b"x")
    assert a.recv(1) == b"x"
    said.append(subprocess.run(["/bin/sh", "-c", "echo child"], capture_output=True, text=True).stdout.strip())
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"x")
    said.append(asyncio.run(asyncio.sleep(0, "async")))
    if os.path.exists("/usr/bin/node"):
        script = "process.stdin.isTTY; require('child_process').execSync('true'); console.log('node')"
        said.append(subprocess.run(["/usr/bin/node", "-e", script], capture_output=True, text=True).stdout.strip())
    return str(said)
"#;
    let files: [(&str, &[u8]); 2] =
        [("handler.py", handler), ("faas.toml", b"[limits]\nmemory = '512MiB'\n")];
    bed.deploy("pythonic", &files)?.ok()?;
    let said = bed.client().curl("http://pythonic.faas/")?;
    let node = if PathBuf::from("/usr/bin/node").exists() { ", 'node'" } else { "" };
    ensure!(said == format!("[False, 'child', 'async'{node}]"), "{said}");
    bed.deploy_hello("tokio", "")?;
    let mut stream = bed.client().connect(address_of("tokio")?, 80)?;
    ensure!(get(&mut stream, "/sleep?ms=1")?.0 == 200);
    drop(stream);
    bed.finish()
}

fn a_peer_reaches_what_is_declared_alone() -> Result<()> {
    let bed = Bed::joined()?;
    bed.deploy_hello("hello", "")?;
    let (hello, server) = (address_of("hello")?, VPN_PREFIX.server());
    let unknown = decided(&bed, "unknown")?;
    for port in [22, 79, 81, 443, PORT, 51820] {
        for address in [hello, server, address_of("nobody")?] {
            is_refused(&format!("[{address}]:{port}"), &bed.client().connect(address, port))?;
        }
    }
    ensure!(decided(&bed, "unknown")? >= unknown + 18, "they are not counted");
    // The API is for the host, and for admins.
    for path in ["/v1/functions", "/v1/peers", "/v1/version", "/v1/functions/hello/invoke"] {
        let url = format!("http://[{server}]:{HTTP_PORT}{path}");
        let status =
            bed.client().run(&["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", &url])?.ok()?;
        ensure!(status == "403", "{path}: {status}");
    }

    // Another peer's address is no good to this one: WireGuard drops what does not belong to the key.
    let client = client_address(&bed)?;
    let interface = format!("{}t", bed.name());
    let from = |source: Ipv6Addr, to: Ipv6Addr| {
        bed.client().within(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None)?;
            socket.bind(&SocketAddr::from((source, 0)).into())?;
            socket.connect_timeout(&SocketAddr::from((to, 80)).into(), SILENCE)
        })
    };
    let forged: Ipv6Addr = VPN_PREFIX.host(0x9999);
    let as_function: Ipv6Addr = address_of("nobody")?;
    for address in [forged, as_function, server] {
        let host = format!("{address}/128");
        bed.client().run(&["ip", "addr", "add", &host, "dev", &interface, "nodad"])?.ok()?;
        if address != server {
            let result = from(address, hello);
            ensure!(
                result.as_ref().is_err_and(|e| e.kind() == ErrorKind::TimedOut),
                "from the forged {address}: {result:?}"
            );
        } else {
            let result = from(address, hello);
            ensure!(result.is_err(), "from the server's own address: {result:?}");
        }
        bed.client().run(&["ip", "addr", "del", &host, "dev", &interface])?.ok()?;
    }
    from(client, hello).context("from its own address")?;

    // Other addresses of the ingress, and what lies beyond it.
    let lures = Lures::set(&bed)?;
    for target in ["fd00:1::1", "::1", "fe80::1"] {
        let target: Ipv6Addr = target.parse()?;
        bed.client().run(&["ip", "route", "add", &format!("{target}/128"), "dev", &interface])?;
        let result = bed.client().within(|| {
            let to = SocketAddr::V6(SocketAddrV6::new(target, HTTP_PORT, 0, 0));
            TcpStream::connect_timeout(&to, SILENCE)
        });
        ensure!(result.is_err(), "{target}: {result:?}");
    }
    lures.untouched()?;
    drop(lures);

    // From the host, where no tunnel vouches for an address, functions cannot be reached at all.
    let result = bed.server()?.run(|| TcpStream::connect_timeout(&SocketAddr::from((hello, 80)), SILENCE));
    ensure!(result.is_err(), "from the host: {result:?}");
    bed.finish()
}
