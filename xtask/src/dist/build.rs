//! The programs as they are distributed: linked by zig against glibc 2.28 whatever this machine has, with the list of
//! what is in them (cargo-auditable), and with no path of this machine.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::arch::Arch;
use super::{Release, debian, set_mode};
use crate::report::step;
use crate::tools::{self, CARGO_AUDITABLE};
use crate::{packages, repo, run};

/// The oldest that is supported: Debian 10, Ubuntu 20.04, RHEL 8.
pub const GLIBC: &str = "2.28";

pub const NAMES: [&str; 2] = ["faasd", "faas"];

/// The two programs for one architecture, in one directory.
#[derive(Clone, Debug)]
pub struct Programs {
    pub arch: Arch,
    pub directory: PathBuf,
}

impl Programs {
    /// Those of an earlier run, or of another machine.
    pub fn found(arch: Arch, directory: &Path) -> Result<Self> {
        for name in NAMES {
            let file = directory.join(name);
            let head = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
            if machine(&head) != Some(arch) {
                bail!("{} is no program for {}", file.display(), arch.debian());
            }
        }
        Ok(Self { arch, directory: directory.to_owned() })
    }

    pub fn copy_to(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        for name in NAMES {
            let to = directory.join(name);
            fs::copy(self.directory.join(name), &to).with_context(|| format!("writing {}", to.display()))?;
            set_mode(&to, 0o755)?;
        }
        Ok(())
    }
}

/// What an ELF file is for, by its header.
fn machine(head: &[u8]) -> Option<Arch> {
    match (head.get(..4)?, head.get(18..20)?) {
        ([0x7f, b'E', b'L', b'F'], [62, 0]) => Some(Arch::Amd64),
        ([0x7f, b'E', b'L', b'F'], [183, 0]) => Some(Arch::Arm64),
        _ => None,
    }
}

/// Builds them.
pub fn programs(release: &Release, arch: Arch) -> Result<Programs> {
    let toolchain = Toolchain::find(release, arch)?;
    let what = format!("programs for {} (some ten minutes the first time)", arch.debian());
    step("dist", &what, || run::run(&mut command(arch, &toolchain)?))?;
    let directory = target_dir().join(arch.target()).join("dist");
    Programs::found(arch, &directory)
}

/// Its own: another compiler and other flags than everything else here is built with.
fn target_dir() -> PathBuf {
    repo::target_dir().join("dist-build")
}

fn command(arch: Arch, toolchain: &Toolchain) -> Result<Command> {
    let auditable = CARGO_AUDITABLE.require()?;
    let tools = packages::dist_directory();
    let mut cargo = repo::cargo();
    cargo.args(["zigbuild", "--quiet", "--locked", "--profile", "dist", "-p", "faasd"]);
    cargo.args(NAMES.iter().flat_map(|name| ["--bin", *name]));
    cargo.args(["--target", &format!("{}.{GLIBC}", arch.target())]);
    let path = tools::path_with(&auditable)?;
    let first = [tools.join("bin")].into_iter();
    cargo.env("PATH", env::join_paths(first.chain(env::split_paths(&path)))?);
    // As `cargo auditable` would run it, but by its name: cargo mixes the wrapper's path into the names of our symbols, and so
    // would have programs depend on where the tools are.
    cargo.env("RUSTC_WORKSPACE_WRAPPER", CARGO_AUDITABLE.name);
    cargo.env("CARGO_AUDITABLE_ORIG_ARGS", r#"{"offline":false,"locked":true,"frozen":false,"config":[]}"#);
    cargo.env("CARGO_ZIGBUILD_ZIG_PATH", tools.join("ziglang/zig"));
    cargo.env("CARGO_TARGET_DIR", target_dir());
    cargo.env("CARGO_INCREMENTAL", "0");
    // Programs carry no date: what cargo has kept of an earlier commit would carry that one's.
    cargo.env("SOURCE_DATE_EPOCH", "0");
    let renamed = renamed()?;
    let flags = renamed.iter().map(|rename| format!("--remap-path-prefix={rename}"));
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.collect::<Vec<_>>().join("\x1f"));
    // Libraries in C name their files in errors.
    let flags = renamed.iter().map(|rename| format!("-ffile-prefix-map={rename}"));
    let flags = flags.chain(["-g0".to_owned()]).collect::<Vec<_>>().join(" ");
    cargo.env(format!("CFLAGS_{}", arch.target().replace('-', "_")), flags);
    for name in ["RUSTFLAGS", "CARGO_BUILD_RUSTFLAGS"] {
        cargo.env_remove(name);
    }
    cargo.envs(toolchain.0.iter().map(|(name, value)| (*name, value)));
    Ok(cargo)
}

/// Paths of this machine, and what stands for them.
fn renamed() -> Result<[String; 3]> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    let home = home.context("neither CARGO_HOME nor HOME says where cargo keeps sources")?;
    // The last one that fits is taken, and the build directory is most often within the checkout.
    Ok([
        format!("{}=/cargo", home.display()),
        format!("{}=/faasd", repo::root().display()),
        format!("{}=/target", target_dir().display()),
    ])
}

/// Variables that choose a compiler other than cargo's own.
struct Toolchain(Vec<(&'static str, OsString)>);

impl Toolchain {
    /// cargo's own compiler, if the standard library for the target is there (`rustup target add`); else Debian's, whose
    /// archive has that library for each of its architectures.
    fn find(release: &Release, arch: Arch) -> Result<Self> {
        let libraries =
            run::stdout(repo::rustc().args(["--print", "target-libdir", "--target", arch.target()]))?;
        if Path::new(libraries.trim()).is_dir() {
            return Ok(Self(Vec::new()));
        }
        let by_hand =
            || format!("the standard library for {0} is missing: `rustup target add {0}`", arch.target());
        let root = debian::compiler(release, arch).with_context(by_hand)?;
        let library_path = root.join("usr/lib").join(format!("{}-linux-gnu", env::consts::ARCH));
        Ok(Self(vec![
            ("RUSTC", root.join("usr/bin/rustc").into_os_string()),
            ("LD_LIBRARY_PATH", library_path.into_os_string()),
        ]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_apart_by_their_machine() {
        let mut head = [0; 64];
        head[..4].copy_from_slice(b"\x7fELF");
        for (number, arch) in [(62, Some(Arch::Amd64)), (183, Some(Arch::Arm64)), (243, None)] {
            head[18] = number;
            assert_eq!(machine(&head), arch);
        }
        assert_eq!(machine(b"#!/bin/sh\nexec faasd-of-somebody"), None);
        let ours = fs::read(env::current_exe().unwrap()).unwrap();
        assert!(machine(&ours).is_some_and(Arch::is_ours));
    }
}
