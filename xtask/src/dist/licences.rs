//! The licences of everything that is linked into the programs: what a distributor of binaries must pass on.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::arch::Arch;
use crate::{repo, run};

/// A library, at one version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Library {
    name: String,
    version: String,
    licence: String,
    source: String,
    /// Names of the files in it that speak of its licence, and what they say.
    texts: Vec<(String, String)>,
}

/// All of them, and each text once.
pub fn text(version: &str) -> Result<String> {
    Ok(write(version, &libraries()?))
}

fn libraries() -> Result<BTreeSet<Library>> {
    let mut found = BTreeSet::new();
    for arch in [Arch::Amd64, Arch::Arm64] {
        let mut cargo = repo::cargo();
        cargo.args(["metadata", "--format-version", "1", "--locked", "--filter-platform", arch.target()]);
        let metadata: Value = serde_json::from_str(&run::stdout(&mut cargo)?).context("what cargo says")?;
        found.extend(linked(&metadata, "faasd")?.into_iter().map(library).collect::<Result<Vec<_>>>()?);
    }
    Ok(found)
}

/// The packages from a registry that `program` is made of, leaving out what only builds or tests it.
fn linked<'a>(metadata: &'a Value, program: &str) -> Result<Vec<&'a Value>> {
    let list = |value: &'a Value| value.as_array().map(Vec::as_slice).unwrap_or_default();
    let packages: HashMap<&str, &Value> =
        list(&metadata["packages"]).iter().filter_map(|p| Some((p["id"].as_str()?, p))).collect();
    let nodes: HashMap<&str, &Value> =
        list(&metadata["resolve"]["nodes"]).iter().filter_map(|n| Some((n["id"].as_str()?, n))).collect();
    let is_program = |p: &&Value| p["name"] == program && p["source"].is_null();
    let first = packages.values().find(|p| is_program(p)).and_then(|p| p["id"].as_str());
    let mut left = vec![first.with_context(|| format!("the workspace has no {program}"))?];
    let mut seen = BTreeSet::new();
    while let Some(id) = left.pop() {
        if !seen.insert(id) {
            continue;
        }
        for dependency in list(&nodes[id]["deps"]) {
            let is_linked = list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
            left.extend(dependency["pkg"].as_str().filter(|_| is_linked));
        }
    }
    Ok(seen.into_iter().map(|id| packages[id]).filter(|package| !package["source"].is_null()).collect())
}

fn library(package: &Value) -> Result<Library> {
    let text = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
    let manifest = text("manifest_path");
    let directory = Path::new(&manifest).parent().with_context(|| format!("{} is nowhere", text("name")))?;
    let (name, version) = (text("name"), text("version"));
    let source = Some(text("repository")).filter(|url| !url.is_empty());
    let source = source.unwrap_or_else(|| format!("https://crates.io/crates/{name}"));
    let licence = Some(text("license")).filter(|licence| !licence.is_empty());
    let licence = licence.unwrap_or_else(|| "as its files say".to_owned());
    Ok(Library { texts: texts(directory)?, name, version, licence, source })
}

/// Files of a licence, a notice or of authors in a package's top directory, in the order of their names.
fn texts(directory: &Path) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if speaks_of_a_licence(&name) && entry.file_type()?.is_file() {
            let bytes = fs::read(entry.path())?;
            let text = String::from_utf8_lossy(&bytes).replace("\r\n", "\n");
            found.push((name, text.trim_matches('\n').to_owned()));
        }
    }
    found.sort();
    Ok(found)
}

fn speaks_of_a_licence(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let begins = ["licen", "copying", "copyright", "notice", "unlicense", "authors"];
    begins.iter().any(|begin| name.starts_with(begin)) && !name.ends_with(".rs")
}

fn write(version: &str, libraries: &BTreeSet<Library>) -> String {
    let mut text = format!(
        "faasd {version} is distributed under the Apache License, version 2.0. Its programs are linked with the\n\
         {} libraries below, each under its own licence. The texts that come with them follow the list.\n\n",
        libraries.len()
    );
    let mut of_text: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for library in libraries {
        let Library { name, version, licence, source, texts } = library;
        let note = if texts.is_empty() { " (its package has no text of it)" } else { "" };
        let _ = writeln!(text, "{name} {version}: {licence}{note}\n    {source}");
        for (file, content) in texts {
            of_text.entry(content).or_default().push(format!("{name} {version} ({file})"));
        }
    }
    // In the order of who comes first in the list.
    let mut blocks: Vec<_> = of_text.into_iter().collect();
    blocks.sort_by(|one, other| one.1.cmp(&other.1));
    for (content, of) in blocks {
        let _ = write!(text, "\n{}\n{}\n\n{content}\n", "=".repeat(78), of.join(",\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn package(name: &str, source: Option<&str>) -> Value {
        json!({ "id": format!("id-{name}"), "name": name, "version": "1.0.0", "source": source })
    }

    fn node(name: &str, dependencies: &[(&str, Option<&str>)]) -> Value {
        let deps: Vec<_> = dependencies
            .iter()
            .map(|(name, kind)| json!({ "pkg": format!("id-{name}"), "dep_kinds": [{ "kind": kind }] }))
            .collect();
        json!({ "id": format!("id-{name}"), "deps": deps })
    }

    #[test]
    fn only_what_is_linked_is_listed() {
        let registry = Some("registry");
        let metadata = json!({
            "packages": [package("faasd", None), package("ours", None), package("a", registry),
                package("b", registry), package("builds", registry), package("tests", registry)],
            "resolve": { "nodes": [
                node("faasd", &[("ours", None), ("builds", Some("build")), ("tests", Some("dev"))]),
                node("ours", &[("a", None)]), node("a", &[("b", None), ("a", None)]), node("b", &[]),
                node("builds", &[]), node("tests", &[]),
            ] },
        });
        let names: Vec<_> = linked(&metadata, "faasd").unwrap().iter().map(|p| p["name"].clone()).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(linked(&metadata, "other").is_err());
    }

    #[test]
    fn each_text_is_written_once() {
        let library = |name: &str, texts: &[(&str, &str)]| Library {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            licence: "MIT".to_owned(),
            source: "https://example.org".to_owned(),
            texts: texts.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned())).collect(),
        };
        let same = [("LICENSE", "the words")];
        let text = write("0.1.0", &[library("a", &same), library("b", &same), library("c", &[])].into());
        assert_eq!(text.matches("the words").count(), 1);
        assert!(text.contains("a 1.0.0 (LICENSE),\nb 1.0.0 (LICENSE)\n"), "{text}");
        assert!(text.contains("c 1.0.0: MIT (its package has no text of it)"), "{text}");
    }

    #[test]
    fn licences_are_known_by_their_files_names() {
        for name in
            ["LICENSE", "LICENSE-MIT", "COPYING.LESSER", "license.md", "NOTICE", "UNLICENSE", "LICENCE.txt"]
        {
            assert!(speaks_of_a_licence(name), "{name}");
        }
        for name in ["README.md", "Cargo.toml", "license.rs"] {
            assert!(!speaks_of_a_licence(name), "{name}");
        }
    }
}
