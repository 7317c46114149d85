//! `cargo xtask check`: everything that is checked without running the daemon.

use anyhow::{Result, bail};

use crate::report::step;
use crate::setup::{self, Scope};
use crate::{ebpf, repo, run, tidy, tools};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Leave out what needs tools beyond rustup's: the kernel program and the dependencies
    #[arg(long)]
    quick: bool,
}

/// Every check runs, so that one run shows all that is wrong.
pub fn main(args: &Args) -> Result<()> {
    let mut failed = Vec::new();
    let mut check = |what: &'static str, work: &dyn Fn() -> Result<()>| {
        if let Err(error) = step("check", what, work) {
            println!("{error:#}");
            failed.push(what);
        }
    };
    check("formatting", &format);
    check("tidy", &tidy::main);
    check("clippy", &clippy);
    if !args.quick {
        setup::ensure(Scope::Build)?;
        check("kernel program", &|| ebpf::main(&ebpf::Args { check: true }));
        check("dependencies", &dependencies);
    }
    if failed.is_empty() {
        println!("check: all well");
        return Ok(());
    }
    bail!("check failed: {}", failed.join(", "))
}

fn format() -> Result<()> {
    run::run(repo::cargo().args(["fmt", "--all", "--check"]))?;
    run::run(repo::cargo().args(["fmt", "--manifest-path", "faasd-ebpf/Cargo.toml", "--check"]))
}

fn clippy() -> Result<()> {
    let mut cargo = repo::cargo();
    cargo.args(["clippy", "--quiet", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]);
    run::run(&mut cargo)
}

/// Licences, origins and bans always; known vulnerabilities where their database can be had.
fn dependencies() -> Result<()> {
    let deny = tools::CARGO_DENY.require()?;
    for manifest in ["Cargo.toml", "faasd-ebpf/Cargo.toml"] {
        let mut command = repo::cargo();
        // Through cargo's own name, so that it finds the same cargo as we do.
        command.env("PATH", tools::path_with(&deny)?);
        command.args(["deny", "--manifest-path", manifest, "--locked", "--log-level", "warn"]);
        command.args([
            "check",
            "--hide-inclusion-graph",
            "--config",
            "deny.toml",
            "bans",
            "licenses",
            "sources",
        ]);
        run::run(&mut command)?;
    }
    advisories(&deny)
}

fn advisories(deny: &std::path::Path) -> Result<()> {
    let mut fetch = repo::cargo();
    fetch.env("PATH", tools::path_with(deny)?).args(["deny", "fetch", "db"]);
    if let Err(error) = run::quiet(&mut fetch) {
        let text = error.to_string();
        let cause = text.lines().last().unwrap_or_default();
        println!("check: known vulnerabilities: SKIPPED, the advisory database cannot be fetched: {cause}");
        return Ok(());
    }
    for manifest in ["Cargo.toml", "faasd-ebpf/Cargo.toml"] {
        let mut command = repo::cargo();
        command.env("PATH", tools::path_with(deny)?);
        command.args([
            "deny",
            "--manifest-path",
            manifest,
            "--locked",
            "check",
            "--disable-fetch",
            "advisories",
        ]);
        run::run(&mut command)?;
    }
    Ok(())
}
