//! Connections that functions make: to other functions, and to the outside, as far as each was granted.
//!
//! A container's network namespace is empty, so that its own sockets lead nowhere. When its program calls `connect` with
//! a granted address, the seccomp agent makes the connection elsewhere and puts it where the program's socket was:
//! - to a function, in the ingress namespace and from the caller's own address, so that the connection is steered,
//!   counted and permitted like that of any other client, and whoever is called sees who calls;
//! - to the outside, in the host's namespace.
//!
//! Every other `connect` is left to the kernel, which finds nobody in the empty namespace.

mod counts;
mod dial;
mod names;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use rustix::net::{AddressFamily, SocketType, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use self::counts::{Counted, Counts};
use self::names::Names;
use crate::core::address::Prefix;
use crate::core::egress::{Grants, Verdict, may_resolve_to};
use crate::core::name::FunctionName;
use crate::core::spec::FunctionSpec;
use crate::sys::bpf::{BpfError, Marks};
use crate::sys::netns::NetNs;
use crate::sys::notify::{Answer, Call, Flags, Notifications};
use crate::sys::shared::{Shared, copy_linger};
use crate::sys::tcp::{self, State};

/// Connections that are being made at a time: for one instance, for all of one function's, and for all.
const PENDING_MAX: usize = 64;
const PENDING_IN_ALL_MAX: usize = 4096;

/// Sockets of the ingress namespace that are kept at hand: to make one takes a thread that goes there.
const SPARE_MAX: usize = 32;
const SPARE_MIN: usize = 8;

/// Destinations of an instance that a refusal is logged for, each once.
const TOLD_MAX: usize = 8;

/// Connections that were put in place while their caller was interrupted, and that it asks for once more.
const INTERRUPTED_MAX: usize = 16;

/// Makes connections for functions. One for each daemon.
#[derive(Debug)]
pub struct Egress {
    ingress: NetNs,
    /// The tunnel's addresses and the functions'.
    ours: [Prefix; 2],
    functions: Prefix,
    marks: Marks,
    spare: Mutex<Vec<OwnedFd>>,
    refilling: AtomicBool,
    pending: Arc<Semaphore>,
    names: Names,
    counts: Mutex<HashMap<FunctionName, Arc<Counts>>>,
}

/// What connections are made with.
#[derive(Debug)]
pub struct Parts<'a> {
    pub ingress: NetNs,
    /// Where the kernel program's maps are pinned.
    pub bpf: &'a Path,
    pub vpn_prefix: Prefix,
    pub function_prefix: Prefix,
    /// Who is asked for names of the outside; `None` for the host's own resolvers.
    pub upstreams: Option<&'a [SocketAddr]>,
}

impl Egress {
    /// # Errors
    /// If the map of marks is not there.
    pub fn new(parts: Parts<'_>) -> Result<Self, BpfError> {
        Ok(Self {
            ingress: parts.ingress,
            ours: [parts.vpn_prefix, parts.function_prefix],
            functions: parts.function_prefix,
            marks: Marks::open(parts.bpf)?,
            spare: Mutex::default(),
            refilling: AtomicBool::new(false),
            pending: Arc::new(Semaphore::new(PENDING_IN_ALL_MAX)),
            names: Names::new(parts.upstreams),
            counts: Mutex::default(),
        })
    }

    /// Who serves the calls of one instance. `None` if its function has no grants.
    #[must_use]
    pub fn caller(self: &Arc<Self>, function: &FunctionName, spec: &FunctionSpec) -> Option<Arc<Caller>> {
        spec.connects().then(|| {
            Arc::new(Caller {
                source: self.functions.function(function),
                grants: self.grants(spec),
                egress: Arc::clone(self),
                function: function.clone(),
                counts: self.of(function),
                pending: Arc::new(Semaphore::new(PENDING_MAX)),
                told: Mutex::default(),
                interrupted: Mutex::default(),
            })
        })
    }

    /// What a declaration grants.
    #[must_use]
    pub fn grants(&self, spec: &FunctionSpec) -> Grants {
        Grants::new(&spec.allow, &spec.outside, self.functions)
    }

    /// What a function's connections came to, since the daemon began.
    #[must_use]
    pub fn counted(&self, function: &FunctionName) -> Counted {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.get(function).map(|counts| counts.now()).unwrap_or_default()
    }

    /// Forgets a function that was removed.
    pub fn forget(&self, function: &FunctionName) {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).remove(function);
    }

    fn of(&self, function: &FunctionName) -> Arc<Counts> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(counts.entry(function.clone()).or_default())
    }

    /// A socket of the ingress namespace that may connect from there.
    async fn socket(self: &Arc<Self>) -> io::Result<OwnedFd> {
        let (taken, left) = {
            let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
            (spare.pop(), spare.len())
        };
        if left < SPARE_MIN && !self.refilling.swap(true, Ordering::Relaxed) {
            let this = Arc::clone(self);
            tokio::task::spawn_blocking(move || {
                match this.make(SPARE_MAX) {
                    Ok(made) => this.spare.lock().unwrap_or_else(PoisonError::into_inner).extend(made),
                    Err(error) => tracing::warn!(%error, "no sockets for functions' connections"),
                }
                this.refilling.store(false, Ordering::Relaxed);
            });
        }
        match taken {
            Some(socket) => Ok(socket),
            None => {
                let this = Arc::clone(self);
                let made = tokio::task::spawn_blocking(move || this.make(1)).await?;
                made?.pop().ok_or_else(|| io::ErrorKind::NotFound.into())
            }
        }
    }

    fn make(&self, count: usize) -> io::Result<Vec<OwnedFd>> {
        let make = |_| {
            let socket = Socket::new(Domain::IPV6, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
            socket.set_only_v6(true)?;
            socket.set_mark(faasd_common::DAEMON_MARK)?;
            // A function's address is local by a route, and no interface's own.
            socket.set_freebind_v6(true)?;
            let socket = OwnedFd::from(socket);
            tcp::bind_address_alone(&socket)?;
            Ok(socket)
        };
        self.ingress.run(|| (0..count).map(make).collect())
    }

    /// What a name of the outside stands for, of what may be reached.
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let found = self.names.resolve(name).await?;
        let may = |address: &IpAddr| may_resolve_to(*address, &self.ours, is_own);
        let usable: Vec<IpAddr> = found.iter().copied().filter(may).collect();
        match (usable.is_empty(), found.first()) {
            (true, Some(inside)) => Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("it resolves to {inside}, which is not outside"),
            )),
            _ => Ok(usable),
        }
    }
}

/// Whether an address is the host's own.
fn is_own(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// Serves the `connect` calls of one instance.
#[derive(Debug)]
pub struct Caller {
    egress: Arc<Egress>,
    function: FunctionName,
    grants: Grants,
    /// The function's own address.
    source: Ipv6Addr,
    counts: Arc<Counts>,
    pending: Arc<Semaphore>,
    told: Mutex<BTreeSet<SocketAddr>>,
    interrupted: Mutex<VecDeque<u64>>,
}

/// What is to be done about a call.
enum Asked {
    /// The kernel does it, in the container's empty namespace.
    Proceed,
    Answer(Answer),
    Dial(Wanted),
}

/// A connection that was asked for.
#[derive(Debug)]
struct Wanted {
    to: Destination,
    number: RawFd,
    /// The socket that it is to stand in for.
    theirs: Shared,
    cookie: u64,
    domain: AddressFamily,
    flags: Flags,
}

#[derive(Debug)]
enum Destination {
    Function(SocketAddr),
    Address(SocketAddr),
    Name(String, u16),
}

impl Caller {
    /// Serves one call. Returns at once: what takes longer goes on by itself.
    ///
    /// # Errors
    /// Those of the notification descriptor.
    pub fn serve(self: &Arc<Self>, notifications: &Arc<Notifications>, call: Call) -> io::Result<()> {
        // What cannot be read is for the kernel to complain about.
        let asked = self.judge(&call).unwrap_or(Asked::Proceed);
        // Only now is it certain that it was the caller that was looked at.
        if !notifications.is_waiting(&call) {
            return Ok(());
        }
        let wanted = match asked {
            Asked::Proceed => return notifications.answer(&call, Answer::Proceed).map(drop),
            Asked::Answer(answer) => return notifications.answer(&call, answer).map(drop),
            Asked::Dial(wanted) => wanted,
        };
        let Some(permits) = self.permits() else {
            self.counts.failed();
            return notifications.answer(&call, Answer::Fail(libc::EAGAIN)).map(drop);
        };
        let (this, notifications) = (Arc::clone(self), Arc::clone(notifications));
        let mut served = Box::pin(async move {
            this.connect(&notifications, &call, wanted).await;
            drop(permits);
        });
        // To another function nearly every one is done by now.
        if served.as_mut().now_or_never().is_none() {
            tokio::spawn(served);
        }
        Ok(())
    }

    fn permits(&self) -> Option<[OwnedSemaphorePermit; 3]> {
        let own = Arc::clone(&self.pending).try_acquire_owned().ok()?;
        let functions = Arc::clone(&self.counts.pending).try_acquire_owned().ok()?;
        Some([own, functions, Arc::clone(&self.egress.pending).try_acquire_owned().ok()?])
    }

    fn judge(&self, call: &Call) -> io::Result<Asked> {
        let number = call.arguments[0] as RawFd;
        let bytes = call.memory(call.arguments[1], call.arguments[2] as u32 as usize)?;
        let family = bytes.get(..2).map(|f| u16::from_ne_bytes([f[0], f[1]]));
        let Some(to) = address(&bytes) else {
            let takes_apart = family == Some(libc::AF_UNSPEC as u16);
            return Ok(if takes_apart { self.foreign(call, number, None)? } else { Asked::Proceed });
        };
        let destination = match self.grants.judge(to) {
            Verdict::Own => return Ok(Asked::Proceed),
            Verdict::Refused => return self.foreign(call, number, Some(to)),
            Verdict::Function(address) => Destination::Function(SocketAddr::from((address, to.port()))),
            Verdict::Address(address) => Destination::Address(address),
            Verdict::Name(name) => Destination::Name(name.to_owned(), to.port()),
        };
        let theirs = call.descriptor(number)?;
        let domain = sockopt::socket_domain(&theirs)?;
        let is_stream = sockopt::socket_type(&theirs)? == SocketType::STREAM;
        let fits = match domain {
            AddressFamily::INET6 => to.is_ipv6(),
            AddressFamily::INET => to.is_ipv4(),
            _ => false,
        };
        if !is_stream || !fits {
            return Ok(Asked::Proceed);
        }
        let cookie = sockopt::socket_cookie(&theirs)?;
        if tcp::state(&*theirs)? != State::Closed {
            // A second call on the same socket, to which the kernel has its own answers; unless the first was interrupted
            // between its success and its return.
            let mut interrupted = self.interrupted.lock().unwrap_or_else(PoisonError::into_inner);
            let before = interrupted.len();
            interrupted.retain(|known| *known != cookie);
            let again = interrupted.len() < before;
            return Ok(if again { Asked::Answer(Answer::Done) } else { Asked::Proceed });
        }
        let flags = call.flags(number)?;
        Ok(Asked::Dial(Wanted { to: destination, number, theirs, cookie, domain, flags }))
    }

    /// A call that leads nowhere: to what was not granted, or to take a socket apart. The kernel may do it with the
    /// container's own sockets. One that was given to the function stays as it is.
    fn foreign(&self, call: &Call, number: RawFd, to: Option<SocketAddr>) -> io::Result<Asked> {
        let is_probe = |to: &SocketAddr| self.grants.know(to.ip());
        let theirs = call.descriptor(number)?;
        let is_stream = sockopt::socket_type(&theirs)? == SocketType::STREAM;
        if let Some(to) = to.filter(|to| is_stream || !is_probe(to)) {
            self.refused(to);
        }
        // What was given has locks of its own (docs/SECURITY.md); this is one more for sockets of the host's namespace.
        let is_given =
            is_stream && self.grants.lead_outside() && self.egress.marks.has(&*theirs).unwrap_or(true);
        if !is_given {
            return Ok(Asked::Proceed);
        }
        if to.is_none() {
            self.counts.refused(None);
        }
        Ok(Asked::Answer(Answer::Fail(libc::EPERM)))
    }

    /// Counts a refusal, and logs the first to each destination.
    fn refused(&self, to: SocketAddr) {
        self.counts.refused(Some(to));
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() < TOLD_MAX && told.insert(to) {
            tracing::warn!(function = %self.function, %to, "a function tried to connect to what it was not granted");
        }
    }

    /// Puts a connection where the program's socket is.
    fn install(
        &self,
        notifications: &Notifications,
        call: &Call,
        wanted: &Wanted,
        socket: &Shared,
        answer: Answer,
    ) -> io::Result<()> {
        self.egress.marks.set_outgoing(&**socket).map_err(io::Error::other)?;
        rustix::io::ioctl_fionbio(socket, wanted.flags.nonblocking)?;
        // Another thread may have closed the socket meanwhile, and opened something else in its place.
        if sockopt::socket_cookie(call.descriptor(wanted.number)?)? != wanted.cookie {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        notifications.replace(call, wanted.number, socket.as_fd(), wanted.flags)?;
        copy_linger(&wanted.theirs, socket)?;
        if !notifications.answer(call, answer)? && answer == Answer::Done {
            let mut interrupted = self.interrupted.lock().unwrap_or_else(PoisonError::into_inner);
            interrupted.truncate(INTERRUPTED_MAX - 1);
            interrupted.push_front(sockopt::socket_cookie(socket)?);
        }
        Ok(())
    }
}

/// An address as the kernel reads it. `None` for other families, and for what is too short.
fn address(bytes: &[u8]) -> Option<SocketAddr> {
    let port = || Some(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?));
    match i32::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?)) {
        libc::AF_INET if bytes.len() >= size_of::<libc::sockaddr_in>() => {
            let octets: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
            Some(SocketAddr::from((octets, port()?)))
        }
        // Without the scope, which came later.
        libc::AF_INET6 if bytes.len() >= 24 => {
            let octets: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
            Some(SocketAddr::from((octets, port()?)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_the_kernel_reads_them() {
        let mut v6 = [0; 28];
        v6[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
        v6[2..4].copy_from_slice(&443u16.to_be_bytes());
        v6[23] = 1;
        assert_eq!(address(&v6), Some("[::1]:443".parse().unwrap()));
        assert_eq!(address(&v6[..24]), Some("[::1]:443".parse().unwrap()));
        assert_eq!(address(&v6[..23]), None);
        let mut v4 = [0; 16];
        v4[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
        v4[2..4].copy_from_slice(&443u16.to_be_bytes());
        v4[4..8].copy_from_slice(&[203, 0, 113, 7]);
        assert_eq!(address(&v4), Some("203.0.113.7:443".parse().unwrap()));
        assert_eq!(address(&v4[..15]), None);
        v4[..2].copy_from_slice(&(libc::AF_UNIX as u16).to_ne_bytes());
        assert_eq!(address(&v4), None);
        assert_eq!(address(&[]), None);
    }

    #[test]
    fn only_what_is_the_hosts_own_is_its_own() {
        assert!(is_own("::1".parse().unwrap()) && is_own("127.0.0.1".parse().unwrap()));
        assert!(!is_own("2001:db8::1".parse().unwrap()) && !is_own("203.0.113.7".parse().unwrap()));
    }
}
