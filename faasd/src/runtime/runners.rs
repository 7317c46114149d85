//! The runners: programs that serve a handler. They are part of the daemon's binary and are written out under their
//! digest, so that an upgrade never changes a file under a running instance.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::bundle;
use crate::core::spec::FunctionSpec;

const PYTHON_RUNNER: &str = include_str!("runners/python.py");
const PYTHON_FILE: &str = "python.py";

/// What serves a handler, as looked for in a root image.
pub const INTERPRETER: &str = "python3";

/// The only python that a container with the host's `/usr` sees: it has that without `/usr/local`.
pub const PYTHON: &str = "/usr/bin/python3";

#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    #[error("cannot write the runner to {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error(
        "{PYTHON} is needed to serve a handler, and is not there: `apt install python3`. (A python elsewhere, as pyenv's, \
         cannot be seen from within a container.)"
    )]
    NoPython,
}

/// Writes the runners below `state`, if they are not there, and returns their directory.
///
/// # Errors
/// [`RunnerError::Write`].
pub fn materialise(state: &Path) -> Result<PathBuf, RunnerError> {
    let digest = format!("{:x}", HexDigest(Sha256::digest(PYTHON_RUNNER).as_slice()));
    let dir = state.join("runners").join(&digest[..16]);
    write(&dir).map_err(|source| RunnerError::Write { path: dir.clone(), source })?;
    Ok(dir)
}

fn write(dir: &Path) -> io::Result<()> {
    let file = dir.join(PYTHON_FILE);
    if fs::read(&file).is_ok_and(|now| now == PYTHON_RUNNER.as_bytes()) {
        return Ok(());
    }
    fs::create_dir_all(dir)?;
    for dir in [dir.parent(), Some(dir)].into_iter().flatten() {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    }
    // Never half written under its final name.
    let draft = dir.join(".python.py");
    let mut out = fs::File::create(&draft)?;
    out.write_all(PYTHON_RUNNER.as_bytes())?;
    out.set_permissions(fs::Permissions::from_mode(0o444))?;
    out.sync_all()?;
    fs::rename(draft, file)
}

/// The argument vector that serves a handler.
///
/// # Errors
/// [`RunnerError::NoPython`].
pub fn arguments(spec: &FunctionSpec) -> Result<Vec<String>, RunnerError> {
    let is_there = fs::metadata(PYTHON).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    if !is_there {
        return Err(RunnerError::NoPython);
    }
    Ok(arguments_of(PYTHON, spec))
}

/// The same with another interpreter, that of a root image.
#[must_use]
pub fn arguments_of(python: &str, spec: &FunctionSpec) -> Vec<String> {
    let (file, function) = spec.handler_parts();
    let runner = format!("{}/{PYTHON_FILE}", bundle::RUNNER);
    // -S: importing `site` is a third of the interpreter's start. -E: no PYTHON* variable changes the runner.
    // -B: no byte code is written. -u: what is printed reaches the log at once, also when a kill follows.
    [python, "-S", "-E", "-B", "-u", &runner, file, function].map(str::to_owned).to_vec()
}

/// Bytes as hexadecimal digits.
pub(super) struct HexDigest<'a>(pub &'a [u8]);

impl std::fmt::LowerHex for HexDigest<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runner_is_written_once_and_mended() {
        let state = tempfile::tempdir().unwrap();
        let dir = materialise(state.path()).unwrap();
        let file = dir.join(PYTHON_FILE);
        assert_eq!(fs::read_to_string(&file).unwrap(), PYTHON_RUNNER);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o444);
        fs::remove_file(&file).unwrap();
        fs::write(&file, "half").unwrap();
        assert_eq!(materialise(state.path()).unwrap(), dir);
        assert_eq!(fs::read_to_string(&file).unwrap(), PYTHON_RUNNER);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    }
}
