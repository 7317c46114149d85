//! The tunnel process's ends of the TUN interface, for gotatun: packets that the kernel has left uncut are cut here, and
//! those that follow each other are given to it as one.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gotatun::packet::{Ip, Packet, PacketBufPool};
use gotatun::tun::{IpRecv, IpSend, MtuWatcher};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::offload::coalesce::Coalescer;
use super::offload::segment::Segments;
use super::offload::{FRAME_BYTES_MAX, HEADER_BYTES};
use crate::sys::tun::Tun;

/// Packets taken from the interface in one turn, and those of one frame more.
const PACKETS_PER_TURN: usize = 64;

/// Packets from peers, to the interface.
#[derive(Clone)]
pub(super) struct Outbound {
    shared: Arc<Shared>,
}

struct Shared {
    tun: Arc<Tun>,
    waiting: Mutex<Coalescer<Packet<[u8]>>>,
    /// Something waits.
    some: Notify,
}

impl Outbound {
    /// # Panics
    /// Outside a tokio runtime.
    pub(super) fn new(tun: Arc<Tun>) -> Self {
        let shared = Arc::new(Shared { tun, waiting: Mutex::default(), some: Notify::new() });
        let flushed = Arc::clone(&shared);
        // It is woken by the first packet that waits, and has its turn after the task that brings packets has given
        // all that it had: what waits, waits for nothing that is not here already.
        tokio::spawn(async move {
            loop {
                flushed.some.notified().await;
                flushed.waiting().flush(&mut |frame| flushed.write(frame));
            }
        });
        Self { shared }
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Coalescer<Packet<[u8]>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a frame to the kernel. Whatever it does not take, because the interface is set down or it is no packet that
    /// it knows, is lost, as on any link. That the interface is removed is noticed elsewhere.
    fn write(&self, frame: &[IoSlice<'_>]) {
        if let Err(error) = rustix::io::writev(self.tun.as_fd(), frame) {
            tracing::trace!(%error, "a packet is lost");
        }
    }
}

impl IpSend for Outbound {
    async fn send(&mut self, packet: Packet<Ip>) -> io::Result<()> {
        let shared = &*self.shared;
        let mut waiting = shared.waiting();
        waiting.push(packet.into_bytes(), &mut |frame| shared.write(frame));
        if !waiting.is_empty() {
            shared.some.notify_one();
        }
        Ok(())
    }
}

/// Packets from the interface, to peers.
pub(super) struct Inbound {
    tun: Arc<AsyncFd<Arc<Tun>>>,
    frame: Box<[u8]>,
    packets: Vec<Packet<Ip>>,
    mtu: MtuWatcher,
}

impl Inbound {
    pub(super) fn new(tun: Arc<AsyncFd<Arc<Tun>>>, mtu_bytes: u16) -> Self {
        let frame = vec![0; FRAME_BYTES_MAX].into();
        Self { tun, frame, packets: Vec::new(), mtu: MtuWatcher::new(mtu_bytes) }
    }

    /// The packets of a frame of so many bytes.
    fn cut(&mut self, bytes: usize, pool: &PacketBufPool) {
        let Some(Ok(mut segments)) = self.frame.get_mut(..bytes).map(Segments::of) else { return };
        let longest = segments.bytes_max();
        loop {
            let mut packet = pool.get();
            if packet.len() < longest {
                packet.buf_mut().resize(longest, 0);
            }
            let Some(bytes) = segments.next_into(&mut packet[..]) else { return };
            packet.truncate(bytes);
            self.packets.extend(packet.try_into_ip());
        }
    }
}

impl IpRecv for Inbound {
    async fn recv<'a>(
        &'a mut self,
        pool: &mut PacketBufPool,
    ) -> io::Result<impl Iterator<Item = Packet<Ip>> + Send + 'a> {
        let tun = Arc::clone(&self.tun);
        while self.packets.is_empty() {
            let mut ready = tun.readable().await?;
            while self.packets.len() < PACKETS_PER_TURN {
                match ready.try_io(|tun| Ok(rustix::io::read(tun.as_fd(), &mut self.frame[..])?)) {
                    Ok(Ok(bytes)) if bytes > HEADER_BYTES => self.cut(bytes, pool),
                    Ok(Ok(_)) => {}
                    // What was read before the failure is still good; the failure comes again.
                    Ok(Err(e)) if self.packets.is_empty() => return Err(e),
                    Ok(Err(_)) | Err(_) => break,
                }
            }
        }
        Ok(self.packets.drain(..))
    }

    fn mtu(&self) -> MtuWatcher {
        self.mtu.clone()
    }
}
