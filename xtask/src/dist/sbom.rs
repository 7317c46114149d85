//! The bill of materials, by cargo-cyclonedx: CycloneDX in JSON, of what is linked into the programs.

use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Release;
use super::arch::Arch;
use crate::tools::{self, CARGO_CYCLONEDX};
use crate::{repo, run};

/// The tool writes beside each manifest; these are then taken away from there.
const NAME: &str = "faasd-dist.tmp";

const MEMBERS: [&str; 6] = ["faasd", "faasd-common", "faasd-sdk", "xtask", "bench", "tests"];

pub fn write(release: &Release) -> Result<()> {
    let tool = CARGO_CYCLONEDX.require()?;
    let mut cargo = repo::cargo();
    cargo.env("PATH", tools::path_with(&tool)?).env("SOURCE_DATE_EPOCH", release.epoch.to_string());
    cargo.args(["cyclonedx", "--quiet", "--manifest-path", "faasd/Cargo.toml", "--format", "json"]);
    cargo.args(["--spec-version", "1.5", "--target", Arch::Amd64.target(), "--override-filename", NAME]);
    let written = run::quiet(&mut cargo);
    let file = |member: &str| repo::root().join(member).join(format!("{NAME}.json"));
    let text =
        written.and_then(|_| fs::read_to_string(file("faasd")).context("reading what cargo-cyclonedx wrote"));
    for member in MEMBERS {
        let _ = fs::remove_file(file(member));
    }
    let document = normal(serde_json::from_str(&text?)?);
    let text = serde_json::to_string_pretty(&document)? + "\n";
    let here = repo::root().display().to_string();
    if text.contains(&here) {
        anyhow::bail!("the bill of materials names {here}");
    }
    fs::write(release.sbom(), text).context("writing the bill of materials")
}

/// Without what differs between two runs: the serial number, and paths of this machine.
fn normal(mut document: Value) -> Value {
    if let Some(document) = document.as_object_mut() {
        document.remove("serialNumber");
        document.insert("version".to_owned(), json!(1));
    }
    replace_paths(&mut document, &format!("path+file://{}", repo::root().display()));
    document
}

/// `path+file:///anywhere/faasd#0.1.0` becomes `faasd#0.1.0`.
fn replace_paths(value: &mut Value, prefix: &str) {
    match value {
        Value::String(text) => {
            if let Some(rest) = text.strip_prefix(prefix) {
                *text = rest.trim_start_matches('/').to_owned();
            }
            // A package URL of a crate that is not on crates.io says where it was found.
            if let Some((url, _)) = text.split_once("?download_url=file://") {
                *text = url.to_owned();
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| replace_paths(value, prefix)),
        Value::Object(values) => values.values_mut().for_each(|value| replace_paths(value, prefix)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_this_machine_and_run_is_left() {
        let here = repo::root().display();
        let document = json!({
            "serialNumber": "urn:uuid:1",
            "components": [
                { "bom-ref": format!("path+file://{here}/faasd#0.1.0") },
                { "purl": "pkg:cargo/faasd@0.1.0?download_url=file://.", "name": "faasd" },
                { "bom-ref": "registry+https://example.org#a@1.0.0" },
            ],
        });
        let expected = json!({
            "version": 1,
            "components": [
                { "bom-ref": "faasd#0.1.0" },
                { "purl": "pkg:cargo/faasd@0.1.0", "name": "faasd" },
                { "bom-ref": "registry+https://example.org#a@1.0.0" },
            ],
        });
        assert_eq!(normal(document), expected);
    }
}
