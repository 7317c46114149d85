//! A release directory, as `cargo xtask dist` leaves it: verified before anything of it is published.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::dist::{KEYRING, SUMS};
use crate::run;

/// What is in it, by its signed list.
#[derive(Debug)]
pub struct Release {
    pub directory: PathBuf,
    pub version: String,
    /// The names of its files, without the list and its signatures.
    files: Vec<String>,
}

impl Release {
    /// Fails unless all that is listed is there, as it was signed by `fingerprint`.
    pub fn open(directory: &Path, fingerprint: &str) -> Result<Self> {
        let keyring = std::path::absolute(directory.join(KEYRING[0]))?;
        let mut gpgv = Command::new("gpgv");
        gpgv.args(["--status-fd", "1", "--keyring"]).arg(keyring);
        gpgv.arg(directory.join(format!("{SUMS}.sig"))).arg(directory.join(SUMS));
        let said =
            run::stdout(&mut gpgv).with_context(|| format!("the signature in {}", directory.display()))?;
        if !said.lines().any(|line| line.contains(" VALIDSIG ") && line.ends_with(fingerprint)) {
            bail!(
                "{} is signed by another key than {fingerprint}, which would publish it",
                directory.display()
            );
        }
        let mut sums = Command::new("sha256sum");
        run::quiet(sums.current_dir(directory).args(["--check", "--strict", "--quiet", SUMS]))?;
        let listed = fs::read_to_string(directory.join(SUMS))?;
        let files: Vec<String> =
            listed.lines().filter_map(|line| Some(line.split_once("  ")?.1.to_owned())).collect();
        // `sha256sum` follows any path; a release is one directory.
        if let Some(name) = files.iter().find(|name| name.contains('/') || name.starts_with('.')) {
            bail!("{SUMS} names '{name}', which is not beside it");
        }
        let version =
            version(&files).with_context(|| format!("{} has no .deb in it", directory.display()))?;
        Ok(Self { directory: directory.to_owned(), version, files })
    }

    /// Those that end so.
    pub fn with_suffix<'a>(&'a self, suffix: &'a str) -> impl Iterator<Item = &'a str> {
        self.files.iter().map(String::as_str).filter(move |name| name.ends_with(suffix))
    }

    /// What is published: the files, the list, and its signatures.
    pub fn published(&self) -> Vec<String> {
        let list = [SUMS.to_owned(), format!("{SUMS}.sig"), format!("{SUMS}.asc")];
        let list = list.into_iter().filter(|name| self.directory.join(name).exists());
        self.files.iter().cloned().chain(list).collect()
    }
}

fn version(files: &[String]) -> Option<String> {
    files.iter().find_map(|name| {
        let version = name.strip_prefix("faasd_")?.strip_suffix(".deb")?.rsplit_once('_')?.0;
        Some(version.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_of_the_version_of_its_packages() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let files = names(&["faasd-0.2.0-airgap-amd64.tar.gz", "faasd_0.2.0~rc1_arm64.deb", "install.sh"]);
        assert_eq!(version(&files).as_deref(), Some("0.2.0~rc1"));
        assert_eq!(version(&names(&["faasd-0.2.0.tar.gz"])), None);
    }
}
