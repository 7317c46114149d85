//! The ingress: a network namespace with the tunnel's interface, the functions' addresses and nothing else.
//!
//! A socket that is handed to a function remains a way into the namespace that it was made in. This is that namespace:
//! no service of the host's is reachable in it, no route leads out of it but to the tunnel's peers, and new
//! connections out of it are refused twice over (see the kernel program). The tunnel's UDP socket, the API and all
//! else stay in the host's namespace.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::core::address::Prefix;
use crate::sys::netlink::{Netlink, NetlinkError};
use crate::sys::netns::NetNs;

/// How long the daemon waits for a connection of its own to a function.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Why there is no ingress.
#[derive(Debug, thiserror::Error)]
pub enum IngressError {
    #[error("cannot make the ingress network namespace at {path}{}", rights(source))]
    Namespace { path: String, source: io::Error },
    #[error("cannot set up the ingress network namespace")]
    Link(#[from] NetlinkError),
    #[error("cannot listen on [{address}]:{port} in the tunnel{}", remedy(source))]
    Listen { address: Ipv6Addr, port: u16, source: io::Error },
}

fn rights(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            ": it takes CAP_SYS_ADMIN (root, and not within a container that withholds it)"
        }
        _ => "",
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            ": something else has the port. Is another faasd running on this ingress? `faasd teardown` clears it"
        }
        _ => "",
    }
}

/// The ingress namespace.
#[derive(Debug)]
pub struct Ingress {
    ns: NetNs,
}

impl Ingress {
    /// Makes the namespace, or finds it as an earlier daemon left it, with all addresses of `functions` local to it.
    ///
    /// # Errors
    /// [`IngressError`].
    pub fn open(path: &std::path::Path, functions: Prefix) -> Result<Self, IngressError> {
        let ns = NetNs::open_or_create(path)
            .map_err(|source| IngressError::Namespace { path: path.display().to_string(), source })?;
        let netlink = Netlink::new(&ns);
        netlink.set_up("lo")?;
        // AnyIP: every address of the prefix is local, without being listed one by one.
        netlink.add_local_route(functions.network(), Prefix::BITS, "lo")?;
        let tuned = ns.run(|| {
            // A burst of new connections must not be answered by cookies: their last ACK would choose anew.
            std::fs::write("/proc/sys/net/core/somaxconn", "65535")?;
            std::fs::write("/proc/sys/net/ipv4/tcp_max_syn_backlog", "65535")?;
            // What waits at a listener that closes goes to another of the same port.
            std::fs::write("/proc/sys/net/ipv4/tcp_migrate_req", "1")
        });
        if let Err(error) = tuned {
            tracing::warn!(%error, "the ingress keeps the kernel's short queues");
        }
        Ok(Self { ns })
    }

    /// Has the ingress refuse whatever comes in by another interface than `tunnel`, or by the tunnel with the server's
    /// address or a function's. An address is who somebody is, here. The kernel program sees who opens a connection; this is for the
    /// rest, such as what claims to belong to a connection that is open.
    ///
    /// # Errors
    /// [`IngressError::Link`].
    pub fn guard(&self, tunnel: &str, server: Ipv6Addr, functions: Prefix) -> Result<(), IngressError> {
        let ours = [(server, 128), (functions.network(), Prefix::BITS)];
        Ok(Netlink::new(&self.ns).admit_only_by(tunnel, &ours)?)
    }

    /// How many packets came in that no route takes: what [`Ingress::guard`] refuses, and what is for nobody here.
    ///
    /// # Errors
    /// Those of reading the kernel's counters.
    pub fn unroutable_packets(&self) -> io::Result<u64> {
        let counters = self.ns.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp6"))?;
        let value = |line: &str| line.strip_prefix("Ip6InNoRoutes")?.trim().parse().ok();
        counters.lines().find_map(value).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    #[must_use]
    pub fn ns(&self) -> &NetNs {
        &self.ns
    }

    /// A listener for a function's connections, at its own address.
    ///
    /// # Errors
    /// [`IngressError::Listen`].
    pub fn listen(&self, address: Ipv6Addr, port: u16, backlog: u32) -> Result<OwnedFd, IngressError> {
        let listener = self.bind(address, port)?;
        rustix::net::listen(&listener, i32::try_from(backlog).unwrap_or(i32::MAX))
            .map_err(|e| IngressError::Listen { address, port, source: e.into() })?;
        Ok(listener)
    }

    /// The same, not listening yet. It shares address and port with the function's other listeners.
    ///
    /// # Errors
    /// [`IngressError::Listen`].
    pub fn bind(&self, address: Ipv6Addr, port: u16) -> Result<OwnedFd, IngressError> {
        self.tcp(address, port, |socket| socket.set_reuse_port(true)).map(OwnedFd::from)
    }

    /// A listener for a service of the daemon's own.
    ///
    /// # Errors
    /// [`IngressError::Listen`].
    pub fn listen_service(&self, address: Ipv6Addr, port: u16) -> Result<TcpListener, IngressError> {
        let listener = self.tcp(address, port, |_| Ok(()))?;
        listener.listen(128).map_err(|source| IngressError::Listen { address, port, source })?;
        Ok(listener.into())
    }

    fn tcp(
        &self,
        address: Ipv6Addr,
        port: u16,
        options: impl FnOnce(&Socket) -> io::Result<()> + Send,
    ) -> Result<Socket, IngressError> {
        self.ns
            .run(|| {
                let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
                socket.set_only_v6(true)?;
                // An earlier daemon's connections may linger on the port.
                socket.set_reuse_address(true)?;
                // A local route makes an address ours, but only an interface's own can be bound without this.
                socket.set_freebind_v6(true)?;
                options(&socket)?;
                socket.bind(&SocketAddr::from((address, port)).into())?;
                Ok(socket)
            })
            .map_err(|source| IngressError::Listen { address, port, source })
    }

    /// UDP sockets for a service, sharing the port. With port 0 each has one of its own.
    ///
    /// # Errors
    /// [`IngressError::Listen`].
    pub fn udp(&self, address: Ipv6Addr, port: u16, count: usize) -> Result<Vec<UdpSocket>, IngressError> {
        self.ns
            .run(|| {
                (0..count)
                    .map(|_| {
                        let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
                        socket.set_only_v6(true)?;
                        socket.set_reuse_port(true)?;
                        socket.bind(&SocketAddr::from((address, port)).into())?;
                        Ok(UdpSocket::from(socket))
                    })
                    .collect()
            })
            .map_err(|source| IngressError::Listen { address, port, source })
    }

    /// A connection of the daemon's own to a function, marked so that the egress guard lets it pass. Blocks.
    ///
    /// # Errors
    /// Those of `connect(2)`.
    pub fn connect(&self, address: Ipv6Addr, port: u16) -> io::Result<TcpStream> {
        self.ns.run(|| {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
            socket.set_mark(faasd_common::DAEMON_MARK)?;
            socket.connect_timeout(&SocketAddr::from((address, port)).into(), CONNECT_DEADLINE)?;
            socket.set_tcp_nodelay(true)?;
            Ok(TcpStream::from(socket))
        })
    }
}
