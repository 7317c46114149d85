//! `cargo xtask channels`: a release installed as people install it, each time into a fresh system with a network of its own,
//! and refused where it is to be refused.

mod base;
mod share;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::report::step;
use crate::setup::{self, Scope};
use crate::{interrupt, lock, repo, root, run};
use base::{BOOKWORM, Debian, TRIXIE};

/// A case takes no longer, nor on a machine that does much else.
const CASE_MAX: Duration = Duration::from_secs(600);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The release: what `cargo xtask dist --out DIR` has made
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// On Debian 13 alone, not on 12 as well
    #[arg(long)]
    quick: bool,
    /// Only cases whose name contains this
    filter: Option<String>,
}

/// What is tried, and whether on each system or once.
struct Case {
    name: &'static str,
    text: &'static str,
    each: bool,
}

const fn case(name: &'static str, text: &'static str) -> Case {
    Case { name, text, each: true }
}

const CASES: &[Case] = &[
    case("apt", include_str!("cases/apt.sh")),
    case("script", include_str!("cases/script.sh")),
    case("offline", include_str!("cases/offline.sh")),
    case("upgrade", include_str!("cases/upgrade.sh")),
    case("refused", include_str!("cases/refused.sh")),
    case("repository", include_str!("cases/repository.sh")),
    case("files", include_str!("cases/files.sh")),
    Case { name: "dnf", text: include_str!("cases/dnf.sh"), each: false },
];

const LIB: &str = include_str!("cases/lib.sh");
const ENTER: &str = include_str!("enter.sh");

pub fn main(args: &Args) -> Result<()> {
    let start = Instant::now();
    setup::ensure(Scope::Channels)?;
    if !root::is_root() {
        bail!("this makes and mounts whole systems: run it as root");
    }
    let wanted = |case: &&Case| args.filter.as_deref().is_none_or(|part| case.name.contains(part));
    let cases: Vec<&Case> = CASES.iter().filter(wanted).collect();
    if cases.is_empty() {
        let names: Vec<&str> = CASES.iter().map(|case| case.name).collect();
        bail!("no case has that in its name; there are {}", names.join(", "));
    }
    let _alone = lock::hold(&directory().join("lock"), "channels")?;
    interrupt::catch()?;
    lint()?;
    let share = share::make(&args.from)?;
    let systems: &[Debian] = if args.quick { &[TRIXIE] } else { &[TRIXIE, BOOKWORM] };
    let mut failed = Vec::new();
    for (index, system) in systems.iter().enumerate() {
        let base = system.ready()?;
        for case in cases.iter().filter(|case| case.each || index == 0) {
            interrupt::check()?;
            let what = format!("{} on {}", case.name, system.name);
            if let Err(error) = step("channels", &what, || run_case(case, &base, &share)) {
                println!("{error:#}");
                failed.push(what);
            }
        }
    }
    remove_tree(&share)?;
    println!("channels: finished after {:.0} s", start.elapsed().as_secs_f64());
    if !failed.is_empty() {
        bail!("channels failed: {}", failed.join(", "));
    }
    Ok(())
}

fn run_case(case: &Case, base: &Path, share: &Path) -> Result<()> {
    let scratch = directory().join("scratch");
    remove_tree(&scratch)?;
    let scripts = scratch.join("scripts");
    fs::create_dir_all(&scripts)?;
    let file = scripts.join(format!("{}.sh", case.name));
    fs::write(&file, case.text)?;
    fs::write(scripts.join("lib.sh"), LIB)?;
    let enter = scripts.join("enter.sh");
    fs::write(&enter, ENTER)?;
    let output = scratch.join("output");
    let writer = File::create(&output)?;

    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child", "sh"]);
    unshare.arg(&enter).arg(base).arg(&scratch).arg(share).arg(&file);
    unshare.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = unshare.spawn().with_context(|| format!("cannot run `{}`", run::line(&unshare)))?;
    let ended = run::wait_for(&format!("the case {}", case.name), CASE_MAX, || {
        interrupt::check()?;
        Ok(child.try_wait()?)
    });
    // All that is in its namespaces ends with it.
    if ended.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let done =
        ended.and_then(|status| if status.success() { Ok(()) } else { bail!("it ended with {status}") });
    let said = String::from_utf8_lossy(&fs::read(&output)?).into_owned();
    remove_tree(&scratch)?;
    done.with_context(|| run::tail(said.trim_end(), 40))
}

/// install.sh, and what tries it.
fn lint() -> Result<()> {
    let cases = repo::root().join("xtask/src/channels");
    let mut shellcheck = Command::new("shellcheck");
    // The cases are read by a shell that has read lib.sh.
    shellcheck.args(["--exclude=SC1091,SC2154"]).arg(repo::root().join("packaging/install.sh"));
    shellcheck.arg(cases.join("enter.sh")).arg(cases.join("cases/lib.sh"));
    shellcheck.args(CASES.iter().map(|case| cases.join(format!("cases/{}.sh", case.name))));
    step("channels", "shellcheck", || run::quiet(&mut shellcheck).map(drop))
}

/// Removes what may be root's, and nothing that is mounted in it.
fn remove_tree(tree: &Path) -> Result<()> {
    if !tree.exists() {
        return Ok(());
    }
    run::quiet(Command::new("rm").args(["-rf", "--one-file-system", "--"]).arg(tree)).map(drop)
}

/// Systems, and what they are offered.
fn directory() -> PathBuf {
    repo::target_dir().join("channels")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_is_in_the_list_once() {
        let mut files: Vec<String> = fs::read_dir(repo::root().join("xtask/src/channels/cases"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "lib.sh")
            .collect();
        let mut names: Vec<String> = CASES.iter().map(|case| format!("{}.sh", case.name)).collect();
        files.sort();
        names.sort();
        assert_eq!(files, names);
    }
}
