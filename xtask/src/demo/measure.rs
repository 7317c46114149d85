//! The demo's measurement: one program, served by faasd and served bare, in the same namespace.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use super::lab::{Lab, Side, work};
use crate::{bench, repo};

const MEASUREMENT_MAX: Duration = Duration::from_secs(5 * 60);
const FUNCTION: &str = "native";
const FUNCTION_FILE: &str = "contract = \"fd\"\ncommand = [\"./hello\"]\n\n[scale]\nmin = 1\n";

/// The client is the server's own machine: what the tunnel costs is not what the platform costs.
pub fn run(lab: &Lab) -> Result<()> {
    let program = repo::target_dir().join(bench::PROFILE).join("examples/hello");
    let directory = work().join(FUNCTION);
    fs::create_dir_all(&directory)?;
    let copy = directory.join("hello");
    fs::copy(&program, &copy).with_context(|| format!("copying {}", program.display()))?;
    fs::write(directory.join("faas.toml"), FUNCTION_FILE)?;
    lab.faas(Side::Server, &["deploy", FUNCTION, "./native"])?;

    let described = lab.faas(Side::Server, &["describe", FUNCTION, "--output", "json"])?;
    let described: serde_json::Value = serde_json::from_str(&described).context("`faas describe` in JSON")?;
    let address = described.pointer("/address").and_then(serde_json::Value::as_str);
    let address = address.context("`faas describe` names no address")?;
    let target = format!("faasd=[{address}]:80,netns=/run/netns/{}", Side::Server.netns());
    let copy = copy.to_string_lossy();
    let arguments =
        ["run", "--quick", "--clients", "1", "--subjects", "bare", "--hello", &copy, "--target", &target];
    lab.watch(Side::Server, &bench::program(), &arguments, MEASUREMENT_MAX)
}
