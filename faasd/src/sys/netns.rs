//! Network namespaces: made once, pinned by a bind mount, entered only by threads that end afterwards.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::mount;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// An open network namespace.
#[derive(Debug)]
pub struct NetNs {
    file: File,
    path: PathBuf,
}

impl NetNs {
    /// Opens the namespace that `path` names (`/proc/self/ns/net`, `/run/netns/NAME`, …).
    ///
    /// # Errors
    /// Those of `open(2)`.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::open(path)?, path: path.to_owned() })
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// Those of `open(2)`.
    pub fn current() -> io::Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Opens the namespace pinned at `path`, or makes a new one and pins it there, so that it outlives us.
    ///
    /// # Errors
    /// Those of `unshare(2)` and `mount(2)`: both need `CAP_SYS_ADMIN`.
    pub fn open_or_create(path: &Path) -> io::Result<Self> {
        if is_nsfs(path)? {
            return Self::open(path);
        }
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        File::create(path)?;
        let made = on_a_thread(|| {
            // The thread ends right after, so nothing else ever runs in the namespace by accident.
            unshare_net()?;
            mount::mount_bind("/proc/thread-self/ns/net", path).map_err(io::Error::from)
        });
        if let Err(e) = made {
            let _ = fs::remove_file(path);
            return Err(e);
        }
        Self::open(path)
    }

    /// Unpins the namespace. It ends when its last socket and interface are gone.
    ///
    /// # Errors
    /// Those of `umount(2)` and `unlink(2)`.
    pub fn unpin(path: &Path) -> io::Result<()> {
        if is_nsfs(path)? {
            mount::unmount(path, mount::UnmountFlags::DETACH)?;
        }
        match fs::remove_file(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Runs `work` on a thread of its own inside the namespace: sockets that it makes belong there for good.
    ///
    /// # Errors
    /// Those of `setns(2)`, and what `work` returns.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        on_a_thread(|| {
            move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        })
    }

    /// A second handle on the same namespace.
    ///
    /// # Errors
    /// Those of `dup(2)`.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()?, path: self.path.clone() })
    }

    /// Whether the calling thread is in this namespace.
    ///
    /// # Errors
    /// Those of `fstat(2)`.
    pub fn is_current(&self) -> io::Result<bool> {
        let ours = fs::metadata("/proc/thread-self/ns/net")?;
        let this = self.file.metadata()?;
        Ok((ours.dev(), ours.ino()) == (this.dev(), this.ino()))
    }

    /// Where the namespace was opened from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        scope.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[expect(unsafe_code, reason = "rustix marks every unshare unsafe, for the sake of CLONE_FILES")]
fn unshare_net() -> io::Result<()> {
    // SAFETY: only CLONE_NEWNET is given; the descriptor table stays shared, so no descriptor changes meaning.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.map_err(io::Error::from)
}

/// Whether `path` is a pinned namespace rather than the empty file it was pinned on.
fn is_nsfs(path: &Path) -> io::Result<bool> {
    const NSFS_MAGIC: u64 = 0x6e73_6673;
    match rustix::fs::statfs(path) {
        Ok(stat) => Ok(stat.f_type as u64 == NSFS_MAGIC),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(e) => Err(e.into()),
    }
}
