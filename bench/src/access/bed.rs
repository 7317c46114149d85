//! A namespace with faasd's kernel program, a server, and so many subjects and rules.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use aya::programs::{ProgramInfo, loaded_programs};
use faasd::control::cgroup;
use faasd::control::ingress::Ingress;
use faasd::core::address::{FUNCTION_PREFIX, VPN_PREFIX};
use faasd::sys::bpf::{Attachment, GROUPS_MAX, Kernel, Route, Subject};
use faasd::sys::netlink::Netlink;
use faasd::sys::netns::NetNs;
use faasd_common::{DAEMON_MARK, programs};
use socket2::{Domain, Socket, Type};

const PORT: u16 = 8080;
const BACKLOG: u32 = 4096;

/// Subjects' rules are about as many functions as it takes; those that are dialled come before them.
const FIRST_OTHER: u64 = 100;

/// What a connection is let in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It is the daemon's own: nobody is looked up. What the others are compared with.
    Daemon,
    /// The subject alone is looked up.
    Open,
    /// The subject's own rule.
    Own,
    /// A rule of the last of as many groups as a subject can be in: the most that is ever looked up.
    Groups,
}

impl Way {
    pub const ALL: [Self; 4] = [Self::Daemon, Self::Open, Self::Own, Self::Groups];

    pub fn name(self) -> &'static str {
        match self {
            Self::Daemon => "nobody looked up",
            Self::Open => "subject",
            Self::Own => "subject, own rule",
            Self::Groups => "subject, 8 groups",
        }
    }

    fn function(self) -> Ipv6Addr {
        FUNCTION_PREFIX.host(match self {
            Self::Daemon | Self::Open => 1 << 16,
            Self::Own => 2 << 16,
            Self::Groups => 3 << 16,
        })
    }
}

/// The namespace, and what has to be removed with it.
pub struct Bed {
    pub label: String,
    pub kernel: Kernel,
    pub ingress: Ingress,
    pub subjects: u32,
    program: u32,
    remains: Remains,
    listener: OwnedFd,
}

struct Remains {
    name: String,
    dir: tempfile::TempDir,
}

impl Remains {
    fn pins(&self) -> PathBuf {
        PathBuf::from("/sys/fs/bpf").join(&self.name)
    }
}

impl Drop for Remains {
    fn drop(&mut self) {
        let _ = Kernel::unpin(&self.pins());
        let _ = NetNs::unpin(&self.dir.path().join("ingress"));
        let _ = cgroup::remove(&self.name, &[]);
    }
}

impl Bed {
    pub fn new(subjects: u32, rules: u32) -> anyhow::Result<Self> {
        let name = format!("faasd-bench-access-{}-{subjects}", std::process::id());
        let remains = Remains { name, dir: tempfile::tempdir()? };
        let ingress = Ingress::open(&remains.dir.path().join("ingress"), FUNCTION_PREFIX)?;
        let mut link = std::process::Command::new("ip");
        link.args(["link", "add", "wg0", "type", "veth", "peer", "name", "wg1"]);
        anyhow::ensure!(ingress.ns().run(|| link.status())?.success(), "there is no veth");
        let netlink = Netlink::new(ingress.ns());
        netlink.set_up("wg0")?;
        netlink.add_address("wg0", VPN_PREFIX.server(), 64)?;
        let before: Vec<u32> = steering()?.iter().map(ProgramInfo::id).collect();
        let mut kernel = Kernel::load(&Attachment {
            dir: &remains.pins(),
            ingress: ingress.ns(),
            cgroup: &cgroup::own(&remains.name, None)?,
            tunnel: "wg0",
            tunnel_ifindex: netlink.index("wg0")?.context("wg0 is gone")?,
            server: VPN_PREFIX.server(),
            functions: FUNCTION_PREFIX.network(),
        })?;
        let new = steering()?.iter().map(ProgramInfo::id).find(|id| !before.contains(id));
        let program = new.context("the kernel does not list its program")?;

        let listener = ingress.listen(Way::Open.function(), PORT, BACKLOG)?;
        kernel.set_listener(1, 1, &listener)?;
        for way in Way::ALL {
            let guarded = matches!(way, Way::Own | Way::Groups);
            let flags = if guarded { Route::GUARDED | Route::CLOSED } else { 0 };
            kernel.steering.set_route(way.function(), PORT, Route { flags, ..Route::to(1) })?;
        }
        let access = &mut kernel.access;
        let groups = std::array::from_fn(|place| subjects + 1 + place as u32);
        for number in 1..=subjects {
            access.set_subject(subject(number), Subject { number, groups })?;
        }
        access.set_rule(1, Way::Own.function(), true)?;
        access.set_rule(groups[GROUPS_MAX - 1], Way::Groups.function(), true)?;
        for n in 0..rules.saturating_sub(2) {
            access.set_rule(1 + n % subjects, other_function(n / subjects), n % 2 == 0)?;
        }
        accept(&listener)?;
        let label = format!("{subjects} subjects, {rules} rules");
        Ok(Self { label, kernel, ingress, subjects, program, remains, listener })
    }

    /// How long each of `count` connections took, from a thread that is in the namespace.
    pub fn connect(&self, way: Way, count: usize) -> anyhow::Result<Vec<Duration>> {
        let times = self.ingress.ns().run(|| (0..count).map(|_| connect(way)).collect());
        times.with_context(|| format!("cannot connect: {}, {}", self.label, way.name()))
    }

    /// How often the kernel program ran and how long in all, while statistics were kept.
    pub fn ran(&self) -> anyhow::Result<(u64, Duration)> {
        let all = steering()?;
        let program = all.iter().find(|program| program.id() == self.program);
        let program = program.context("the kernel program is gone")?;
        Ok((program.run_count(), program.run_time()))
    }

    /// Ends the server.
    pub fn finish(self) -> anyhow::Result<()> {
        rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Read)?;
        drop(self.remains);
        Ok(())
    }
}

/// The address of a subject. They are functions, who come by loopback.
pub fn subject(number: u32) -> Ipv6Addr {
    FUNCTION_PREFIX.host((1 << 40 | u64::from(number)) << 16)
}

/// A function that is not dialled.
pub fn other_function(number: u32) -> Ipv6Addr {
    FUNCTION_PREFIX.host((FIRST_OTHER + u64::from(number)) << 16)
}

fn steering() -> anyhow::Result<Vec<ProgramInfo>> {
    let all = loaded_programs().collect::<Result<Vec<_>, _>>().context("cannot list kernel programs")?;
    Ok(all.into_iter().filter(|program| program.name_as_str() == Some(programs::STEER)).collect())
}

/// A thread that closes what it accepts, until the listener is shut down.
fn accept(listener: &OwnedFd) -> io::Result<()> {
    let listener = std::net::TcpListener::from(listener.try_clone()?);
    thread::spawn(move || while listener.accept().is_ok() {});
    Ok(())
}

fn connect(way: Way) -> io::Result<Duration> {
    let source = if way == Way::Daemon { VPN_PREFIX.server() } else { subject(1) };
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
    socket.set_mark(DAEMON_MARK)?;
    socket.set_freebind_v6(true)?;
    // No TIME_WAIT: ports would run out.
    socket.set_linger(Some(Duration::ZERO))?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    let to = SocketAddr::from((way.function(), PORT)).into();
    let start = Instant::now();
    socket.connect(&to)?;
    let took = start.elapsed();
    drop(TcpStream::from(socket));
    Ok(took)
}
