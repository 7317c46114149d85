//! Where things are. Everything that one daemon owns on a machine is named after its instance, so that two
//! (a test beside the real one) never meet.

use std::path::{Path, PathBuf};

const INGRESS: &str = "ingress";

/// The places that a daemon owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// What must survive a reboot: `/var/lib/faasd`, moved by `FAAS_ROOT`.
    pub state: PathBuf,
    /// What must not: `/run/faasd`.
    pub run: PathBuf,
    /// Keys and peers: `/etc/wireguard`.
    pub wireguard: PathBuf,
    /// The daemon's name on this machine, for what lives in kernel-wide name spaces: cgroups, bpffs.
    pub instance: String,
    /// The control group that outlives the daemon, absolute within each hierarchy, where whoever starts the daemon has made
    /// one: a unit of systemd's, delegated to us. Without it there is one of ours, called like the instance.
    pub cgroup: Option<String>,
}

impl Paths {
    /// The API's unix socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run.join("faasd.sock")
    }

    /// The ingress of the daemon that has the API's socket there.
    #[must_use]
    pub fn ingress_beside(socket: &Path) -> PathBuf {
        socket.with_file_name(INGRESS)
    }

    /// The descriptor store's unix socket.
    #[must_use]
    pub fn fdstore(&self) -> PathBuf {
        self.run.join("fdstore.sock")
    }

    /// The pin of the ingress network namespace.
    #[must_use]
    pub fn ingress(&self) -> PathBuf {
        self.run.join(INGRESS)
    }

    /// The peers, a file each, for others to read.
    #[must_use]
    pub fn peers(&self) -> PathBuf {
        self.wireguard.join("peers")
    }

    /// The desired state.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.state.join("faasd.redb")
    }

    /// Unpacked code, by digest.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.state.join("images")
    }

    /// Root images, as mounted for containers. Mounts do not outlive the machine's uptime, but containers' users must be
    /// able to pass through, which the run directory does not promise.
    #[must_use]
    pub fn roots(&self) -> PathBuf {
        self.state.join("roots")
    }

    /// OCI bundles, one an instance. They die with the machine's uptime as containers do, but the founding layout
    /// names them under the state directory.
    #[must_use]
    pub fn bundles(&self) -> PathBuf {
        self.state.join("bundles")
    }

    /// Zone files for other DNS servers.
    #[must_use]
    pub fn zone_files(&self) -> PathBuf {
        self.state.join("dns")
    }

    /// Log files, one directory a function.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }

    /// runc's own state (`runc --root`).
    #[must_use]
    pub fn runc(&self) -> PathBuf {
        self.run.join("runc")
    }

    /// Sockets on which containers' seccomp filters are delivered.
    #[must_use]
    pub fn agents(&self) -> PathBuf {
        self.run.join("agents")
    }

    /// The names of all who may dial, by address.
    #[must_use]
    pub fn callers(&self) -> PathBuf {
        self.run.join("callers")
    }

    /// Instances' secrets: a file system in memory.
    #[must_use]
    pub fn secrets(&self) -> PathBuf {
        self.run.join("secrets")
    }

    /// What secrets are encrypted with at rest.
    #[must_use]
    pub fn secrets_key(&self) -> PathBuf {
        self.state.join("secrets.key")
    }

    /// What happened to functions.
    #[must_use]
    pub fn events(&self) -> PathBuf {
        self.state.join("events")
    }

    /// The cgroup above all containers, absolute within each hierarchy.
    #[must_use]
    pub fn containers(&self) -> String {
        match &self.cgroup {
            // Who is in a group of v2 is in its leaves.
            Some(delegated) => format!("{delegated}/instances"),
            None => format!("/{}", self.instance),
        }
    }

    /// The cgroup of the processes that serve without the daemon. None: they stay in the daemon's own.
    #[must_use]
    pub fn helpers(&self) -> Option<String> {
        self.cgroup.as_ref().map(|delegated| format!("{delegated}/helpers"))
    }

    /// Where programs, links and maps are pinned. No dot in it: bpffs refuses those.
    #[must_use]
    pub fn bpf(&self) -> PathBuf {
        Path::new("/sys/fs/bpf").join(self.instance.replace('.', "_"))
    }
}
