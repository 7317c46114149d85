//! Tools that cargo installs from source, into the project's own build directory: nothing in the user's home is
//! changed, and `target/` gone is everything gone.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{repo, run};

/// A program from crates.io, at one version.
#[derive(Debug)]
pub struct Tool {
    pub name: &'static str,
    pub version: &'static str,
    pub why: &'static str,
    /// Whether it is measured: then it is built as it is shipped.
    pub measured: bool,
}

/// 0.10.4 opens the LLVM 22 that comes with Rust 1.95; later ones want an LLVM installed apart.
pub const BPF_LINKER: Tool =
    Tool { name: "bpf-linker", version: "0.10.4", why: "links the kernel program", measured: false };

pub const CARGO_DENY: Tool = Tool {
    name: "cargo-deny",
    version: "0.20.2",
    why: "checks the licences and origins of dependencies",
    measured: false,
};

pub const BORINGTUN: Tool =
    Tool { name: "boringtun-cli", version: "0.7.1", why: "is a tunnel to compare with", measured: true };

pub const CARGO_AUDITABLE: Tool = Tool {
    name: "cargo-auditable",
    version: "0.7.7",
    why: "writes into programs what they are made of",
    measured: false,
};

pub const CARGO_CYCLONEDX: Tool = Tool {
    name: "cargo-cyclonedx",
    version: "0.5.9",
    why: "writes the bill of materials of a release",
    measured: false,
};

impl Tool {
    /// Where this version is: in the PATH, or installed earlier by us.
    pub fn find(&self) -> Option<PathBuf> {
        let ours = directory().join("bin").join(self.name);
        if ours.is_file() && self.is_listed() {
            return Some(ours);
        }
        let theirs = run::which(self.name);
        [Some(ours), theirs].into_iter().flatten().find(|program| self.is_right(program))
    }

    /// cargo's own list of what it has installed: subcommands of cargo need not say their version.
    fn is_listed(&self) -> bool {
        let list = std::fs::read_to_string(directory().join(".crates.toml")).unwrap_or_default();
        list.contains(&format!("\"{} {} (", self.name, self.version))
    }

    fn is_right(&self, program: &PathBuf) -> bool {
        let output = Command::new(program).arg("--version").output();
        output.is_ok_and(|output| {
            let said = String::from_utf8_lossy(&output.stdout);
            output.status.success() && said.split_whitespace().nth(1) == Some(self.version)
        })
    }

    /// Builds and installs it. Speed of the tool matters less than that of its build, unless it is measured.
    pub fn install(&self) -> Result<()> {
        let root = directory();
        let build = root.join("build");
        let mut command = repo::cargo();
        command.args(["install", self.name, "--version", self.version, "--locked", "--force", "--quiet"]);
        command.arg("--root").arg(&root);
        command.env("CARGO_TARGET_DIR", &build);
        let quickly = [
            ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"),
            ("CARGO_PROFILE_RELEASE_DEBUG", "0"),
            ("CARGO_PROFILE_RELEASE_LTO", "off"),
            ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
        ];
        if !self.measured {
            command.envs(quickly);
        }
        run::quiet(&mut command)?;
        // Hundreds of megabytes that nothing reads again.
        std::fs::remove_dir_all(&build).with_context(|| format!("removing {}", build.display()))
    }

    /// The program, or an error that says how to get it.
    pub fn require(&self) -> Result<PathBuf> {
        self.find()
            .with_context(|| format!("{} {} is missing: run `cargo xtask setup`", self.name, self.version))
    }
}

/// The PATH with the directory of `program` first.
pub fn path_with(program: &std::path::Path) -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let first = program.parent().map(PathBuf::from);
    env::join_paths(first.into_iter().chain(env::split_paths(&path))).context("a PATH for the tool")
}

/// What is installed for the project is below it.
pub fn directory() -> PathBuf {
    repo::target_dir().join("tools")
}
