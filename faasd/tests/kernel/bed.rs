//! A namespace, a cgroup and pins for one test alone, and what every test does there.

use std::fs;
use std::io::{self, Read};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use faasd::control::cgroup;
use faasd::control::ingress::Ingress;
use faasd::core::address::{FUNCTION_PREFIX, VPN_PREFIX};
use faasd::sys::bpf::{Attachment, BpfError, Kernel};
use faasd::sys::netlink::Netlink;
use faasd::sys::netns::NetNs;
use faasd_common::DAEMON_MARK;
use rustix::event::{PollFd, PollFlags, Timespec};
use socket2::{Domain, SockRef, Socket, Type};

pub const PORT: u16 = 8080;
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The peers that there are.
const PEERS: [u64; 2] = [2, 3];

/// Of each link's ends, the ingress's first: addresses that nothing takes for an IPv6 header's.
const MACS: [&str; 2] = ["02:00:00:00:00:01", "02:00:00:00:00:02"];

/// The process is in one cgroup at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A namespace, a cgroup and pins for one test alone.
pub struct Bed {
    name: String,
    dir: tempfile::TempDir,
    cgroup: PathBuf,
    pub ingress: Ingress,
    /// Peers of the tunnel, at the other end of it.
    pub peers: NetNs,
    _turn: MutexGuard<'static, ()>,
}

impl Bed {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("faasd-test-kernel-{}-{number}", std::process::id());
        let dir = tempfile::tempdir().unwrap();
        let ingress = Ingress::open(&dir.path().join("ingress"), FUNCTION_PREFIX).unwrap();
        let peers = NetNs::open_or_create(&dir.path().join("peers")).unwrap();
        // Ports of clients that closed first are given again as they are to `::1`, or each search for one grows long.
        ingress.ns().run(|| fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1")).unwrap();
        let bed = Self { cgroup: cgroup::own(&name, None).unwrap(), name, dir, ingress, peers, _turn: turn };
        // In WireGuard's stead: what comes by it has the address that it says.
        bed.link("wg0", "wg1");
        bed.ip(bed.ingress.ns(), &format!("address add {}/64 dev wg0 nodad", VPN_PREFIX.server()));
        for number in PEERS {
            bed.ip(&bed.peers, &format!("address add {}/64 dev wg1 nodad", peer(number)));
            bed.ip(bed.ingress.ns(), &format!("neighbour add {} lladdr {} dev wg0", peer(number), MACS[1]));
        }
        bed.peers_go_by("wg1");
        bed
    }

    /// A link from the ingress to where the peers are, without addresses.
    pub fn link(&self, ours: &str, theirs: &str) {
        let there = self.dir.path().join("peers");
        let [mac, peer] = MACS;
        let line = format!("link add {ours} address {mac} type veth peer name {theirs} address {peer} netns");
        self.ip(self.ingress.ns(), &format!("{line} {}", there.display()));
        for (ns, name) in [(self.ingress.ns(), ours), (&self.peers, theirs)] {
            self.ip(ns, &format!("link set {name} addrgenmode none"));
            self.ip(ns, &format!("link set {name} up"));
        }
        self.ip(&self.peers, &format!("neighbour add fe80::1 lladdr {mac} dev {theirs}"));
    }

    /// Peers reach functions and the server by this link from now on, whatever their own address.
    pub fn peers_go_by(&self, theirs: &str) {
        for prefix in [FUNCTION_PREFIX.to_string(), format!("{}/128", VPN_PREFIX.server())] {
            self.ip(&self.peers, &format!("route replace {prefix} via fe80::1 dev {theirs} onlink"));
        }
    }

    pub fn ip(&self, ns: &NetNs, line: &str) {
        let mut command = Command::new("ip");
        command.arg("-6").args(line.split_whitespace());
        assert!(ns.run(|| command.status()).unwrap().success(), "ip -6 {line}");
    }

    pub fn pins(&self) -> PathBuf {
        PathBuf::from("/sys/fs/bpf").join(&self.name)
    }

    /// What a daemon does when it starts.
    pub fn load(&self) -> Kernel {
        self.try_load().unwrap()
    }

    pub fn try_load(&self) -> Result<Kernel, BpfError> {
        let ns = self.ingress.ns();
        let tunnel_ifindex = Netlink::new(ns).index("wg0").unwrap().unwrap();
        let (dir, cgroup) = (&*self.pins(), &*self.cgroup);
        let (server, functions) = (VPN_PREFIX.server(), FUNCTION_PREFIX.network());
        Kernel::load(&Attachment {
            dir,
            ingress: ns,
            cgroup,
            tunnel: "wg0",
            tunnel_ifindex,
            server,
            functions,
        })
    }

    /// Keeps the programs that are attached now from being replaced by the next ones: the instant in which two are
    /// attached, as long as it takes to look at it.
    pub fn keep_programs(&self) {
        for link in self.pinned("link_") {
            fs::rename(&link, link.to_string_lossy().replace("link_", "kept_")).unwrap();
        }
    }

    pub fn drop_kept_programs(&self) {
        let kept = self.pinned("kept_");
        assert!(!kept.is_empty());
        kept.iter().for_each(|link| fs::remove_file(link).unwrap());
    }

    fn pinned(&self, prefix: &str) -> Vec<PathBuf> {
        let paths = fs::read_dir(self.pins()).unwrap().map(|entry| entry.unwrap().path());
        paths.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(prefix)).collect()
    }

    pub fn listen(&self) -> OwnedFd {
        self.ingress.listen(address(), PORT, 4096).unwrap()
    }

    /// Runs `work` in the namespace.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.ingress.ns().run(|| Ok(work())).unwrap()
    }

    /// Removes it all. Nothing that the kernel keeps for a program or a map is open or pinned any more.
    pub fn finish(self, kernel: Kernel) {
        drop(kernel);
        let pins = self.pins();
        Kernel::unpin(&pins).unwrap();
        assert!(!pins.exists());
        let open: Vec<_> = fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
            .filter(|target| target.to_string_lossy().contains("bpf"))
            .collect();
        assert_eq!(open, Vec::<PathBuf>::new());
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let removed = [
            Kernel::unpin(&self.pins()),
            NetNs::unpin(&self.dir.path().join("ingress")),
            NetNs::unpin(&self.dir.path().join("peers")),
            cgroup::remove(&self.name, std::slice::from_ref(&self.name)),
        ];
        if !thread::panicking() {
            assert!(removed.iter().all(Result::is_ok), "{removed:?}");
        }
    }
}

pub fn address() -> Ipv6Addr {
    FUNCTION_PREFIX.host(0x77)
}

/// A peer's address.
pub fn peer(number: u64) -> Ipv6Addr {
    VPN_PREFIX.host(number)
}

/// A connection as the daemon makes them for itself, by a thread that is in the namespace.
pub fn dial() -> io::Result<TcpStream> {
    connect(None, Some(DAEMON_MARK), address(), PORT)
}

/// And one that it makes for the function whose address `source` is.
pub fn dial_as(source: Ipv6Addr, to: Ipv6Addr) -> io::Result<TcpStream> {
    connect(Some(source), Some(DAEMON_MARK), to, PORT)
}

impl Bed {
    /// A peer's connection.
    pub fn dial_from(&self, source: Ipv6Addr, to: Ipv6Addr) -> io::Result<TcpStream> {
        self.dial_port(source, to, PORT)
    }

    pub fn dial_port(&self, source: Ipv6Addr, to: Ipv6Addr, port: u16) -> io::Result<TcpStream> {
        self.peers.run(|| connect(Some(source), None, to, port))
    }

    /// The answer to a peer's question by UDP.
    pub fn ask(&self, source: Ipv6Addr, to: Ipv6Addr, port: u16) -> io::Result<Vec<u8>> {
        let socket = self.peers.run(|| UdpSocket::bind((source, 0)))?;
        socket.set_read_timeout(Some(DEADLINE))?;
        // So that it hears of a refusal.
        socket.connect((to, port))?;
        socket.send(b"question")?;
        let mut answer = vec![0; 16];
        let length = socket.recv(&mut answer)?;
        answer.truncate(length);
        Ok(answer)
    }
}

/// A connection that is begun, by a thread that is in the namespace it is to come from, and not waited for.
pub fn begin(source: Ipv6Addr, mark: Option<u32>, to: Ipv6Addr) -> Socket {
    let socket = socket(Some(source), mark).unwrap();
    socket.set_nonblocking(true).unwrap();
    assert!(socket.connect(&SocketAddr::from((to, PORT)).into()).is_err());
    socket
}

fn connect(source: Option<Ipv6Addr>, mark: Option<u32>, to: Ipv6Addr, port: u16) -> io::Result<TcpStream> {
    let socket = socket(source, mark)?;
    socket.set_read_timeout(Some(DEADLINE))?;
    socket.connect_timeout(&SocketAddr::from((to, port)).into(), DEADLINE)?;
    Ok(socket.into())
}

fn socket(source: Option<Ipv6Addr>, mark: Option<u32>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    if let Some(source) = source {
        socket.set_freebind_v6(true)?;
        socket.bind(&SocketAddr::from((source, 0)).into())?;
    }
    Ok(socket)
}

pub fn accept(listener: &OwnedFd) -> TcpStream {
    let limit = Timespec { tv_sec: DEADLINE.as_secs().cast_signed(), tv_nsec: 0 };
    let ready = rustix::event::poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&limit)).unwrap();
    assert_eq!(ready, 1, "no connection came");
    rustix::net::accept(listener).unwrap().into()
}

/// An end whose other end learns of it by RST.
pub fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "not so after {DEADLINE:?}: {what}");
        thread::yield_now();
    }
}

/// Threads that accept from one listener until it is shut down, and do with each connection what `serve` does.
pub struct Server {
    pub listener: OwnedFd,
    accepted: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    pub fn start(
        listener: OwnedFd,
        threads: usize,
        serve: impl Fn(TcpStream) + Clone + Send + 'static,
    ) -> Self {
        let accepted = Arc::new(AtomicU64::new(0));
        let run = |_| {
            let own = TcpListener::from(listener.try_clone().unwrap());
            let (accepted, serve) = (Arc::clone(&accepted), serve.clone());
            thread::spawn(move || {
                while let Ok((stream, _)) = own.accept() {
                    accepted.fetch_add(1, Ordering::Relaxed);
                    stream.set_read_timeout(Some(DEADLINE)).unwrap();
                    serve(stream);
                }
            })
        };
        let threads = (0..threads).map(run).collect();
        Self { listener, accepted, threads }
    }

    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    pub fn stop(self) {
        rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Read).unwrap();
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

/// A server of clients that close first, and so keep the TIME_WAIT.
pub fn see_off(mut stream: TcpStream) {
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}
