//! `cargo xtask bench --cold`: what a connection to a function that does not run waits for, beside the same program by
//! `runc run` and by namespaces and `execve` alone.

use std::ffi::OsString;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::measure::{NICE, Server};
use super::{Args, built, platform};
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
const QUICK: &str = "10";

/// Deploys each program twice, with nothing prepared and with one instance, and measures.
pub fn run(server: &Server<'_>, args: &Args) -> Result<()> {
    let mut command = Command::new("nice");
    command.args(["-n", NICE]).arg(built("faasd-bench")).arg("cold");
    command.arg("--faas").arg(built("faas")).arg("--socket").arg(server.run.join("faasd.sock"));
    command.arg("--bundles").arg(platform::bundles());
    for Program { name: program, code, head } in PROGRAMS {
        for (prepared, suffix) in [(0, ""), (1, "-prepared")] {
            let name = format!("{program}{suffix}");
            let scale = format!("\n[scale]\nmin = 0\nprepared = {prepared}\nidle = \"1s\"\n");
            let address = deploy(server, &name, code, &format!("{head}{scale}"))?;
            let netns = server.run.join("ingress");
            command.arg("--target").arg(format!("{name}=[{address}]:80,netns={}", netns.display()));
        }
    }
    if args.quick {
        command.args(["--rounds", QUICK]);
    }
    if let Some(file) = &args.out {
        command.args([OsString::from("--out"), file.into()]);
    }
    run::run(command.args(&args.rest))
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
