//! Namespaces, a tunnel between them, and what is done with it.

use super::*;

pub const PORT: u16 = 51820;
/// No condition is waited for longer. An emulated machine is ten times slower.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A namespace of this test alone, removed with it.
pub struct Net {
    pub ns: NetNs,
    pub path: PathBuf,
}

impl Net {
    pub fn new(dir: &Path, name: &str) -> Self {
        let path = dir.join(name);
        let ns = NetNs::open_or_create(&path).unwrap();
        Netlink::new(&ns).set_up("lo").unwrap();
        Self { ns, path }
    }

    /// Runs a command inside, without the mount namespace that `ip netns exec` makes.
    pub fn command(&self, line: &str) -> Output {
        let mut words = line.split_whitespace();
        let mut command = Command::new(words.next().unwrap());
        command.args(words);
        self.ns.run(|| command.output()).unwrap()
    }

    pub fn succeeds(&self, line: &str) -> String {
        let output = self.command(line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn listen(&self) -> TcpListener {
        self.ns.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 8080))).unwrap()
    }

    pub fn dial(&self, address: Ipv6Addr) -> io::Result<TcpStream> {
        let to = SocketAddr::from((address, 8080));
        let stream = self.ns.run(|| TcpStream::connect_timeout(&to, DEADLINE))?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = NetNs::unpin(&self.path);
    }
}

/// The server's two namespaces and any number of clients', with keys and launches.
pub struct Bed {
    pub dir: tempfile::TempDir,
    pub host: Net,
    pub ingress: Net,
    pub server_key: PrivateKey,
    pub server: Launch,
    pub choice: Choice,
}

impl Bed {
    pub fn new() -> Self {
        Self::with(Choice::Userspace)
    }

    pub fn with(choice: Choice) -> Self {
        let dir = tempfile::Builder::new().prefix("faas-tunnel-").tempdir().unwrap();
        let host = Net::new(dir.path(), "host");
        let ingress = Net::new(dir.path(), "ingress");
        let server = launch(&dir.path().join("server"));
        Self { dir, host, ingress, server_key: PrivateKey::generate(), server, choice }
    }

    /// The server's interface: brought up in the ingress namespace by a daemon in the host's.
    pub fn serve(&self) -> Box<dyn Interface> {
        let setup = Setup {
            name: "wg0",
            address: VPN_PREFIX.server(),
            bits: 64,
            private_key: &self.server_key,
            listen_port: PORT,
            mtu_bytes: MTU_BYTES,
            choice: self.choice,
            launch: &self.server,
        };
        let interface = self.host.ns.run(|| Ok(tunnel::bring_up(&self.ingress.ns, &setup))).unwrap().unwrap();
        let netlink = Netlink::new(&self.ingress.ns);
        netlink.add_local_route(FUNCTION_PREFIX.network(), 64, "lo").unwrap();
        interface
    }

    /// Another machine, from which the host is 10.9.n.1.
    pub fn machine(&self, n: u8) -> Net {
        let net = Net::new(self.dir.path(), &format!("client{n}"));
        let peer = net.path.display();
        self.host.succeeds(&format!("ip link add v{n} type veth peer name eth0 netns {peer}"));
        self.host.succeeds(&format!("ip -4 addr add 10.9.{n}.1/24 dev v{n}"));
        self.host.succeeds(&format!("ip link set v{n} up"));
        net.succeeds(&format!("ip -4 addr add 10.9.{n}.2/24 dev eth0"));
        net.succeeds("ip link set eth0 up");
        net
    }

    pub fn client(&self, n: u8, server: &dyn Interface) -> Client<'_> {
        let net = self.machine(n);
        let launch = launch(&self.dir.path().join(format!("run{n}")));
        let key = PrivateKey::generate();
        let setup = Setup {
            name: "faas0",
            address: VPN_PREFIX.host(u64::from(n)),
            bits: 64,
            private_key: &key,
            listen_port: 0,
            mtu_bytes: MTU_BYTES,
            choice: self.choice,
            launch: &launch,
        };
        let interface = net.ns.run(|| Ok(tunnel::bring_up(&net.ns, &setup))).unwrap().unwrap();
        Netlink::new(&net.ns).add_route(FUNCTION_PREFIX.network(), 64, "faas0").unwrap();
        let client = Client { bed: self, n, net, key, launch, interface };
        // Before the client's first packet, which it would repeat only after five seconds.
        server.set_peer(client.peer()).unwrap();
        client
            .interface
            .set_peer(PeerConfig {
                public_key: self.server_key.public(),
                allowed_ips: [VPN_PREFIX, FUNCTION_PREFIX]
                    .map(|prefix| AllowedIp::new(prefix.network(), 64).unwrap())
                    .into(),
                endpoint: Some(([10, 9, n, 1], PORT).into()),
                keepalive_s: Some(25),
            })
            .unwrap();
        client
    }
}

pub struct Client<'a> {
    pub bed: &'a Bed,
    pub n: u8,
    pub net: Net,
    pub key: PrivateKey,
    pub launch: Launch,
    pub interface: Box<dyn Interface>,
}

impl Client<'_> {
    /// As the server knows it.
    pub fn peer(&self) -> PeerConfig {
        PeerConfig {
            public_key: self.key.public(),
            allowed_ips: vec![AllowedIp::host(VPN_PREFIX.host(u64::from(self.n)))],
            endpoint: None,
            keepalive_s: None,
        }
    }

    /// A connection through the tunnel, and the server's end of it.
    pub fn connect(&self) -> (TcpStream, TcpStream) {
        let address = FUNCTION_PREFIX.host(u64::from(self.n));
        let listener = self.bed.ingress.listen();
        let stream = self.net.dial(address).unwrap();
        let (served, from) = listener.accept().unwrap();
        served.set_read_timeout(Some(DEADLINE)).unwrap();
        served.set_nodelay(true).unwrap();
        assert_eq!(from.ip(), VPN_PREFIX.host(u64::from(self.n)));
        (stream, served)
    }
}

impl Drop for Client<'_> {
    fn drop(&mut self) {
        let _ = tunnel::take_down(&self.net.ns, "faas0", &self.launch);
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = tunnel::take_down(&self.ingress.ns, "wg0", &self.server);
    }
}

pub fn launch(socket_dir: &Path) -> Launch {
    std::fs::create_dir(socket_dir).unwrap();
    Launch {
        socket_dir: socket_dir.to_owned(),
        log: Some(socket_dir.join("log")),
        ..Launch::new(env!("CARGO_BIN_EXE_faasd"))
    }
}

/// There and back again.
pub fn exchange((a, b): &mut (TcpStream, TcpStream), bytes: usize) {
    let data: Vec<u8> = (0..bytes).map(|i| i as u8).collect();
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| a.write_all(&data).unwrap());
        let mut got = vec![0; bytes];
        b.read_exact(&mut got).unwrap();
        sender.join().unwrap();
        assert_eq!(got, data);
    });
    b.write_all(b"ok").unwrap();
    let mut got = [0; 2];
    a.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"ok");
}

pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    start.elapsed()
}

/// The process that listens on the interface's socket.
pub fn pid(launch: &Launch, name: &str) -> i32 {
    let stream =
        std::os::unix::net::UnixStream::connect(launch.socket_dir.join(format!("{name}.sock"))).unwrap();
    rustix::net::sockopt::socket_peercred(&stream).unwrap().pid.as_raw_nonzero().get()
}

pub fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}
