//! The runners: programs that serve a handler. They are part of the daemon's binary and are written out under their
//! digest, so that an upgrade never changes a file under a running instance.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::bundle;
use crate::core::spec::{Contract, FunctionSpec, Language};

pub mod script;

/// What is mounted at [`bundle::RUNNER`].
const FILES: &[(&str, &str)] = &[
    ("python.py", include_str!("runners/python.py")),
    ("faasd_wsgi.py", include_str!("runners/faasd_wsgi.py")),
    ("faasd_asgi.py", include_str!("runners/faasd_asgi.py")),
    ("node.cjs", include_str!("runners/node.cjs")),
    ("empty.mjs", include_str!("runners/empty.mjs")),
    ("empty.cjs", include_str!("runners/empty.cjs")),
];

/// The only python that a container with the host's `/usr` sees: it has that without `/usr/local`.
pub const PYTHON: &str = "/usr/bin/python3";

/// Likewise.
pub const NODE: &str = "/usr/bin/node";

/// What serves a handler in this language, as looked for in a root image. Scripts bring their own; what serves them is a
/// program of ours, which a root image need not be able to run.
#[must_use]
pub const fn interpreter(language: Language) -> Option<&'static str> {
    match language {
        Language::Python => Some("python3"),
        Language::Node => Some("node"),
        Language::Script => None,
    }
}

/// The hidden verb, of `faasd` and of `faas`, that serves scripts.
pub const SCRIPT_VERB: &str = "run-script";

/// The share of an instance's memory that node's heap may take, in percent: node cannot see the limit from within a
/// container, and would be killed instead of collecting its garbage.
const NODE_HEAP_PERCENT: u64 = 75;

#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    #[error("cannot write the runner to {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error(
        "{PYTHON} is needed to serve a handler, and is not there: `apt install python3`. (A python elsewhere, as pyenv's, \
         cannot be seen from within a container.)"
    )]
    NoPython,
    #[error(
        "{NODE} is needed to serve a handler in JavaScript, and is not there: `apt install nodejs`. (A node elsewhere, as \
         nvm's, cannot be seen from within a container.)"
    )]
    NoNode,
}

/// Writes the runners below `state`, if they are not there, and returns their directory.
///
/// # Errors
/// [`RunnerError::Write`].
pub fn materialise(state: &Path) -> Result<PathBuf, RunnerError> {
    let mut hash = Sha256::new();
    for (name, text) in FILES {
        hash.update(name.as_bytes());
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    let digest = format!("{:x}", HexDigest(hash.finalize().as_slice()));
    let dir = state.join("runners").join(&digest[..16]);
    for (name, text) in FILES {
        write(&dir, name, text).map_err(|source| RunnerError::Write { path: dir.clone(), source })?;
    }
    Ok(dir)
}

fn write(dir: &Path, name: &str, text: &str) -> io::Result<()> {
    let file = dir.join(name);
    if fs::read(&file).is_ok_and(|now| now == text.as_bytes()) {
        return Ok(());
    }
    fs::create_dir_all(dir)?;
    for dir in [dir.parent(), Some(dir)].into_iter().flatten() {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    }
    // Never half written under its final name.
    let draft = dir.join(format!(".{name}"));
    let mut out = fs::File::create(&draft)?;
    out.write_all(text.as_bytes())?;
    out.set_permissions(fs::Permissions::from_mode(0o444))?;
    out.sync_all()?;
    fs::rename(draft, file)
}

/// Whether a program is there and can be run.
#[must_use]
pub fn is_program(path: impl AsRef<Path>) -> bool {
    fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// The argument vector that serves a handler, inside a container.
///
/// # Errors
/// [`RunnerError::NoPython`], [`RunnerError::NoNode`].
pub fn arguments(spec: &FunctionSpec) -> Result<Vec<String>, RunnerError> {
    let programs = Programs { python: PYTHON, node: NODE, script: bundle::RUNNER_PROGRAM };
    match spec.handler_parts().language {
        Language::Python if !is_program(PYTHON) => Err(RunnerError::NoPython),
        Language::Node if !is_program(NODE) => Err(RunnerError::NoNode),
        _ => Ok(command(spec, &programs, Path::new(bundle::RUNNER))),
    }
}

/// The same with the interpreter that a root image has.
#[must_use]
pub fn arguments_of(interpreter: &str, spec: &FunctionSpec) -> Vec<String> {
    let programs = Programs { python: interpreter, node: interpreter, script: bundle::RUNNER_PROGRAM };
    command(spec, &programs, Path::new(bundle::RUNNER))
}

/// The interpreters, and the program that has [`SCRIPT_VERB`].
#[derive(Clone, Copy, Debug)]
pub struct Programs<'a> {
    pub python: &'a str,
    pub node: &'a str,
    pub script: &'a str,
}

/// The argument vector that serves a handler with the runners in `dir`.
#[must_use]
pub fn command(spec: &FunctionSpec, programs: &Programs<'_>, dir: &Path) -> Vec<String> {
    let handler = spec.handler_parts();
    let runner = |file: &str| dir.join(file).to_string_lossy().into_owned();
    let mut arguments: Vec<String> = match handler.language {
        // -S: importing `site` is a third of the interpreter's start. -E: no PYTHON* variable changes the runner.
        // -B: no byte code is written. -u: what is printed reaches the log at once, also when a kill follows.
        Language::Python => {
            let flags = ["-S", "-E", "-B", "-u"].map(str::to_owned);
            [programs.python.to_owned()].into_iter().chain(flags).chain([runner("python.py")]).collect()
        }
        Language::Node => {
            let heap = (spec.limits.memory_bytes >> 20) * NODE_HEAP_PERCENT / 100;
            vec![
                programs.node.to_owned(),
                format!("--max-old-space-size={}", heap.max(8)),
                runner("node.cjs"),
            ]
        }
        Language::Script => vec![programs.script.to_owned(), SCRIPT_VERB.to_owned()],
    };
    arguments.push(handler.file.to_owned());
    arguments.extend(handler.name.map(str::to_owned));
    arguments
}

/// Whether a function that is held ready has its runner held, rather than its container alone: where an interpreter's
/// start and its imports take tens of milliseconds, which is worth the memory that it takes to have them over.
#[must_use]
pub fn is_held(spec: &FunctionSpec) -> bool {
    spec.contract == Contract::Handler && spec.handler_parts().language != Language::Script
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
    fn the_runners_are_written_once_and_mended() {
        let state = tempfile::tempdir().unwrap();
        let dir = materialise(state.path()).unwrap();
        for (name, text) in FILES {
            let file = dir.join(name);
            assert_eq!(&fs::read_to_string(&file).unwrap(), text);
            assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o444);
        }
        let file = dir.join(FILES[0].0);
        fs::remove_file(&file).unwrap();
        fs::write(&file, "half").unwrap();
        assert_eq!(materialise(state.path()).unwrap(), dir);
        assert_eq!(fs::read_to_string(&file).unwrap(), FILES[0].1);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), FILES.len());
    }

    #[test]
    fn each_language_has_its_runner() {
        let programs = Programs { python: "py", node: "js", script: "sh" };
        let line = |handler: &str| {
            let mut spec = FunctionSpec { handler: Some(handler.into()), ..FunctionSpec::default() };
            spec.limits.memory_bytes = 64 << 20;
            command(&spec, &programs, Path::new("/r")).join(" ")
        };
        assert_eq!(line("a.py:f"), "py -S -E -B -u /r/python.py a.py f");
        assert_eq!(line("a.mjs"), "js --max-old-space-size=48 /r/node.cjs a.mjs");
        assert_eq!(line("a.js:f"), "js --max-old-space-size=48 /r/node.cjs a.js f");
        assert_eq!(line("a.sh"), "sh run-script a.sh");
    }
}
