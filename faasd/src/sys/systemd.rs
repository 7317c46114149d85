//! What systemd gives a service and wants to hear from it: sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3). Without
//! systemd all of it is empty.

use std::env;
use std::fs;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

pub use sd_notify::NotifyState as State;

const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";

/// All by which it says something.
const VARIABLES: [&str; 6] =
    [NOTIFY_SOCKET, "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// How long a message may wait until it is taken.
const PATIENCE: Duration = Duration::from_secs(1);

/// The service manager, as its service sees it.
#[derive(Debug, Default)]
pub struct Manager {
    socket: Option<UnixDatagram>,
    /// How long it waits for a sign of life before it takes us for dead.
    pub watchdog: Option<Duration>,
    listeners: Vec<(String, OwnedFd)>,
}

impl Manager {
    /// Takes what the environment says out of it. Whoever we start must not find it there: runc passes descriptors and a
    /// socket on into containers by these very variables.
    ///
    /// # Panics
    /// If there is something to take and other threads run already, for which the environment must not change.
    #[must_use]
    #[expect(unsafe_code, reason = "changing the environment and owning inherited descriptors")]
    pub fn take() -> Self {
        // Where nothing is to be changed other threads do no harm: who emulates a process has some of its own in it.
        if VARIABLES.iter().all(|name| env::var_os(name).is_none()) {
            return Self::default();
        }
        let threads = fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
        assert!(threads == 1, "the environment is read by {threads} threads");
        // SAFETY: no other thread reads the environment meanwhile: there is none.
        let (watchdog, listeners) = unsafe {
            (sd_notify::watchdog_enabled_and_unset_env(), sd_notify::listen_fds_with_names_and_unset_env())
        };
        let connect = |path| {
            let socket = UnixDatagram::unbound()?;
            socket.connect(path)?;
            // It may be busy for a moment; one that is stuck must not hold us up.
            socket.set_write_timeout(Some(PATIENCE))?;
            std::io::Result::Ok(socket)
        };
        let socket = env::var_os(NOTIFY_SOCKET).and_then(|path| connect(path).ok());
        // SAFETY: as above.
        unsafe { env::remove_var(NOTIFY_SOCKET) };
        // SAFETY: the manager has passed these for us alone, and nobody has taken them: it says so once, in variables that are
        // gone now.
        let own = |(fd, name)| (name, unsafe { OwnedFd::from_raw_fd(fd) });
        let listeners = listeners.map(|all| all.map(own).collect()).unwrap_or_default();
        Self { socket, watchdog, listeners }
    }

    /// The listener that its unit calls so (`FileDescriptorName=`).
    pub fn take_listener(&mut self, name: &str) -> Option<OwnedFd> {
        let index = self.listeners.iter().position(|(own, _)| own == name)?;
        Some(self.listeners.swap_remove(index).1)
    }

    /// Tells it something.
    pub fn tell(&self, states: &[State<'_>]) {
        let Some(socket) = &self.socket else { return };
        let text: String = states.iter().map(|state| format!("{state}\n")).collect();
        if let Err(error) = socket.send(text.as_bytes()) {
            tracing::warn!(%error, text, "the service manager does not hear");
        }
    }
}
