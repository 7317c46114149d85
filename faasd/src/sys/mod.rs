//! The fence: every kernel interface and all unsafe code of the daemon. Each block says why it is sound.

pub mod bpf;
pub mod cgroup;
pub mod idmap;
pub mod netlink;
pub mod netns;
pub mod notify;
pub mod pidfd;
pub mod readiness;
pub mod sched;
pub mod scm;
pub mod shared;
pub mod sock_diag;
pub mod systemd;
pub mod tcp;
pub mod timer;
pub mod tun;
pub mod udp;
pub mod uring;
