//! Which system calls a function may make: a list of what is allowed, by name; all else fails with `EPERM`. What a
//! group is for stands beside it, and a call that is in no group is refused on purpose.
//!
//! Names that an architecture or the installed libseccomp does not know are passed over by runc, so one list serves
//! all. Calls newer than the newest of the list get `ENOSYS` from runc's own stub, which libcs fall back on.

use std::path::Path;

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
    LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

/// Allowed whatever the arguments.
const ALLOWED: &[&[&str]] = &[
    // Files, by path or relative to a descriptor. The mount namespace says which there are, and all but /tmp is
    // read-only. The old forms without `at` exist on x86-64 alone.
    &[
        "access",
        "chdir",
        "chmod",
        "chown",
        "creat",
        "faccessat",
        "faccessat2",
        "fchdir",
        "fchmod",
        "fchmodat",
        "fchmodat2",
        "fchown",
        "fchownat",
        "getcwd",
        "lchown",
        "link",
        "linkat",
        "lstat",
        "mkdir",
        "mkdirat",
        "newfstatat",
        "open",
        "openat",
        "openat2",
        "readlink",
        "readlinkat",
        "rename",
        "renameat",
        "renameat2",
        "rmdir",
        "stat",
        "statfs",
        "statx",
        "symlink",
        "symlinkat",
        "truncate",
        "umask",
        "unlink",
        "unlinkat",
        "utime",
        "utimensat",
        "utimes",
        "futimesat",
    ],
    // Files, by descriptor.
    &[
        "close",
        "close_range",
        "copy_file_range",
        "dup",
        "dup2",
        "dup3",
        "fadvise64",
        "fallocate",
        "fcntl",
        "fdatasync",
        "flock",
        "fstat",
        "fstatfs",
        "fsync",
        "ftruncate",
        "getdents",
        "getdents64",
        "lseek",
        "pread64",
        "preadv",
        "preadv2",
        "pwrite64",
        "pwritev",
        "pwritev2",
        "read",
        "readahead",
        "readv",
        "sendfile",
        "splice",
        "sync_file_range",
        "syncfs",
        "tee",
        "vmsplice",
        "write",
        "writev",
    ],
    // Extended attributes: the standard libraries' copying of files asks for them.
    &[
        "fgetxattr",
        "flistxattr",
        "fremovexattr",
        "fsetxattr",
        "getxattr",
        "lgetxattr",
        "listxattr",
        "llistxattr",
        "lremovexattr",
        "lsetxattr",
        "removexattr",
        "setxattr",
    ],
    &["pipe", "pipe2"],
    // Waiting for descriptors: the loops of tokio, libuv and asyncio.
    &[
        "epoll_create",
        "epoll_create1",
        "epoll_ctl",
        "epoll_pwait",
        "epoll_pwait2",
        "epoll_wait",
        "eventfd",
        "eventfd2",
        "inotify_add_watch",
        "inotify_init",
        "inotify_init1",
        "inotify_rm_watch",
        "poll",
        "ppoll",
        "pselect6",
        "select",
        "signalfd",
        "signalfd4",
        "timerfd_create",
        "timerfd_gettime",
        "timerfd_settime",
    ],
    // Sockets that are there already: those handed over, and what `socket` below lets be made.
    &[
        "accept",
        "accept4",
        "getpeername",
        "getsockname",
        "getsockopt",
        "recvfrom",
        "recvmmsg",
        "recvmsg",
        "setsockopt",
        "shutdown",
    ],
    // Memory. JIT compilers need executable mappings.
    &[
        "brk",
        "madvise",
        "membarrier",
        "memfd_create",
        "mincore",
        "mlock",
        "mlock2",
        "mlockall",
        "mmap",
        "mprotect",
        "mremap",
        "msync",
        "munlock",
        "munlockall",
        "munmap",
        "pkey_alloc",
        "pkey_free",
        "pkey_mprotect",
    ],
    // System V's shared memory and semaphores, which are the container's own and counted as its memory: PostgreSQL.
    &["semctl", "semget", "semop", "semtimedop", "shmat", "shmctl", "shmdt", "shmget"],
    // Threads and locks.
    &[
        "arch_prctl",
        "futex",
        "futex_requeue",
        "futex_wait",
        "futex_waitv",
        "futex_wake",
        "get_robust_list",
        "get_thread_area",
        "gettid",
        "rseq",
        "sched_getaffinity",
        "sched_getattr",
        "sched_getparam",
        "sched_get_priority_max",
        "sched_get_priority_min",
        "sched_getscheduler",
        "sched_rr_get_interval",
        "sched_setaffinity",
        "sched_setattr",
        "sched_setparam",
        "sched_setscheduler",
        "sched_yield",
        "set_robust_list",
        "set_thread_area",
        "set_tid_address",
    ],
    // Processes: a function may run helpers. `clone` is below.
    &[
        "execve",
        "execveat",
        "exit",
        "exit_group",
        "fork",
        "getpgid",
        "getpgrp",
        "getpid",
        "getppid",
        "getpriority",
        "getrlimit",
        "getrusage",
        "getsid",
        "ioprio_get",
        "ioprio_set",
        "kill",
        "pidfd_open",
        "pidfd_send_signal",
        "prctl",
        "prlimit64",
        "setpgid",
        "setpriority",
        "setrlimit",
        "setsid",
        "tgkill",
        "tkill",
        "vfork",
        "wait4",
        "waitid",
    ],
    // Signals.
    &[
        "pause",
        "restart_syscall",
        "rt_sigaction",
        "rt_sigpending",
        "rt_sigprocmask",
        "rt_sigqueueinfo",
        "rt_sigreturn",
        "rt_sigsuspend",
        "rt_sigtimedwait",
        "rt_tgsigqueueinfo",
        "sigaltstack",
    ],
    // Identity. No capability is held, so that the setters can only restate what is true; programs that drop
    // privileges do call them.
    &[
        "capget",
        "capset",
        "getegid",
        "geteuid",
        "getgid",
        "getgroups",
        "getresgid",
        "getresuid",
        "getuid",
        "setfsgid",
        "setfsuid",
        "setgid",
        "setgroups",
        "setregid",
        "setresgid",
        "setresuid",
        "setreuid",
        "setuid",
    ],
    // Time, to be read and waited for, never set.
    &[
        "alarm",
        "clock_getres",
        "clock_gettime",
        "clock_nanosleep",
        "getitimer",
        "gettimeofday",
        "nanosleep",
        "setitimer",
        "time",
        "timer_create",
        "timer_delete",
        "timer_getoverrun",
        "timer_gettime",
        "timer_settime",
        "times",
    ],
    // What the machine is, and randomness.
    &["getcpu", "getrandom", "sysinfo", "uname"],
    // A program may lock itself in further.
    &["landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self", "seccomp"],
];

/// Allowed too, and by an agent's leave where there is one for it: what servers do, and what clients do.
const SERVING: [&str; 2] = ["bind", "listen"];
const CALLING: [&str; 1] = ["connect"];

/// Calls that send, and which of their arguments has the flags. One of these makes them a `connect` that no agent sees.
const SENDING: [(&str, usize); 3] = [("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)];
const MSG_FASTOPEN: u64 = 0x2000_0000;

/// Who is asked about some of a container's calls, and about which.
#[derive(Clone, Copy, Debug)]
pub struct Agent<'a> {
    /// A unix socket that gets the filter's notification descriptor.
    pub desk: &'a Path,
    /// Whether it is asked about `bind` and `listen`.
    pub serving: bool,
    /// Whether it is asked about `connect`.
    pub calling: bool,
}

/// The flags of `clone` that make a namespace: mnt, cgroup, uts, ipc, user, pid, net.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// The mask and value of a fifo in a mode (`S_IFMT`, `S_IFIFO`).
const FORMAT_MASK: u64 = 0o170_000;
const FORMAT_FIFO: u64 = 0o010_000;

/// The type byte of requests that any descriptor knows: FIONREAD, FIONBIO, FIOCLEX, and the questions whether it is a
/// terminal. There is no terminal in a container, so TIOCSTI has nothing to push into. Everything else is refused, above
/// all 0x89: by a socket that was handed over, those requests list and change the interfaces of the ingress namespace.
/// The mask ends with the 32 bits that the kernel reads.
const IOCTL_MASK: u64 = 0xffff_ff00;
const IOCTL_PLAIN: u64 = 0x5400;

/// Unix, IPv4 and IPv6. Netlink, packet, vsock, alg and the rest are the kernel's less trodden paths.
const SOCKET_DOMAINS: [u64; 3] = [AF_UNIX, 2, 10];
const AF_UNIX: u64 = 1;

/// `PER_LINUX`, and the question which one it is.
const PERSONALITIES: [u64; 2] = [0, 0xffff_ffff];

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// The filter, for the architecture that we are built for. Calls by another one's numbers (32-bit or x32 on x86-64)
/// kill the thread.
///
/// # Errors
/// None in practice: those of the builders.
pub fn profile(agent: Option<Agent<'_>>) -> Result<LinuxSeccomp, OciSpecError> {
    let asked = |names: &[&str], asked: bool| {
        LinuxSyscallBuilder::default()
            .names(names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>())
            .action(match asked {
                true => LinuxSeccompAction::ScmpActNotify,
                false => LinuxSeccompAction::ScmpActAllow,
            })
            .build()
    };
    let calling = agent.is_some_and(|agent| agent.calling);
    let mut calls = vec![
        asked(&SERVING, agent.is_some_and(|agent| agent.serving))?,
        asked(&CALLING, calling)?,
        LinuxSyscallBuilder::default()
            .names(ALLOWED.concat().into_iter().map(str::to_owned).collect::<Vec<_>>())
            .action(LinuxSeccompAction::ScmpActAllow)
            .build()?,
        // clone3 takes its flags in memory, where no filter sees them. Libcs fall back on clone.
        LinuxSyscallBuilder::default()
            .names(vec!["clone3".to_owned()])
            .action(LinuxSeccompAction::ScmpActErrno)
            .errno_ret(ENOSYS)
            .build()?,
        allow("clone", masked(0, CLONE_NAMESPACES, 0)?)?,
        allow("ioctl", masked(1, IOCTL_MASK, IOCTL_PLAIN)?)?,
        // Fifos are made by mknod. Device nodes could not be opened anyway.
        allow("mknod", masked(1, FORMAT_MASK, FORMAT_FIFO)?)?,
        allow("mknodat", masked(2, FORMAT_MASK, FORMAT_FIFO)?)?,
    ];
    match calling {
        false => calls.push(asked(&SENDING.map(|(name, _)| name), false)?),
        true => {
            for (name, flags) in SENDING {
                calls.push(allow(name, masked(flags, MSG_FASTOPEN, 0)?)?);
            }
        }
    }
    for domain in SOCKET_DOMAINS {
        calls.push(allow("socket", equal(0, domain)?)?);
    }
    calls.push(allow("socketpair", equal(0, AF_UNIX)?)?);
    for personality in PERSONALITIES {
        calls.push(allow("personality", equal(0, personality)?)?);
    }
    let arch = if cfg!(target_arch = "aarch64") { Arch::ScmpArchAarch64 } else { Arch::ScmpArchX86_64 };
    let profile = LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(EPERM)
        .architectures(vec![arch])
        .syscalls(calls);
    match agent {
        Some(agent) => profile.listener_path(agent.desk).build(),
        None => profile.build(),
    }
}

fn allow(name: &str, argument: LinuxSeccompArg) -> Result<LinuxSyscall, OciSpecError> {
    LinuxSyscallBuilder::default()
        .names(vec![name.to_owned()])
        .action(LinuxSeccompAction::ScmpActAllow)
        .args(vec![argument])
        .build()
}

fn equal(index: usize, value: u64) -> Result<LinuxSeccompArg, OciSpecError> {
    LinuxSeccompArgBuilder::default().index(index).value(value).op(LinuxSeccompOperator::ScmpCmpEq).build()
}

/// Allows where `argument & mask == value`. The specification has the mask first.
fn masked(index: usize, mask: u64, value: u64) -> Result<LinuxSeccompArg, OciSpecError> {
    LinuxSeccompArgBuilder::default()
        .index(index)
        .value(mask)
        .value_two(value)
        .op(LinuxSeccompOperator::ScmpCmpMaskedEq)
        .build()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_way_out_is_on_the_list() {
        let all = ALLOWED.concat();
        let set: BTreeSet<_> = all.iter().copied().collect();
        assert_eq!(set.len(), all.len(), "a name stands twice");
        for refused in [
            "unshare",
            "setns",
            "mount",
            "umount2",
            "mount_setattr",
            "fsopen",
            "fsconfig",
            "fsmount",
            "fspick",
            "open_tree",
            "move_mount",
            "pivot_root",
            "chroot",
            "ptrace",
            "process_vm_readv",
            "process_vm_writev",
            "process_madvise",
            "pidfd_getfd",
            "kcmp",
            "keyctl",
            "add_key",
            "request_key",
            "bpf",
            "perf_event_open",
            "io_uring_setup",
            "io_uring_enter",
            "io_uring_register",
            "userfaultfd",
            "name_to_handle_at",
            "open_by_handle_at",
            "init_module",
            "finit_module",
            "kexec_load",
            "reboot",
            "swapon",
            "quotactl",
            "syslog",
            "acct",
            "settimeofday",
            "clock_settime",
            "adjtimex",
            "sethostname",
            "fanotify_init",
            "lookup_dcookie",
            "iopl",
            "ioperm",
            "modify_ldt",
            "vhangup",
            "clone",
            "clone3",
            "ioctl",
            "socket",
            "socketpair",
            "personality",
        ] {
            assert!(!set.contains(refused), "{refused}");
        }
    }

    #[test]
    fn an_agent_is_asked_about_what_it_is_for_alone() {
        let notified = |serving, calling| {
            let agent = Agent { desk: Path::new("/run/desk"), serving, calling };
            let profile = profile(Some(agent)).unwrap();
            let calls = profile.syscalls().iter().flatten();
            let notified = calls.filter(|call| call.action() == LinuxSeccompAction::ScmpActNotify);
            notified.flat_map(|call| call.names().clone()).collect::<Vec<_>>()
        };
        assert_eq!(notified(true, false), ["bind", "listen"]);
        assert_eq!(notified(false, true), ["connect"]);
        assert_eq!(notified(true, true), ["bind", "listen", "connect"]);
    }

    #[test]
    fn who_connects_by_leave_does_not_connect_by_sending() {
        let sending = |agent| {
            let profile = profile(agent).unwrap();
            let calls = profile.syscalls().iter().flatten();
            let sending = calls.filter(|call| {
                call.names()
                    .iter()
                    .any(|name| name.starts_with("send") && name != "sendfile" && call.names().len() <= 3)
            });
            sending
                .map(|call| (call.names().len(), call.args().as_ref().map_or(0, Vec::len)))
                .collect::<Vec<_>>()
        };
        let agent = Agent { desk: Path::new("/run/desk"), serving: false, calling: true };
        assert_eq!(sending(None), [(3, 0)]);
        assert_eq!(sending(Some(agent)), [(1, 1); 3]);
    }

    #[test]
    fn the_conditional_calls_have_their_conditions() {
        let profile = profile(None).unwrap();
        assert_eq!(profile.default_action(), LinuxSeccompAction::ScmpActErrno);
        for name in ["clone", "ioctl", "socket", "socketpair", "personality", "mknod", "mknodat"] {
            let rules: Vec<_> = profile
                .syscalls()
                .iter()
                .flatten()
                .filter(|call| call.names().iter().any(|n| n == name))
                .collect();
            assert!(
                !rules.is_empty() && rules.iter().all(|r| r.args().as_ref().is_some_and(|a| a.len() == 1))
            );
        }
    }
}
