//! What the machine is to try: the programs of this build and the files of this checkout, on a disk of their own. They are
//! found inside where they are here, because test programs know such paths from the compiler.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result};

use super::image;
use crate::report::step;
use crate::{repo, run};

/// The disk's size. It has holes where nothing is.
const SIZE: &str = "3G";

/// Programs beside the test programs, below the directory of the build.
const PROGRAMS: [&str; 4] = ["faasd", "faas", "escape-function", "examples/hello"];

/// Where the machine mounts it.
pub const MOUNT: &str = "/run/payload";

#[derive(Debug)]
pub struct Payload {
    pub disk: PathBuf,
    /// `target/debug`.
    build: PathBuf,
}

impl Payload {
    /// Makes it anew. Programs that have not changed are not copied again.
    pub fn make(tests: &[PathBuf]) -> Result<Self> {
        let directory = super::directory();
        let tree = directory.join("payload");
        let build = repo::target_dir().join("debug");
        let disk = directory.join("payload.img");
        step("vm", "this build's programs on a disk", || {
            let programs: Vec<PathBuf> =
                PROGRAMS.iter().map(|name| build.join(name)).chain(tests.iter().cloned()).collect();
            copy_programs(&build, &programs, &tree.join("build"))?;
            copy_checkout(&tree.join("checkout"))?;
            // The place to mount the build at, where that is within the checkout: the disk is only read.
            if let Ok(within) = build.strip_prefix(repo::root()) {
                fs::create_dir_all(tree.join("checkout").join(within))?;
            }
            let mke2fs = run::which("mke2fs").context("there is no mke2fs: `cargo xtask setup --for vm`")?;
            image::disk(Command::new(mke2fs), &tree, &disk, SIZE)
        })?;
        Ok(Self { disk, build })
    }

    /// The command that puts everything in its place, in the machine.
    pub fn mounting(&self) -> String {
        let place = |from: &str, to: &Path| {
            let to = to.display();
            format!("mkdir -p '{to}' && mount --bind {MOUNT}/{from} '{to}'")
        };
        [
            format!("mkdir -p {MOUNT} && mount -o ro /dev/nvme1n1 {MOUNT}"),
            place("checkout", repo::root()),
            place("build", &self.build),
        ]
        .join(" && ")
    }
}

/// A disk with what is there.
pub fn of_tree(tree: &Path) -> Result<PathBuf> {
    let disk = tree.with_extension("img");
    let mke2fs = run::which("mke2fs").context("there is no mke2fs: `cargo xtask setup --for vm`")?;
    image::disk(Command::new(mke2fs), tree, &disk, SIZE)?;
    Ok(disk)
}

fn copy_programs(build: &Path, programs: &[PathBuf], to: &Path) -> Result<()> {
    let mut wanted = BTreeSet::new();
    for program in programs {
        let name =
            program.strip_prefix(build).with_context(|| format!("{} is elsewhere", program.display()))?;
        let copy = to.join(name);
        wanted.insert(copy.clone());
        if modified(&copy) < Some(modified(program).context("reading the time of a program")?) {
            fs::create_dir_all(copy.parent().unwrap_or(to))?;
            image::strip(program, &copy)?;
        }
    }
    forget_others(to, &wanted)
}

fn modified(file: &Path) -> Option<SystemTime> {
    fs::metadata(file).and_then(|meta| meta.modified()).ok()
}

/// Test programs are called after what they are made from: yesterday's have other names.
fn forget_others(directory: &Path, wanted: &BTreeSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            forget_others(&path, wanted)?;
        } else if !wanted.contains(&path) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn copy_checkout(to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    for name in repo::files()? {
        let copy = to.join(&name);
        fs::create_dir_all(copy.parent().unwrap_or(to))?;
        fs::copy(repo::root().join(&name), &copy).with_context(|| format!("copying {}", name.display()))?;
    }
    Ok(())
}
