//! A TUN interface: IP packets of a network namespace, read and written through a descriptor.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use tokio::io::unix::AsyncFd;

use super::netlink::LINK_NAME_BYTES_MAX;

/// The descriptor behind a TUN interface. It works from any namespace; the interface stays where it was made.
#[derive(Debug)]
pub struct Tun {
    fd: OwnedFd,
    segments: bool,
}

impl Tun {
    /// Makes the interface `name` in the calling thread's network namespace, or takes over one that was left
    /// persistent. The descriptor is non-blocking, and one read or write is one packet, with a `virtio_net_hdr` of 10
    /// bytes before it. If the kernel agrees, TCP over IPv6 is left to the reader to cut and to complete its checksum.
    ///
    /// # Errors
    /// `EBUSY` if another process holds the interface; `EINVAL` if the name belongs to one of another kind;
    /// those of `open(2)` on `/dev/net/tun`.
    #[expect(unsafe_code, reason = "TUNSETIFF has no safe wrapper")]
    pub fn attach(name: &str) -> io::Result<Self> {
        if name.is_empty() || name.len() > LINK_NAME_BYTES_MAX || name.contains(['/', '\0']) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")?;
        // SAFETY: ifreq is plain data; all zeroes is a value of it.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            // Signed on x86-64, unsigned on arm64.
            *to = libc::c_char::from_ne_bytes([from]);
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        // SAFETY: the descriptor is open, and TUNSETIFF reads and writes one ifreq, which outlives the call.
        let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        // A header of another size may be left from whoever made the interface persistent.
        let bytes: libc::c_int = 10;
        // SAFETY: the descriptor is open, and TUNSETVNETHDRSZ reads one int, which outlives the call.
        let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const bytes) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        let offload = libc::c_ulong::from(libc::TUN_F_CSUM | libc::TUN_F_TSO6);
        // SAFETY: the descriptor is open; TUNSETOFFLOAD takes its argument by value.
        let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, offload) };
        Ok(Self { fd: file.into(), segments: done == 0 })
    }

    /// Whether the kernel leaves TCP over IPv6 uncut.
    #[must_use]
    pub fn segments(&self) -> bool {
        self.segments
    }

    /// Registers the descriptor with the running tokio runtime.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O enabled.
    #[expect(unsafe_code, reason = "tokio cannot check that a type keeps its descriptor")]
    pub fn register(self: &Arc<Self>) -> io::Result<AsyncFd<Arc<Self>>> {
        // SAFETY: a Tun owns one descriptor from its making to its end and always names that one; the Arc within
        // the AsyncFd keeps it open for as long as it is registered.
        unsafe { AsyncFd::register(Arc::clone(self)) }.map_err(io::Error::from)
    }

    /// Whether the interface, with its addresses and routes, stays when the descriptor is closed.
    ///
    /// # Errors
    /// Those of `ioctl(2)`.
    #[expect(unsafe_code, reason = "TUNSETPERSIST has no safe wrapper")]
    pub fn set_persistent(&self, persistent: bool) -> io::Result<()> {
        // SAFETY: the descriptor is open; TUNSETPERSIST takes its argument by value.
        let done =
            unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETPERSIST, libc::c_ulong::from(persistent)) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Tun {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}
