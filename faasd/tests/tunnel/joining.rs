//! What a client does to the machine that it runs on, when all goes well and when not.

use std::fs;

use serde_json::Value;

use super::*;

/// The daemon's part in a join: the new key can shake hands before the answer, and has the address after it.
fn accept_key(listener: &TcpListener, server: &dyn Interface, path: &str, former: PublicKey) -> PublicKey {
    let (mut stream, from) = listener.accept().unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut request = Vec::new();
    while !request.ends_with(b"}") {
        let mut chunk = [0; 1024];
        let n = stream.read(&mut chunk).unwrap();
        assert_ne!(n, 0);
        request.extend_from_slice(&chunk[..n]);
    }
    let request = String::from_utf8(request).unwrap();
    assert!(request.starts_with(&format!("POST {path} HTTP/1.1\r\n")), "{request}");
    let body = request.split_once("\r\n\r\n").unwrap().1;
    let join: faasd::api::types::Join = serde_json::from_str(body).unwrap();
    let IpAddr::V6(address) = from.ip() else { panic!("{from}") };
    let key = join.public_key.parse().unwrap();
    let peer = |allowed_ips| PeerConfig { public_key: key, allowed_ips, endpoint: None, keepalive_s: None };
    server.set_peer(peer(vec![])).unwrap();
    stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
    drop(stream);
    // Only then has the client had its answer, which goes by the address that the former key has.
    eventually("the new key shows itself", || server.peer(key).unwrap().unwrap().last_handshake.is_some());
    server
        .update(&[PeerChange::Remove(former), PeerChange::Set(peer(vec![AllowedIp::host(address)]))])
        .unwrap();
    key
}

#[test]
#[ignore = "needs root"]
fn an_invitation_is_redeemed_once() {
    let bed = Bed::new();
    let server = bed.serve();
    let net = bed.machine(2);
    let temporary = PrivateKey::generate();
    server
        .set_peer(PeerConfig {
            public_key: temporary.public(),
            allowed_ips: vec![AllowedIp::host(VPN_PREFIX.host(2))],
            endpoint: None,
            keepalive_s: None,
        })
        .unwrap();
    let invitation = Invitation {
        v: 1,
        name: "laptop".into(),
        address: VPN_PREFIX.host(2),
        private_key: temporary.to_base64(),
        server_public_key: bed.server_key.public().to_string(),
        endpoint: format!("10.9.2.1:{PORT}"),
        server: VPN_PREFIX.server(),
        vpn_prefix: VPN_PREFIX,
        function_prefix: FUNCTION_PREFIX,
        http_port: 8080,
        expires_at: jiff::Timestamp::MAX,
    };
    let options = |name: &str| Options {
        name: client::INTERFACE.into(),
        state_dir: bed.dir.path().join(name),
        launch: launch(&bed.dir.path().join(format!("{name}-run"))),
        choice: Choice::Userspace,
        dns: DnsMode::None,
    };
    let own = options("own");
    let run = |work: &(dyn Fn() -> Result<Connected, ClientError> + Sync)| net.ns.run(|| Ok(work())).unwrap();

    assert!(matches!(run(&|| client::connect(&own)), Err(ClientError::NeverJoined)));
    let listener = bed.ingress.listen();
    let start = Instant::now();
    let key = std::thread::scope(|scope| {
        let key = scope.spawn(|| accept_key(&listener, &*server, "/v1/join", temporary.public()));
        let connected = run(&|| client::join(&invitation, &own)).unwrap();
        println!("joined in {:?}, last handshake {:?}", start.elapsed(), connected.handshake);
        assert_eq!((connected.address, connected.dns), (VPN_PREFIX.host(2), Dns::Untouched));
        key.join().unwrap()
    });
    drop(listener);
    let dial = || {
        let listener = bed.ingress.listen();
        let stream = net.dial(FUNCTION_PREFIX.host(1)).unwrap();
        exchange(&mut (stream, listener.accept().unwrap().0), 1000);
    };
    dial();
    let state = fs::read_to_string(own.state_dir.join("faas0.json")).unwrap();
    assert!(!state.contains(&invitation.private_key), "the invitation's key is kept");
    let mode = fs::metadata(own.state_dir.join("faas0.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let peers = server.status().unwrap().peers;
    assert_eq!(peers.iter().map(|peer| peer.public_key).collect::<Vec<_>>(), [key]);
    assert!(matches!(run(&|| client::join(&invitation, &own)), Err(ClientError::RedeemedHere)));

    // Another key, in place: a connection that is open goes on.
    let listener = bed.ingress.listen();
    let stream = net.dial(FUNCTION_PREFIX.host(1)).unwrap();
    let mut open = (stream, listener.accept().unwrap().0);
    exchange(&mut open, 1000);
    let second = std::thread::scope(|scope| {
        let second = scope.spawn(|| accept_key(&listener, &*server, "/v1/rotate", key));
        let handshake = net.ns.run(|| Ok(client::rotate(&own))).unwrap().unwrap();
        println!("rotated, handshake {handshake:?}");
        second.join().unwrap()
    });
    exchange(&mut open, 100_000);
    drop((listener, open));
    assert_ne!(second, key);
    let peers = server.status().unwrap().peers;
    assert_eq!(peers.iter().map(|peer| peer.public_key).collect::<Vec<_>>(), [second]);
    assert_ne!(fs::read_to_string(own.state_dir.join("faas0.json")).unwrap(), state);

    // Away and back, without the invitation.
    net.ns.run(|| Ok(client::disconnect(&own))).unwrap().unwrap();
    assert_eq!(Netlink::new(&net.ns).index("faas0").unwrap(), None);
    assert!(net.ns.run(|| Ok(client::status(&own))).unwrap().unwrap().interface.is_none());
    let connected = run(&|| client::connect(&own)).unwrap();
    println!("connected again, handshake {:?}", connected.handshake);
    assert!(connected.handshake.is_some());
    dial();
    // A second time is no harm.
    run(&|| client::connect(&own)).unwrap();
    dial();
    net.ns.run(|| Ok(client::disconnect(&own))).unwrap().unwrap();

    // Somebody else who got hold of it comes too late, and is left with nothing.
    let thief = options("thief");
    let error = run(&|| client::join(&invitation, &thief)).unwrap_err();
    assert!(error.to_string().contains("redeemed"), "{error}");
    assert_eq!(Netlink::new(&net.ns).index("faas0").unwrap(), None);
    assert!(!thief.state_dir.exists());
}

/// A server with one machine that has joined it, or is about to.
struct Joining<'a> {
    bed: &'a Bed,
    server: Box<dyn Interface>,
    net: Net,
    options: Options,
}

impl<'a> Joining<'a> {
    fn new(bed: &'a Bed) -> Self {
        let options = Options {
            name: client::INTERFACE.into(),
            state_dir: bed.dir.path().join("state"),
            launch: launch(&bed.dir.path().join("run")),
            choice: Choice::Userspace,
            dns: DnsMode::None,
        };
        Self { bed, server: bed.serve(), net: bed.machine(2), options }
    }

    /// An invitation for an address, and its key, which the server knows.
    fn invite(&self, host: u64) -> (Invitation, PublicKey) {
        let temporary = PrivateKey::generate();
        let address = VPN_PREFIX.host(host);
        self.let_in(temporary.public(), address);
        let invitation = Invitation {
            v: 1,
            name: format!("laptop-{host}"),
            address,
            private_key: temporary.to_base64(),
            server_public_key: self.bed.server_key.public().to_string(),
            endpoint: format!("10.9.2.1:{PORT}"),
            server: VPN_PREFIX.server(),
            vpn_prefix: VPN_PREFIX,
            function_prefix: FUNCTION_PREFIX,
            http_port: 8080,
            expires_at: jiff::Timestamp::MAX,
        };
        (invitation, temporary.public())
    }

    fn let_in(&self, public_key: PublicKey, address: Ipv6Addr) {
        let allowed_ips = vec![AllowedIp::host(address)];
        self.server
            .set_peer(PeerConfig { public_key, allowed_ips, endpoint: None, keepalive_s: None })
            .unwrap();
    }

    fn run<T: Send>(&self, work: impl FnOnce(&Options) -> T + Send) -> T {
        self.net.ns.run(|| Ok(work(&self.options))).unwrap()
    }

    /// Joins, and returns the machine's own key.
    fn join(&self) -> PublicKey {
        let (invitation, temporary) = self.invite(2);
        let listener = self.bed.ingress.listen();
        std::thread::scope(|scope| {
            let key = scope.spawn(|| accept_key(&listener, &*self.server, "/v1/join", temporary));
            self.run(|options| client::join(&invitation, options)).unwrap();
            key.join().unwrap()
        })
    }

    fn rotate(&self, former: PublicKey) -> PublicKey {
        let listener = self.bed.ingress.listen();
        std::thread::scope(|scope| {
            let key = scope.spawn(|| accept_key(&listener, &*self.server, "/v1/rotate", former));
            self.run(client::rotate).unwrap();
            key.join().unwrap()
        })
    }

    fn state(&self) -> Value {
        serde_json::from_slice(&fs::read(self.options.state_dir.join("faas0.json")).unwrap()).unwrap()
    }

    fn set_state(&self, state: &Value) {
        fs::write(self.options.state_dir.join("faas0.json"), state.to_string()).unwrap();
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.options.state_dir).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn index(&self) -> Option<u32> {
        Netlink::new(&self.net.ns).index("faas0").unwrap()
    }

    /// Kills the tunnel's process, which leaves the interface behind.
    fn kill(&self) {
        let launch = &self.options.launch;
        kill(pid(launch, "faas0"));
        eventually("the process is gone", || userspace::find("faas0", &launch.socket_dir).unwrap().is_none());
    }

    fn connection(&self) -> (TcpStream, TcpStream) {
        let listener = self.bed.ingress.listen();
        let stream = self.net.dial(FUNCTION_PREFIX.host(1)).unwrap();
        (stream, listener.accept().unwrap().0)
    }
}

impl Drop for Joining<'_> {
    fn drop(&mut self) {
        let _ = tunnel::take_down(&self.net.ns, "faas0", &self.options.launch);
    }
}

#[test]
#[ignore = "needs root"]
fn an_interface_of_somebody_elses_is_left_alone() {
    let bed = Bed::new();
    let joining = Joining::new(&bed);
    let (invitation, _) = joining.invite(2);
    let is_left_alone = |what: &str| {
        let before = joining.index();
        assert!(before.is_some());
        for done in [
            joining.run(|options| client::join(&invitation, options)).map(drop),
            joining.run(client::disconnect),
        ] {
            let error = done.unwrap_err().to_string();
            assert!(error.contains("another name"), "{what}: {error}");
        }
        assert_eq!(joining.index(), before, "{what}");
    };
    // Of another kind, of another program's, and a WireGuard of another key, of which the process is killed at last.
    joining.net.succeeds("ip link add faas0 type veth peer name other");
    is_left_alone("veth");
    joining.net.succeeds("ip link del faas0");
    joining.net.succeeds("ip tuntap add dev faas0 mode tun");
    is_left_alone("tun");
    joining.net.succeeds("ip link del faas0");
    let key = PrivateKey::generate();
    let setup = Setup {
        name: "faas0",
        address: VPN_PREFIX.host(9),
        bits: 128,
        private_key: &key,
        listen_port: 0,
        mtu_bytes: MTU_BYTES,
        choice: Choice::Userspace,
        launch: &joining.options.launch,
    };
    let other = joining.run(|_| tunnel::bring_up(&joining.net.ns, &setup)).unwrap();
    is_left_alone("another key");
    assert_eq!(other.device().unwrap().public_key, Some(key.public()));
    joining.kill();
    is_left_alone("another's address");
    assert!(!joining.options.state_dir.exists(), "{:?}", joining.files());
}

#[test]
#[ignore = "needs root"]
fn what_a_killed_process_leaves_is_taken_up_again() {
    let bed = Bed::new();
    let joining = Joining::new(&bed);
    joining.join();
    joining.kill();
    let connected = joining.run(client::connect).unwrap();
    assert!(connected.handshake.is_some());
    exchange(&mut joining.connection(), 1000);
    joining.kill();
    joining.run(client::disconnect).unwrap();
    assert_eq!(joining.index(), None);
}

#[test]
#[ignore = "needs root"]
fn an_interrupted_rotation_strands_nobody() {
    let bed = Bed::new();
    let joining = Joining::new(&bed);
    let first = joining.join();
    let old = joining.state();
    let second = joining.rotate(first);
    let new = joining.state();
    // Killed after the server took the key and the interface has it, and before it was written down.
    let mut between = old;
    between["next_private_key"] = new["private_key"].clone();
    joining.set_state(&between);
    let mut open = joining.connection();
    let connected = joining.run(client::connect).unwrap();
    assert!(connected.handshake.is_some());
    exchange(&mut open, 1000);
    assert_eq!(joining.state(), new);
    // The same, and it is rotated again: the server has that key on record, and says so.
    joining.set_state(&between);
    let third = joining.rotate(first);
    assert_eq!(third, second);
    assert_eq!(joining.state(), new);
    // Killed before the interface had it, and a restart.
    joining.set_state(&between);
    joining.run(client::disconnect).unwrap();
    let connected = joining.run(client::connect).unwrap();
    assert!(connected.handshake.is_some());
    assert_eq!(joining.state(), new);
}

#[test]
#[ignore = "needs root"]
fn a_connection_that_works_is_left_as_it_is() {
    let bed = Bed::new();
    let joining = Joining::new(&bed);
    let key = joining.join();
    let (index, mut open) = (joining.index(), joining.connection());
    let state = joining.state();
    let mut nowhere = state.clone();
    nowhere["endpoint"] = "nowhere.invalid:51820".into();
    joining.set_state(&nowhere);
    let error = joining.run(client::connect).unwrap_err();
    assert!(matches!(error, ClientError::Endpoint { .. }), "{error}");
    exchange(&mut open, 1000);
    joining.set_state(&state);
    // No new handshake: the server answers, and that is proof enough.
    let handshake = || {
        let found = joining.run(client::status).unwrap().interface.unwrap();
        found.1.peers[0].last_handshake.unwrap()
    };
    let before = SystemTime::now();
    assert!(joining.run(client::connect).unwrap().handshake.is_some());
    assert!(handshake() < before && joining.index() == index);
    exchange(&mut open, 1000);
    // One that lies behind says nothing of a server that is gone.
    joining.server.remove_peer(key).unwrap();
    let connected = joining.run(client::connect).unwrap();
    assert_eq!((connected.handshake, joining.index()), (None, index));
    joining.let_in(key, VPN_PREFIX.host(2));
    assert!(joining.run(client::connect).unwrap().handshake.is_some());
    exchange(&mut open, 1000);
}

#[test]
#[ignore = "needs root"]
fn a_refused_join_leaves_what_was_before() {
    let bed = Bed::new();
    let joining = Joining::new(&bed);
    joining.join();
    let (state, files) = (joining.state(), joining.files());
    let (invitation, _) = joining.invite(3);
    let listener = bed.ingress.listen();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = listener.accept().unwrap().0;
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            let mut request = [0; 4096];
            assert_ne!(stream.read(&mut request).unwrap(), 0);
            stream
                .write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 14\r\n\r\n{\"title\":\"no\"}")
                .unwrap();
        });
        let error = joining.run(|options| client::join(&invitation, options)).unwrap_err();
        assert!(matches!(error, ClientError::Refused { .. }), "{error}");
    });
    drop(listener);
    assert_eq!((joining.state(), joining.files()), (state, files));
    // And connected again to whom it belongs.
    exchange(&mut joining.connection(), 1000);
    assert_eq!(joining.run(client::status).unwrap().membership.name, "laptop-2");
}
