//! `cargo xtask publish`: from a release directory, the site that users install from (`docs/RELEASING.md`): repositories for
//! apt and dnf, the release's files, `install.sh` and the public key, all static.

mod apt;
mod release;
mod rpm;
mod script;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::dist::KEYRING;
use crate::openpgp::{Key, Keys};
use crate::report::step;
use crate::setup::{self, Scope};
pub use release::Release;
pub use script::stamp;

/// Where the project's own site is.
pub const URL: &str = "https://faasd.github.io/faasd";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The release: what `cargo xtask dist --out DIR` has made
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// The site; versions that are there already stay
    #[arg(long, value_name = "SITE")]
    out: PathBuf,
    /// Where the site will be
    #[arg(long, value_name = "URL", default_value = URL)]
    url: String,
    /// A public key to be trusted as well: the next one, before it signs; may be repeated
    #[arg(long, value_name = "FILE")]
    also_trust: Vec<PathBuf>,
}

pub fn main(args: &Args) -> Result<()> {
    setup::ensure(Scope::Publish)?;
    let key = Key::open()?;
    site(&args.from, &args.out, args.url.trim_end_matches('/'), &key, &args.also_trust)
}

/// Adds one release to a site.
pub fn site(from: &Path, site: &Path, url: &str, key: &Key, also_trust: &[PathBuf]) -> Result<()> {
    let from = std::path::absolute(from)?;
    let site = std::path::absolute(site)?;
    let release = step("publish", "verifying the release", || Release::open(&from, &key.fingerprint))?;
    let version = &release.version;
    step("publish", &format!("the files of {version}"), || {
        let to = site.join(version);
        fs::create_dir_all(&to).with_context(|| format!("making {}", to.display()))?;
        release.published().iter().try_for_each(|name| copy(&from.join(name), &to.join(name)))
    })?;
    step("publish", "the repository for apt", || apt::publish(&release, &site, url, key))?;
    step("publish", "the repository for dnf", || rpm::publish(&release, &site, url, key))?;
    step("publish", "the key and install.sh", || {
        let trusted = Keys::new()?;
        trusted.import(&from.join(KEYRING[0]))?;
        also_trust.iter().try_for_each(|file| trusted.import(file))?;
        for (file, armor) in KEYRING.into_iter().zip([false, true]) {
            trusted.export(&site.join(file), armor)?;
        }
        let text = fs::read_to_string(from.join("install.sh")).context("the release has no install.sh")?;
        let text = stamp(&text, &trusted.fingerprints()?, version, url)?;
        Ok(fs::write(site.join("install.sh"), text)?)
    })?;
    println!("publish: {version} is in {}", site.display());
    Ok(())
}

/// What was published once never changes: whoever has fetched half of it must be able to go on.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        if fs::read(from)? != fs::read(to)? {
            bail!("{} is published already and is another one: release another version", to.display());
        }
        return Ok(());
    }
    fs::copy(from, to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// An empty directory.
fn fresh(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("removing {}", directory.display()))?;
    }
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))
}
