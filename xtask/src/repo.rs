//! Where things are: the checkout, the build directory, the files that belong to the project.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run;

/// The checkout that this xtask was built from.
pub fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// Where cargo builds, `CARGO_TARGET_DIR` honoured.
pub fn target_dir() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        // cargo takes a relative one from its working directory, and `cargo xtask` keeps the caller's.
        Some(dir) => env::current_dir().unwrap_or_else(|_| root().to_owned()).join(dir),
        None => root().join("target"),
    }
}

/// The cargo that runs us, so that a toolchain chosen by the caller is kept.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// The compiler that belongs to that cargo. By name alone it may be the distribution's, which has another LLVM.
pub fn rustc() -> Command {
    let cargo = env::var_os("CARGO").map(PathBuf::from);
    let beside = cargo.map(|cargo| cargo.with_file_name("rustc")).filter(|rustc| rustc.is_file());
    Command::new(beside.unwrap_or_else(|| "rustc".into()))
}

/// Every file of the project, relative to its root: tracked, or new and not ignored.
pub fn files() -> Result<Vec<PathBuf>> {
    let mut git = Command::new("git");
    // In CI the checkout is often another user's.
    git.args(["-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    git.current_dir(root());
    let listed = run::stdout(&mut git).context("listing the project's files")?;
    let mut files: Vec<PathBuf> =
        listed.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).collect();
    // `--cached` still lists what has been deleted and not yet committed.
    files.retain(|file| root().join(file).is_file());
    files.sort();
    if files.is_empty() {
        bail!("git knows no file under {}", root().display());
    }
    Ok(files)
}
