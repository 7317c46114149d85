//! What an attacker makes of the sockets that he was given.

use std::fs;
use std::io::{ErrorKind, Read};
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use faasd::core::address::VPN_PREFIX;
use faasd_tests::{Bed, eventually, program};
use libc::{
    AF_INET, AF_INET6, AF_UNIX, EADDRINUSE, EAGAIN, ECONNREFUSED, EINPROGRESS, EINVAL, EISCONN, ENOENT,
    EPERM, ESRCH, MSG_DONTWAIT, MSG_FASTOPEN, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET,
};
use serde_json::json;

use crate::agent::{Agent, disconnect, hand_off, message, sockaddr, text};
use crate::{
    HTTP_PORT, Lures, PORT, SOCKET_FD, address_of, attacked_bed, client_address, decided, is_refused,
    targets, victim,
};

pub fn a_passed_connection_leads_nowhere() -> Result<()> {
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

pub fn an_inherited_listener_leads_nowhere() -> Result<()> {
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

pub fn a_socket_made_to_listen_is_not_reachable() -> Result<()> {
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

pub fn each_lock_holds_alone() -> Result<()> {
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

pub fn options_and_interfaces_are_out_of_reach() -> Result<()> {
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

pub fn a_descriptor_cannot_be_sent_on() -> Result<()> {
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

pub fn a_removed_function_keeps_nothing() -> Result<()> {
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
