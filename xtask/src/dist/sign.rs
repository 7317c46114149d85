//! What the release's key signs: the checksums, of everything. (Each .rpm is signed when it is made.)

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::name;
use crate::openpgp::Key;

/// What a verifier trusts, without and with armour.
pub const KEYRING: [&str; 2] = ["faasd-archive-keyring.gpg", "faasd-archive-keyring.asc"];

pub const SUMS: &str = "SHA256SUMS";

/// `SHA256SUMS` of every file there, with a detached signature in both forms.
pub fn directory(key: &Key, directory: &Path) -> Result<()> {
    let sums = directory.join(SUMS);
    fs::write(&sums, checksums(directory)?).with_context(|| format!("writing {}", sums.display()))?;
    for (extension, armor) in [("sig", false), ("asc", true)] {
        key.detach_sign(&sums, &directory.join(format!("{SUMS}.{extension}")), armor)?;
    }
    Ok(())
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
    use std::env;
    use std::process::Command;

    use super::*;
    use crate::run;

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
