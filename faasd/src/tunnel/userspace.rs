//! WireGuard as a process of ours: started, found again, spoken to over its unix socket, and ended.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::dropped::Dropped;
use super::interface::{
    DeviceStatus, Interface, InterfaceStatus, Kind, PEERS_PER_REQUEST_MAX, PeerChange, PeerStatus,
};
use super::keys::{PrivateKey, PublicKey};
use super::process::{ProcessArgs, SOCKET_DIR};
use super::uapi::{self, Scope, Set, SetPeer};
use super::{Error, PROCESS_DEADLINE, Setup};
use crate::sys::cgroup;
use crate::sys::netns::NetNs;

/// How long one request may take.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// How much of a failed start's log goes into the error, in bytes.
const SAID_BYTES_MAX: u64 = 2048;

/// How a tunnel process is started, and where it is found.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The binary, which must run [`super::process::run`] for the subcommand `tunnel`.
    pub program: PathBuf,
    /// Where the process puts `NAME.sock`; `wg` looks in the default.
    pub socket_dir: PathBuf,
    /// Where its output goes; nowhere without. It is appended to.
    pub log: Option<PathBuf>,
    /// The control group that it is put into; its starter's without.
    pub cgroup: Option<String>,
}

impl Launch {
    /// With the defaults.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), socket_dir: SOCKET_DIR.into(), log: None, cgroup: None }
    }
}

/// A tunnel process that runs.
#[derive(Debug)]
pub struct UserspaceInterface {
    name: String,
    socket: PathBuf,
}

/// The tunnel process of this name, if one runs.
///
/// # Errors
/// If its socket is there and cannot be reached, such as without the right to.
pub fn find(name: &str, socket_dir: &Path) -> Result<Option<UserspaceInterface>, Error> {
    let socket = socket_dir.join(format!("{name}.sock"));
    match UnixStream::connect(&socket) {
        Ok(_) => Ok(Some(UserspaceInterface { name: name.to_owned(), socket })),
        Err(e) if nobody_listens(&e) => Ok(None),
        Err(source) => Err(Error::Interface { operation: "reach", name: name.to_owned(), source }),
    }
}

/// Whether no tunnel process of this name runs. One whose interface was removed a moment ago is given the time to
/// end.
pub(super) fn gone(name: &str, socket_dir: &Path) -> Result<bool, Error> {
    let deadline = Instant::now() + Duration::from_secs(1);
    while find(name, socket_dir)?.is_some() {
        if Instant::now() > deadline {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(true)
}

/// Finds the tunnel process, or starts it and waits until it answers. It runs on when its starter ends or is
/// killed.
///
/// # Errors
/// If it cannot be started, ends at once or does not answer in time.
pub fn start(ns: &NetNs, setup: &Setup<'_>) -> Result<UserspaceInterface, Error> {
    let Setup { name, launch, .. } = *setup;
    if let Some(found) = find(name, &launch.socket_dir)? {
        return Ok(found);
    }
    let here = ns.is_current().map_err(|source| Error::Namespace { source })?;
    let args = ProcessArgs {
        name: name.to_owned(),
        netns: (!here).then(|| ns.path().to_owned()),
        socket_dir: launch.socket_dir.clone(),
        mtu_bytes: setup.mtu_bytes,
    };
    let (mut child, log) = spawn(launch, &args.to_args())
        .map_err(|source| Error::Start { program: launch.program.clone(), source })?;
    if let Some(group) = &launch.cgroup {
        cgroup::set_apart(group, child.id());
    }
    let deadline = Instant::now() + PROCESS_DEADLINE;
    loop {
        if let Some(found) = find(name, &launch.socket_dir)? {
            reap(child, name);
            return Ok(found);
        }
        let ended =
            child.try_wait().map_err(|source| Error::Start { program: launch.program.clone(), source })?;
        if let Some(status) = ended {
            // Somebody else may have started one at the same moment, and won.
            if let Some(found) = find(name, &launch.socket_dir)? {
                return Ok(found);
            }
            return Err(Error::Ended { name: name.to_owned(), status, said: said(log) });
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            return Err(Error::Deadline { name: name.to_owned(), operation: "answer" });
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn spawn(launch: &Launch, args: &[OsString]) -> io::Result<(Child, Option<(File, u64)>)> {
    let mut command = Command::new(&launch.program);
    command.arg("tunnel").args(args).current_dir("/").stdin(Stdio::null());
    let mut log = None;
    if let Some(path) = &launch.log {
        let file = OpenOptions::new().create(true).append(true).read(true).mode(0o640).open(path)?;
        command.stdout(file.try_clone()?).stderr(file.try_clone()?);
        let end = file.metadata()?.len();
        log = Some((file, end));
    } else {
        command.stdout(Stdio::null()).stderr(Stdio::null());
    }
    Ok((command.spawn()?, log))
}

/// What the process wrote since its start.
fn said(log: Option<(File, u64)>) -> String {
    let mut text = String::new();
    if let Some((mut file, from)) = log {
        let _ = file.seek(SeekFrom::Start(from));
        let _ = file.take(SAID_BYTES_MAX).read_to_string(&mut text);
    }
    match text.trim() {
        "" => String::new(),
        text => format!(": {text}"),
    }
}

/// Waits for the process on a thread of its own, so that it leaves no zombie if it ends before us.
fn reap(mut child: Child, name: &str) {
    let interface = name.to_owned();
    let spawned =
        std::thread::Builder::new().name("tunnel-reaper".into()).stack_size(64 << 10).spawn(move || {
            match child.wait() {
                Ok(status) => tracing::warn!(interface, %status, "the tunnel process ended"),
                Err(error) => tracing::debug!(interface, %error, "somebody else reaped the tunnel process"),
            }
        });
    if let Err(error) = spawned {
        tracing::debug!(%error, "no thread to reap the tunnel process");
    }
}

/// Ends the tunnel process of this name, if one runs: SIGTERM, at which it removes its interface, and SIGKILL if
/// that takes too long, which leaves the interface behind.
///
/// # Errors
/// If the process cannot be reached or signalled.
pub fn stop(name: &str, socket_dir: &Path) -> Result<(), Error> {
    let error = |operation| {
        let name = name.to_owned();
        move |source: io::Error| Error::Interface { operation, name, source }
    };
    let socket = socket_dir.join(format!("{name}.sock"));
    let stream = match UnixStream::connect(&socket) {
        Ok(stream) => stream,
        Err(e) if nobody_listens(&e) => return remove(&socket).map_err(error("remove the socket of")),
        Err(e) => return Err(error("reach")(e)),
    };
    let pid = rustix::net::sockopt::socket_peercred(&stream).map_err(|e| error("identify")(e.into()))?.pid;
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH) => return remove(&socket).map_err(error("remove the socket of")),
        Err(e) => return Err(error("signal")(e.into())),
    };
    // An answer now means that the process lived when the descriptor was opened: it is the one we mean.
    exchange(stream, &Scope::Device.write()).map_err(error("reach"))?;
    for signal in [Signal::TERM, Signal::KILL] {
        match pidfd_send_signal(&pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(e) => return Err(error("signal")(e.into())),
        }
        if ended(&pidfd, PROCESS_DEADLINE).map_err(error("wait for"))? {
            return remove(&socket).map_err(error("remove the socket of"));
        }
    }
    Err(Error::Deadline { name: name.to_owned(), operation: "end" })
}

fn ended(pidfd: &impl AsFd, within: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + within;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

fn nobody_listens(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

fn remove(socket: &Path) -> io::Result<()> {
    match fs::remove_file(socket) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Sends one request and reads its answer, which ends with an empty line.
fn exchange(mut stream: UnixStream, request: &str) -> io::Result<String> {
    stream.set_read_timeout(Some(REQUEST_DEADLINE))?;
    stream.set_write_timeout(Some(REQUEST_DEADLINE))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut chunk = vec![0; 16 << 10];
    while !answer.ends_with(b"\n\n") {
        match stream.read(&mut chunk) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => answer.extend_from_slice(chunk.get(..n).unwrap_or_default()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        if answer.len() > uapi::ANSWER_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is too long"));
        }
    }
    String::from_utf8(answer).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

impl UserspaceInterface {
    fn read(&self, scope: &Scope) -> Result<InterfaceStatus, Error> {
        let answer = self.request("read", &scope.write())?;
        uapi::read_status(&answer).map_err(|source| Error::Protocol { name: self.name.clone(), source })
    }

    fn request(&self, operation: &'static str, text: &str) -> Result<String, Error> {
        let answer = UnixStream::connect(&self.socket)
            .and_then(|stream| exchange(stream, text))
            .map_err(|source| Error::Interface { operation, name: self.name.clone(), source })?;
        match uapi::read_errno(&answer) {
            Ok(0) => Ok(answer),
            Ok(errno) => Err(Error::Refused { name: self.name.clone(), errno: errno.abs() }),
            Err(source) => Err(Error::Protocol { name: self.name.clone(), source }),
        }
    }
}

impl Interface for UserspaceInterface {
    fn kind(&self) -> Kind {
        Kind::Userspace
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn configure(&self, private_key: &PrivateKey, listen_port: u16) -> Result<(), Error> {
        let now = self.device()?;
        let set = Set {
            private_key: (now.public_key != Some(private_key.public())).then(|| private_key.clone()),
            listen_port: (listen_port != 0 && now.listen_port != listen_port).then_some(listen_port),
            ..Set::default()
        };
        if set.private_key.is_some() || set.listen_port.is_some() {
            self.request("configure", &set.write())?;
        }
        Ok(())
    }

    fn update(&self, changes: &[PeerChange]) -> Result<(), Error> {
        for batch in changes.chunks(PEERS_PER_REQUEST_MAX) {
            let peers = batch.iter().map(|change| match change {
                PeerChange::Remove(key) => SetPeer { remove: true, ..SetPeer::new(*key) },
                PeerChange::Set(peer) => SetPeer {
                    replace_allowed_ips: true,
                    allowed_ips: peer.allowed_ips.clone(),
                    endpoint: peer.endpoint,
                    keepalive_s: Some(peer.keepalive_s.unwrap_or(0)),
                    ..SetPeer::new(peer.public_key)
                },
            });
            let set = Set { peers: peers.collect(), ..Set::default() };
            self.request("change the peers of", &set.write())?;
        }
        Ok(())
    }

    fn status(&self) -> Result<InterfaceStatus, Error> {
        self.read(&Scope::All)
    }

    fn device(&self) -> Result<DeviceStatus, Error> {
        let InterfaceStatus { listen_port, public_key, .. } = self.read(&Scope::Device)?;
        Ok(DeviceStatus { listen_port, public_key })
    }

    fn dropped(&self) -> Result<Dropped, Error> {
        let answer = self.request("read", &Scope::Dropped.write())?;
        uapi::read_dropped(&answer).map_err(|source| Error::Protocol { name: self.name.clone(), source })
    }

    fn peer(&self, key: PublicKey) -> Result<Option<PeerStatus>, Error> {
        Ok(self.read(&Scope::Peer(key))?.peers.pop())
    }
}
