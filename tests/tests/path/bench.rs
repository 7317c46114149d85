//! `faas bench`, from a machine in the tunnel and on the server.

use anyhow::{Context, Result, ensure};
use faasd_tests::Bed;
use serde_json::Value;

const COUNTED: [&str; 6] = ["-n", "300", "-c", "2", "-o", "json"];

fn report(text: &str) -> Result<Value> {
    serde_json::from_str(text).with_context(|| format!("no report: {text}"))
}

pub fn measured() -> Result<()> {
    let bed = Bed::joined()?;
    bed.deploy_hello("hello", "")?;
    bed.deploy_hello("other", "")?;
    let accepted =
        || -> Result<u64> { bed.describe("hello")?["connections"]["accepted"].as_u64().context("no count") };

    // A client that may manage nothing, and finds the function by its name.
    let through = bed.client().faas(&[&["bench", "hello"], &COUNTED[..]].concat())?.ok()?;
    let through = report(&through)?;
    ensure!(through["targets"][0]["answered"] == 300 && through["targets"][0]["failed"] == 0, "{through}");
    ensure!(through["targets"][0]["url"] == "http://hello.faas/", "{through}");
    let phases = through["targets"][0]["phases"].as_array().context("no phases")?;
    ensure!(phases.iter().any(|phase| phase["phase"] == "dns"), "the name was looked up: {through}");
    ensure!(accepted()? == 2, "two connections, handed over once each");

    let args = ["bench", "hello", "--compare", "other", "-n", "300", "-c", "2", "-o", "json"];
    let compared = report(&bed.client().faas(&args)?.ok()?)?;
    let ratio = compared["comparison"]["p50"]["ratio"].as_f64().context("no ratio")?;
    ensure!((0.2..5.0).contains(&ratio), "two functions that are the same: {compared}");

    // On the server there is no tunnel; and the daemon, who is asked where the function is, passes no request.
    let before = accepted()?;
    let here = report(&bed.faas(&[&["bench", "hello"], &COUNTED[..]].concat())?.ok()?)?;
    ensure!(here["targets"][0]["answered"] == 300, "{here}");
    ensure!(here["targets"][0]["via"].as_str().is_some_and(|via| via.contains("ingress")), "{here}");
    ensure!(accepted()? == before + 2, "each connection is the client's own");

    let typo = bed.faas(&["bench", "helo"])?.failed()?;
    ensure!(typo.contains("did you mean 'hello'"), "{typo}");
    bed.finish()
}

pub fn cold() -> Result<()> {
    let bed = Bed::joined()?;
    bed.deploy_hello("sleeper", "[scale]\nmin = 0\nidle = \"1s\"\n")?;
    let before = bed.describe("sleeper")?["connections"]["accepted"].as_u64().context("no count")?;
    let cold = report(&bed.faas(&["bench", "sleeper", "--mode", "cold", "-n", "3", "-o", "json"])?.ok()?)?;
    ensure!(cold["targets"][0]["answered"] == 3 && cold["connections"] == 1, "{cold}");
    let starts = bed.json(&["events", "sleeper"])?;
    let ready = starts["events"].as_array().context("no events")?;
    let ready = ready.iter().filter(|event| event["kind"] == "instance-ready").count();
    // Each of them woke it; that of the deploy may be among them.
    ensure!(ready >= 3, "{starts}");
    let after = bed.describe("sleeper")?["connections"]["accepted"].as_u64().context("no count")?;
    ensure!(after == before + 3, "one connection a start: {after}");

    bed.deploy_hello("awake", "")?;
    let refused = bed.faas(&["bench", "awake", "--mode", "cold"])?.failed()?;
    ensure!(refused.contains("scale.min is 1") && refused.contains("--min 0"), "{refused}");
    bed.finish()
}
