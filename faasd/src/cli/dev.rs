//! `faas dev`

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use std::{env, fs};

use clap::Args;
use notify::{EventKind, RecursiveMode, Watcher};
use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::dependencies;
use super::deploy::build;
use super::detect::{Detected, detect};
use super::ui::printable;
use super::{Context, Exit, Failure};
use crate::core::spec::{Contract, FunctionSpec, Language};
use crate::runtime::runners::{self, NODE, PYTHON, Programs, is_program};

/// Run a function on this machine, and again whenever a file of it is saved
///
/// The code runs as it would when deployed, served by the same runner, but in no container and with no limits. What it
/// prints is shown; Ctrl-C ends it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  faas dev                              this directory, on http://[::1]:8080/
  faas dev hello --listen '[::]:9000'   another directory, where others can reach it")]
pub struct Dev {
    /// The directory
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// The address to serve on
    #[arg(long, value_name = "ADDRESS", default_value = "[::1]:8080")]
    listen: SocketAddr,
}

/// How long files must lie still before a change counts: editors and builds write in several steps.
const QUIET: Duration = Duration::from_millis(100);

/// How long the code may take to finish before it is killed.
const GRACE: Duration = Duration::from_secs(2);

/// How many changes may wait. One that does not fit says nothing that those before it have not.
const CHANGES_MAX: usize = 64;

/// Where nothing is written that would change the function.
const IGNORED: [&str; 5] = [".git", "__pycache__", "node_modules", ".venv", "target"];

/// Why the code is no longer served.
enum Turn {
    Changed(PathBuf),
    Interrupted,
}

impl Dev {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let dir = self.dir.canonicalize().map_err(|e| Failure::file("use", &self.dir, &e))?;
        let runners = tempfile::tempdir().map_err(|e| Failure::file("make", &env::temp_dir(), &e))?;
        let runners_dir =
            runners::materialise(runners.path()).map_err(|e| Failure::chain(Exit::CannotCreate, &e))?;
        let (sender, mut changes) = mpsc::channel(CHANGES_MAX);
        let root = dir.clone();
        let watching = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let Ok(event) = event else { return };
            if matches!(event.kind, EventKind::Access(_)) {
                return;
            }
            if let Some(path) = event.paths.into_iter().find(|path| is_source(&root, path)) {
                // Full: there is a change waiting already.
                let _ = sender.try_send(path);
            }
        });
        let mut watcher = watching
            .and_then(|mut watcher| watcher.watch(&dir, RecursiveMode::Recursive).map(|()| watcher))
            .map_err(|e| {
                Failure::new(Exit::Failed, format!("cannot watch {}: {e}", dir.display()))
                    .hint("`sysctl fs.inotify.max_user_watches` is how many directories may be watched")
            })?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        loop {
            // What the build itself wrote is no news.
            let started = self.start(context, &dir, &runners_dir).await;
            while changes.try_recv().is_ok() {}
            let mut child = match started {
                Ok(child) => Some(child),
                Err(failure) => {
                    context.ui.failure(&failure);
                    context.ui.note("waiting for a change");
                    None
                }
            };
            let turn = loop {
                tokio::select! {
                    path = settled(&mut changes) => match path {
                        Some(path) => break Turn::Changed(path),
                        None => break Turn::Interrupted,
                    },
                    _ = interrupt.recv() => break Turn::Interrupted,
                    _ = terminate.recv() => break Turn::Interrupted,
                    status = exited(&mut child) => {
                        child = None;
                        context.ui.warn(&format!("the function ended with {status}; waiting for a change"));
                    }
                }
            };
            if let Some(child) = child {
                stop(child).await;
            }
            match turn {
                Turn::Interrupted => break,
                Turn::Changed(path) => {
                    let path = path.strip_prefix(&dir).unwrap_or(&path);
                    context.ui.note(&printable(&format!("{} changed: starting again", path.display())));
                }
            }
        }
        let _ = watcher.unwatch(&dir);
        Ok(())
    }

    /// Builds, installs and starts what the directory holds now.
    async fn start(&self, context: &Context, dir: &Path, runners: &Path) -> Result<Child, Failure> {
        build(context, dir, &toml::Table::new()).await?;
        let Detected { spec, why, warning, .. } = detect(dir, &toml::Table::new())?;
        context.ui.note(&printable(&why));
        if !spec.secrets.is_empty() {
            context.ui.warn("there are no secrets here: /run/secrets is in containers alone");
        }
        if let Some(warning) = warning {
            context.ui.warn(&warning);
        }
        let (program, mut command) = match spec.contract {
            Contract::Handler => self.handler(context, dir, &spec, runners).await?,
            _ => self.program(dir, &spec)?,
        };
        command
            .current_dir(dir)
            .envs(&spec.env)
            .env("FAAS_LISTEN", self.listen.to_string())
            .env("FAAS_FUNCTION", dir.file_name().unwrap_or_default())
            .env("FAAS_REVISION", "dev")
            .stdin(Stdio::null())
            .process_group(0)
            .kill_on_drop(true);
        let child = command
            .spawn()
            .map_err(|e| Failure::new(Exit::Failed, format!("{program} cannot be started: {e}")))?;
        let host = match self.listen {
            SocketAddr::V4(listen) => listen.to_string(),
            SocketAddr::V6(listen) => format!("[{}]:{}", listen.ip(), listen.port()),
        };
        context.ui.note(&format!("on http://{host}/ (Ctrl-C ends it)"));
        Ok(child)
    }

    async fn handler(
        &self,
        context: &Context,
        dir: &Path,
        spec: &FunctionSpec,
        runners: &Path,
    ) -> Result<(String, Command), Failure> {
        let language = spec.handler_parts().language;
        let this = env::current_exe().map_err(|e| Failure::file("find", Path::new("/proc/self/exe"), &e))?;
        let programs =
            Programs { python: &found(PYTHON), node: &found(NODE), script: &this.to_string_lossy() };
        let arguments = runners::command(spec, &programs, runners);
        let [program, rest @ ..] = arguments.as_slice() else {
            return Err(Failure::new(Exit::Failed, "the runner has no program"));
        };
        let mut command = Command::new(program);
        command.args(rest);
        // node looks for packages beside the code, where `npm install` puts them.
        let beside = language == Language::Node && dir.join("node_modules").is_dir();
        if !beside && let Some(installed) = dependencies::install(context, dir, language).await? {
            match language {
                Language::Node => link(&installed.tree, &dir.join("node_modules"))?,
                Language::Python | Language::Script => {
                    command.env("FAAS_DEPENDENCIES", &installed.tree);
                }
            }
        }
        Ok((program.clone(), command))
    }

    fn program(&self, dir: &Path, spec: &FunctionSpec) -> Result<(String, Command), Failure> {
        let [program, rest @ ..] = spec.command.as_slice() else {
            return Err(Failure::new(Exit::Data, "`command` names no program"));
        };
        // Relative to the directory, as it is in a container.
        let in_code = dir.join(program);
        let path = if is_program(&in_code) { in_code } else { PathBuf::from(program) };
        let mut command = Command::new(path);
        command
            .args(rest)
            .env("PORT", self.listen.port().to_string())
            .env("HOST", self.listen.ip().to_string());
        Ok((program.clone(), command))
    }
}

/// An interpreter as a container has it, or else whichever the search path has.
fn found(program: &str) -> String {
    let name = Path::new(program).file_name().unwrap_or_default().to_string_lossy();
    if is_program(program) { program.to_owned() } else { name.into_owned() }
}

/// Puts packages where node looks for them.
fn link(tree: &Path, place: &Path) -> Result<(), Failure> {
    // One that leads nowhere is of an earlier run.
    if fs::symlink_metadata(place).is_ok_and(|metadata| metadata.is_symlink()) {
        let _ = fs::remove_file(place);
    }
    std::os::unix::fs::symlink(tree, place).map_err(|e| Failure::file("link", place, &e))
}

fn is_source(root: &Path, path: &Path) -> bool {
    let Ok(relative) = path.strip_prefix(root) else { return false };
    !relative.iter().any(|part| IGNORED.iter().any(|ignored| part == *ignored))
        && !relative.as_os_str().is_empty()
        // What editors write beside a file.
        && !relative.file_name().is_some_and(|name| {
            let name = name.to_string_lossy();
            name.starts_with(".#") || name.ends_with('~') || name.ends_with(".swp") || name == "4913"
        })
}

/// One of a number of changes, once no other has followed for a while: the last to a file that is still there.
async fn settled(changes: &mut mpsc::Receiver<PathBuf>) -> Option<PathBuf> {
    let mut last = changes.recv().await?;
    while let Ok(Some(next)) = tokio::time::timeout(QUIET, changes.recv()).await {
        if next.exists() || !last.exists() {
            last = next;
        }
    }
    Some(last)
}

async fn exited(child: &mut Option<Child>) -> String {
    match child {
        Some(child) => child.wait().await.map_or_else(|e| e.to_string(), |status| status.to_string()),
        None => std::future::pending().await,
    }
}

/// Ends the code and whatever it has started.
async fn stop(mut child: Child) {
    let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    let Some(group) = group else { return };
    let began = Instant::now();
    let _ = rustix::process::kill_process_group(group, Signal::TERM);
    let _ = tokio::time::timeout(GRACE, child.wait()).await;
    let _ = rustix::process::kill_process_group(group, Signal::KILL);
    let _ = child.wait().await;
    tracing::debug!(elapsed = ?began.elapsed(), "stopped");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_change_the_function_counts() {
        let root = Path::new("/x");
        for (path, counts) in [
            ("/x/handler.py", true),
            ("/x/lib/a.py", true),
            ("/x/.git/index", false),
            ("/x/lib/__pycache__/a.pyc", false),
            ("/x/node_modules/a/b.js", false),
            ("/x/.handler.py.swp", false),
            ("/x/handler.py~", false),
            ("/x", false),
            ("/y/handler.py", false),
        ] {
            assert_eq!(is_source(root, Path::new(path)), counts, "{path}");
        }
    }
}
