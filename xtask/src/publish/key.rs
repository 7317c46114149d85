//! The OpenPGP key that repositories are signed by: the release's own.

use std::env;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};

use crate::dist::{VARIABLE, throw_away_file};
use crate::run;

/// A directory of gpg's, with what was imported.
#[derive(Debug)]
pub struct Keys {
    home: PathBuf,
}

/// A secret key.
#[derive(Debug)]
pub struct Key {
    keys: Keys,
    pub fingerprint: String,
}

impl Keys {
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // Not below the build directory: the agent's socket must have a short name.
        let home = env::temp_dir().join(format!("faasd-publish-{}-{count}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&home).with_context(|| format!("making {}", home.display()))?;
        Ok(Self { home })
    }

    fn gpg(&self) -> Command {
        let mut gpg = Command::new("gpg");
        gpg.arg("--homedir").arg(&self.home);
        gpg.args([
            "--batch",
            "--quiet",
            "--no-tty",
            "--yes",
            "--pinentry-mode",
            "loopback",
            "--passphrase",
            "",
        ]);
        gpg
    }

    pub fn import(&self, file: &Path) -> Result<()> {
        run::quiet(self.gpg().arg("--import").arg(file))
            .map(drop)
            .with_context(|| format!("reading the key in {}", file.display()))
    }

    /// The public halves of all of them, as a verifier takes them.
    pub fn export(&self, to: &Path, armor: bool) -> Result<()> {
        let form = if armor { "--armor" } else { "--no-armor" };
        let mut gpg = self.gpg();
        gpg.args([form, "--export-options", "export-minimal", "--output"]).arg(to).arg("--export");
        run::quiet(&mut gpg).map(drop)
    }

    /// Those of the primary keys.
    pub fn fingerprints(&self) -> Result<Vec<String>> {
        Ok(fingerprints(&run::stdout(self.gpg().args(["--with-colons", "--list-keys"]))?, "pub"))
    }
}

impl Key {
    /// The one that `FAASD_SIGNING_KEY` names; without that, the throw-away one that a release was made with here.
    pub fn open() -> Result<Self> {
        let file = match env::var_os(VARIABLE) {
            Some(file) => PathBuf::from(file),
            None => throw_away_file(),
        };
        if !file.is_file() {
            bail!("there is no {}: {VARIABLE} names the file with the release's secret key", file.display());
        }
        let keys = Keys::new()?;
        keys.import(&file)?;
        Self::only(keys).with_context(|| file.display().to_string())
    }

    /// One that nobody trusts.
    pub fn unknown() -> Result<Self> {
        let keys = Keys::new()?;
        run::quiet(keys.gpg().args(["--quick-gen-key", "nobody in particular", "ed25519", "sign", "never"]))?;
        Self::only(keys)
    }

    fn only(keys: Keys) -> Result<Self> {
        let listed = run::stdout(keys.gpg().args(["--with-colons", "--list-secret-keys"]))?;
        match fingerprints(&listed, "sec").as_slice() {
            [fingerprint] => Ok(Self { fingerprint: fingerprint.clone(), keys }),
            found => bail!("there are {} secret keys in it: it must be one", found.len()),
        }
    }

    pub fn export(&self, to: &Path, armor: bool) -> Result<()> {
        self.keys.export(to, armor)
    }

    /// With the text in it, as apt's `InRelease`.
    pub fn clear_sign(&self, file: &Path, to: &Path) -> Result<()> {
        let mut gpg = self.gpg();
        run::quiet(gpg.arg("--output").arg(to).arg("--clear-sign").arg(file)).map(drop)
    }

    pub fn detach_sign(&self, file: &Path, to: &Path, armor: bool) -> Result<()> {
        let mut gpg = self.gpg();
        gpg.arg(if armor { "--armor" } else { "--no-armor" }).arg("--output").arg(to);
        run::quiet(gpg.arg("--detach-sign").arg(file)).map(drop)
    }

    fn gpg(&self) -> Command {
        let mut gpg = self.keys.gpg();
        gpg.args(["--digest-algo", "SHA512", "--local-user", &self.fingerprint]);
        gpg
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        let mut agent = Command::new("gpgconf");
        let _ = run::quiet(agent.arg("--homedir").arg(&self.home).args(["--kill", "all"]));
        let _ = fs::remove_dir_all(&self.home);
    }
}

/// From gpg's list with colons: the fingerprint that follows each line of `kind`.
fn fingerprints(listed: &str, kind: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut wanted = false;
    for line in listed.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        match fields.as_slice() {
            [first, ..] if *first == kind => wanted = true,
            ["fpr", ..] if wanted => {
                found.extend(fields.get(9).map(|&field| field.to_owned()));
                wanted = false;
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subkeys_fingerprint_is_not_the_keys() {
        let listed = "tru::1:1:0\npub:u:255:22:AA:1:::u:::scSC:\nfpr:::::::::FIRST:\nuid:u::::1::X::name:\n\
                      sub:u:255:22:BB:1::::::s:\nfpr:::::::::SUBKEY:\npub:u:255:22:CC:1:::u:::\nfpr:::::::::SECOND:\n";
        assert_eq!(fingerprints(listed, "pub"), ["FIRST", "SECOND"]);
        assert!(fingerprints(listed, "sec").is_empty());
    }
}
