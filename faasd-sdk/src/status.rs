//! The status page: one page of memory that the daemon and an instance both map, so that counting a connection
//! costs an atomic addition and no system call.
//!
//! With `sys.rs` this is the crate's only unsafe code.

use std::fmt;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

use crate::wire::status;

/// Without them the other end could shrink the file, and a read past its end is SIGBUS.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// The page's fields where [`status`] says they are. The daemon's field has a cache line of its own.
#[repr(C)]
struct Page {
    sent: AtomicU64,
    draining: AtomicU64,
    _daemon: [u64; 6],
    received: AtomicU64,
    finished: AtomicU64,
    requests: AtomicU64,
    errors: AtomicU64,
    ready: AtomicU64,
    limit: AtomicU64,
    _rest: [u64; 498],
}

const _: () = {
    assert!(size_of::<Page>() == status::BYTES);
    assert!(offset_of!(Page, sent) == status::SENT);
    assert!(offset_of!(Page, draining) == status::DRAINING);
    assert!(offset_of!(Page, received) == status::RECEIVED);
    assert!(offset_of!(Page, finished) == status::FINISHED);
    assert!(offset_of!(Page, requests) == status::REQUESTS);
    assert!(offset_of!(Page, errors) == status::ERRORS);
    assert!(offset_of!(Page, ready) == status::READY);
    assert!(offset_of!(Page, limit) == status::LIMIT);
};

/// A mapped status page, unmapped on drop. Every field is a number that grows; the other end may be malicious, so a
/// reader must hold no number for plausible.
pub struct StatusPage {
    page: NonNull<Page>,
}

#[expect(unsafe_code, reason = "a mapping is a raw pointer, which is neither Send nor Sync by itself")]
// SAFETY: the page is nothing but atomics and stays mapped as long as the value lives, on whatever thread that is.
unsafe impl Send for StatusPage {}
#[expect(unsafe_code, reason = "as above")]
// SAFETY: as above; every access through a shared reference is atomic.
unsafe impl Sync for StatusPage {}

impl StatusPage {
    /// Makes a page of zeros, sealed against any change of its size, and maps it. The descriptor is the instance's.
    ///
    /// # Errors
    /// Those of `memfd_create(2)`, `ftruncate(2)`, `fcntl(2)` and `mmap(2)`.
    pub fn create() -> io::Result<(Self, OwnedFd)> {
        let fd = rustix::fs::memfd_create("faas-status", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&fd, status::BYTES as u64)?;
        rustix::fs::fcntl_add_seals(&fd, SEALS)?;
        Ok((Self::mmap(&fd)?, fd))
    }

    /// Maps a page that somebody else made, and closes the descriptor: the mapping needs it no longer.
    ///
    /// # Errors
    /// `InvalidData` if it is no memfd, has another size or could change its size; those of `mmap(2)`.
    #[expect(clippy::needless_pass_by_value, reason = "the descriptor's work is done with the mapping")]
    pub fn map(fd: OwnedFd) -> io::Result<Self> {
        Self::map_borrowed(&fd)
    }

    /// Maps a page and leaves the descriptor to its owner.
    ///
    /// # Errors
    /// As [`StatusPage::map`].
    pub fn map_borrowed(fd: impl AsFd) -> io::Result<Self> {
        let invalid = |why: &'static str| io::Error::new(io::ErrorKind::InvalidData, why);
        let seals = rustix::fs::fcntl_get_seals(&fd).map_err(|_| invalid("it is no memfd"))?;
        if !seals.contains(SealFlags::SHRINK | SealFlags::GROW) {
            return Err(invalid("it is not sealed against a change of its size"));
        }
        if rustix::fs::fstat(&fd)?.st_size != status::BYTES as i64 {
            return Err(invalid("it is not one page of 4096 bytes"));
        }
        Self::mmap(fd)
    }

    #[expect(unsafe_code, reason = "a shared mapping is the point of the page")]
    fn mmap(fd: impl AsFd) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory. The file is sealed
        // at exactly this size, so the mapping stays backed; mmap aligns to pages, which is enough for `Page`, and
        // any bit pattern is a valid `Page`.
        let address = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                status::BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                fd,
                0,
            )
        }?;
        let page = NonNull::new(address.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { page })
    }

    #[expect(unsafe_code, reason = "reads through the mapping")]
    fn page(&self) -> &Page {
        // SAFETY: mapped from `mmap` to `drop`, aligned, initialised by the kernel, and all atomics: another process
        // writing at the same time is what they are for.
        unsafe { self.page.as_ref() }
    }

    /// Connections handed to this instance.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.page().sent.load(Ordering::Relaxed)
    }

    /// The daemon hands over `count` more. Returns the new number.
    pub fn add_sent(&self, count: u64) -> u64 {
        self.page().sent.fetch_add(count, Ordering::Relaxed).wrapping_add(count)
    }

    /// The daemon takes back `count` that it could not send, or read back from a dead instance.
    pub fn sub_sent(&self, count: u64) {
        self.page().sent.fetch_sub(count, Ordering::Relaxed);
    }

    /// Whether the instance was asked to finish.
    #[must_use]
    pub fn draining(&self) -> bool {
        self.page().draining.load(Ordering::Relaxed) != 0
    }

    /// The daemon asks the instance to finish.
    pub fn set_draining(&self) {
        self.page().draining.store(1, Ordering::Relaxed);
    }

    /// Connections that the instance has received.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.page().received.load(Ordering::Acquire)
    }

    /// The instance received `count` more.
    pub fn add_received(&self, count: u64) {
        self.page().received.fetch_add(count, Ordering::Release);
    }

    /// Connections that the instance is done with.
    #[must_use]
    pub fn finished(&self) -> u64 {
        self.page().finished.load(Ordering::SeqCst)
    }

    /// The instance is done with `count` more; returns how many it was done with before. Sequentially consistent, for
    /// the hand-shake with whoever waits for the last one.
    pub fn add_finished(&self, count: u64) -> u64 {
        self.page().finished.fetch_add(count, Ordering::SeqCst)
    }

    /// The most connections that the instance takes at a time; 0 is any number.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.page().limit.load(Ordering::Relaxed)
    }

    /// The instance takes no more than so many at a time.
    pub fn set_limit(&self, connections: u64) {
        self.page().limit.store(connections, Ordering::Relaxed);
    }

    /// Whether finishing `count`, after `before`, made room where there was none: of several that finish at once, this
    /// is true for one.
    #[must_use]
    pub fn has_room_again(&self, before: u64, count: u64) -> bool {
        let limit = self.limit();
        let in_flight = self.sent().saturating_sub(before);
        limit > 0 && in_flight >= limit && in_flight.saturating_sub(count) < limit
    }

    /// Whether the instance takes another connection.
    #[must_use]
    pub fn has_room(&self) -> bool {
        let limit = self.limit();
        limit == 0 || self.in_flight() < limit
    }

    /// Connections that were handed over and are not done with: what the daemon chooses the least loaded instance by.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.sent().saturating_sub(self.finished())
    }

    /// Requests served.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.page().requests.load(Ordering::Relaxed)
    }

    /// The instance served one more request.
    pub fn add_request(&self) {
        self.page().requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests that ended in the function's own error.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.page().errors.load(Ordering::Relaxed)
    }

    /// One more request ended in the function's own error.
    pub fn add_error(&self) {
        self.page().errors.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the instance said that it is ready.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.page().ready.load(Ordering::Acquire) != 0
    }

    /// The instance is ready: what it did to become so is visible to whoever sees this.
    pub fn set_ready(&self) {
        self.page().ready.store(1, Ordering::Release);
    }
}

impl Drop for StatusPage {
    #[expect(unsafe_code, reason = "gives the mapping back")]
    fn drop(&mut self) {
        // SAFETY: mapped by `mmap` with this length; no reference outlives `self`.
        // A failure could only mean that it is not mapped, and there is nothing to be done about it.
        let _ = unsafe { rustix::mm::munmap(self.page.as_ptr().cast(), status::BYTES) };
    }
}

impl fmt::Debug for StatusPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusPage")
            .field("sent", &self.sent())
            .field("received", &self.received())
            .field("finished", &self.finished())
            .field("requests", &self.requests())
            .field("errors", &self.errors())
            .field("ready", &self.ready())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_reached_and_left_once() {
        let (daemon, fd) = StatusPage::create().unwrap();
        let instance = StatusPage::map(fd).unwrap();
        assert!(daemon.has_room() && !instance.has_room_again(0, 1));
        instance.set_limit(2);
        daemon.add_sent(1);
        assert!(daemon.has_room());
        daemon.add_sent(1);
        assert!(!daemon.has_room());
        let before = instance.add_finished(1);
        assert!(instance.has_room_again(before, 1) && daemon.has_room());
        let before = instance.add_finished(1);
        assert!(!instance.has_room_again(before, 1), "there was room already");
    }

    #[test]
    fn both_ends_see_the_same_numbers() {
        let (daemon, fd) = StatusPage::create().unwrap();
        let instance = StatusPage::map(fd).unwrap();
        assert_eq!(daemon.add_sent(3), 3);
        instance.add_received(3);
        instance.add_finished(1);
        instance.add_request();
        instance.add_error();
        instance.set_ready();
        assert_eq!((instance.sent(), daemon.received(), daemon.finished()), (3, 3, 1));
        assert_eq!((daemon.requests(), daemon.errors(), daemon.ready(), daemon.in_flight()), (1, 1, true, 2));
    }

    #[test]
    fn a_page_keeps_its_size() {
        let (_page, fd) = StatusPage::create().unwrap();
        assert!(rustix::fs::ftruncate(&fd, 0).is_err());
        assert!(rustix::fs::ftruncate(&fd, 8192).is_err());
        assert!(rustix::fs::fcntl_add_seals(&fd, SealFlags::WRITE).is_err());
    }

    #[test]
    fn what_is_no_status_page_is_refused() {
        let memfd = |bytes, seals| {
            let fd = rustix::fs::memfd_create("x", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
            rustix::fs::ftruncate(&fd, bytes).unwrap();
            rustix::fs::fcntl_add_seals(&fd, seals).unwrap();
            StatusPage::map(fd).unwrap_err().to_string()
        };
        assert!(memfd(4096, SealFlags::SHRINK).contains("not sealed"));
        assert!(memfd(0, SEALS).contains("4096"));
        assert!(memfd(8192, SEALS).contains("4096"));
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        assert!(StatusPage::map(file.into()).unwrap_err().to_string().contains("no memfd"));
    }
}
