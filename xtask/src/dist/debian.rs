//! Packages of Debian, for an architecture that need not be this machine's. apt's own configuration and state are left
//! alone: sources and trusted keys are read, everything else is in a directory of ours.

use std::env::consts::ARCH;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::arch::Arch;
use super::{Release, fresh, name};
use crate::report::step;
use crate::{repo, run};

/// apt as it would run on a machine of that architecture with nothing installed.
#[derive(Debug)]
pub struct Archive {
    directory: PathBuf,
    arch: Arch,
}

impl Archive {
    /// Reads what the archive has today.
    pub fn open(directory: &Path, arch: Arch) -> Result<Self> {
        fresh(directory)?;
        let archive = Self { directory: directory.to_owned(), arch };
        for part in ["state/lists/partial", "cache/archives/partial", "debs"] {
            fs::create_dir_all(directory.join(part))?;
        }
        fs::write(directory.join("status"), "")?;
        run::quiet(archive.apt().arg("update")).context("reading Debian's archive")?;
        Ok(archive)
    }

    fn apt(&self) -> Command {
        let mut apt = Command::new("apt-get");
        let of = |name: &str, value: String| ["-o".to_owned(), format!("{name}={value}")];
        let path = |part: &str| self.directory.join(part).display().to_string();
        apt.arg("-qq");
        apt.args(of("Dir::State", path("state")));
        apt.args(of("Dir::State::status", path("status")));
        apt.args(of("Dir::Cache", path("cache")));
        apt.args(of("APT::Architecture", self.arch.debian().to_owned()));
        apt.args(of("APT::Architectures", self.arch.debian().to_owned()));
        apt.args(of("APT::Sandbox::User", "root".to_owned()));
        apt.args(of("Acquire::Languages", "none".to_owned()));
        apt.args(of("Acquire::Retries", "3".to_owned()));
        apt.args(of("Debug::NoLocking", "1".to_owned()));
        apt.current_dir(self.directory.join("debs"));
        apt
    }

    /// These packages alone.
    pub fn download(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        run::quiet(self.apt().arg("download").args(packages)).context("fetching packages of Debian")?;
        files(&self.directory.join("debs"))
    }

    /// These packages, and all that they depend on beyond what every Debian has.
    pub fn download_with_dependencies(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        let mut apt = self.apt();
        apt.args(["install", "-y", "--download-only", "--no-install-recommends"]).args(packages);
        run::quiet(&mut apt).context("fetching packages of Debian")?;
        let mut wanted = Vec::new();
        for file in files(&self.directory.join("cache/archives"))? {
            if field(&file, "Priority")? != "required" && field(&file, "Essential")? != "yes" {
                wanted.push(file);
            }
        }
        Ok(wanted)
    }
}

/// In the order of their names.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            found.push(path);
        }
    }
    found.sort();
    if found.is_empty() {
        bail!("apt-get fetched nothing into {}", directory.display());
    }
    Ok(found)
}

fn field(package: &Path, field: &str) -> Result<String> {
    let said = run::stdout(Command::new("dpkg-deb").arg("--field").arg(package).arg(field))?;
    Ok(said.trim().to_owned())
}

pub fn unpack(package: &Path, to: &Path) -> Result<()> {
    run::quiet(Command::new("dpkg-deb").arg("--extract").arg(package).arg(to)).map(drop)
}

const COMPILER: &str = "rustc-web";
const LIBRARY: &str = "libstd-rust-web-dev";

/// Debian's compiler with the standard library for another architecture beside that of this machine: a root whose
/// `usr/bin/rustc` has both. It is kept, and made anew when Debian has another version.
pub fn compiler(release: &Release, arch: Arch) -> Result<PathBuf> {
    let ours = if ARCH == Arch::Amd64.machine() { Arch::Amd64 } else { Arch::Arm64 };
    let root = repo::target_dir().join("tools").join(format!("rustc-{}", arch.debian()));
    let stamp = root.join("complete");
    if stamp.is_file() {
        return Ok(root);
    }
    fresh(&root)?;
    step("dist", &format!("Debian's compiler and its library for {}", arch.debian()), || {
        let scratch = release.work.join("compiler");
        for (arch, packages) in [(ours, &[COMPILER, LIBRARY][..]), (arch, &[LIBRARY])] {
            let archive = Archive::open(&scratch, arch)?;
            let mut fetched = archive.download(packages)?;
            if arch == ours {
                // The compiler itself is a library, in a package whose name has its version.
                let depends =
                    fetched.iter().map(|package| field(package, "Depends")).collect::<Result<Vec<_>>>()?;
                let mut named = depends.iter().flat_map(|list| list.split([',', ' '])).map(str::trim);
                let library = named.find(|name| name.starts_with("libstd-rust-web-1"));
                let library = library.context("Debian's compiler no longer says what library it needs")?;
                fetched = archive.download(&[library])?;
            }
            for package in fetched {
                unpack(&package, &root)
                    .with_context(|| format!("unpacking {}", name(&package).unwrap_or("")))?;
            }
        }
        fs::remove_dir_all(&scratch)?;
        fs::write(&stamp, "").context("marking the compiler as complete")
    })?;
    Ok(root)
}
