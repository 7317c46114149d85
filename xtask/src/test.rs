//! `cargo xtask test`: builds once, runs everything, and ends with one line that counts it all.

pub mod libtest;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::setup::{self, Scope};
use crate::{repo, root, run};
use libtest::{Outcome, Tally};

/// Tests that need root say so in this reason.
const NEEDS_ROOT: &str = "needs root";
/// The package whose test drives the whole platform.
const END_TO_END: &str = "faasd-tests";
/// No test program takes longer, or it hangs.
const PROGRAM_MAX: Duration = Duration::from_secs(15 * 60);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only what needs neither root nor the platform
    #[arg(long)]
    quick: bool,
    /// Only tests whose name contains this
    filter: Option<String>,
}

/// A test program that cargo built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// `faasd (lib)`.
    pub name: String,
    pub package: String,
    pub path: PathBuf,
    pub directory: PathBuf,
}

pub fn main(args: &Args) -> Result<()> {
    let start = Instant::now();
    if !args.quick {
        setup::ensure(Scope::Test)?;
        // Asked now, so that nobody waits minutes to hear it.
        root::command("true", &[])?;
    }
    let programs = build("test", &["--workspace"], &["--workspace"])?;
    let filter: Vec<&str> = args.filter.as_deref().into_iter().collect();
    let mut all = Tally::default();

    let (platform, crates): (Vec<_>, Vec<_>) =
        programs.iter().partition(|program| program.package == END_TO_END);
    let mut privileged = Vec::new();
    for (index, program) in crates.iter().enumerate() {
        let title = format!("[{}/{}] {}", index + 1, crates.len(), program.name);
        let outcome = run_program(&title, program, &filter, false, false)?;
        let wanted = outcome.ignored_because(NEEDS_ROOT);
        all.add(&outcome.tally);
        if !args.quick && !wanted.is_empty() {
            // They are run below, and so not skipped.
            all.skipped -= wanted.len().min(all.skipped);
            privileged.push((*program, wanted));
        }
    }
    for (program, tests) in &privileged {
        let mut arguments = vec!["--ignored", "--exact"];
        arguments.extend(tests.iter().map(String::as_str));
        let title = format!("{}: {} tests as root", program.name, tests.len());
        all.add(&run_program(&title, program, &arguments, true, true)?.tally);
    }
    if args.quick {
        println!("test: the platform from end to end: left out by --quick");
    } else {
        for program in platform {
            all.add(
                &run_program(&format!("{} (as root)", program.name), program, &filter, true, true)?.tally,
            );
        }
    }
    all.add(&doc_tests(&filter)?);

    println!("test: finished after {:.0} s", start.elapsed().as_secs_f64());
    println!("{} passed, {} failed, {} skipped", all.passed, all.failed, all.skipped);
    if all.failed > 0 {
        bail!("{} tests failed", all.failed);
    }
    if all.passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

/// Builds the programs and the test programs of these crates and targets, and says where the latter are.
pub fn build(task: &str, programs_of: &[&str], tests_of: &[&str]) -> Result<Vec<Program>> {
    println!("{task}: building …");
    let start = Instant::now();
    run::run(repo::cargo().arg("build").args(programs_of).args(["--bins", "--locked", "--quiet"]))?;
    let mut cargo = repo::cargo();
    cargo.arg("test").args(tests_of).args([
        "--no-run",
        "--locked",
        "--message-format=json-render-diagnostics",
        "--quiet",
    ]);
    cargo.stderr(std::process::Stdio::inherit());
    let messages = run::stdout(&mut cargo)?;
    let programs = programs(&messages)?;
    println!("{task}: built {} test programs in {:.1} s", programs.len(), start.elapsed().as_secs_f64());
    Ok(programs)
}

/// Reads cargo's messages, one JSON object a line.
fn programs(messages: &str) -> Result<Vec<Program>> {
    let mut programs = Vec::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: serde_json::Value = serde_json::from_str(line).context("a message of cargo")?;
        let text = |pointer: &str| message.pointer(pointer).and_then(serde_json::Value::as_str);
        let is_test = message.pointer("/profile/test") == Some(&serde_json::Value::Bool(true));
        let (Some(path), true) = (text("/executable"), is_test) else { continue };
        let manifest = PathBuf::from(text("/manifest_path").context("cargo names no manifest")?);
        let directory = manifest.parent().context("a manifest is in a directory")?.to_owned();
        let package = text("/package_id").and_then(package_name).context("cargo names no package")?;
        let target = text("/target/name").unwrap_or_default();
        let kind = text("/target/kind/0").unwrap_or_default();
        let name =
            if kind == "lib" { format!("{package} (lib)") } else { format!("{package} {target} ({kind})") };
        programs.push(Program { name, package: package.to_owned(), path: path.into(), directory });
    }
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(programs)
}

/// The name in `path+file:///x/tests#faasd-tests@0.1.0` or `path+file:///x/faasd#0.1.0`.
fn package_name(id: &str) -> Option<&str> {
    let (path, fragment) = id.split_once('#')?;
    match fragment.split_once('@') {
        Some((name, _)) => Some(name),
        None => path.rsplit('/').next(),
    }
}

fn run_program(
    title: &str,
    program: &Program,
    arguments: &[&str],
    as_root: bool,
    live: bool,
) -> Result<Outcome> {
    let binaries =
        program.path.parent().and_then(|deps| deps.parent()).context("a test program is in deps/")?;
    let manifest = program.directory.as_os_str();
    // What cargo sets for a test program, and where the daemon and the client are.
    let variables = [("CARGO_MANIFEST_DIR", manifest), ("FAASD_BIN_DIR", binaries.as_os_str())];
    let mut command = if as_root {
        root::command(&program.path, &variables)?
    } else {
        let mut command = std::process::Command::new(&program.path);
        command.envs(variables);
        command
    };
    command.current_dir(&program.directory).args(arguments);
    libtest::run(title, &mut command, PROGRAM_MAX, live)
}

fn doc_tests(filter: &[&str]) -> Result<Tally> {
    let mut cargo = repo::cargo();
    cargo.args(["test", "--workspace", "--doc", "--locked", "--quiet", "--"]).args(filter);
    Ok(libtest::run("examples in the documentation", &mut cargo, PROGRAM_MAX, false)?.tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_read_from_cargo() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","package_id":"path+file:///x/faasd#0.1.0","manifest_path":"/x/faasd/Cargo.toml","target":{"kind":["lib"],"name":"faasd"},"profile":{"test":true},"executable":"/t/debug/deps/faasd-1"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","package_id":"path+file:///x/faasd#0.1.0","manifest_path":"/x/faasd/Cargo.toml","target":{"kind":["bin"],"name":"faas"},"profile":{"test":false},"executable":"/t/debug/faas"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","package_id":"path+file:///x/tests#faasd-tests@0.1.0","manifest_path":"/x/tests/Cargo.toml","target":{"kind":["test"],"name":"platform"},"profile":{"test":true},"executable":"/t/debug/deps/platform-2"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        let programs = programs(messages).unwrap();
        let names: Vec<&str> = programs.iter().map(|program| program.name.as_str()).collect();
        assert_eq!(names, ["faasd (lib)", "faasd-tests platform (test)"]);
        assert_eq!(programs[1].package, END_TO_END);
        assert_eq!(programs[1].directory, PathBuf::from("/x/tests"));
    }
}
