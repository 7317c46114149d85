//! Tarballs that are the same bytes whenever they are made: names in order, one time, one owner.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::arch::Arch;
use super::{Release, fresh, git, name};
use crate::{repo, run};

/// The programs and what belongs to them, where they are on a machine: below `usr` and `etc`.
pub fn binaries(release: &Release, tree: &Path, arch: Arch) -> Result<()> {
    let file = release.tarball(arch);
    let top = release.work.join("tarball").join(top(&file)?);
    fresh(&top)?;
    let mut make = Command::new("make");
    make.current_dir(repo::root()).args(["--silent", "install-files"]);
    make.arg(format!("STAGE={}", tree.display())).arg(format!("DESTDIR={}", top.display()));
    make.arg("PREFIX=/usr");
    run::quiet(&mut make)?;
    for document in ["LICENSE", "README.md", "CHANGELOG.md"] {
        fs::copy(repo::root().join(document), top.join(document))?;
    }
    fs::copy(tree.join("doc/THIRD-PARTY.txt"), top.join("THIRD-PARTY.txt"))?;
    pack(release, &top, &file)
}

/// What is committed.
pub fn sources(release: &Release) -> Result<()> {
    let file = release.source();
    let prefix = format!("--prefix={}/", top(&file)?);
    run::quiet(git().args(["archive", "--format=tar.gz", "-9", &prefix, "--output"]).arg(&file).arg("HEAD"))
        .map(drop)
}

/// The name of the one directory in a tarball.
pub fn top(file: &Path) -> Result<&str> {
    name(file)?.strip_suffix(".tar.gz").with_context(|| format!("{} is no .tar.gz", file.display()))
}

/// Everything in `directory`, under its name.
pub fn pack(release: &Release, directory: &Path, to: &Path) -> Result<()> {
    let parent = directory.parent().with_context(|| format!("{} is in nothing", directory.display()))?;
    let mut tar = Command::new("tar");
    tar.args(["--create", "--format=gnu", "--sort=name", "--owner=0", "--group=0", "--numeric-owner"]);
    tar.arg(format!("--mtime=@{}", release.epoch));
    tar.args(["--mode=u+w,go-w,a+rX", "--use-compress-program=gzip --no-name --best", "--file"]).arg(to);
    tar.arg("--directory").arg(parent).arg(name(directory)?);
    run::quiet(&mut tar)?;
    fs::remove_dir_all(directory).with_context(|| format!("removing {}", directory.display()))
}
