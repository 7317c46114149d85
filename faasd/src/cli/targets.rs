//! Which functions a verb is about: directories, and files that list some.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;
use toml::{Table, Value};

use super::deploy::{named_after, parse_name};
use super::gather::Source;
use super::{Exit, Failure};
use crate::core::spec::{FILE_NAME, explain};

/// The most functions at a time.
const SOURCES_MAX: usize = 10_000;

#[derive(Debug, Args)]
pub struct Targets {
    /// Functions' directories, each under its own name or as NAME=DIR [default: .]
    #[arg(value_name = "DIR")]
    dirs: Vec<String>,
    /// A file that lists functions, or a function's faas.toml; may be repeated
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// A file that lists functions: where each is, and what is to come before its own file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stack {
    functions: BTreeMap<String, Table>,
}

impl Targets {
    /// All of them, each once.
    pub fn sources(&self) -> Result<Vec<Source>, Failure> {
        let mut sources = Vec::new();
        for dir in &self.dirs {
            let (name, dir) = match dir.split_once('=') {
                Some((name, dir)) if !name.contains('/') => (Some(name), Path::new(dir)),
                _ => (None, Path::new(dir)),
            };
            sources.push(directory(name, dir)?);
        }
        for file in &self.files {
            if file.is_dir() || file.file_name().is_some_and(|name| name == FILE_NAME) {
                let dir = if file.is_dir() { file } else { file.parent().unwrap_or(Path::new("")) };
                sources.push(directory(None, if dir == Path::new("") { Path::new(".") } else { dir })?);
            } else {
                sources.extend(stack(file)?);
            }
        }
        if self.dirs.is_empty() && self.files.is_empty() {
            sources.push(directory(None, Path::new("."))?);
        }
        let mut names = BTreeSet::new();
        if let Some(twice) = sources.iter().find(|source| !names.insert(source.name.clone())) {
            return Err(Failure::new(Exit::Usage, format!("'{}' is declared twice", twice.name))
                .hint("give one of them another name: NAME=DIR, or another key in the file"));
        }
        if sources.len() > SOURCES_MAX {
            return Err(Failure::new(Exit::Usage, format!("at most {SOURCES_MAX} functions at a time")));
        }
        Ok(sources)
    }
}

fn directory(name: Option<&str>, dir: &Path) -> Result<Source, Failure> {
    let name = match name {
        Some(name) => parse_name(name)?,
        None => named_after(dir)?,
    };
    Ok(Source { name, dir: Some(dir.to_owned()), over: Table::new() })
}

fn stack(file: &Path) -> Result<Vec<Source>, Failure> {
    let bad = |text: String| Failure::new(Exit::Data, format!("{}: {text}", file.display()));
    let text = fs::read_to_string(file).map_err(|e| Failure::file("read", file, &e))?;
    let stack: Stack = toml::from_str(&text).map_err(|e| bad(explain(&e)))?;
    let beside = file.parent().unwrap_or(Path::new(""));
    let source = |(name, mut over): (String, Table)| {
        let parsed = parse_name(&name)?;
        let dir = match over.remove("path") {
            Some(Value::String(path)) => Some(beside.join(path)),
            None if over.contains_key("image") => None,
            _ => {
                let text = format!("functions.{name} says not where it is");
                return Err(
                    bad(text).hint("write `path = \"DIR\"`, or `image = \"NAME\"` for an image alone")
                );
            }
        };
        Ok(Source { name: parsed, dir, over })
    };
    stack.functions.into_iter().map(source).collect()
}
