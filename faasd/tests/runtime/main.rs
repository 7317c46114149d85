//! Real containers, by the real runc. These need root: `cargo test -p faasd --test runtime -- --ignored`.
//!
//! Each test has a daemon's worth of directories of its own, and ends by looking for anything that was left behind.

#![expect(clippy::unwrap_used, reason = "these are tests, their helpers included")]

mod bed;

use std::fs;
use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bed::{Bed, Instance};
use faasd::core::name::FunctionName;
use faasd::core::spec::{Contract, FunctionSpec};
use faasd::runtime::logs::{Logs, Query};
use faasd::runtime::{Runtime, StartError, bundle, runc};
use faasd::sys::cgroup::Cgroups;
use faasd::sys::pidfd::Exit;
use faasd_sdk::wire::{self, Kind, Record};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

const DEADLINE: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_secs(20);

/// Tries what must not be possible, tells what happened, and waits until it is let go.
const SANDBOX: &str = r#"
import ctypes, errno, json, os, resource, socket, threading
control = socket.socket(fileno=3)
libc = ctypes.CDLL(None, use_errno=True)

def attempt(f):
    try:
        f()
        return "done"
    except OSError as e:
        return errno.errorcode[e.errno]

def call(name, *arguments):
    def f():
        if getattr(libc, name)(*arguments) == -1:
            raise OSError(ctypes.get_errno(), name)
    return attempt(f)

def numbered(number, *arguments):
    return call("syscall", number, *arguments)

tmp = os.statvfs("/tmp")
report = {
    "uid": os.getuid(), "gid": os.getgid(), "pid": os.getpid(), "cwd": os.getcwd(), "host": socket.gethostname(),
    "env": dict(os.environ),
    "fds": sorted(int(n) for n in os.listdir("/proc/self/fd"))[:5], "fd_count": len(os.listdir("/proc/self/fd")) - 1,
    "nofile": resource.getrlimit(resource.RLIMIT_NOFILE), "core": resource.getrlimit(resource.RLIMIT_CORE),
    "status_bytes": os.fstat(4).st_size,
    "root": sorted(os.listdir("/")), "app": os.listdir("/app"), "local": os.listdir("/usr/local"),
    "dev": sorted(os.listdir("/dev")), "proc": sorted(n for n in os.listdir("/proc") if not n.isdigit()),
    "tmp_mode": oct(os.stat("/tmp").st_mode), "tmp_bytes": tmp.f_blocks * tmp.f_frsize,
    "write": {p: attempt(lambda: open(p + "/x", "w").close())
              for p in ("", "/app", "/usr", "/usr/local", "/etc", "/run", "/dev", "/tmp")},
    "host_files": {p: os.path.exists(p) for p in (
        "/var", "/home", "/root", "/sys", "/etc/shadow", "/proc/kcore", "/proc/sys", "/proc/meminfo", "/dev/vda",
        "/dev/kmsg")},
    "null": attempt(lambda: open("/dev/null", "w").write("x")),
    "urandom": attempt(lambda: open("/dev/urandom", "rb").read(1)),
    "unshare_user": call("unshare", 0x10000000), "unshare_net": call("unshare", 0x40000000),
    "setns": call("setns", 3, 0), "mount": call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
    "chroot": call("chroot", b"/tmp"), "ptrace": call("ptrace", 0, 0, None, None),
    "keyctl": numbered(250, 0, 0), "bpf": numbered(321, 0, None, 0), "io_uring": numbered(425, 1, None),
    "userfaultfd": numbered(323, 0), "clone3": numbered(435, None, 0),
    "clone_newuser": numbered(56, 0x10000000 | 17, None, None, None, 0),
    "open_by_handle_at": numbered(304, 3, None, 0),
    "personality": call("personality", 0x0040000), "setuid": attempt(lambda: os.setuid(0)),
    "mkfifo": attempt(lambda: os.mkfifo("/tmp/fifo")),
    "mknod": attempt(lambda: os.mknod("/tmp/null", 0o20666, os.makedev(1, 3))),
    "netlink": attempt(lambda: socket.socket(16, socket.SOCK_RAW)),
    "vsock": attempt(lambda: socket.socket(40, socket.SOCK_STREAM)),
    "packet": attempt(lambda: socket.socket(17, socket.SOCK_RAW)),
    "inet": attempt(lambda: socket.socket(2, socket.SOCK_STREAM)),
    "raw": attempt(lambda: socket.socket(2, socket.SOCK_RAW, 1)),
    "connect": attempt(lambda: socket.create_connection(("198.51.100.1", 80), 2)),
    "thread": attempt(lambda: threading.Thread(target=int).start()),
    "child": os.waitstatus_to_exitcode(os.system("exit 5")),
}
control.send(json.dumps(report).encode())
control.recv(10)
"#;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn the_sandbox_is_closed() {
    let bed = Bed::new().await;
    let (mut request, socket) = bed.script(SANDBOX);
    request.spec.env = [("GREETING".into(), "hi".into()), ("HOME".into(), "/evil".into())].into();
    let instance = bed.start((request, socket)).await;
    let report = instance.report();
    println!("{report:#}");

    assert_eq!((&report["uid"], &report["gid"], &report["pid"]), (&65_532.into(), &65_532.into(), &1.into()));
    assert_eq!((&report["cwd"], &report["host"]), (&"/app".into(), &"probe".into()));
    for (key, value) in [
        ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        ("HOME", "/tmp"),
        ("LANG", "C.UTF-8"),
        ("FAAS_FUNCTION", "probe"),
        ("FAAS_REVISION", "1"),
        ("GREETING", "hi"),
    ] {
        assert_eq!(report["env"][key], value, "{key}");
    }
    // The three standard ones, the socket, the status page, and nothing of the daemon's.
    assert_eq!(report["fds"], serde_json::json!([0, 1, 2, 3, 4]));
    assert_eq!(report["fd_count"], 5);
    assert_eq!(report["status_bytes"], 4096);
    let files_max = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let files = FunctionSpec::default().limits.files_max.min(files_max);
    assert_eq!(report["nofile"], serde_json::json!([files, files]));
    assert_eq!(report["core"], serde_json::json!([0, 0]));

    assert_eq!(
        (&report["app"], &report["local"]),
        (&serde_json::json!(["probe.py"]), &serde_json::json!([]))
    );
    for (path, result) in report["write"].as_object().unwrap() {
        let expected: &[&str] = match path.as_str() {
            "/tmp" => &["done"],
            // A tmpfs of the container's root user, who runs nothing.
            "/dev" => &["EACCES"],
            _ => &["EROFS"],
        };
        assert!(expected.contains(&result.as_str().unwrap()), "{path}: {result}");
    }
    assert_eq!((&report["tmp_mode"], &report["tmp_bytes"]), (&"0o41777".into(), &(16 << 20).into()));
    for (path, is_there) in report["host_files"].as_object().unwrap() {
        assert_eq!(is_there, false, "{path}");
    }
    for (what, result) in [
        ("null", "done"),
        ("urandom", "done"),
        ("unshare_user", "EPERM"),
        ("unshare_net", "EPERM"),
        ("setns", "EPERM"),
        ("mount", "EPERM"),
        ("chroot", "EPERM"),
        ("ptrace", "EPERM"),
        ("personality", "EPERM"),
        ("setuid", "EPERM"),
        ("mkfifo", "done"),
        ("mknod", "EPERM"),
        ("netlink", "EPERM"),
        ("vsock", "EPERM"),
        ("packet", "EPERM"),
        ("inet", "done"),
        ("raw", "EPERM"),
        ("connect", "ENETUNREACH"),
        ("thread", "done"),
    ] {
        assert_eq!(report[what], result, "{what}");
    }
    if cfg!(target_arch = "x86_64") {
        // By number, as the script has no names for them.
        for (what, result) in [
            ("keyctl", "EPERM"),
            ("bpf", "EPERM"),
            ("io_uring", "EPERM"),
            ("userfaultfd", "EPERM"),
            ("clone3", "ENOSYS"),
            ("clone_newuser", "EPERM"),
            ("open_by_handle_at", "EPERM"),
        ] {
            assert_eq!(report[what], result, "{what}");
        }
    }
    assert_eq!(report["child"], 5);

    // The same from the host's side.
    let base = bundle::uid_base(7);
    let user = (base + bundle::USER).to_string();
    assert_eq!(instance.status("Uid").split_whitespace().collect::<Vec<_>>(), [user.as_str(); 4]);
    assert_eq!((instance.status("NoNewPrivs"), instance.status("Seccomp")), ("1".into(), "2".into()));
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&instance.status(set), 16), Ok(0), "{set}");
    }
    let proc = |file: &str| PathBuf::from(format!("/proc/{}/{file}", instance.running.pid));
    for map in ["uid_map", "gid_map"] {
        let text = fs::read_to_string(proc(map)).unwrap();
        assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["0", &base.to_string(), "65536"]);
    }
    for namespace in ["user", "pid", "mnt", "ipc", "uts", "cgroup", "net"] {
        let file = format!("ns/{namespace}");
        let ours = fs::read_link(format!("/proc/self/{file}")).unwrap();
        assert_ne!(fs::read_link(proc(&file)).unwrap(), ours, "{namespace}");
    }
    let links = fs::read_to_string(proc("net/dev")).unwrap();
    let links: Vec<_> =
        links.lines().filter_map(|l| l.split_once(':')).map(|(name, _)| name.trim()).collect();
    assert_eq!(links, ["lo"]);

    let Instance { running, socket } = instance;
    // It waits for a message, and takes the hang-up for one.
    drop(socket);
    let exit = tokio::time::timeout(DEADLINE, running.process.exited()).await.unwrap().unwrap();
    assert_eq!(exit, Exit::Code(0));
    bed.runtime.stop(&running.id, &running.process, GRACE).await.unwrap();
    bed.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn a_handler_answers_a_connection() {
    let bed = Bed::new().await;
    let code = b"def handle(event, context):\n    return 'hello'\n";
    let instance = bed.start(bed.request(FunctionSpec::default(), bed.image(&[("handler.py", code)]))).await;
    let ready = instance.receive();
    assert_eq!(wire::Message::parse(&ready).map(|m| m.kind), Ok(Kind::Ready), "{}", instance.printed());

    let listener = TcpListener::bind("[::1]:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: hello.faas\r\nConnection: close\r\n\r\n").unwrap();
    let (connection, _) = listener.accept().unwrap();
    let mut message = wire::header(Kind::Connections, 1).to_vec();
    message.extend(Record { id: 1, ..Record::default() }.encode());
    send(&instance.socket, &message, &[connection.into()]).unwrap();
    let mut answer = [0; 1024];
    assert!(client.read(&mut answer).unwrap() > 0);

    send(&instance.socket, &wire::header(Kind::Drain, 0), &[]).unwrap();
    let drained = instance.receive();
    assert_eq!(wire::Message::parse(&drained).map(|m| m.kind), Ok(Kind::Drained), "{}", instance.printed());
    assert_eq!(instance.exited().await, Exit::Code(0));
    bed.stop(&instance, GRACE).await;
    bed.assert_nothing_left();
}

fn send(socket: &OwnedFd, message: &[u8], descriptors: &[OwnedFd]) -> io::Result<()> {
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(message)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn memory_has_its_limit() {
    let bed = Bed::new().await;
    let (mut request, socket) =
        bed.script("import time\nhog = bytearray(b'x') * (256 << 20)\ntime.sleep(1000)");
    request.spec.limits.memory_bytes = 48 << 20;
    let instance = bed.start((request, socket)).await;
    assert_eq!(instance.exited().await, Exit::Signal(9));
    assert!(bed.runtime.oom_kills(&instance.running.id) >= 1);
    bed.stop(&instance, GRACE).await;
    bed.assert_nothing_left();
}

/// Forks until it may not, and says how often it did.
const FORKS: &str = "\
import json, os, socket, time
children = 0
while children < 1000:
    try:
        pid = os.fork()
    except BlockingIOError:
        break
    if pid == 0:
        time.sleep(1000)
    children += 1
socket.socket(fileno=3).send(json.dumps(children).encode())
time.sleep(1000)
";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn processes_have_their_limit() {
    let bed = Bed::new().await;
    let (mut request, socket) = bed.script(FORKS);
    request.spec.limits.pids_max = 16;
    let instance = bed.start((request, socket)).await;
    assert_eq!(instance.report(), 15);
    // All of them go with the first.
    assert_eq!(bed.stop(&instance, Duration::ZERO).await, Exit::Signal(9));
    bed.assert_nothing_left();
}

/// Prints in every way there is, and ends.
const PRINTS: &str = "\
import sys
print('to stdout', flush=True)
print('to stderr', file=sys.stderr, flush=True)
open('/dev/stderr', 'w').write('opened anew\\n')
sys.exit(7)
";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn what_is_printed_is_kept_and_an_early_end_noticed() {
    let bed = Bed::new().await;
    let logs = Logs::new(bed.paths.logs());
    let Instance { running, .. } = bed.start(bed.script(PRINTS)).await;
    let function: FunctionName = "probe".parse().unwrap();
    let capture = logs.capture(running.log, &function, &running.id).unwrap();
    let exit = tokio::time::timeout(DEADLINE, running.process.exited()).await.unwrap().unwrap();
    assert_eq!(exit, Exit::Code(7));
    tokio::time::timeout(DEADLINE, capture).await.unwrap().unwrap().unwrap();
    let lines = logs.tail(&function, &Query::last(10)).unwrap();
    let text: Vec<_> = lines.iter().map(|l| l.split_once(": ").unwrap().1).collect();
    assert_eq!(text, ["to stdout", "to stderr", "opened anew"]);
    bed.runtime.stop(&running.id, &running.process, GRACE).await.unwrap();
    bed.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn a_request_to_stop_is_heard_and_a_deaf_one_killed() {
    let bed = Bed::new().await;
    let polite = "import signal, socket, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\n\
                  s = socket.socket(fileno=3)\ns.send(b'1')\nsignal.pause()";
    let deaf = "import signal, socket\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n\
                s = socket.socket(fileno=3)\ns.send(b'1')\nwhile True: signal.pause()";
    let (polite, deaf) = (bed.start(bed.script(polite)).await, bed.start(bed.script(deaf)).await);
    assert_eq!((polite.receive(), deaf.receive()), (b"1".to_vec(), b"1".to_vec()));
    assert_eq!(bed.stop(&polite, GRACE).await, Exit::Code(3));
    let begin = Instant::now();
    assert_eq!(bed.stop(&deaf, Duration::from_millis(200)).await, Exit::Signal(9));
    assert!(begin.elapsed() >= Duration::from_millis(200));
    bed.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn a_failed_start_leaves_nothing() {
    let bed = Bed::new().await;
    // Without its mount point runc cannot make the container: the root is not writable from inside.
    fs::remove_dir(bed.paths.state.join("root/app")).unwrap();
    let (request, _socket) = bed.script("");
    match bed.runtime.create(request).await {
        Err(StartError::Runc { source: runc::RuncError::Failed { message, .. }, .. }) => {
            assert!(message.contains("/app"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    bed.assert_nothing_left();

    let (mut request, _socket) = bed.script("");
    request.spec.command = vec!["./probe.pi".into()];
    let error = bed.runtime.create(request).await.unwrap_err().to_string();
    assert!(error.contains("did you mean 'probe.py'?"), "{error}");
    bed.assert_nothing_left();
}

const WAITS: &str = "import signal\nsignal.pause()";

/// Whether the program has been executed.
fn runs(instance: &Instance) -> bool {
    let line = fs::read(format!("/proc/{}/cmdline", instance.running.pid)).unwrap_or_default();
    line.starts_with(b"/usr/bin/python3")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn a_held_container_runs_when_it_is_released_and_not_before() {
    let bed = Bed::new().await;
    let says = "import signal, socket\nsocket.socket(fileno=3).send(b'1')\nsignal.pause()";
    let held = bed.create(bed.script(says)).await;
    // Whatever is started after it and has spoken has had more time.
    let other = bed.start(bed.script(says)).await;
    assert_eq!(other.receive(), b"1");
    assert!(runs(&other) && !runs(&held));
    let mut message = [0; 1];
    let nothing = rustix::net::recv(&held.socket, &mut message, rustix::net::RecvFlags::DONTWAIT);
    assert_eq!(nothing.unwrap_err(), rustix::io::Errno::AGAIN);

    bed.release(&held).await;
    assert_eq!(held.receive(), b"1");
    for instance in [&held, &other] {
        bed.stop(instance, Duration::ZERO).await;
    }
    bed.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn a_held_runner_is_up_before_its_code_is_loaded() {
    let bed = Bed::new().await;
    let code = b"print('loaded', flush=True)\ndef handle(event, context):\n    return 'hello'\n";
    let (mut request, socket) = bed.request(FunctionSpec::default(), bed.image(&[("handler.py", code)]));
    request.hold = true;
    let instance = bed.start((request, socket)).await;
    let heard = |instance: &Instance| {
        let message = instance.receive();
        wire::Message::parse(&message)
            .map(|m| m.kind)
            .unwrap_or_else(|e| panic!("{e}: {}", instance.printed()))
    };
    assert_eq!(heard(&instance), Kind::Held);
    // Its output is a pipe, which has nothing in it.
    let mut poll = [rustix::event::PollFd::new(&instance.running.log, rustix::event::PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut poll, Some(&now)).unwrap(), 0);

    send(&instance.socket, &wire::header(Kind::Go, 0), &[]).unwrap();
    assert_eq!(heard(&instance), Kind::Ready);
    assert_eq!(instance.printed(), "loaded\n");
    bed.stop(&instance, Duration::ZERO).await;
    bed.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn a_held_container_that_is_killed_dies_or_is_forgotten_leaves_nothing() {
    let bed = Bed::new().await;
    let (killed, died) = (bed.create(bed.script(WAITS)).await, bed.create(bed.script(WAITS)).await);
    assert_eq!(bed.stop(&killed, Duration::ZERO).await, Exit::Signal(9));

    // By another hand, and then it is let go: which fails, and clears up.
    died.running.process.signal(rustix::process::Signal::KILL).unwrap();
    assert_eq!(died.exited().await, Exit::Signal(9));
    match bed.runtime.release(&died.running.id, &died.running.process).await {
        Err(StartError::Runc { source: runc::RuncError::Ended, .. }) => {}
        other => panic!("{other:?}"),
    }
    bed.assert_nothing_left();

    // Its daemon is gone: nobody will ever let it go.
    let forgotten = bed.create(bed.script(WAITS)).await;
    let next = Runtime::new(bed.paths.clone()).await.unwrap();
    assert!(next.adopt().await.unwrap().is_empty());
    assert!(!PathBuf::from(format!("/proc/{}", forgotten.running.pid)).exists());
    bed.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn to_release_a_container_is_a_matter_of_milliseconds() {
    let bed = Bed::new().await;
    let mut times = Vec::new();
    for _ in 0..5 {
        let held = bed.create(bed.script(WAITS)).await;
        let began = Instant::now();
        bed.release(&held).await;
        times.push(began.elapsed());
        assert!(times.last() < Some(&held.running.create_time), "runc had no part in it");
        bed.stop(&held, Duration::ZERO).await;
    }
    println!("released within {times:?}");
    bed.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn an_id_is_given_once() {
    let bed = Bed::new().await;
    let first = bed.start(bed.script(WAITS)).await;
    let (mut request, _socket) = bed.script(WAITS);
    request.id.clone_from(&first.running.id);
    assert!(matches!(bed.runtime.create(request).await, Err(StartError::Bundle { .. })));
    assert_eq!(first.running.process.try_exited().unwrap(), None);
    bed.stop(&first, Duration::ZERO).await;
    bed.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn a_new_daemon_finds_what_runs_and_removes_the_rest() {
    let bed = Bed::new().await;
    let (alive, dead) = (bed.start(bed.script(WAITS)).await, bed.start(bed.script(WAITS)).await);
    dead.running.process.signal(rustix::process::Signal::KILL).unwrap();
    dead.exited().await;
    // Created and never started: made from the bundle of one that runs.
    let (half, driver) = ("probe-1-half", runc::Runc::probe(bed.paths.runc()).await.unwrap());
    let bundle_dir = bed.paths.bundles().join(half);
    fs::create_dir(&bundle_dir).unwrap();
    fs::set_permissions(&bundle_dir, fs::Permissions::from_mode(0o711)).unwrap();
    let config = fs::read_to_string(bed.paths.bundles().join(&alive.running.id).join("config.json")).unwrap();
    fs::write(bundle_dir.join("config.json"), config.replace(&alive.running.id, half)).unwrap();
    let null = || OwnedFd::from(fs::OpenOptions::new().read(true).write(true).open("/dev/null").unwrap());
    driver.create(&bundle_dir, half, vec![null(), null()], null()).await.unwrap();
    // Broken off before runc was called, and before it had written its state.
    fs::create_dir(bed.paths.bundles().join("probe-1-bundle")).unwrap();
    fs::create_dir(bed.paths.runc().join("probe-1-state")).unwrap();

    let next = Runtime::new(bed.paths.clone()).await.unwrap();
    let adopted = next.adopt().await.unwrap();
    let found: Vec<_> =
        adopted.iter().map(|a| (a.id.as_str(), a.function.as_str(), a.revision, a.slot)).collect();
    assert_eq!(found, [(alive.running.id.as_str(), "probe", 1, 7)]);
    assert_eq!(adopted[0].pid, alive.running.pid);
    let traces: Vec<_> = [bed.paths.bundles(), bed.paths.runc()]
        .into_iter()
        .flat_map(|dir| fs::read_dir(dir).unwrap())
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(traces, [alive.running.id.as_str(); 2]);
    assert_eq!(Cgroups::discover().unwrap().children(&bed.paths.containers()), [alive.running.id.as_str()]);

    next.stop(&adopted[0].id, &adopted[0].process, Duration::ZERO).await.unwrap();
    bed.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn no_process_is_left_not_even_a_zombie() {
    let bed = Bed::new().await;
    let mut all = Vec::new();
    for _ in 0..3 {
        let script = "import os, signal, socket\nos.fork()\nos.fork()\nsocket.socket(fileno=3).send(b'1')\nsignal.pause()";
        let instance = bed.start(bed.script(script)).await;
        (0..4).for_each(|_| assert_eq!(instance.receive(), b"1"));
        assert_eq!(instance.status("PPid"), std::process::id().to_string(), "we are the parent");
        let group = format!("{}/{}", bed.paths.containers(), instance.running.id);
        let processes = Cgroups::discover().unwrap().processes(&group);
        assert_eq!(processes.len(), 4);
        all.extend(processes);
        bed.stop(&instance, Duration::ZERO).await;
    }
    let left: Vec<_> = all.into_iter().filter(|pid| PathBuf::from(format!("/proc/{pid}")).exists()).collect();
    assert_eq!(left, Vec::<u32>::new());
    bed.assert_nothing_left();
}

/// What a program on tokio asks of the kernel. It must pass anywhere, and so within a container: see below.
#[tokio::test(flavor = "multi_thread")]
async fn tokio_has_what_it_needs() {
    let (mut one, mut two) = tokio::net::UnixStream::pair().unwrap();
    let echo = tokio::spawn(async move { tokio::io::copy(&mut two.split().0, &mut tokio::io::sink()).await });
    tokio::io::AsyncWriteExt::write_all(&mut one, b"hello").await.unwrap();
    drop(one);
    assert_eq!(echo.await.unwrap().unwrap(), 5);
    let status = tokio::process::Command::new("/bin/sh").args(["-c", "exit 4"]).status().await.unwrap();
    assert_eq!(status.code(), Some(4));
    let file = tempfile::NamedTempFile::new().unwrap();
    tokio::fs::write(file.path(), "content").await.unwrap();
    assert_eq!(tokio::fs::metadata(file.path()).await.unwrap().len(), 7);
    tokio::net::TcpListener::bind("[::]:0").await.unwrap();
    tokio::time::timeout(Duration::from_millis(1), std::future::pending::<()>()).await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn a_rust_program_runs() {
    let bed = Bed::new().await;
    let program = fs::read(std::env::current_exe().unwrap()).unwrap();
    let spec = FunctionSpec {
        contract: Contract::Fd,
        command: ["./program", "--exact", "tokio_has_what_it_needs"].map(str::to_owned).to_vec(),
        ..FunctionSpec::default()
    };
    let instance = bed.start(bed.request(spec, bed.image(&[("program", &program)]))).await;
    let exit = instance.exited().await;
    let printed = instance.printed();
    assert!(exit == Exit::Code(0) && printed.contains("1 passed"), "{exit}: {printed}");
    bed.stop(&instance, GRACE).await;
    bed.assert_nothing_left();
}
