//! OpenPGP keys, by gpg: the one that a release and its repositories are signed by, and those that are trusted.

use std::env;
use std::fs::{self, DirBuilder};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};

use crate::{repo, run};

/// Names the file with the secret key.
const VARIABLE: &str = "FAASD_SIGNING_KEY";

/// A key made here is of this time: before any release, so that none is older than its key.
const THROW_AWAY_TIME: &str = "20260101T000000";

const THROW_AWAY_NAME: &str = "faasd, a key for trying out (trust it nowhere else)";

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
    created: u64,
    /// When it says that it signs, if not now.
    time: Option<u64>,
}

impl Keys {
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // Not below the build directory: the agent's socket must have a short name.
        let home = env::temp_dir().join(format!("faasd-keys-{}-{count}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&home).with_context(|| format!("making {}", home.display()))?;
        Ok(Self { home })
    }

    fn gpg(&self) -> Command {
        let mut gpg = Command::new("gpg");
        gpg.arg("--homedir").arg(&self.home).args(["--batch", "--quiet", "--no-tty", "--yes"]);
        gpg.args(["--pinentry-mode", "loopback", "--passphrase", ""]);
        gpg
    }

    pub fn import(&self, file: &Path) -> Result<()> {
        run::quiet(self.gpg().arg("--import").arg(file))
            .map(drop)
            .with_context(|| format!("reading the key in {}", file.display()))
    }

    fn make(&self, name: &str, time: Option<&str>) -> Result<()> {
        let mut gpg = self.gpg();
        gpg.args(time.iter().flat_map(|time| ["--faked-system-time", time]));
        run::quiet(gpg.args(["--quick-gen-key", name, "ed25519", "sign", "never"])).map(drop)
    }

    /// The public halves of all of them, as a verifier takes them.
    pub fn export(&self, to: &Path, armor: bool) -> Result<()> {
        let mut gpg = self.gpg();
        gpg.args([form(armor), "--export-options", "export-minimal", "--output"]).arg(to).arg("--export");
        run::quiet(&mut gpg).map(drop)
    }

    /// Those of the primary keys.
    pub fn fingerprints(&self) -> Result<Vec<String>> {
        let listed = run::stdout(self.gpg().args(["--with-colons", "--list-keys"]))?;
        Ok(primary(&listed, "pub").into_iter().map(|(fingerprint, _)| fingerprint).collect())
    }
}

impl Key {
    /// The one that `FAASD_SIGNING_KEY` names; without that, the throw-away one that a release was made with here.
    pub fn open() -> Result<Self> {
        let file = env::var_os(VARIABLE).map_or_else(throw_away_file, PathBuf::from);
        if !file.is_file() {
            bail!("there is no {}: {VARIABLE} names the file with the release's secret key", file.display());
        }
        let keys = Keys::new()?;
        keys.import(&file)?;
        Self::only(keys).with_context(|| file.display().to_string())
    }

    /// The same; but the throw-away one is made if there is none. It proves nothing, and is said to.
    pub fn open_or_make() -> Result<Self> {
        if env::var_os(VARIABLE).is_none() {
            let file = throw_away_file();
            if !file.exists() {
                throw_away(&file)?;
            }
            println!("dist: {VARIABLE} is not set: signing with a throw-away key, {}", file.display());
        }
        Self::open()
    }

    /// One that nobody trusts.
    pub fn unknown() -> Result<Self> {
        let keys = Keys::new()?;
        keys.make("nobody in particular", None)?;
        Self::only(keys)
    }

    fn only(keys: Keys) -> Result<Self> {
        let listed = run::stdout(keys.gpg().args(["--with-colons", "--list-secret-keys"]))?;
        match primary(&listed, "sec").as_slice() {
            [(fingerprint, created)] => {
                Ok(Self { fingerprint: fingerprint.clone(), created: *created, keys, time: None })
            }
            found => bail!("there are {} secret keys in it: it must be one", found.len()),
        }
    }

    /// Whose signatures are of that time, or of the key's own if it is younger: those of the same are the same.
    pub fn signing_at(mut self, time: u64) -> Self {
        self.time = Some(time.max(self.created));
        self
    }

    fn faked_time(&self) -> Option<String> {
        self.time.map(|time| format!("{time}!"))
    }

    fn gpg(&self) -> Command {
        let mut gpg = self.keys.gpg();
        gpg.args(["--digest-algo", "SHA512", "--local-user", &self.fingerprint]);
        if let Some(time) = self.faked_time() {
            gpg.args(["--faked-system-time", &time]);
        }
        gpg
    }

    pub fn export(&self, to: &Path, armor: bool) -> Result<()> {
        self.keys.export(to, armor)
    }

    /// With the text in it, as apt's `InRelease`.
    pub fn clear_sign(&self, file: &Path, to: &Path) -> Result<()> {
        run::quiet(self.gpg().arg("--output").arg(to).arg("--clear-sign").arg(file)).map(drop)
    }

    pub fn detach_sign(&self, file: &Path, to: &Path, armor: bool) -> Result<()> {
        let mut gpg = self.gpg();
        gpg.arg(form(armor)).arg("--output").arg(to).arg("--detach-sign").arg(file);
        run::quiet(&mut gpg).map(drop)
    }

    /// In the package itself, where its installer looks.
    pub fn sign_rpm(&self, package: &Path) -> Result<()> {
        let time = self.faked_time().map(|time| format!(" --faked-system-time {time}")).unwrap_or_default();
        let mut rpmsign = Command::new("rpmsign");
        for (name, value) in [
            ("_gpg_name", self.fingerprint.as_str()),
            ("_gpg_path", &self.keys.home.display().to_string()),
            ("__gpg", &run::which("gpg").context("there is no gpg")?.display().to_string()),
            ("_gpg_sign_cmd_extra_args", &format!("--batch{time}")),
        ] {
            rpmsign.arg("--define").arg(format!("{name} {value}"));
        }
        run::quiet(rpmsign.arg("--addsign").arg(package)).map(drop)
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        let mut agent = Command::new("gpgconf");
        let _ = run::quiet(agent.arg("--homedir").arg(&self.home).args(["--kill", "all"]));
        let _ = fs::remove_dir_all(&self.home);
    }
}

const fn form(armor: bool) -> &'static str {
    if armor { "--armor" } else { "--no-armor" }
}

/// Where the key is that is made where none is given: whoever publishes from this build directory signs by the same.
fn throw_away_file() -> PathBuf {
    repo::target_dir().join("dist-key").join("secret.asc")
}

fn throw_away(file: &Path) -> Result<()> {
    let keys = Keys::new()?;
    keys.make(THROW_AWAY_NAME, Some(THROW_AWAY_TIME))?;
    let secret = run::quiet(keys.gpg().args(["--armor", "--export-secret-keys"]))?.stdout;
    fs::create_dir_all(file.parent().unwrap_or(Path::new("/")))?;
    let mut writer = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    Ok(writer.write_all(&secret)?)
}

/// From gpg's list with colons: the fingerprint and the time of each key of `kind`, not of its subkeys.
fn primary(listed: &str, kind: &str) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    let mut created = None;
    for line in listed.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        match fields.as_slice() {
            [first, ..] if *first == kind => created = fields.get(5).and_then(|time| time.parse().ok()),
            ["fpr", ..] => {
                if let (Some(time), Some(fingerprint)) = (created.take(), fields.get(9)) {
                    found.push(((*fingerprint).to_owned(), time));
                }
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
                      sub:u:255:22:BB:1::::::s:\nfpr:::::::::SUBKEY:\npub:u:255:22:CC:2:::u:::\nfpr:::::::::SECOND:\n";
        assert_eq!(primary(listed, "pub"), [("FIRST".to_owned(), 1), ("SECOND".to_owned(), 2)]);
        assert!(primary(listed, "sec").is_empty());
    }
}
