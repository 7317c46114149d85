//! A DNF repository of static files: signed packages, and a signed list of them.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::release::Release;
use super::{copy, fresh};
use crate::openpgp::Key;
use crate::run;

pub fn publish(release: &Release, site: &Path, url: &str, key: &Key) -> Result<()> {
    let top = site.join("rpm");
    fs::create_dir_all(&top)?;
    let scratch = top.join(".verify");
    fresh(&scratch)?;
    let done = release.with_suffix(".rpm").try_for_each(|name| {
        let package = release.directory.join(name);
        is_signed(&package, &scratch, key)?;
        copy(&package, &top.join(name))
    });
    fs::remove_dir_all(&scratch)?;
    done?;
    let mut createrepo = Command::new("createrepo_c");
    run::quiet(createrepo.args(["--quiet", "--update"]).arg(&top))?;
    let list = top.join("repodata/repomd.xml");
    key.detach_sign(&list, &list.with_extension("xml.asc"), true)?;
    fs::write(site.join("faasd.repo"), repo_file(url)).context("writing faasd.repo")
}

/// By the key that users are told to trust: dnf refuses a package that is not.
fn is_signed(package: &Path, scratch: &Path, key: &Key) -> Result<()> {
    let public = scratch.join("key.asc");
    key.export(&public, true)?;
    let rpmkeys = || {
        let mut rpmkeys = Command::new("rpmkeys");
        rpmkeys.arg("--dbpath").arg(scratch);
        rpmkeys
    };
    run::quiet(rpmkeys().arg("--import").arg(&public))?;
    let said = run::stdout(rpmkeys().arg("--checksig").arg(package))
        .with_context(|| format!("{} is not signed by {}", package.display(), key.fingerprint))?;
    if !said.contains("signatures OK") {
        bail!("{} has no signature: {}", package.display(), said.trim());
    }
    Ok(())
}

fn repo_file(url: &str) -> String {
    format!(
        "[faasd]\nname=faasd\nbaseurl={url}/rpm\nenabled=1\ngpgcheck=1\nrepo_gpgcheck=1\n\
         gpgkey={url}/faasd-archive-keyring.asc\n"
    )
}
