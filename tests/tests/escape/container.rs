//! What an attacker makes of his container, and of the platform from within it.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use faasd_tests::{Bed, eventually, get, program};
use libc::{AF_INET6, ENOENT, ENOSYS, EPERM, EROFS, ESRCH, MSG_DONTWAIT, SOCK_STREAM, SOL_SOCKET};
use serde_json::{Value, json};

use crate::agent::{Agent, hand_off, message, text};
use crate::{PAGE_FD, SILENCE, SOCKET_FD, address_of, attacked_bed, metrics, victim};

pub fn the_container_is_closed() -> Result<()> {
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

pub fn a_malicious_instance_harms_itself_alone() -> Result<()> {
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

pub fn a_close_that_lingers_does_not_stop_the_daemon() -> Result<()> {
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

pub fn runtimes_work_under_the_filter() -> Result<()> {
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
