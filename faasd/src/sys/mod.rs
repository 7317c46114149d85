//! The fence: every kernel interface and all unsafe code of the daemon. Each block says why it is sound.

pub mod cgroup;
pub mod netns;
pub mod pidfd;
