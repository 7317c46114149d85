//! What is checked of a release before anyone gets it: that it is whole, signed, what it says, and well-formed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::arch::Arch;
use super::build::{NAMES, Programs};
use super::sign::{self, KEYRING, SUMS};
use super::{Release, debian, name};
use crate::report::step;
use crate::{ebpf, repo, run};

/// Checks a directory that [`super::main`] has made, with nothing but what is in it.
pub fn main(directory: &Path, version: &str) -> Result<()> {
    step("dist", "checksums and signature", || signature(directory))?;
    let with = |extension: &str| files(directory, extension);
    let (debs, rpms) = (with("deb")?, with("rpm")?);
    ensure!(
        !debs.is_empty() && debs.len() == rpms.len(),
        "a .deb or an .rpm is missing in {}",
        directory.display()
    );
    for deb in &debs {
        step("dist", &format!("lintian on {}", name(deb)?), || debian(deb, version))?;
    }
    for deb in &debs {
        step("dist", &format!("the programs in {}", name(deb)?), || programs(deb, version))?;
    }
    for rpm in &rpms {
        step("dist", &format!("rpmlint on {}", name(rpm)?), || redhat(rpm, version))?;
    }
    for scripts in ["packaging/scripts", "packaging"] {
        let scripts = files(&repo::root().join(scripts), "sh")?;
        run::quiet(Command::new("shellcheck").arg("--shell=sh").args(scripts))?;
    }
    Ok(())
}

/// As whoever downloads it would: the key that is beside it, the list's signature, the files' checksums.
fn signature(directory: &Path) -> Result<()> {
    let [keyring, _] = KEYRING;
    let keyring = directory.join(keyring);
    let sums = directory.join(SUMS);
    for extension in ["sig", "asc"] {
        let mut gpgv = Command::new("gpgv");
        gpgv.arg("--keyring").arg(&keyring).arg(directory.join(format!("{SUMS}.{extension}"))).arg(&sums);
        run::quiet(&mut gpgv)?;
    }
    let listed = fs::read_to_string(&sums).with_context(|| format!("reading {}", sums.display()))?;
    ensure!(listed == sign::checksums(directory)?, "{SUMS} is not of the files that are there");
    Ok(())
}

fn debian(package: &Path, version: &str) -> Result<()> {
    let field = |field: &str| {
        let said = run::stdout(Command::new("dpkg-deb").arg("--field").arg(package).arg(field))?;
        anyhow::Ok(said.trim().to_owned())
    };
    ensure!(field("Version")? == version, "{} is of version {}", package.display(), field("Version")?);
    let listed = run::stdout(Command::new("dpkg-deb").arg("--contents").arg(package))?;
    for line in listed.lines() {
        plain(line)?;
    }
    let mut lintian = Command::new("lintian");
    // Warnings too. What is not to be changed is named, with the reason, in `packaging/lint/lintian-overrides`.
    lintian.args(["--allow-root", "--pedantic", "--fail-on=error,warning,pedantic", "--tag-display-limit=0"]);
    run::quiet(lintian.arg(package)).map(drop)
}

/// They begin, and the daemon carries the kernel program that is committed, which is the same for every architecture.
fn programs(package: &Path, version: &str) -> Result<()> {
    let arch = run::stdout(Command::new("dpkg-deb").arg("--field").arg(package).arg("Architecture"))?;
    let arch = Arch::of_debian(arch.trim()).with_context(|| format!("an architecture called {arch}"))?;
    let tree = repo::target_dir().join("dist-work").join("check");
    super::fresh(&tree)?;
    debian::unpack(package, &tree)?;
    let found = Programs::found(arch, &tree.join("usr/bin"))?;
    let object = fs::read(repo::root().join(ebpf::OBJECT)).context("the kernel program")?;
    let daemon = fs::read(found.directory.join("faasd"))?;
    ensure!(
        daemon.windows(object.len()).any(|part| part == object),
        "faasd has another kernel program in it"
    );
    match runner(arch) {
        Some(runner) => {
            for name in NAMES {
                let mut program = Command::new(runner[0]);
                program.args(&runner[1..]).arg(found.directory.join(name)).arg("--version");
                let said = run::stdout(&mut program)?;
                ensure!(said.trim() == format!("{name} {version}"), "{name} --version says {said:?}");
            }
        }
        None => println!("dist: nothing here runs programs for {}: not tried", arch.debian()),
    }
    fs::remove_dir_all(&tree).with_context(|| format!("removing {}", tree.display()))
}

/// What runs programs of that architecture here: nothing before them, an emulator with Debian's libraries for it, or `None`.
fn runner(arch: Arch) -> Option<&'static [&'static str]> {
    const EMULATED: [&str; 3] = ["qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu"];
    if arch.is_ours() {
        return Some(&["env"]);
    }
    let is_here = arch == Arch::Arm64 && run::which(EMULATED[0]).is_some() && Path::new(EMULATED[2]).is_dir();
    is_here.then_some(&EMULATED)
}

fn redhat(package: &Path, version: &str) -> Result<()> {
    let query = ["-qp", "--queryformat", "%{VERSION}-%{RELEASE}", "--nosignature"];
    let said = run::stdout(Command::new("rpm").args(query).arg(package))?;
    ensure!(said == format!("{version}-1"), "{} is of version {said}", package.display());
    let listed = run::stdout(Command::new("rpm").args(["-qplv", "--nosignature"]).arg(package))?;
    for line in listed.lines() {
        plain(line)?;
    }
    let mut rpmlint = Command::new("rpmlint");
    rpmlint.arg("--config").arg(repo::root().join("packaging/lint/rpmlint.toml"));
    run::quiet(rpmlint.arg(package)).map(drop)
}

/// A line of `tar tv` or `ls -l`: root's, not anyone's to write, and with nobody's rights.
fn plain(line: &str) -> Result<()> {
    let mut words = line.split_whitespace();
    let mode = words.next().context("an empty line in a list of files")?;
    let writable = |at| mode.as_bytes().get(at) == Some(&b'w');
    if !mode.starts_with('l') && (writable(5) || writable(8) || mode.contains(['s', 't'])) {
        bail!("a file's mode is {mode}: {line}");
    }
    // `tar` writes them as one word, `rpm` as two after a count of links.
    let owners: Vec<&str> = words.take(3).collect();
    let is_roots = matches!(owners.as_slice(), ["root/root" | "0/0", ..] | [_, "root", "root"]);
    ensure!(is_roots, "a file is not root's: {line}");
    Ok(())
}

fn files(directory: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Refuses to write among files that are not a release's.
pub fn is_ours(release: &Release) -> Result<()> {
    for entry in fs::read_dir(&release.out)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !is_of_a_release(&name) {
            bail!(
                "{} has {name} in it, which is of no release: choose an empty directory",
                release.out.display()
            );
        }
    }
    Ok(())
}

fn is_of_a_release(name: &str) -> bool {
    name.starts_with("faasd") || name.starts_with("SHA256SUMS") || name == "install.sh"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_others_and_with_rights_are_noticed() {
        for good in [
            "-rwxr-xr-x root/root  1 2026-01-01 00:00 ./usr/bin/faasd",
            "drwxr-xr-x root/root  0 2026-01-01 00:00 ./etc/",
            "-rw-r--r-- 0/0        1 2026-01-01 00:00 ./a",
            "lrwxrwxrwx root/root  0 2026-01-01 00:00 ./a -> b",
            "-rw-r--r--    1 root     root    1684 Jan  1  2026 /etc/faasd/faasd.toml",
        ] {
            plain(good).unwrap();
        }
        for bad in [
            "-rwsr-xr-x root/root  1 2026-01-01 00:00 ./usr/bin/faasd",
            "-rw-rw-r-- root/root  1 2026-01-01 00:00 ./a",
            "-rw-r--rw- root/root  1 2026-01-01 00:00 ./a",
            "-rw-r--r-- 1000/1000  1 2026-01-01 00:00 ./a",
            "",
        ] {
            assert!(plain(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_directory_of_something_else_is_told() {
        for name in ["faasd_0.1.0_amd64.deb", "SHA256SUMS.asc", "install.sh"] {
            assert!(is_of_a_release(name));
        }
        assert!(!is_of_a_release("thesis.tex"));
    }
}
