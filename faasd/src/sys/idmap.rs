//! Mounts whose files belong to other users than on disk, and read-only unions of them.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use rustix::process::{Pid, Signal, WaitOptions};

/// A range of ids: `from` on disk is seen as `to`, for `count` of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdMap {
    pub from: u32,
    pub to: u32,
    pub count: u32,
}

/// A user namespace with a map, which lives as long as the descriptor: no process is in it.
///
/// # Errors
/// Those of `clone(2)` and of writing the maps.
pub fn user_namespace(map: IdMap) -> io::Result<OwnedFd> {
    let child = Child::start()?;
    let proc = format!("/proc/{}", child.0.as_raw_nonzero());
    let line = format!("{} {} {}", map.from, map.to, map.count);
    for file in ["uid_map", "gid_map"] {
        fs::write(format!("{proc}/{file}"), &line)?;
    }
    Ok(rustix::fs::open(format!("{proc}/ns/user"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// A process that does nothing in a user namespace of its own. It ends with its variable, and with us.
struct Child(Pid);

impl Child {
    #[expect(
        unsafe_code,
        reason = "a namespace comes with a process, and neither rustix nor std makes one so bare"
    )]
    fn start() -> io::Result<Self> {
        let flags = libc::CLONE_NEWUSER | libc::CLONE_FILES | libc::SIGCHLD;
        let (none, ours) = (0usize, rustix::process::getpid().as_raw_nonzero().get());
        // SAFETY: without CLONE_VM the child has its own memory and, by a null stack, a copy of ours, as after fork(2).
        // It makes a few system calls and no other: nothing that may be locked in the copy is touched. It shares the table
        // of descriptors, so that it holds none of its own, and closes none.
        let pid = unsafe { libc::syscall(libc::SYS_clone, flags as usize, none, none, none, none) };
        if pid == 0 {
            // It goes when its parent's thread does, also if that was quicker. Else it waits to be killed.
            // SAFETY: plain system calls with plain numbers.
            unsafe {
                libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, none, none, none);
                while libc::syscall(libc::SYS_getppid) == i64::from(ours) {
                    libc::syscall(libc::SYS_ppoll, none, none, none, none, none);
                }
                libc::_exit(0)
            }
        }
        i32::try_from(pid).ok().and_then(Pid::from_raw).map(Self).ok_or_else(io::Error::last_os_error)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // A child of ours that nobody else waits for: the number is still its own.
        let _ = rustix::process::kill_process(self.0, Signal::KILL);
        let _ = rustix::process::waitpid(Some(self.0), WaitOptions::empty());
    }
}

/// `struct mount_attr`.
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// A mount of a directory that is attached nowhere: read-only, without set-uid programs and devices, with its files'
/// owners mapped by a user namespace.
///
/// # Errors
/// Those of `open_tree(2)` and `mount_setattr(2)`: `EINVAL` if the file system cannot map owners.
pub fn mapped(dir: &Path, namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, dir, flags)?;
    let set =
        libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_IDMAP;
    let attr =
        MountAttr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd: namespace.as_raw_fd() as u64 };
    set_attributes(&tree, &attr)?;
    Ok(tree)
}

#[expect(unsafe_code, reason = "rustix has no mount_setattr")]
fn set_attributes(tree: &OwnedFd, attr: &MountAttr) -> io::Result<()> {
    // SAFETY: the path is an empty string with its NUL, the structure is the kernel's and lives through the call, and both
    // descriptors are open.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Attaches such a mount.
///
/// # Errors
/// Those of `move_mount(2)`.
pub fn attach(tree: &OwnedFd, at: &Path) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(rustix::mount::move_mount(tree, "", CWD, at, flags)?)
}

/// Mounts the union of directories, the topmost first, read-only.
///
/// # Errors
/// Those of `mount(2)`.
pub fn overlay(layers: &[OwnedFd], at: &Path) -> io::Result<()> {
    // By descriptor: a hundred paths would not fit into the page that the options may have, and need no escapes.
    let lower: Vec<_> = layers.iter().map(|fd| format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())).collect();
    let options = format!("lowerdir={},redirect_dir=nofollow,metacopy=off,index=off", lower.join(":"));
    let options = CString::new(options)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    Ok(rustix::mount::mount("overlay", at, "overlay", flags, options.as_c_str())?)
}

/// Takes a mount away from where it is; it ends when nobody uses it.
///
/// # Errors
/// Those of `umount2(2)`.
pub fn detach(at: &Path) -> io::Result<()> {
    Ok(rustix::mount::unmount(at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?)
}

/// Where anything is mounted below a directory, in the order of mounting.
///
/// # Errors
/// Those of reading `/proc/self/mountinfo`.
pub fn mounts_below(dir: &Path) -> io::Result<Vec<std::path::PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let points = text.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    Ok(points.filter(|point| point.starts_with(dir) && point != dir).collect())
}

/// The kernel writes blanks and backslashes in paths as three octal digits.
fn unescape(text: &str) -> std::path::PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes.get(at + 1..at + 4).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if bytes[at] == b'\\' => {
                plain.push(byte);
                at += 4;
            }
            _ => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    std::ffi::OsString::from_vec(plain).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_mountinfo_are_read() {
        assert_eq!(unescape(r"/a\040b/c\134d"), Path::new(r"/a b/c\d"));
        assert_eq!(unescape(r"/plain\9"), Path::new(r"/plain\9"));
    }
}
