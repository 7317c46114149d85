//! `cargo xtask check`: everything that is checked without running the daemon.

use std::process::Command;

use anyhow::{Error, Result, bail};

use crate::report::step;
use crate::setup::{self, Scope};
use crate::{ebpf, repo, run, tidy, tools, workflows};

/// The workspace, and the kernel program's own.
const MANIFESTS: [&str; 2] = ["Cargo.toml", "faasd-ebpf/Cargo.toml"];

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
        check("alerts", &alerts);
        check("workflows", &workflows::main);
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

/// They are sound, and fire when they are to and only then.
fn alerts() -> Result<()> {
    for (verb, file) in
        [("check", "config prometheus.yml"), ("check", "rules rules.yml"), ("test", "rules rules_test.yml")]
    {
        let mut promtool = Command::new("promtool");
        // The rules' files are named beside each other.
        promtool.current_dir(repo::root().join("docs/observability"));
        run::quiet(promtool.arg(verb).args(file.split(' ')))?;
    }
    Ok(())
}

/// Licences, origins and bans always; known vulnerabilities where their database can be had.
fn dependencies() -> Result<()> {
    let deny = tools::CARGO_DENY.require()?;
    let path = tools::path_with(&deny)?;
    // Through cargo, so that it finds the same cargo as we do.
    let deny = |arguments: &[&str]| {
        let mut command = repo::cargo();
        command
            .env("PATH", &path)
            .args(["deny", "--config", "deny.toml", "--log-level", "warn"])
            .args(arguments);
        command
    };
    for manifest in MANIFESTS {
        let graph = ["--manifest-path", manifest, "--locked", "check", "--hide-inclusion-graph"];
        run::run(deny(&graph).args(["bans", "licenses", "sources"]))?;
    }
    if let Err(error) = run::quiet(&mut deny(&["fetch", "db"])) {
        println!(
            "check: known vulnerabilities: SKIPPED, their database cannot be fetched: {}",
            last_line(&error)
        );
        return Ok(());
    }
    for manifest in MANIFESTS {
        run::run(&mut deny(&[
            "--manifest-path",
            manifest,
            "--locked",
            "check",
            "--disable-fetch",
            "advisories",
        ]))?;
    }
    Ok(())
}

fn last_line(error: &Error) -> String {
    error.to_string().lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default().to_owned()
}
