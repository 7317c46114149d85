//! Drives the real `runc`. Each call has a deadline, and what it says is read up to a limit.
//!
//! A container is started by opening its `exec.fifo` ourselves: that is all that `runc start` does, without the 5 to
//! 7 ms that a Go program takes to come up.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use crate::sys::pidfd::Pidfd;

/// How long one call may take. A create takes 20 to 60 ms.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// The oldest version that has what we use.
const OLDEST: (u32, u32, u32) = (1, 1, 0);

/// The first versions of each line that have the fixes of November 2025 (CVE-2025-31133, -52565, -52881).
const FIXED: [(u32, u32, u32); 2] = [(1, 2, 8), (1, 3, 3)];

/// What is kept of a call's output: `list` answers with about 1 KiB a container.
const OUTPUT_BYTES_MAX: u64 = 16 << 20;
const ERROR_BYTES_MAX: u64 = 16 << 10;

/// The first descriptor after the standard ones: `--preserve-fds` counts from there.
const PRESERVED_FROM: i32 = 3;

/// Why runc did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum RuncError {
    #[error("runc 1.1 or later is needed, and none was found: `apt install runc`")]
    Missing,
    #[error("runc 1.1 or later is needed, and this is {0}: `apt install runc`")]
    Old(Version),
    #[error("`runc --version` answered '{0}', which is no version: is it runc?")]
    Version(String),
    #[error("cannot run runc for `{operation}`")]
    Spawn { operation: &'static str, source: io::Error },
    #[error("`runc {operation}` did not finish within {} s", DEADLINE.as_secs())]
    Deadline { operation: &'static str },
    #[error("`runc {operation}` failed ({status}): {message}")]
    Failed { operation: &'static str, status: ExitStatus, message: String },
    #[error("`runc {operation}` answered with something unexpected")]
    Answer { operation: &'static str, source: serde_json::Error },
    #[error("cannot use {}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("the container ended before it was started")]
    Ended,
}

/// runc's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl Version {
    /// Reads the first line of `runc --version`: `runc version 1.1.5+ds1`.
    fn parse(text: &str) -> Option<Self> {
        let version = text.lines().next()?.strip_prefix("runc version ")?;
        let mut numbers = version.split(['.', '+', '-', '~']).map(str::parse);
        let mut next = || numbers.next()?.ok();
        Some(Self(next()?, next()?, next().unwrap_or(0)))
    }

    /// What to tell the administrator about this version, if anything.
    #[must_use]
    pub fn warning(self) -> Option<String> {
        let Self(major, minor, patch) = self;
        let is_fixed = match FIXED.iter().find(|fixed| (fixed.0, fixed.1) == (major, minor)) {
            Some(fixed) => patch >= fixed.2,
            None => (major, minor) > (FIXED[1].0, FIXED[1].1),
        };
        (!is_fixed).then(|| {
            format!(
                "runc {self} is older than the fixes of CVE-2025-31133, CVE-2025-52565 and CVE-2025-52881, unless the \
                 distribution has added them. Their ways in (masked paths, a terminal, mounts of the user's choice) \
                 are not used here, and every container has a user namespace; still, runc 1.2.8, 1.3.3 or later is \
                 better"
            )
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// A container, as `runc state` and `runc list` tell it.
#[derive(Clone, Debug, Deserialize)]
pub struct State {
    pub id: String,
    /// 0 when stopped.
    #[serde(default)]
    pub pid: u32,
    pub status: Status,
    #[serde(default)]
    pub annotations: HashMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Creating,
    Created,
    Running,
    Pausing,
    Paused,
    Stopped,
}

/// The binary and the directory where it keeps its state.
#[derive(Clone, Debug)]
pub struct Runc {
    root: PathBuf,
    version: Version,
}

struct Output {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Runc {
    /// Looks for runc on the search path and asks for its version.
    ///
    /// # Errors
    /// [`RuncError::Missing`] or [`RuncError::Old`], which say what to do.
    pub async fn probe(root: PathBuf) -> Result<Self, RuncError> {
        let version = version().await?;
        Ok(Self { root, version })
    }

    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Creates a container up to the point where only its program is left to be executed, and returns the process id
    /// of its first process. The descriptors become 3, 4, … inside, in the order given; `output` becomes its standard
    /// output and error.
    ///
    /// # Errors
    /// [`RuncError`]. What runc has left behind then is for the caller to remove.
    pub async fn create(
        &self,
        bundle: &Path,
        id: &str,
        descriptors: Vec<OwnedFd>,
        output: OwnedFd,
    ) -> Result<u32, RuncError> {
        const OPERATION: &str = "create";
        let (log, pid_file) = (bundle.join("runc.log"), bundle.join("pid"));
        let spawn = |source| RuncError::Spawn { operation: OPERATION, source };
        let mut command = self.command();
        command.arg("--log").arg(&log).args(["--log-format", "json", "create", "--bundle"]).arg(bundle);
        command.arg("--pid-file").arg(&pid_file).args(["--preserve-fds", &descriptors.len().to_string(), id]);
        // runc hands its own standard descriptors down.
        command.stdin(Stdio::null()).stdout(output.try_clone().map_err(spawn)?).stderr(output);
        let mappings = descriptors
            .into_iter()
            .zip(PRESERVED_FROM..)
            .map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd })
            .collect();
        command.fd_mappings(mappings).map_err(|_| spawn(io::ErrorKind::InvalidInput.into()))?;
        let mut child = command.kill_on_drop(true).spawn().map_err(spawn)?;
        // It holds copies of the descriptors, without which the other ends see no hang-up.
        drop(command);
        let status = match tokio::time::timeout(DEADLINE, child.wait()).await {
            Ok(status) => status.map_err(spawn)?,
            Err(_) => {
                let _ = child.kill().await;
                return Err(RuncError::Deadline { operation: OPERATION });
            }
        };
        if !status.success() {
            let text = read_bounded(&log).await.unwrap_or_default();
            return Err(RuncError::Failed { operation: OPERATION, status, message: message(&text) });
        }
        let file = |source| RuncError::File { path: pid_file.clone(), source };
        let pid = read_bounded(&pid_file).await.map_err(file)?;
        pid.trim().parse().map_err(|_| file(io::Error::new(io::ErrorKind::InvalidData, format!("'{pid}'"))))
    }

    /// Lets a created container execute its program.
    ///
    /// # Errors
    /// [`RuncError::Ended`] if its first process is gone, and those of opening the fifo.
    pub async fn start(&self, id: &str, process: &Pidfd) -> Result<(), RuncError> {
        let fifo = self.root.join(id).join("exec.fifo");
        let file = |source| RuncError::File { path: fifo.clone(), source };
        // The first process waits in open(2) for a reader. This open does not wait for it in turn.
        let receiver = tokio::net::unix::pipe::OpenOptions::new().open_receiver(&fifo).map_err(file)?;
        let mut byte = [0];
        let read = async {
            loop {
                receiver.readable().await?;
                match receiver.try_read(&mut byte) {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    other => return other,
                }
            }
        };
        let bytes = tokio::select! {
            biased;
            bytes = tokio::time::timeout(DEADLINE, read) => {
                bytes.map_err(|_| RuncError::Deadline { operation: "start" })?
            }
            // It has ended, before its program began or after: whoever looked at the fifo may have looked too early.
            _ = process.exited() => rustix::io::read(&receiver, &mut byte).map_err(io::Error::from),
        };
        match bytes {
            Ok(1..) => {}
            Ok(0) => return Err(RuncError::Ended),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(RuncError::Ended),
            Err(e) => return Err(file(e)),
        }
        // Its absence is what tells `running` from `created`. Here and now: the program runs already, and to have a thread
        // do it would hold up longer those who wait for what the program says.
        std::fs::remove_file(&fifo).map_err(file)
    }

    /// One container, or `None` if runc knows none of that name.
    ///
    /// # Errors
    /// [`RuncError`].
    pub async fn state(&self, id: &str) -> Result<Option<State>, RuncError> {
        if !tokio::fs::try_exists(self.root.join(id)).await.unwrap_or(true) {
            return Ok(None);
        }
        match self.call("state", &[id]).await {
            Ok(out) => serde_json::from_slice(&out.stdout)
                .map(Some)
                .map_err(|source| RuncError::Answer { operation: "state", source }),
            Err(RuncError::Failed { message, .. }) if is_unknown(&message) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// All containers under our root.
    ///
    /// # Errors
    /// [`RuncError`].
    pub async fn list(&self) -> Result<Vec<State>, RuncError> {
        if !tokio::fs::try_exists(&self.root).await.unwrap_or(true) {
            return Ok(Vec::new());
        }
        let out = self.call("list", &["--format", "json"]).await?;
        // Without any it answers `null`.
        serde_json::from_slice::<Option<Vec<State>>>(&out.stdout)
            .map(Option::unwrap_or_default)
            .map_err(|source| RuncError::Answer { operation: "list", source })
    }

    /// Removes a container whose first process has ended. One that is not there is no error.
    ///
    /// # Errors
    /// [`RuncError`].
    pub async fn delete(&self, id: &str) -> Result<(), RuncError> {
        self.delete_with(&[id]).await
    }

    /// Kills whatever is left of a container and removes it, whatever its state: for what a failure has left behind.
    ///
    /// # Errors
    /// [`RuncError`].
    pub async fn delete_by_force(&self, id: &str) -> Result<(), RuncError> {
        self.delete_with(&["--force", id]).await
    }

    async fn delete_with(&self, arguments: &[&str]) -> Result<(), RuncError> {
        match self.call("delete", arguments).await {
            Ok(_) => Ok(()),
            Err(RuncError::Failed { message, .. }) if is_unknown(&message) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// The ids that have a directory of state, whole or not.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn directories(&self) -> io::Result<Vec<String>> {
        match std::fs::read_dir(&self.root) {
            Ok(entries) => Ok(entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(e),
        }
    }

    /// Where runc keeps the state of one container.
    #[must_use]
    pub fn directory(&self, id: &str) -> PathBuf {
        self.root.join(id)
    }

    fn command(&self) -> Command {
        let mut command = Command::new("runc");
        command.arg("--root").arg(&self.root);
        command
    }

    async fn call(&self, operation: &'static str, arguments: &[&str]) -> Result<Output, RuncError> {
        let mut command = self.command();
        command.args(["--log-format", "json", operation]).args(arguments);
        let output = run(command, operation).await?;
        if output.status.success() {
            return Ok(output);
        }
        let message = message(&String::from_utf8_lossy(&output.stderr));
        Err(RuncError::Failed { operation, status: output.status, message })
    }
}

/// The version of the runc on the search path.
///
/// # Errors
/// [`RuncError::Missing`] or [`RuncError::Old`], which say what to do.
pub async fn version() -> Result<Version, RuncError> {
    let mut command = Command::new("runc");
    command.arg("--version");
    let output = match run(command, "--version").await {
        Err(RuncError::Spawn { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Err(RuncError::Missing);
        }
        other => other?,
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let version = Version::parse(&text).ok_or_else(|| {
        RuncError::Version(text.lines().next().unwrap_or_default().chars().take(80).collect())
    })?;
    if (version.0, version.1, version.2) < OLDEST { Err(RuncError::Old(version)) } else { Ok(version) }
}

async fn run(mut command: Command, operation: &'static str) -> Result<Output, RuncError> {
    let spawn = |source| RuncError::Spawn { operation, source };
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(spawn)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let all = async {
        tokio::try_join!(child.wait(), drain(stdout, OUTPUT_BYTES_MAX), drain(stderr, ERROR_BYTES_MAX))
    };
    let done = tokio::time::timeout(DEADLINE, all).await;
    match done {
        Ok(result) => result.map(|(status, stdout, stderr)| Output { status, stdout, stderr }).map_err(spawn),
        Err(_) => {
            let _ = child.kill().await;
            Err(RuncError::Deadline { operation })
        }
    }
}

/// Reads to the end and keeps the beginning, so that the writer is never held up.
async fn drain(from: Option<impl tokio::io::AsyncRead + Unpin>, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    if let Some(mut from) = from {
        (&mut from).take(bytes_max).read_to_end(&mut kept).await?;
        tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
    }
    Ok(kept)
}

async fn read_bounded(path: &Path) -> io::Result<String> {
    let file = tokio::fs::File::open(path).await?;
    let mut text = Vec::new();
    file.take(ERROR_BYTES_MAX).read_to_end(&mut text).await?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The errors within runc's log, one JSON object a line; or the text itself if it is none.
fn message(log: &str) -> String {
    #[derive(Deserialize)]
    struct Line {
        level: String,
        msg: String,
    }
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
    let errors: Vec<_> =
        lines.filter(|line| matches!(line.level.as_str(), "error" | "fatal")).map(|line| line.msg).collect();
    match (errors.is_empty(), log.trim()) {
        (false, _) => errors.join("; "),
        (true, "") => "it gave no reason".to_owned(),
        (true, text) => text.to_owned(),
    }
}

fn is_unknown(message: &str) -> bool {
    message.contains("does not exist")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_judged() {
        for (text, version) in [
            ("runc version 1.1.5+ds1\ncommit: 1.1.5", Version(1, 1, 5)),
            ("runc version 1.3.0-rc.1", Version(1, 3, 0)),
            ("runc version 1.4", Version(1, 4, 0)),
        ] {
            assert_eq!(Version::parse(text), Some(version));
        }
        assert_eq!(Version::parse("crun version 1.8"), None);
        for (version, warned) in [
            (Version(1, 1, 5), true),
            (Version(1, 2, 7), true),
            (Version(1, 2, 8), false),
            (Version(1, 3, 2), true),
            (Version(1, 3, 3), false),
            (Version(1, 4, 0), false),
            (Version(2, 0, 0), false),
        ] {
            assert_eq!(version.warning().is_some(), warned, "{version}");
        }
    }

    #[test]
    fn errors_are_found_in_the_log() {
        let log = r#"{"level":"warning","msg":"cannot toggle freezer","time":"x"}
{"level":"error","msg":"exec: \"./x\": stat ./x: no such file or directory","time":"x"}"#;
        assert_eq!(message(log), "exec: \"./x\": stat ./x: no such file or directory");
        assert_eq!(message("panic: oh\n"), "panic: oh");
        assert_eq!(message(""), "it gave no reason");
    }
}
