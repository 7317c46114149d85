//! `cargo xtask bench cold`: what a connection to a function that does not run waits for, beside the same program by
//! `runc run` and by namespaces and `execve` alone.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::measure::{Server, harness};
use super::platform::{Place, Platform};
use super::{Job, built};
use crate::run;

/// What is started.
struct Program {
    name: &'static str,
    /// The file of its code and what is in it; else it is the SDK's example.
    code: Option<(&'static str, &'static str)>,
    /// How its function file begins.
    head: &'static str,
}

const PROGRAMS: [Program; 3] = [
    Program { name: "static", code: None, head: "contract = \"fd\"\ncommand = [\"./hello\"]\n" },
    Program {
        name: "python",
        code: Some(("handler.py", "def handle(event, context):\n    return \"hello\\n\"\n")),
        head: "contract = \"handler\"\nhandler = \"handler.py:handle\"\n",
    },
    Program {
        name: "node",
        code: Some(("handler.mjs", "export function handle() {\n  return 'hello\\n';\n}\n")),
        head: "contract = \"handler\"\nhandler = \"handler.mjs:handle\"\n",
    },
];

/// Rounds of a quick run.
const QUICK: &str = "6";

/// Deploys each program twice, with nothing prepared and with one instance, and measures.
pub fn run(job: &Job) -> Result<()> {
    let place = Place::here();
    let (bundles, faas) = (place.bundles(), place.program("faas"));
    let platform = Platform::start(place)?;
    let measured = measure(job, &platform.server(), &bundles, &faas);
    measured.and(platform.end())
}

fn measure(job: &Job, server: &Server<'_>, bundles: &Path, faas: &Path) -> Result<()> {
    let mut command = harness("cold");
    command.arg("--faas").arg(faas).arg("--socket").arg(server.run.join("faasd.sock"));
    command.arg("--bundles").arg(bundles).arg("--out").arg(&job.out);
    for Program { name: program, code, head } in PROGRAMS {
        for (prepared, suffix) in [(0, ""), (1, "-prepared")] {
            let name = format!("{program}{suffix}");
            let scale = format!("\n[scale]\nmin = 0\nprepared = {prepared}\nidle = \"1s\"\n");
            let address = deploy(server, &name, code, &format!("{head}{scale}"))?;
            let netns = server.from.display();
            command.arg("--target").arg(format!("{name}=[{address}]:80,netns={netns}"));
        }
    }
    if job.quick {
        command.args(["--rounds", QUICK]);
    }
    run::run(command.args(&job.rest))
}

fn deploy(server: &Server<'_>, name: &str, code: Option<(&str, &str)>, file: &str) -> Result<String> {
    let directory = server.work.join(name);
    fs::create_dir_all(&directory)?;
    match code {
        Some((file, text)) => fs::write(directory.join(file), text)?,
        None => drop(fs::copy(built("examples/hello"), directory.join("hello"))?),
    }
    fs::write(directory.join("faas.toml"), file)?;
    (server.faas)(&["deploy", name, &directory.to_string_lossy()])?;
    let described: Value = serde_json::from_str(&(server.faas)(&["describe", name, "--output", "json"])?)?;
    let address = described.pointer("/address").and_then(Value::as_str);
    Ok(address.context("`faas describe` names no address")?.to_owned())
}
