//! `cargo xtask bench --compare REV`: two commits' platforms side by side, interleaved in one run. Each lane of the one is
//! compared with the same lane of the other, and with itself once more, which shows what a ratio can mean.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::measure::{Target, command, deploy};
use super::platform::{Place, Platform};
use super::{Job, PROFILE, programs};
use crate::report::step;
use crate::{repo, run};

/// Programs of a commit: of `None`, those of what is checked out.
#[derive(Clone, Debug)]
pub struct Side {
    commit: String,
    programs: PathBuf,
}

/// What is compared, built: `REV` with what is checked out, or `REV..REV`.
pub fn build(range: &str) -> Result<[Side; 2]> {
    let (from, to) = range.split_once("..").unwrap_or((range, ""));
    let here = || -> Result<Side> {
        let status = git(&["status", "--porcelain", "--untracked-files=no"])?;
        let commit = git(&["rev-parse", "HEAD"])?;
        let commit = if status.is_empty() { commit } else { format!("{commit}-dirty") };
        Ok(Side { commit, programs: programs() })
    };
    Ok([built(from)?, if to.is_empty() { here()? } else { built(to)? }])
}

/// Builds a commit in a worktree. Its programs are kept. The target directory is not ours: cargo tells two checkouts of a
/// workspace apart by the age of their files alone, and would take the one's libraries for the other's.
fn built(revision: &str) -> Result<Side> {
    let commit = git(&["rev-parse", "--verify", &format!("{revision}^{{commit}}")])
        .with_context(|| format!("there is no commit `{revision}`"))?;
    let ours = repo::target_dir().join("compare");
    let (kept, target) = (ours.join(&commit), ours.join("build"));
    let side = Side { commit: commit.clone(), programs: kept.clone() };
    // Written last.
    if kept.join("faas").exists() {
        return Ok(side);
    }
    let tree = kept.join("tree");
    step("bench", &format!("building {commit}"), || {
        remove_tree(&tree)?;
        fs::create_dir_all(kept.join("examples"))?;
        git(&["worktree", "add", "--detach", &tree.to_string_lossy(), &commit])?;
        let mut cargo = repo::cargo();
        cargo.current_dir(&tree).args(["build", "--profile", PROFILE, "--locked", "--quiet"]);
        cargo.args(["-p", "faasd", "--bins", "-p", "faasd-sdk", "--example", "hello"]);
        cargo.env("CARGO_TARGET_DIR", &target);
        run::run(&mut cargo)?;
        for program in ["examples/hello", "faasd", "faas"] {
            let from = target.join(PROFILE).join(program);
            fs::copy(&from, kept.join(program)).with_context(|| format!("copying {}", from.display()))?;
        }
        remove_tree(&tree)
    })?;
    Ok(side)
}

fn remove_tree(tree: &Path) -> Result<()> {
    if tree.exists() {
        git(&["worktree", "remove", "--force", &tree.to_string_lossy()])?;
    }
    git(&["worktree", "prune"]).map(drop)
}

fn git(arguments: &[&str]) -> Result<String> {
    let mut git = Command::new("git");
    // As root the checkout is another user's.
    git.args(["-c", "safe.directory=*"]).args(arguments).current_dir(repo::root());
    Ok(run::stdout(&mut git)?.trim().to_owned())
}

/// Measures; the result is one entry of the comparisons.
pub fn run(job: &Job, sides: &[Side; 2], scenarios: &[String], title: Option<&str>) -> Result<Value> {
    let place = Place::here().of(sides[0].programs.clone());
    let first = Platform::start(place.clone())?;
    let second = Platform::start(place.beside().of(sides[1].programs.clone()))?;
    let measured = (|| {
        let before = deploy(&first.server())?;
        let mut targets: Vec<Target> = Vec::new();
        for (one, other) in before.iter().zip(deploy(&second.server())?) {
            let base = format!("{}-before", one.name);
            targets.push(one.against(&base, &base));
            targets.push(one.against(&format!("{}-control", one.name), &base));
            targets.push(other.against(&format!("{}-after", one.name), &base));
        }
        let mut arguments: Vec<OsString> =
            ["--subjects", "bare", "--chunk-ms", "100", "--rounds"].map(Into::into).to_vec();
        arguments.push(if job.quick { "15" } else { "40" }.into());
        if !scenarios.is_empty() {
            arguments.extend(["--scenarios".into(), OsString::from(scenarios.join(","))]);
        }
        arguments.extend([OsString::from("--out"), job.out.clone().into()]);
        arguments.extend(job.rest.iter().cloned());
        run::run(&mut command(&targets, &arguments))
    })();
    measured.and(second.end()).and(first.end())?;
    Ok(json!({ "from": short(&sides[0]), "to": short(&sides[1]), "title": title, "report": job.read()? }))
}

fn short(side: &Side) -> &str {
    side.commit.get(..12).unwrap_or(&side.commit)
}
