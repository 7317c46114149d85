//! `cargo xtask dist`: the whole release, in one directory (`docs/RELEASING.md`). The same commit and tools give the same
//! bytes, except for signatures by another key.

mod airgap;
mod arch;
mod build;
mod changelog;
mod check;
mod debian;
mod licences;
mod nfpm;
mod sbom;
mod sign;
mod stage;
mod tarball;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::openpgp::Key;
use crate::report::step;
use crate::setup::{self, Scope};
use crate::{publish, repo, run};
use arch::Arch;
pub use sign::{KEYRING, SUMS, directory as sign};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the release goes: a new or an empty directory, or one of an earlier run
    #[arg(long, value_name = "DIR", required_unless_present = "check")]
    out: Option<PathBuf>,
    /// For what machines
    #[arg(long, value_name = "ARCH", default_value = "all")]
    arch: Archs,
    /// Package these programs instead of building any: DIR/amd64/{faasd,faas} and DIR/arm64/{faasd,faas}
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
    /// Build the programs alone, into a directory that --binaries takes
    #[arg(long, conflicts_with_all = ["binaries", "no_airgap"])]
    only_binaries: bool,
    /// Leave out the tarballs for machines without a network, which take Debian's packages to make
    #[arg(long)]
    no_airgap: bool,
    /// Make nothing: check a release that is there
    #[arg(long, value_name = "DIR", conflicts_with_all = ["out", "binaries", "only_binaries", "no_airgap"])]
    check: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Archs {
    Amd64,
    Arm64,
    All,
}

impl Archs {
    const fn list(self) -> &'static [Arch] {
        match self {
            Self::Amd64 => &[Arch::Amd64],
            Self::Arm64 => &[Arch::Arm64],
            Self::All => &[Arch::Amd64, Arch::Arm64],
        }
    }
}

/// What is released.
#[derive(Debug)]
pub struct Release {
    version: String,
    /// The time of everything in it, in seconds since 1970: `SOURCE_DATE_EPOCH`, or the commit's.
    epoch: u64,
    out: PathBuf,
    /// Where things are made.
    work: PathBuf,
}

impl Release {
    fn file(&self, name: &str) -> PathBuf {
        self.out.join(name)
    }

    fn deb(&self, arch: Arch) -> PathBuf {
        self.file(&format!("faasd_{}_{}.deb", self.version, arch.debian()))
    }

    fn rpm(&self, arch: Arch) -> PathBuf {
        self.file(&format!("faasd-{}-1.{}.rpm", self.version, arch.machine()))
    }

    fn tarball(&self, arch: Arch) -> PathBuf {
        self.file(&format!("faasd-{}-{}-linux.tar.gz", self.version, arch.machine()))
    }

    fn airgap(&self, arch: Arch) -> PathBuf {
        self.file(&format!("faasd-{}-airgap-{}.tar.gz", self.version, arch.debian()))
    }

    fn source(&self) -> PathBuf {
        self.file(&format!("faasd-{}.tar.gz", self.version))
    }

    fn sbom(&self) -> PathBuf {
        self.file(&format!("faasd-{}.cdx.json", self.version))
    }
}

pub fn main(args: &Args) -> Result<()> {
    setup::ensure(Scope::Dist)?;
    if let Some(directory) = &args.check {
        return check::main(directory, &version()?);
    }
    let out = args.out.as_deref().context("--out says where the release goes")?;
    let out = absolute(out)?;
    let archs = args.arch.list();
    let release =
        Release { version: version()?, epoch: epoch()?, out, work: repo::target_dir().join("dist-work") };
    if is_dirty()? {
        println!(
            "dist: the checkout has changes that are not committed: this is no release, and the source tarball lacks them"
        );
    }
    fs::create_dir_all(&release.out).with_context(|| format!("making {}", release.out.display()))?;
    if args.only_binaries {
        for &arch in archs {
            let built = build::programs(&release, arch)?;
            built.copy_to(&release.out.join(arch.debian()))?;
        }
        return Ok(());
    }
    check::is_ours(&release)?;
    make(&release, archs, args)
}

fn make(release: &Release, archs: &[Arch], args: &Args) -> Result<()> {
    let mut programs = Vec::new();
    for &arch in archs {
        let found = match &args.binaries {
            Some(directory) => build::Programs::found(arch, &absolute(directory)?.join(arch.debian()))?,
            None => build::programs(release, arch)?,
        };
        programs.push(found);
    }
    let key = Key::open_or_make()?.signing_at(release.epoch);
    let stage = step("dist", "manual, completions, licences", || stage::Stage::make(release, &programs))?;
    for programs in &programs {
        let arch = programs.arch;
        step("dist", &format!("packages for {}", arch.debian()), || {
            let tree = stage.with(programs)?;
            nfpm::deb(release, &tree, arch)?;
            nfpm::rpm(release, &tree, arch)?;
            key.sign_rpm(&release.rpm(arch))?;
            tarball::binaries(release, &tree, arch)
        })?;
    }
    step("dist", "sources", || tarball::sources(release))?;
    step("dist", "bill of materials", || sbom::write(release))?;
    for (file, armor) in KEYRING.into_iter().zip([false, true]) {
        key.export(&release.file(file), armor)?;
    }
    install_script(release, &key.fingerprint)?;
    if !args.no_airgap {
        for &arch in archs {
            step("dist", &format!("everything for {} without a network", arch.debian()), || {
                airgap::make(release, &key, arch)
            })?;
        }
    }
    step("dist", "checksums and their signature", || sign(&key, &release.out))?;
    check::main(&release.out, &release.version)?;
    println!("dist: {}", release.out.display());
    Ok(())
}

/// `packaging/install.sh`, which a release carries beside the files that it installs, told whose signature counts.
fn install_script(release: &Release, fingerprint: &str) -> Result<()> {
    let to = release.file("install.sh");
    let text =
        fs::read_to_string(repo::root().join("packaging/install.sh")).context("packaging/install.sh")?;
    let text = publish::stamp(&text, &[fingerprint.to_owned()], &release.version, publish::URL)?;
    fs::write(&to, text).with_context(|| format!("writing {}", to.display()))?;
    set_mode(&to, 0o755)
}

/// That of every crate of the workspace.
fn version() -> Result<String> {
    Ok(env!("CARGO_PKG_VERSION").to_owned())
}

fn epoch() -> Result<u64> {
    if let Some(text) = env::var_os("SOURCE_DATE_EPOCH") {
        let text = text.to_string_lossy().into_owned();
        return text
            .parse()
            .with_context(|| format!("SOURCE_DATE_EPOCH is '{text}', which is no time in seconds"));
    }
    let time =
        run::stdout(git().args(["log", "-1", "--format=%ct"])).context("the time of the last commit")?;
    time.trim().parse().with_context(|| format!("git says that the last commit is of '{}'", time.trim()))
}

fn is_dirty() -> Result<bool> {
    Ok(!run::stdout(git().args(["status", "--porcelain"]))?.trim().is_empty())
}

/// In CI the checkout is often another user's.
fn git() -> Command {
    let mut git = Command::new("git");
    git.args(["-c", "safe.directory=*"]).current_dir(repo::root());
    git
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("where {} is", path.display()))
}

fn set_mode(file: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(file, fs::Permissions::from_mode(mode))
        .with_context(|| format!("setting the mode of {}", file.display()))
}

/// An empty directory.
fn fresh(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("removing {}", directory.display()))?;
    }
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))
}

fn name(file: &Path) -> Result<&str> {
    match file.file_name().and_then(|name| name.to_str()) {
        Some(name) => Ok(name),
        None => bail!("{} has no name in UTF-8", file.display()),
    }
}
