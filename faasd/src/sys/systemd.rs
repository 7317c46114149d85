//! What systemd gives a service and wants to hear from it: sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3). Without
//! systemd all of it is empty.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
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
    /// Why it cannot be reached is told with the first message: nothing is logged yet when it is found out.
    socket: Option<io::Result<UnixDatagram>>,
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
        let socket = env::var_os(NOTIFY_SOCKET).map(|name| connect(&name));
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
        let text: String = states.iter().map(|state| format!("{state}\n")).collect();
        let error = match &self.socket {
            None => return,
            Some(Ok(socket)) => socket.send(text.as_bytes()).err().map(|error| error.to_string()),
            Some(Err(error)) => Some(error.to_string()),
        };
        if let Some(error) = error {
            tracing::warn!(error, text, "the service manager does not hear");
        }
    }
}

/// The socket of this name: a path, or, after `@`, a name without a file.
fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    // It may be busy for a moment; one that is stuck must not hold us up.
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manager_is_told_by_either_kind_of_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let name = format!("faasd-notify-{}", std::process::id());
        for (address, name) in [
            (SocketAddr::from_pathname(&path).unwrap(), path.into_os_string()),
            (SocketAddr::from_abstract_name(&name).unwrap(), format!("@{name}").into()),
        ] {
            let heard = UnixDatagram::bind_addr(&address).unwrap();
            heard.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let manager = Manager { socket: Some(connect(&name)), ..Manager::default() };
            manager.tell(&[State::Ready, State::Status("serves")]);
            let mut said = [0; 64];
            let bytes = heard.recv(&mut said).unwrap();
            assert_eq!(&said[..bytes], b"READY=1\nSTATUS=serves\n");
        }
        connect(OsStr::new("/nowhere")).unwrap_err();
    }
}
