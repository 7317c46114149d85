//! Links, addresses and routes of a network namespace, over rtnetlink.
//!
//! Everything here can be said twice: a restarted daemon asks for all it needs again, and what exists already is
//! success. The calls block; each runs on a thread inside the namespace, which takes about 100 µs.

mod rules;

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};

use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{RouteHeader, RouteScope, RouteType};
use rtnetlink::{Handle, LinkUnspec, LinkWireguard, RouteMessageBuilder};

use super::netns::NetNs;

/// The longest name of an interface, in bytes (`IFNAMSIZ`, less the closing zero).
pub const LINK_NAME_BYTES_MAX: usize = 15;

/// The kernel's table of its own addresses (`RT_TABLE_LOCAL`).
const RT_TABLE_LOCAL: u8 = 255;

/// What the kernel refused. The source has the errno.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation}")]
pub struct NetlinkError {
    operation: String,
    source: io::Error,
}

impl NetlinkError {
    /// The kernel's error number, if it was the kernel that refused.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

/// A link, as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    /// `wireguard`, `tun`, `veth`, …; none for a device that has no link type, such as `lo`.
    pub kind: Option<String>,
    pub mtu: u32,
    pub up: bool,
}

/// What a link counts of packets that it did not carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    pub rx_dropped: u64,
    pub rx_length_errors: u64,
    pub rx_frame_errors: u64,
    pub tx_errors: u64,
}

/// Changes to one network namespace.
#[derive(Debug)]
pub struct Netlink<'ns> {
    ns: &'ns NetNs,
}

impl<'ns> Netlink<'ns> {
    #[must_use]
    pub const fn new(ns: &'ns NetNs) -> Self {
        Self { ns }
    }

    /// The link of this name, if there is one.
    ///
    /// # Errors
    /// Those of the netlink request.
    pub fn link(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        self.run(|| format!("look up {name}"), async |handle| find(handle, name).await)
    }

    /// The index of the link of this name, if there is one.
    ///
    /// # Errors
    /// Those of the netlink request.
    pub fn index(&self, name: &str) -> Result<Option<u32>, NetlinkError> {
        Ok(self.link(name)?.map(|link| link.index))
    }

    /// The link's counters.
    ///
    /// # Errors
    /// `ENODEV` without such a link, and those of the netlink request.
    pub fn statistics(&self, name: &str) -> Result<Statistics, NetlinkError> {
        self.run(
            || format!("read the counters of {name}"),
            async |handle| {
                let message = message(handle, name).await?.ok_or_else(no_device)?;
                let counters = message.attributes.iter().find_map(|attribute| match attribute {
                    LinkAttribute::Stats64(stats) => Some(Statistics {
                        rx_dropped: stats.rx_dropped,
                        rx_length_errors: stats.rx_length_errors,
                        rx_frame_errors: stats.rx_frame_errors,
                        tx_errors: stats.tx_errors,
                    }),
                    _ => None,
                });
                Ok(counters.unwrap_or_default())
            },
        )
    }

    /// `ip link set NAME up`.
    ///
    /// # Errors
    /// `ENODEV` without such a link, and those of the netlink request.
    pub fn set_up(&self, name: &str) -> Result<(), NetlinkError> {
        self.run(
            || format!("set {name} up"),
            async |handle| {
                let index = index_of(handle, name).await?;
                let change = LinkUnspec::new_with_index(index).up().build();
                handle.link().set(change).execute().await.map_err(io_error)
            },
        )
    }

    /// `ip link set NAME mtu BYTES`.
    ///
    /// # Errors
    /// `ENODEV` without such a link, and those of the netlink request.
    pub fn set_mtu(&self, name: &str, bytes: u32) -> Result<(), NetlinkError> {
        self.run(
            || format!("set the MTU of {name} to {bytes}"),
            async |handle| {
                let index = index_of(handle, name).await?;
                let change = LinkUnspec::new_with_index(index).mtu(bytes).build();
                handle.link().set(change).execute().await.map_err(io_error)
            },
        )
    }

    /// `ip -6 addr add ADDRESS/BITS dev NAME nodad`: usable at once, since nobody else can have it.
    ///
    /// # Errors
    /// `ENODEV` without such a link, and those of the netlink request.
    pub fn add_address(&self, name: &str, address: Ipv6Addr, bits: u8) -> Result<(), NetlinkError> {
        self.run(
            || format!("give {address}/{bits} to {name}"),
            async |handle| {
                let index = index_of(handle, name).await?;
                let mut request = handle.address().add(index, address.into(), bits);
                let message = request.message_mut();
                message.header.flags = AddressHeaderFlags::Nodad;
                message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
                done_already(request.execute().await)
            },
        )
    }

    /// The IPv6 addresses of the link; none without such a link.
    ///
    /// # Errors
    /// Those of the netlink request.
    pub fn addresses(&self, name: &str) -> Result<Vec<Ipv6Addr>, NetlinkError> {
        self.run(
            || format!("read the addresses of {name}"),
            async |handle| {
                let Some(link) = find(handle, name).await? else { return Ok(Vec::new()) };
                let request = handle.address().get().set_link_index_filter(link.index);
                let found: Vec<_> = request.execute().try_collect().await.map_err(io_error)?;
                let own = |attribute: AddressAttribute| match attribute {
                    AddressAttribute::Address(IpAddr::V6(address)) => Some(address),
                    _ => None,
                };
                Ok(found.into_iter().flat_map(|message| message.attributes).filter_map(own).collect())
            },
        )
    }

    /// `ip -6 route add PREFIX/BITS dev NAME`.
    ///
    /// # Errors
    /// `ENODEV` without such a link, and those of the netlink request.
    pub fn add_route(&self, prefix: Ipv6Addr, bits: u8, name: &str) -> Result<(), NetlinkError> {
        self.route(RouteType::Unicast, RouteHeader::RT_TABLE_MAIN, prefix, bits, name)
    }

    /// `ip -6 route add local PREFIX/BITS dev NAME`: every address of the prefix is this machine's own, so that
    /// sockets receive what is sent to any of them. The usual link is `lo`.
    ///
    /// # Errors
    /// `ENODEV` without such a link, and those of the netlink request.
    pub fn add_local_route(&self, prefix: Ipv6Addr, bits: u8, name: &str) -> Result<(), NetlinkError> {
        self.route(RouteType::Local, RT_TABLE_LOCAL, prefix, bits, name)
    }

    /// Makes a kernel WireGuard link *in `into`* whose UDP socket stays in this namespace. The socket belongs to
    /// where the request comes from, so the link need not pass through this namespace and cannot meet a link of
    /// the same name here.
    ///
    /// # Errors
    /// `EOPNOTSUPP` on a kernel without WireGuard, and those of the netlink request.
    pub fn create_wireguard(&self, name: &str, into: &NetNs) -> Result<(), NetlinkError> {
        let target = into.as_fd().as_raw_fd();
        self.run(
            || format!("make the WireGuard link {name}"),
            async |handle| {
                let link = LinkWireguard::new(name).setns_by_fd(target).build();
                done_already(handle.link().add(link).execute().await)
            },
        )
    }

    /// `ip link del NAME`, if it is there.
    ///
    /// # Errors
    /// Those of the netlink request.
    pub fn delete_link(&self, name: &str) -> Result<(), NetlinkError> {
        self.run(
            || format!("delete {name}"),
            async |handle| {
                let Some(link) = find(handle, name).await? else { return Ok(()) };
                match handle.link().del(link.index).execute().await.map_err(io_error) {
                    Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(()),
                    other => other,
                }
            },
        )
    }

    fn route(
        &self,
        kind: RouteType,
        table: u8,
        prefix: Ipv6Addr,
        bits: u8,
        name: &str,
    ) -> Result<(), NetlinkError> {
        self.run(
            || format!("route {prefix}/{bits} to {name}"),
            async |handle| {
                let index = index_of(handle, name).await?;
                let route = RouteMessageBuilder::<Ipv6Addr>::new()
                    .kind(kind)
                    .table_id(u32::from(table))
                    .scope(RouteScope::Universe)
                    .destination_prefix(prefix, bits)
                    .output_interface(index)
                    .build();
                done_already(handle.route().add(route).execute().await)
            },
        )
    }

    fn run<T: Send>(
        &self,
        operation: impl Fn() -> String,
        work: impl AsyncFnOnce(&Handle) -> io::Result<T> + Send,
    ) -> Result<T, NetlinkError> {
        self.ns
            .run(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
                runtime.block_on(async {
                    let (connection, handle, _) = rtnetlink::new_connection()?;
                    // Runs until the last handle is dropped; the runtime ends right after.
                    runtime.spawn(connection);
                    work(&handle).await
                })
            })
            .map_err(|source| NetlinkError { operation: operation(), source })
    }
}

async fn index_of(handle: &Handle, name: &str) -> io::Result<u32> {
    let link = find(handle, name).await?;
    link.map(|link| link.index).ok_or_else(no_device)
}

fn no_device() -> io::Error {
    io::Error::from_raw_os_error(libc::ENODEV)
}

async fn find(handle: &Handle, name: &str) -> io::Result<Option<Link>> {
    Ok(message(handle, name).await?.map(|message| read(&message)))
}

async fn message(handle: &Handle, name: &str) -> io::Result<Option<LinkMessage>> {
    if name.is_empty() || name.len() > LINK_NAME_BYTES_MAX {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut links = std::pin::pin!(handle.link().get().match_name(name).execute());
    match links.next().await {
        None => Ok(None),
        Some(Ok(message)) => Ok(Some(message)),
        Some(Err(e)) => match io_error(e) {
            e if e.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            e => Err(e),
        },
    }
}

fn read(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        kind: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(InfoKind::Other(kind)) => Some(kind.clone()),
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link
}

fn done_already(result: Result<(), rtnetlink::Error>) -> io::Result<()> {
    match result.map_err(io_error) {
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

fn io_error(e: rtnetlink::Error) -> io::Error {
    match e {
        // The kernel's own text for an error number says more than rtnetlink's wrapping of it.
        rtnetlink::Error::NetlinkError(message) => io::Error::from_raw_os_error(message.raw_code().abs()),
        other => io::Error::other(other),
    }
}
