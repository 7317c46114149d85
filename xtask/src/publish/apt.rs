//! An APT repository of static files: every version ever published, each index also under the name of its hash, so that
//! whoever fetches while it is replaced gets what belongs together.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::release::Release;
use super::{copy, fresh};
use crate::openpgp::Key;
use crate::run;

const SUITE: &str = "stable";
const COMPONENT: &str = "main";
const ARCHITECTURES: [&str; 2] = ["amd64", "arm64"];
const POOL: &str = "pool/main/f/faasd";

pub fn publish(release: &Release, site: &Path, url: &str, key: &Key) -> Result<()> {
    let top = site.join("apt");
    let pool = top.join(POOL);
    fs::create_dir_all(&pool)?;
    for name in release.with_suffix(".deb") {
        copy(&release.directory.join(name), &pool.join(name))?;
    }
    let suite = top.join("dists").join(SUITE);
    fresh(&suite)?;
    for architecture in ARCHITECTURES {
        index(&top, &suite.join(COMPONENT).join(format!("binary-{architecture}")), architecture)?;
    }
    let mut ftparchive = Command::new("apt-ftparchive");
    ftparchive.current_dir(&top);
    let architectures = ARCHITECTURES.join(" ");
    for (field, value) in [
        ("Origin", "faasd"),
        ("Label", "faasd"),
        ("Suite", SUITE),
        ("Codename", SUITE),
        ("Components", COMPONENT),
        ("Architectures", architectures.as_str()),
        ("Acquire-By-Hash", "true"),
        ("Description", "faasd: functions over a private network"),
    ] {
        ftparchive.arg("-o").arg(format!("APT::FTPArchive::Release::{field}={value}"));
    }
    let text = run::stdout(ftparchive.arg("release").arg(format!("dists/{SUITE}")))?;
    // Written after it was made: it does not list itself.
    let file = suite.join("Release");
    fs::write(&file, text)?;
    key.clear_sign(&file, &suite.join("InRelease"))?;
    key.detach_sign(&file, &suite.join("Release.gpg"), true)?;
    fs::write(site.join("faasd.sources"), sources(url)).context("writing faasd.sources")
}

fn index(top: &Path, directory: &Path, architecture: &str) -> Result<()> {
    let by_hash = directory.join("by-hash").join("SHA256");
    fs::create_dir_all(&by_hash)?;
    let mut ftparchive = Command::new("apt-ftparchive");
    ftparchive.current_dir(top).args(["--arch", architecture, "packages", POOL]);
    let plain = directory.join("Packages");
    fs::write(&plain, run::stdout(&mut ftparchive)?)?;
    run::quiet(Command::new("gzip").args(["--no-name", "--best", "--keep"]).arg(&plain))?;
    for name in ["Packages", "Packages.gz"] {
        let bytes = fs::read(directory.join(name))?;
        let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(by_hash.join(digest), bytes)?;
    }
    Ok(())
}

/// For `/etc/apt/sources.list.d`: this key counts for this repository, and for no other.
fn sources(url: &str) -> String {
    format!(
        "Types: deb\nURIs: {url}/apt\nSuites: {SUITE}\nComponents: {COMPONENT}\nArchitectures: {}\n\
         Signed-By: /etc/apt/keyrings/faasd.asc\n",
        ARCHITECTURES.join(" ")
    )
}
