//! WireGuard, for the server and for the client: one [`Interface`], run by the kernel or by a process of ours.
//!
//! ```text
//!  host's namespace                     ingress namespace
//!  UDP socket ── kernel or process ──── wg0 ── local prefix, listeners
//! ```
//!
//! The UDP socket stays in the namespace of whoever calls [`bring_up`]; the interface is made in the one that is
//! given. Who holds a socket of the ingress namespace therefore cannot reach the network that carries the tunnel.
//!
//! Neither the kernel nor the process ends with the daemon. A daemon that starts calls [`bring_up`] and
//! [`Interface::set_peers`] again, which change only what differs.

use std::io;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::sys::netlink::{Link, Netlink, NetlinkError};
use crate::sys::netns::NetNs;

pub mod client;
pub mod dns;
pub mod dropped;
mod engine;
pub mod interface;
pub mod kernel;
pub mod keys;
pub mod offload;
pub mod process;
pub mod uapi;
pub mod userspace;

pub use interface::{
    AllowedIp, DeviceStatus, Interface, InterfaceStatus, Kind, PeerChange, PeerConfig, PeerStatus,
};
pub use keys::{PrivateKey, PublicKey};
pub use userspace::{Launch, UserspaceInterface};

/// What remains of an Ethernet frame after WireGuard over IPv6, in bytes.
pub const MTU_BYTES: u32 = 1420;

/// How long a tunnel process may take to answer after its start, or to end after its SIGTERM.
pub const PROCESS_DEADLINE: Duration = Duration::from_secs(5);

/// Who is to encrypt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Choice {
    /// The kernel if it can, else a process of ours. What is up already stays.
    #[default]
    Auto,
    Kernel,
    Userspace,
}

/// An interface to bring up.
#[derive(Debug)]
pub struct Setup<'a> {
    /// The interface's name in its namespace, 15 bytes at most.
    pub name: &'a str,
    pub address: Ipv6Addr,
    /// The length of the prefix that is reached through the interface.
    pub bits: u8,
    pub private_key: &'a PrivateKey,
    /// The UDP port; 0 lets the kernel choose one.
    pub listen_port: u16,
    pub mtu_bytes: u32,
    pub choice: Choice,
    /// How to start a tunnel process, if it comes to that.
    pub launch: &'a Launch,
}

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("'{0}' is no name for an interface: use 1 to 15 characters without '/' or space")]
    Name(String),
    #[error("cannot use the network namespace")]
    Namespace { source: io::Error },
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error("cannot {operation} the WireGuard interface {name}")]
    Interface { operation: &'static str, name: String, source: io::Error },
    #[error("the interface {name} refused the change (errno {errno})")]
    Refused { name: String, errno: i32 },
    #[error(
        "UDP port {port} is taken by another program; stop that, or choose another port (`listen_port` in faasd.toml)"
    )]
    Port { port: u16, source: Box<Error> },
    #[error("the tunnel process of {name} answered with something else")]
    Protocol { name: String, source: uapi::ProtocolError },
    #[error("this kernel has no WireGuard; load its module, or let faasd run it: `wireguard = \"auto\"`")]
    NoKernelWireGuard { source: NetlinkError },
    #[error(
        "there is an interface {name} already, of the kind '{kind}'; remove it (`ip link del {name}`) or choose \
         another name"
    )]
    Taken { name: String, kind: String },
    #[error(
        "the interface {name} is not ours: it has another key, or none that it tells; if nobody else uses it, remove it \
         (`ip link del {name}`), else choose another name"
    )]
    Foreign { name: String },
    #[error("a tunnel process of the name {name} serves another network namespace; choose another name")]
    Elsewhere { name: String },
    #[error("cannot start the tunnel process {}", program.display())]
    Start { program: PathBuf, source: io::Error },
    #[error("the tunnel process of {name} ended at its start ({status}){said}")]
    Ended { name: String, status: std::process::ExitStatus, said: String },
    #[error("the tunnel process of {name} did not {operation} within {} s", PROCESS_DEADLINE.as_secs())]
    Deadline { name: String, operation: &'static str },
}

impl Error {
    /// The kernel's error number, if it comes to that, also where a tunnel process tells of it.
    fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Netlink(error) => error.errno(),
            Self::Interface { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

/// Brings the interface up in `ns`, or finds it up, and gives it its key, port, address and MTU. Its UDP socket
/// belongs to the calling thread's namespace. Peers are left as they are.
///
/// # Errors
/// If the name is taken by something else, or the kernel or the process refuse.
pub fn bring_up(ns: &NetNs, setup: &Setup<'_>) -> Result<Box<dyn Interface>, Error> {
    let name = setup.name;
    if name.is_empty() || name.len() > 15 || name.contains(|c: char| c == '/' || c.is_whitespace()) {
        return Err(Error::Name(name.to_owned()));
    }
    let netlink = Netlink::new(ns);
    let there = netlink.link(name)?;
    let kind = existing(name, there.as_ref())?;
    // Before anything is done to it.
    if key_of(ns, name, kind, setup.launch)?.is_some_and(|key| key != setup.private_key.public()) {
        return Err(Error::Foreign { name: name.to_owned() });
    }
    let made = there.is_none();
    let brought_up = find_or_make(ns, setup, kind).and_then(|interface| {
        interface.configure(setup.private_key, setup.listen_port).map_err(|error| match error.errno() {
            Some(libc::EADDRINUSE) => Error::Port { port: setup.listen_port, source: Box::new(error) },
            _ => error,
        })?;
        netlink.set_mtu(name, setup.mtu_bytes)?;
        netlink.add_address(name, setup.address, setup.bits)?;
        netlink.set_up(name)?;
        Ok(interface)
    });
    if brought_up.is_err() && made {
        // Half of one would be in the way of the next try.
        if let Err(error) = take_down(ns, name, setup.launch) {
            tracing::warn!(%error, "cannot undo what was begun");
        }
    }
    brought_up
}

fn find_or_make(ns: &NetNs, setup: &Setup<'_>, kind: Option<Kind>) -> Result<Box<dyn Interface>, Error> {
    let name = setup.name;
    Ok(match (kind, setup.choice) {
        (Some(Kind::Kernel), Choice::Auto | Choice::Kernel) => {
            Box::new(kernel::KernelInterface::new(ns, name)?)
        }
        (Some(Kind::Userspace), Choice::Auto | Choice::Userspace) => Box::new(userspace::start(ns, setup)?),
        (there, choice) => {
            if there.is_some() {
                tracing::warn!(interface = name, ?choice, "replacing the interface: sessions start anew");
            }
            take_down(ns, name, setup.launch)?;
            if !userspace::gone(name, &setup.launch.socket_dir)? {
                return Err(Error::Elsewhere { name: name.to_owned() });
            }
            make(ns, setup)?
        }
    })
}

/// The key of whoever serves the interface; none if it has none, or nobody serves it.
fn key_of(ns: &NetNs, name: &str, kind: Option<Kind>, launch: &Launch) -> Result<Option<PublicKey>, Error> {
    let key = |interface: &dyn Interface| Ok(interface.device()?.public_key);
    match kind {
        None => Ok(None),
        Some(Kind::Kernel) => key(&kernel::KernelInterface::new(ns, name)?),
        Some(Kind::Userspace) => match userspace::find(name, &launch.socket_dir)? {
            Some(found) => key(&found),
            None => Ok(None),
        },
    }
}

/// Whose the interface is, if it is there: the key that it tells, or none.
///
/// # Errors
/// If it is none that could be ours, or does not answer.
pub fn holder(ns: &NetNs, name: &str, launch: &Launch) -> Result<Option<Option<PublicKey>>, Error> {
    match existing(name, Netlink::new(ns).link(name)?.as_ref())? {
        None => Ok(None),
        kind => key_of(ns, name, kind, launch).map(Some),
    }
}

/// A handle on the interface, if it is up.
///
/// # Errors
/// If the name is taken by something else.
pub fn open(ns: &NetNs, name: &str, launch: &Launch) -> Result<Option<Box<dyn Interface>>, Error> {
    Ok(match existing(name, Netlink::new(ns).link(name)?.as_ref())? {
        None => None,
        Some(Kind::Kernel) => Some(Box::new(kernel::KernelInterface::new(ns, name)?)),
        Some(Kind::Userspace) => match userspace::find(name, &launch.socket_dir)? {
            Some(found) => Some(Box::new(found)),
            None => None,
        },
    })
}

/// Ends the tunnel process of the interface, if one runs, and removes the interface, if it is there. A process
/// whose interface is not in `ns` belongs to somebody else, or is about to end.
///
/// # Errors
/// If the link is not one of ours, or cannot be removed.
pub fn take_down(ns: &NetNs, name: &str, launch: &Launch) -> Result<(), Error> {
    let netlink = Netlink::new(ns);
    if existing(name, netlink.link(name)?.as_ref())? == Some(Kind::Userspace) {
        userspace::stop(name, &launch.socket_dir)?;
    }
    Ok(netlink.delete_link(name)?)
}

/// Whose the link is. One that is neither of the two is not ours to touch.
fn existing(name: &str, link: Option<&Link>) -> Result<Option<Kind>, Error> {
    match link.map(|link| link.kind.as_deref().unwrap_or("none")) {
        None => Ok(None),
        Some("wireguard") => Ok(Some(Kind::Kernel)),
        Some("tun") => Ok(Some(Kind::Userspace)),
        Some(kind) => Err(Error::Taken { name: name.to_owned(), kind: kind.to_owned() }),
    }
}

fn make(ns: &NetNs, setup: &Setup<'_>) -> Result<Box<dyn Interface>, Error> {
    if setup.choice != Choice::Userspace {
        let here = NetNs::current().map_err(|source| Error::Namespace { source })?;
        match Netlink::new(&here).create_wireguard(setup.name, ns) {
            Ok(()) => return Ok(Box::new(kernel::KernelInterface::new(ns, setup.name)?)),
            Err(source) if source.errno() != Some(libc::EOPNOTSUPP) => return Err(source.into()),
            Err(source) if setup.choice == Choice::Kernel => return Err(Error::NoKernelWireGuard { source }),
            Err(_) => tracing::info!("this kernel has no WireGuard: running it as a process"),
        }
    }
    Ok(Box::new(userspace::start(ns, setup)?))
}
