//! Instances: containers made, started, stopped, found again after a restart, and removed without a trace.

mod create;
mod files;

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Gid, Resource, Signal, Uid, getrlimit};
use sha2::{Digest, Sha256};
use tokio::io::Interest;
use tokio::net::UnixListener;

use self::files::Made;
use super::bundle::{self, Host, Parameters, annotation};
use super::image::{self, EntryError, RootImage};
use super::logs;
use super::mounts::{MountError, Mounts};
use super::relay;
use super::runc::{Runc, RuncError, State, Status, Version};
use super::runners::{self, HexDigest, RunnerError};
use super::seccomp::Agent;
use super::secrets::{SecretFiles, SecretFilesError};
use crate::core::name::FunctionName;
use crate::core::paths::Paths;
use crate::core::secret::{SecretBytes, SecretName};
use crate::core::spec::{Contract, FunctionSpec, Lane, Language};
use crate::sys::cgroup::{Cgroups, Used};
use crate::sys::notify;
use crate::sys::pidfd::{self, Exit, Pidfd};
use crate::sys::scm;

/// How long a process may take to end once it has been killed: it may be writing out memory.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// How long the kernel may take to let go of an empty cgroup.
const CGROUP_DEADLINE: Duration = Duration::from_secs(5);

/// How long the notification descriptor of a container that has been created may take to arrive.
const AGENT_DEADLINE: Duration = Duration::from_secs(5);

/// Makes containers and takes them away. One for each daemon.
#[derive(Debug)]
pub struct Runtime {
    paths: Paths,
    runc: Runc,
    cgroups: Cgroups,
    /// The root directory of every container.
    root: PathBuf,
    runner: PathBuf,
    /// This program, which serves scripts as well.
    program: PathBuf,
    host: Host,
    mounts: Arc<Mounts>,
    secrets: Arc<SecretFiles>,
}

/// Why the runtime cannot be used on this machine.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error(transparent)]
    Runc(#[from] RuncError),
    #[error(transparent)]
    Runner(#[from] RunnerError),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("control groups cannot be used")]
    Cgroups(#[source] io::Error),
    #[error("cannot prepare {}", path.display())]
    Prepare { path: PathBuf, source: io::Error },
    #[error(
        "{} is closed to other users, so that containers, which have users of their own, would not find what is below \
         it: `chmod o+x {}`",
        path.display(),
        path.display()
    )]
    Closed { path: PathBuf },
    #[error("cannot become the parent of containers (PR_SET_CHILD_SUBREAPER)")]
    Subreaper(#[source] io::Error),
}

/// What an instance is started with.
#[derive(Debug)]
pub struct Request {
    /// From [`new_id`].
    pub id: String,
    pub function: FunctionName,
    /// The function's own number, below [`bundle::SLOTS_MAX`]: it decides its range of user ids.
    pub slot: u32,
    pub revision: u64,
    pub spec: FunctionSpec,
    /// The unpacked code ([`image::Store::directory`]), if there is any.
    pub image: Option<PathBuf>,
    /// The root file system, if it is not to be the host's `/usr`.
    pub root: Option<RootImage>,
    /// What it depends on, likewise.
    pub dependencies: Option<PathBuf>,
    /// Its `/etc/hosts`, if it is not everybody's.
    pub hosts: Option<String>,
    /// For a runner: to be started, and to load no code before [`Kind::Go`](faasd_sdk::wire::Kind).
    pub hold: bool,
    /// Descriptors 3, 4, … inside, as the contract has them.
    pub descriptors: Vec<OwnedFd>,
}

/// A container that is complete but for its program, whose execution waits for [`Runtime::release`].
#[derive(Debug)]
pub struct Created {
    pub id: String,
    pub pid: u32,
    pub process: Arc<Pidfd>,
    /// The read end of its standard output and error, for [`logs::Logs::capture`].
    pub log: OwnedFd,
    /// What the container's seccomp filter asks an agent by, if it does.
    pub notify: Option<OwnedFd>,
    /// The user and group that its program is to run as, as the host counts: who is to read its secrets.
    pub owner: (u32, u32),
    /// What `runc create` took.
    pub create_time: Duration,
}

/// A container that an earlier daemon started.
#[derive(Clone, Debug)]
pub struct Adopted {
    pub id: String,
    pub pid: u32,
    pub process: Arc<Pidfd>,
    pub function: FunctionName,
    pub revision: u64,
    pub slot: u32,
}

/// Why an instance was not started. Nothing of it is left then.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Entry(#[from] EntryError),
    #[error(transparent)]
    Runner(#[from] RunnerError),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error(transparent)]
    Secrets(#[from] SecretFilesError),
    #[error("function number {0} is past the {max} that there are user ids for", max = bundle::SLOTS_MAX)]
    Slot(u32),
    #[error("cannot make the bundle of {id}")]
    Bundle { id: String, source: io::Error },
    #[error("cannot make the pipe for the output of {id}")]
    Output { id: String, source: io::Error },
    #[error("{id} was not started")]
    Runc { id: String, source: RuncError },
    #[error("{id} was made, but its first process cannot be watched")]
    Process { id: String, source: io::Error },
    #[error("{id} was made, but its system calls cannot be watched")]
    Agent { id: String, source: io::Error },
}

/// What could not be removed. Each step was tried all the same.
#[derive(Debug, thiserror::Error)]
#[error("{id} could not be removed completely: {}", steps.join("; "))]
pub struct RemoveError {
    pub id: String,
    pub steps: Vec<String>,
}

/// A new instance's name: function, revision, and some digits that tell it from those before and beside it.
#[must_use]
pub fn new_id(function: &FunctionName, revision: u64) -> String {
    use std::hash::{BuildHasher, RandomState};
    // The standard library's hash keys come from the system's randomness and differ from one call to the next. An id
    // that is taken is refused when its bundle is made.
    let random = RandomState::new().hash_one(revision);
    format!("{function}-{revision}-{:06x}", random & 0xff_ffff)
}

impl Runtime {
    /// Looks at the machine, and prepares what all containers share. Makes this process a child subreaper, so that
    /// containers are its children.
    ///
    /// # Errors
    /// [`RuntimeError`], which says what to do about it.
    pub async fn new(paths: Paths) -> Result<Self, RuntimeError> {
        let runc = Runc::probe(paths.runc()).await?;
        if let Some(warning) = runc.version().warning() {
            tracing::warn!("{warning}");
        }
        let cgroups = Cgroups::discover().map_err(RuntimeError::Cgroups)?;
        // What a daemon that was killed has left there serves nobody.
        let _ = fs::remove_dir_all(paths.agents());
        for (dir, mode) in [
            (paths.state.clone(), 0o711),
            (paths.bundles(), 0o711),
            (paths.images(), 0o711),
            (paths.logs(), 0o750),
            (paths.runc(), 0o700),
            (paths.agents(), 0o700),
        ] {
            prepare(&dir, mode).map_err(|source| RuntimeError::Prepare { path: dir, source })?;
        }
        check_passable(&paths.state)?;
        let root = paths.state.join("root");
        bundle::skeleton(&root).map_err(|source| RuntimeError::Prepare { path: root.clone(), source })?;
        let runner = runners::materialise(&paths.state)?;
        let program = std::env::current_exe()
            .map_err(|source| RuntimeError::Prepare { path: "/proc/self/exe".into(), source })?;
        pidfd::become_subreaper().map_err(RuntimeError::Subreaper)?;
        let host = Host {
            files_max: getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX),
            swap_limit: cgroups.has_swap_limit(),
            usr_local: Path::new("/usr/local").is_dir(),
        };
        let mounts = Arc::new(Mounts::new(&paths.roots())?);
        let secrets = Arc::new(SecretFiles::new(paths.secrets()));
        Ok(Self { paths, runc, cgroups, root, runner, program, host, mounts, secrets })
    }

    /// The root images that instances run from.
    #[must_use]
    pub fn mounts(&self) -> Arc<Mounts> {
        Arc::clone(&self.mounts)
    }

    /// runc's version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.runc.version()
    }

    /// Stops an instance and removes all that there is of it. `SIGTERM` goes first, unless `grace` is zero, and what is
    /// still there after `grace` is killed. As the first process of its namespace a program without a handler for
    /// `SIGTERM` does not see it. An instance that has ended by itself is only removed.
    ///
    /// # Errors
    /// [`RemoveError`] with every step that failed.
    pub async fn stop(&self, id: &str, process: &Pidfd, grace: Duration) -> Result<Exit, RemoveError> {
        let error = |step: &str, e: &dyn std::fmt::Display| RemoveError {
            id: id.to_owned(),
            steps: vec![format!("{step}: {e}")],
        };
        if !grace.is_zero() {
            process.signal(Signal::TERM).map_err(|e| error("SIGTERM", &e))?;
        }
        let exit = match tokio::time::timeout(grace, process.exited()).await {
            Ok(exit) => exit,
            Err(_) => {
                process.signal(Signal::KILL).map_err(|e| error("SIGKILL", &e))?;
                tokio::time::timeout(KILL_DEADLINE, process.exited())
                    .await
                    .map_err(|_| error("SIGKILL", &format!("it was not gone after {KILL_DEADLINE:?}")))?
            }
        }
        .map_err(|e| error("waiting", &e))?;
        self.remove(id).await.map(|()| exit)
    }

    /// Removes what is left of an instance that has ended: runc's state, its cgroups, its bundle.
    async fn remove(&self, id: &str) -> Result<(), RemoveError> {
        let mut steps = Vec::new();
        if let Err(e) = self.runc.delete(id).await {
            // A plain delete refuses while runc thinks that something runs, and cannot read half a state.
            tracing::debug!(id, error = %e, "plain delete failed");
            if let Err(e) = self.runc.delete_by_force(id).await {
                steps.push(e.to_string());
            }
        }
        let (cgroups, group, mut dirs) =
            (self.cgroups.clone(), self.cgroup(id), vec![self.paths.bundles().join(id)]);
        dirs.push(self.runc.directory(id));
        let removed = tokio::task::spawn_blocking(move || {
            let mut steps = Vec::new();
            if let Err(e) = cgroups.remove(&group, CGROUP_DEADLINE) {
                steps.push(e.to_string());
            }
            for dir in dirs {
                match fs::remove_dir_all(&dir) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => {
                        steps.push(format!("cannot remove {}: {e}", dir.display()));
                    }
                    _ => {}
                }
            }
            steps
        });
        match removed.await {
            Ok(more) => steps.extend(more),
            Err(e) => steps.push(e.to_string()),
        }
        self.forget_root(id).await;
        // What runc said is of no interest if in the end nothing is left of it.
        let gone = !self.runc.directory(id).exists() && !self.cgroups.exists(&self.cgroup(id));
        match steps.is_empty() || gone && steps.len() == 1 && !self.paths.bundles().join(id).exists() {
            true => Ok(()),
            false => Err(RemoveError { id: id.to_owned(), steps }),
        }
    }

    /// Kills whatever is in an instance's cgroup, waits for it, and removes the instance: for what is half-made, where
    /// there may be processes that runc itself has lost sight of.
    async fn clear(&self, id: &str) -> Result<(), RemoveError> {
        for pid in self.cgroups.processes(&self.cgroup(id)) {
            let Ok(process) = Pidfd::open(pid) else { continue };
            // The number was read before it was opened: only a process that is still in the group is meant.
            if self.cgroups.processes(&self.cgroup(id)).contains(&pid) && process.signal(Signal::KILL).is_ok()
            {
                let _ = tokio::time::timeout(KILL_DEADLINE, process.exited()).await;
            }
        }
        let removed = self.remove(id).await;
        pidfd::reap_orphans("runc:[");
        removed
    }

    /// Finds what an earlier daemon left: instances that run are returned, all else is removed. To be called once,
    /// before the first start.
    ///
    /// # Errors
    /// [`RuncError`] if runc cannot tell. What cannot be removed is logged, and tried again next time.
    pub async fn adopt(&self) -> Result<Vec<Adopted>, RuncError> {
        let mut adopted = Vec::new();
        for state in self.runc.list().await? {
            if let Some(one) = self.adopt_one(&state) {
                adopted.push(one);
            }
        }
        let kept: BTreeSet<&str> = adopted.iter().map(|a| a.id.as_str()).collect();
        for id in self.traces().into_iter().filter(|id| !kept.contains(id.as_str())) {
            match self.clear(&id).await {
                Ok(()) => tracing::info!(id, "removed what was left of an instance"),
                Err(e) => tracing::warn!(id, error = %e, "an instance of an earlier daemon stays"),
            }
        }
        if let Err(error) = self.secrets.sweep(&kept) {
            tracing::warn!(%error, "secrets of an instance that is gone stay in memory");
        }
        if let Err(error) = self.mounts.sweep() {
            tracing::warn!(%error, "a root image that nobody uses stays mounted");
        }
        Ok(adopted)
    }

    fn adopt_one(&self, state: &State) -> Option<Adopted> {
        // A created one never ran its program, and whoever was to start it is gone.
        if !matches!(state.status, Status::Running | Status::Paused) {
            return None;
        }
        let process = Pidfd::open(state.pid).ok()?;
        // Between runc's answer and the open the number may have passed to another.
        if !self.cgroups.processes(&self.cgroup(&state.id)).contains(&state.pid) {
            return None;
        }
        let (function, revision, slot) = identity(&state.annotations)?;
        if let Some(root) = state.annotations.get(annotation::ROOT) {
            self.mounts.adopt(Path::new(root), &state.id);
        }
        let (id, pid, process) = (state.id.clone(), state.pid, Arc::new(process));
        Some(Adopted { id, pid, process, function, revision, slot })
    }

    /// The names of all instances of which there is anything: bundle, runc's state, cgroup.
    fn traces(&self) -> BTreeSet<String> {
        let bundles = fs::read_dir(self.paths.bundles()).into_iter().flatten().flatten();
        let mut ids: BTreeSet<String> = bundles.filter_map(|e| e.file_name().into_string().ok()).collect();
        ids.extend(self.runc.directories().unwrap_or_default());
        ids.extend(self.cgroups.children(&self.paths.containers()));
        ids
    }

    /// How many processes of an instance the kernel has killed for want of memory. To be asked before it is removed.
    #[must_use]
    pub fn oom_kills(&self, id: &str) -> u64 {
        self.cgroups.oom_kills(&self.cgroup(id))
    }

    /// What an instance uses.
    #[must_use]
    pub fn used(&self, id: &str) -> Used {
        self.cgroups.used(&self.cgroup(id))
    }

    /// The processes of an instance.
    #[must_use]
    pub fn processes(&self, id: &str) -> Vec<u32> {
        self.cgroups.processes(&self.cgroup(id))
    }

    /// Has calls that an earlier daemon took, and did not answer before it was killed, made once more: whoever waits in
    /// one waits for an answer that nobody can give any longer.
    pub fn call_again(&self, id: &str) {
        let waits = self.processes(id).iter().any(|process| notify::waits_in_call(*process));
        if waits && let Err(error) = self.cgroups.interrupt(&self.cgroup(id)) {
            tracing::warn!(id, %error, "a program that waits for the daemon's answer waits on");
        }
    }

    /// Starts a relay beside a server that binds IPv4 alone ([`relay`]).
    ///
    /// # Errors
    /// Those of starting a process and of putting it into the container's cgroup.
    pub fn relay(
        &self,
        id: &str,
        container: u32,
        slot: u32,
        port: u16,
        listener: &OwnedFd,
    ) -> io::Result<()> {
        let pid = relay::spawn(container, slot, port, listener)?;
        self.cgroups.add(&self.cgroup(id), pid)
    }

    fn cgroup(&self, id: &str) -> String {
        format!("{}/{id}", self.paths.containers())
    }
}

/// What the annotations say. `None` for a container that is not ours or of a form that we do not know.
fn identity(annotations: &HashMap<String, String>) -> Option<(FunctionName, u64, u32)> {
    let get = |key| annotations.get(key);
    Some((
        get(annotation::FUNCTION)?.parse().ok()?,
        get(annotation::REVISION)?.parse().ok()?,
        get(annotation::SLOT)?.parse().ok()?,
    ))
}

fn prepare(dir: &Path, mode: u32) -> io::Result<()> {
    let is_new = !dir.exists();
    fs::create_dir_all(dir)?;
    // An administrator's own mode stays, apart from what we cannot do without.
    let now = fs::metadata(dir)?.permissions().mode() & 0o7777;
    let mode = if is_new { mode } else { now | (mode & 0o001) };
    if now == mode { Ok(()) } else { fs::set_permissions(dir, fs::Permissions::from_mode(mode)) }
}

/// Containers reach their code by path, as users that own nothing here.
fn check_passable(dir: &Path) -> Result<(), RuntimeError> {
    let dir = dir.canonicalize().map_err(|source| RuntimeError::Prepare { path: dir.to_owned(), source })?;
    for part in dir.ancestors() {
        let mode = fs::metadata(part).map(|m| m.permissions().mode());
        if mode.is_ok_and(|mode| mode & 0o001 == 0) {
            return Err(RuntimeError::Closed { path: part.to_owned() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_told_apart_and_fit_runc() {
        let name = "a".repeat(63).parse().unwrap();
        let (one, two) = (new_id(&name, u64::MAX), new_id(&name, u64::MAX));
        assert_ne!(one, two);
        // A file name's limit, and runc's.
        assert!(one.len() < 128, "{one}");
    }

    #[test]
    fn annotations_are_read_back_or_refused() {
        let all = [("function", "hello"), ("revision", "7"), ("slot", "3")];
        let with = |key: &str, value: &str| {
            let pairs =
                all.map(|(k, v)| (format!("io.faasd.{k}"), if k == key { value } else { v }.to_owned()));
            identity(&pairs.into_iter().collect())
        };
        assert_eq!(with("", "").map(|(f, r, s)| (f.to_string(), r, s)), Some(("hello".to_owned(), 7, 3)));
        assert_eq!(with("revision", "x"), None);
        assert_eq!(with("function", "../x"), None);
        assert_eq!(identity(&HashMap::new()), None);
    }

    #[test]
    fn a_closed_directory_is_named() {
        let top = tempfile::tempdir().unwrap();
        fs::set_permissions(top.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let inner = top.path().join("state");
        prepare(&inner, 0o711).unwrap();
        match check_passable(&inner) {
            Err(RuntimeError::Closed { path }) => assert_eq!(path, top.path().canonicalize().unwrap()),
            other => panic!("{other:?}"),
        }
        fs::set_permissions(top.path(), fs::Permissions::from_mode(0o711)).unwrap();
        check_passable(&inner).unwrap();
    }
}
