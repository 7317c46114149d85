//! The .deb and the .rpm, by nfpm from `packaging/nfpm.yaml`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::arch::Arch;
use super::{Release, stage};
use crate::{packages, repo, run};

pub fn deb(release: &Release, tree: &Path, arch: Arch) -> Result<()> {
    package(release, tree, arch, "deb", "", &release.deb(arch))
}

pub fn rpm(release: &Release, tree: &Path, arch: Arch) -> Result<()> {
    package(release, tree, arch, "rpm", "1", &release.rpm(arch))
}

fn package(release: &Release, tree: &Path, arch: Arch, format: &str, number: &str, to: &Path) -> Result<()> {
    // nfpm replaces variables in most of its keys, and not in this one. A .deb has Debian's own form of it among its files.
    let described = fs::read_to_string(repo::root().join("packaging/nfpm.yaml"))
        .context("reading packaging/nfpm.yaml")?;
    let description = release.work.join("nfpm.yaml");
    let changes = stage::changes(tree);
    let changes = if format == "rpm" { format!("changelog: {}", changes.display()) } else { String::new() };
    fs::write(&description, described.replace("changelog: ${CHANGELOG}", &changes))?;
    let mut nfpm = Command::new(packages::dist_directory().join("bin/nfpm"));
    nfpm.args(["package", "--packager", format, "--config"]).arg(description).arg("--target").arg(to);
    nfpm.current_dir(repo::root());
    nfpm.env("ARCH", arch.debian());
    nfpm.env("VERSION", &release.version);
    nfpm.env("RELEASE", number);
    nfpm.env("STAGE", tree);
    nfpm.env("SOURCE_DATE_EPOCH", release.epoch.to_string());
    run::quiet(&mut nfpm).map(drop)
}
