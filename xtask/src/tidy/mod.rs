//! `cargo xtask tidy`: the rules that neither the compiler nor clippy knows.

mod imports;
mod links;
mod rules;
mod source;

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::repo;
use source::Source;

/// A rule that is broken, and where.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    file: String,
    line: usize,
    what: String,
}

impl Finding {
    fn new(file: &str, line: usize, what: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line, what: what.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

pub fn main() -> Result<()> {
    let mut findings = Vec::new();
    let files = repo::files()?;
    for file in &files {
        let bytes =
            fs::read(repo::root().join(file)).with_context(|| format!("reading {}", file.display()))?;
        // What is not text is not ours to read.
        let Ok(text) = String::from_utf8(bytes) else { continue };
        findings.extend(check_file(&file.to_string_lossy(), &text, &|path| repo::root().join(path).exists()));
    }
    findings.extend(rules::stale(&|path| repo::root().join(path).exists()));
    findings.sort();
    for finding in &findings {
        println!("{finding}");
    }
    if findings.is_empty() {
        println!("tidy: {} files keep the rules", files.len());
        return Ok(());
    }
    bail!("{} places break the rules", findings.len())
}

/// Every rule on one file. `exists` says whether a path relative to the root is there.
fn check_file(file: &str, text: &str, exists: &dyn Fn(&Path) -> bool) -> Vec<Finding> {
    let mut findings = rules::text(file, text);
    match Path::new(file).extension().and_then(|extension| extension.to_str()) {
        Some("rs") => {
            let source = Source::new(text);
            findings.extend(rules::rust(file, &source));
            findings.extend(imports::check(file, &source));
        }
        Some("md") => findings.extend(links::check(file, text, exists)),
        _ => {}
    }
    findings
}
