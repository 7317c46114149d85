//! One script at work: the request's body flows in, its output flows out, and nothing of it stays behind.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use faasd_sdk::http::{BodyExt, BoxError, Bytes, Frame, Incoming, StreamBody};
use rustix::process::{Pid, Signal, WaitOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Body;

/// The most bytes that are read from a script at once.
const READ_BYTES: usize = 64 << 10;

/// How often, and how long apart, what a script left running is looked for after it was killed.
const REAP_TRIES: usize = 20;
const REAP_PAUSE: Duration = Duration::from_millis(5);

/// Why a request has no answer, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    #[error("the script cannot be started: {0}")]
    Start(io::Error),
    #[error("reading what the script writes: {0}")]
    Read(io::Error),
    #[error("the script ended with {0}")]
    Status(std::process::ExitStatus),
    #[error("the script was killed after {} s (FAAS_SCRIPT_SECONDS)", .0.as_secs())]
    TimedOut(Duration),
    #[error("the script's header block is malformed: {0}")]
    Head(String),
    #[error("the instance is stopping")]
    Stopping,
}

/// A script that runs. It is killed, with everything that it started, when this is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    _group: Group,
    output: ChildStdout,
    input: JoinHandle<()>,
    deadline: Instant,
    limit: Duration,
    _permit: OwnedSemaphorePermit,
}

/// A script's process group.
#[derive(Debug)]
struct Group(Option<Pid>);

impl Running {
    /// Starts a script on a request's body.
    pub fn start(
        command: &[PathBuf],
        variables: BTreeMap<OsString, OsString>,
        body: Incoming,
        limit: Duration,
        permit: OwnedSemaphorePermit,
    ) -> Result<Self, Failed> {
        let [program, arguments @ ..] = command else {
            return Err(Failed::Start(io::ErrorKind::InvalidInput.into()));
        };
        let mut child = Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(variables)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // What it says of itself goes to the function's log.
            .stderr(Stdio::inherit())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(Failed::Start)?;
        let group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Failed::Start(io::ErrorKind::BrokenPipe.into()));
        };
        let input = tokio::spawn(feed(body, input));
        Ok(Self {
            child,
            _group: group,
            output,
            input,
            deadline: Instant::now() + limit,
            limit,
            _permit: permit,
        })
    }

    /// What the script writes next. At the end of its output its exit status is waited for.
    pub async fn read(&mut self) -> Result<Option<Bytes>, Failed> {
        let mut buffer = Vec::with_capacity(READ_BYTES);
        let read = async {
            if self.output.read_buf(&mut buffer).await.map_err(Failed::Read)? > 0 {
                return Ok(Some(Bytes::from(buffer)));
            }
            match self.child.wait().await.map_err(Failed::Read)? {
                status if status.success() => Ok(None),
                status => Err(Failed::Status(status)),
            }
        };
        let limit = self.limit;
        tokio::time::timeout_at(self.deadline, read).await.unwrap_or(Err(Failed::TimedOut(limit)))
    }

    /// The rest of the output as a body. A script that fails cuts the connection, so that the client does not take half
    /// an answer for a whole; `line` is what the log says of the request.
    pub fn into_body(self, first: Bytes, line: String) -> Body {
        let first = Some(first).filter(|first| !first.is_empty());
        let parts = futures_util::stream::unfold((first, Some(self), line), |(first, running, line)| async {
            if let Some(first) = first {
                return Some((Ok(Frame::data(first)), (None, running, line)));
            }
            let mut running = running?;
            match running.read().await {
                Ok(Some(bytes)) => Some((Ok(Frame::data(bytes)), (None, Some(running), line))),
                Ok(None) => None,
                Err(failed) => {
                    eprintln!("{line} failed within its answer: {failed}");
                    Some((Err(BoxError::from(failed)), (None, None, line)))
                }
            }
        });
        StreamBody::new(parts).boxed_unsync()
    }
}

/// Writes a request's body to the script, which may well read none of it.
async fn feed(mut body: Incoming, mut input: ChildStdin) {
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(bytes) = frame.into_data() else { continue };
        if input.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.input.abort();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some(group) = self.0 else { return };
        // Nobody of the group is left in most cases, and a group's number is not given away while somebody is.
        if rustix::process::kill_process_group(group, Signal::KILL).is_err() {
            return;
        }
        // As a container's first process we are the parent of what the script left behind.
        tokio::spawn(async move {
            for _ in 0..REAP_TRIES {
                tokio::time::sleep(REAP_PAUSE).await;
                while let Ok(Some(_)) = rustix::process::waitpgid(group, WaitOptions::NOHANG) {}
                if rustix::process::test_kill_process_group(group).is_err() {
                    return;
                }
            }
        });
    }
}
