//! The release's OpenPGP key, and what it signs: the checksums, of everything, and each .rpm, whose installer asks for it.

use std::env;
use std::fs::{self, DirBuilder};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::{Release, name};
use crate::{repo, run};

/// Names the file with the secret key.
pub const VARIABLE: &str = "FAASD_SIGNING_KEY";

/// What a verifier trusts, without and with armour.
pub const KEYRING: [&str; 2] = ["faasd-archive-keyring.gpg", "faasd-archive-keyring.asc"];

pub const SUMS: &str = "SHA256SUMS";

/// A key made here is of this time: before any release, so that none is older than its key.
const THROW_AWAY_TIME: &str = "20260101T000000";

/// A key, in a directory of gpg's that goes with it.
#[derive(Debug)]
pub struct Key {
    home: PathBuf,
    fingerprint: String,
    /// The time of its signatures, so that two of the same are the same.
    time: u64,
}

impl Key {
    /// The one that `FAASD_SIGNING_KEY` names; without that, one that proves nothing, and is said to.
    pub fn open(release: &Release) -> Result<Self> {
        // Not below the build directory: the agent's socket must have a short name.
        let home = env::temp_dir().join(format!("faasd-dist-{}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&home).with_context(|| format!("making {}", home.display()))?;
        let mut key = Self { home, fingerprint: String::new(), time: release.epoch };
        let file = match env::var_os(VARIABLE) {
            Some(file) => PathBuf::from(file),
            None => key.throw_away()?,
        };
        run::quiet(key.gpg().arg("--import").arg(&file))
            .with_context(|| format!("reading the key in {}", file.display()))?;
        let listed = run::stdout(key.gpg().args(["--with-colons", "--list-secret-keys"]))?;
        let (fingerprint, created) = only_secret(&listed).with_context(|| file.display().to_string())?;
        key.fingerprint = fingerprint;
        key.time = key.time.max(created);
        Ok(key)
    }

    /// Made once for a build directory: whoever publishes from there signs by the same.
    fn throw_away(&self) -> Result<PathBuf> {
        let file = throw_away_file();
        if !file.exists() {
            let mut make = self.gpg();
            make.args(["--passphrase", "", "--faked-system-time", THROW_AWAY_TIME]);
            let who = "faasd, a key for trying out (trust it nowhere else)";
            run::quiet(make.args(["--quick-gen-key", who, "ed25519", "sign", "never"]))?;
            let secret = run::quiet(self.gpg().args(["--armor", "--export-secret-keys"]))?.stdout;
            fs::create_dir_all(file.parent().unwrap_or(Path::new("/")))?;
            let mut writer = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file)?;
            writer.write_all(&secret)?;
        }
        println!("dist: {VARIABLE} is not set: signing with a throw-away key, {}", file.display());
        Ok(file)
    }

    fn gpg(&self) -> Command {
        let mut gpg = Command::new("gpg");
        gpg.arg("--homedir").arg(&self.home).args([
            "--batch",
            "--quiet",
            "--no-tty",
            "--pinentry-mode",
            "loopback",
        ]);
        gpg
    }

    fn faked_time(&self) -> String {
        format!("{}!", self.time)
    }

    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Writes the public half beside what it has signed.
    pub fn export(&self, release: &Release) -> Result<()> {
        for (file, armor) in KEYRING.into_iter().zip([&["--no-armor"][..], &["--armor"][..]]) {
            let mut gpg = self.gpg();
            gpg.args(armor).args(["--export-options", "export-minimal", "--export", &self.fingerprint]);
            let public = run::quiet(&mut gpg)?.stdout;
            fs::write(release.file(file), public).with_context(|| format!("writing {file}"))?;
        }
        Ok(())
    }

    pub fn sign_rpm(&self, package: &Path) -> Result<()> {
        let mut rpmsign = Command::new("rpmsign");
        for (macro_name, value) in [
            ("_gpg_name", self.fingerprint.as_str()),
            ("_gpg_path", &self.home.display().to_string()),
            ("__gpg", &run::which("gpg").context("there is no gpg")?.display().to_string()),
            ("_gpg_sign_cmd_extra_args", &format!("--batch --faked-system-time {}", self.faked_time())),
        ] {
            rpmsign.arg("--define").arg(format!("{macro_name} {value}"));
        }
        run::quiet(rpmsign.arg("--addsign").arg(package)).map(drop)
    }

    /// `SHA256SUMS` of every file there, with a detached signature in both forms.
    pub fn sign_directory(&self, directory: &Path) -> Result<()> {
        let sums = directory.join(SUMS);
        fs::write(&sums, checksums(directory)?).with_context(|| format!("writing {}", sums.display()))?;
        for (extension, armor) in [("sig", "--no-armor"), ("asc", "--armor")] {
            let mut gpg = self.gpg();
            gpg.args(["--faked-system-time", &self.faked_time(), "--local-user", &self.fingerprint]);
            gpg.args([armor, "--yes", "--detach-sign", "--output"])
                .arg(directory.join(format!("{SUMS}.{extension}")));
            run::quiet(gpg.arg(&sums))?;
        }
        Ok(())
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        let mut agent = Command::new("gpgconf");
        let _ = run::quiet(agent.arg("--homedir").arg(&self.home).args(["--kill", "all"]));
        let _ = fs::remove_dir_all(&self.home);
    }
}

/// Where the key is that is made where none is given.
pub fn throw_away_file() -> PathBuf {
    repo::target_dir().join("dist-key").join("secret.asc")
}

/// The fingerprint and the time of the one key in gpg's list.
fn only_secret(listed: &str) -> Result<(String, u64)> {
    let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
    let of = |kind: &str| listed.lines().map(fields).filter(|f| f[0] == kind).collect::<Vec<_>>();
    match of("sec").as_slice() {
        [key] => {
            let created =
                key.get(5).and_then(|text| text.parse().ok()).context("gpg says no time of the key")?;
            let fingerprint =
                of("fpr").first().and_then(|f| f.get(9)).cloned().context("gpg says no fingerprint")?;
            Ok((fingerprint, created))
        }
        [] => bail!("there is no secret key in it"),
        more => bail!("there are {} secret keys in it: it must be one", more.len()),
    }
}

/// As `sha256sum` writes them, in the order of names, without the list itself.
pub fn checksums(directory: &Path) -> Result<String> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_file() && !name(&entry.path())?.starts_with(SUMS) {
            files.push(entry.path());
        }
    }
    files.sort();
    let mut text = String::new();
    for file in files {
        text.push_str(&format!("{}  {}\n", digest(&file)?, name(&file)?));
    }
    Ok(text)
}

fn digest(file: &Path) -> Result<String> {
    let bytes = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    Ok(Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_secret_key_is_taken() {
        let one = "sec:u:255:22:AA:1767225600:::u:::scESC:::+::ed25519:::0:\nfpr:::::::::F1:\nuid:u::::1::X::who::\n";
        assert_eq!(only_secret(one).unwrap(), ("F1".to_owned(), 1_767_225_600));
        assert!(only_secret(&one.repeat(2)).unwrap_err().to_string().contains("2 secret keys"));
        assert!(only_secret("").is_err());
    }

    #[test]
    fn checksums_are_those_of_sha256sum() {
        let directory = env::temp_dir().join(format!("faasd-sums-{}", std::process::id()));
        super::super::fresh(&directory).unwrap();
        for (name, text) in [("b", "two"), ("a", "one"), (SUMS, "old"), ("SHA256SUMS.asc", "old")] {
            fs::write(directory.join(name), text).unwrap();
        }
        let sums = checksums(&directory).unwrap();
        fs::write(directory.join(SUMS), &sums).unwrap();
        let checked =
            run::quiet(Command::new("sha256sum").args(["--check", "--strict", SUMS]).current_dir(&directory));
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(String::from_utf8(checked.unwrap().stdout).unwrap(), "a: OK\nb: OK\n");
        assert_eq!(sums.lines().count(), 2);
    }
}
