//! Handlers in every language, and applications of the usual frameworks: each example is deployed as it stands, and asked
//! through the tunnel.

use std::net::TcpStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use faasd_tests::{Bed, Client, Output, eventually};
use rustix::process::Signal;

use crate::{address, only, until};

/// Where the examples are.
fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name)
}

fn deploy(bed: &Bed, name: &str) -> Result<Output> {
    // Also if it is there already, as it stands.
    bed.faas(&["deploy", "--force", name, &example(name).display().to_string()])
}

/// What every example has: a greeting that names the caller, JSON, a stream, and a failure that its log explains.
fn check(bed: &Bed, name: &str, says: &str) -> Result<()> {
    let client = bed.client();
    let url = |path: &str| format!("http://{name}.faas{path}");
    let hello = client.curl(&url("/"))?;
    let peer = hello.trim_end_matches(['\n', '"']).rsplit_once(", ").map(|(_, peer)| peer);
    ensure!(hello.contains(says) && peer == Some("client"), "{name}: {hello}");
    let posted = ["curl", "-sS", "--max-time", "20", "--json", r#"{"a":[1]}"#, &url("/json")];
    let json: serde_json::Value = serde_json::from_str(&client.run(&posted)?.ok()?)?;
    ensure!(json == serde_json::json!({ "you_sent": { "a": [1] } }), "{name}: {json}");
    ensure!(client.curl(&url("/stream"))? == "part 0\npart 1\npart 2\n", "{name}");

    let failed = client.run(&["curl", "-sS", "--max-time", "20", "-i", &url("/fail")])?.ok()?;
    ensure!(failed.starts_with("HTTP/1.1 500"), "{name}: {failed}");
    let logged = |line: &str| bed.faas(&["logs", name]).is_ok_and(|logs| logs.out.contains(line));
    eventually("the failure is in the log", || logged("as it was asked to"))?;
    // The process lives on.
    let before = only(&bed.describe(name)?)?;
    ensure!(client.curl(&url("/"))? == hello && only(&bed.describe(name)?)? == before, "{name}");
    Ok(())
}

/// That the failure's answer has an id, under which the log has it.
fn check_id(bed: &Bed, name: &str) -> Result<()> {
    let url = format!("http://{name}.faas/fail");
    let failed = bed.client().run(&["curl", "-sS", "--max-time", "20", "-i", &url])?.ok()?;
    let line = failed.lines().find(|line| line.to_ascii_lowercase().starts_with("x-request-id: "));
    let id = line.and_then(|line| line.split_once(": ")).context("no id")?.1.trim().to_owned();
    let logged = || bed.faas(&["logs", name]).is_ok_and(|logs| logs.out.contains(&format!("[{id}]")));
    eventually("the failure's id is in the log", logged)
}

/// A body of some megabytes, there and back.
fn check_large(client: &Client<'_>, name: &str, bed: &Bed) -> Result<()> {
    let file = bed.path("large");
    let body: Vec<u8> = (0..8 << 20).map(|i| b'a' + (i % 23) as u8).collect();
    std::fs::write(&file, &body)?;
    let (data, url) = (format!("@{}", file.display()), format!("http://{name}.faas/"));
    let echo = client.run(&["curl", "-sS", "--max-time", "20", "--data-binary", &data, &url])?.ok()?;
    ensure!(echo.as_bytes() == body, "{name}: {} bytes came back", echo.len());
    Ok(())
}

/// The contracts that ask for a program of one's own.
pub fn contracts() -> Result<()> {
    let bed = Bed::joined()?;
    for name in ["fd-python", "listen-fds-python"] {
        deploy(&bed, name)?.ok()?;
    }
    for n in 0..3 {
        let answer = bed.client().curl("http://fd-python.faas/")?;
        ensure!(answer.starts_with("connection ") && answer.ends_with(" of client\n"), "{n}: {answer}");
        let answer = bed.client().curl("http://listen-fds-python.faas/")?;
        ensure!(answer == "hello from descriptor 3, client\n", "{n}: {answer}");
    }
    let code = std::fs::read_to_string(example("fd-python").join("function.py"))?;
    let manual = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/HANDOFF.md"))?;
    ensure!(manual.contains(&code), "docs/HANDOFF.md shows another program than examples/fd-python");
    bed.finish()
}

/// From nothing to an answer by two commands, in each language.
pub fn templates() -> Result<()> {
    let bed = Bed::joined()?;
    let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../faasd-sdk").display().to_string();
    for lang in ["python", "node", "express", "asgi", "wsgi", "shell", "go", "rust"] {
        let name = format!("my-{lang}");
        let dir = bed.path(&name).display().to_string();
        let mut new = vec!["new", &name, "--lang", lang, "--dir", &dir];
        if lang == "rust" {
            // This version of it, which need not have been published.
            new.extend(["--sdk", &sdk]);
        }
        bed.faas(&new)?.ok().context(lang)?;
        bed.faas(&["deploy", &name, &dir])?.ok().context(lang)?;
        let answer = bed.client().curl(&format!("http://{name}.faas/")).context(lang)?;
        ensure!(answer.to_lowercase().contains("hello"), "{lang}: {answer}");
    }
    bed.finish()
}

pub fn python() -> Result<()> {
    let bed = Bed::joined()?;
    let deployed = deploy(&bed, "handler-python")?;
    ensure!(deployed.err.contains("python handler: there is handler.py"), "{deployed:?}");
    deployed.ok()?;
    check(&bed, "handler-python", "hello from handler-python")?;
    check_id(&bed, "handler-python")?;
    check_large(&bed.client(), "handler-python", &bed)?;
    bed.finish()
}

pub fn script() -> Result<()> {
    let bed = Bed::joined()?;
    let deployed = deploy(&bed, "handler-shell")?;
    ensure!(deployed.err.contains("script, run by /bin/sh: there is handler.sh"), "{deployed:?}");
    deployed.ok()?;
    check(&bed, "handler-shell", "hello from handler-shell")?;
    check_id(&bed, "handler-shell")?;
    check_large(&bed.client(), "handler-shell", &bed)?;
    // The runner is the container's first process: nothing that scripts leave behind may pile up.
    let runner = only(&bed.describe("handler-shell")?)?;
    eventually("no process is left of any script", || {
        std::fs::read_to_string(format!("/proc/{runner}/task/{runner}/children")).is_ok_and(|c| c.is_empty())
    })?;
    bed.finish()
}

pub fn node() -> Result<()> {
    let bed = Bed::joined()?;
    let deployed = deploy(&bed, "handler-node")?;
    ensure!(deployed.err.contains("node handler: there is handler.mjs"), "{deployed:?}");
    deployed.ok()?;
    check(&bed, "handler-node", "hello from handler-node")?;
    check_id(&bed, "handler-node")?;
    check_large(&bed.client(), "handler-node", &bed)?;
    drains(&bed, "handler-node")?;
    bed.finish()
}

/// Node's runner accepts by itself: woken by the first connection, kept through the daemon's death, and replaced.
pub fn node_lane() -> Result<()> {
    let mut bed = Bed::joined()?;
    let handler = b"export default (req, res) => {\n  if (req.url === '/fail') res.statusCode = 503;\n  \
        res.end(`${process.uptime() > 0}`);\n};\n";
    // It writes what it counts a moment later.
    let counted = |bed: &Bed, requests: u64, errors: u64| {
        eventually(&format!("{requests} requests and {errors} errors"), || {
            let described = bed.describe("cold").unwrap_or_default();
            let instance = &described["instances"][0];
            instance["requests"] == requests && instance["errors"] == errors
        })
    };
    let files: [(&str, &[u8]); 2] = [("handler.mjs", handler), ("faas.toml", b"[scale]\nmin = 0\n")];
    bed.deploy("cold", &files)?.ok()?;
    ensure!(bed.client().curl("http://cold.faas/")? == "true");
    let before = only(&bed.describe("cold")?)?;
    let to = address(&bed.describe("cold")?)?;
    let mut kept = bed.client().connect(to, 80)?;
    ensure!(crate::ask(&mut kept, "/")? == b"true");
    ensure!(faasd_tests::get(&mut kept, "/fail")?.0 == 503);
    counted(&bed, 3, 1)?;
    bed.end_daemon(Signal::KILL)?;
    ensure!(crate::ask(&mut kept, "/")? == b"true", "the open connection");
    ensure!(bed.client().curl(&format!("http://[{to}]/"))? == "true", "a new connection, without a daemon");
    bed.serve()?;
    ensure!(only(&bed.describe("cold")?)? == before, "it was not taken over");
    ensure!(crate::ask(&mut kept, "/")? == b"true");
    counted(&bed, 6, 1)?;
    drop(kept);
    faasd_tests::signal(before, Signal::KILL)?;
    eventually("another instance answers", || {
        bed.client().curl("http://cold.faas/").is_ok_and(|answer| answer == "true")
            && bed.describe("cold").is_ok_and(|f| only(&f).is_ok_and(|pid| pid != before))
    })?;
    bed.finish()
}

pub fn node_applications() -> Result<()> {
    let bed = Bed::joined()?;
    for (name, says) in [("app-express", "hello from express"), ("app-fastify", "hello from fastify")] {
        deploy(&bed, name)?.ok()?;
        check(&bed, name, says)?;
        kept_dependencies(&bed, name)?;
    }
    bed.finish()
}

pub fn python_applications() -> Result<()> {
    let bed = Bed::joined()?;
    for (name, says) in [("app-fastapi", "hello from fastapi"), ("app-flask", "hello from flask")] {
        deploy(&bed, name)?.ok()?;
        check(&bed, name, says)?;
        check_id(&bed, name)?;
        kept_dependencies(&bed, name)?;
    }
    // A real client of WebSockets: the one that the function itself depends on.
    let dependencies = bed.describe("app-fastapi")?["dependencies"].as_str().context("none")?.to_owned();
    let packages = bed.path("state/images").join(dependencies.replace(':', "/"));
    let client = format!(
        "import sys; sys.path.insert(0, {:?})\n\
         from websockets.sync.client import connect\n\
         with connect('ws://app-fastapi.faas/echo') as socket:\n    \
             socket.send('there and back'); print(socket.recv(), end='')",
        packages.display().to_string()
    );
    let echo = bed.client().run(&["/usr/bin/python3", "-c", &client])?.ok()?;
    ensure!(echo == "there and back", "{echo}");
    drains(&bed, "app-fastapi")?;
    bed.finish()
}

/// Deploys again: what is depended on is neither installed nor uploaded a second time.
fn kept_dependencies(bed: &Bed, name: &str) -> Result<()> {
    let before = bed.describe(name)?;
    let again = deploy(bed, name)?;
    ensure!(again.err.contains("installed already") && !again.err.contains("uploaded"), "{again:?}");
    again.ok()?;
    let after =
        until(bed, name, "the second revision has taken over", |f| f["revision"] == 2 && only(f).is_ok())?;
    ensure!(after["dependencies"].is_string() && after["dependencies"] == before["dependencies"], "{after}");
    ensure!(bed.client().curl(&format!("http://{name}.faas/"))?.contains("hello"), "{name}");
    Ok(())
}

/// A new revision takes over; a connection that waits for its next request is closed by the old one, which ends well.
fn drains(bed: &Bed, name: &str) -> Result<()> {
    let function = bed.describe(name)?;
    let (old, to) = (only(&function)?, address(&function)?);
    let mut idle: TcpStream = bed.client().connect(to, 80)?;
    faasd_tests::get(&mut idle, "/")?;
    deploy(bed, name)?.ok()?;
    until(bed, name, "the old instance has ended", |f| only(f).is_ok_and(|pid| pid != old))?;
    eventually("the idle connection is closed", || crate::has_ended(&idle))?;
    ensure!(
        bed.log().contains("code 0") || !bed.log().contains(&format!("signal {:?}", Signal::KILL)),
        "killed"
    );
    Ok(())
}

pub fn bad_dependencies() -> Result<()> {
    let bed = Bed::serving()?;
    let requirements = b"faasd-there-is-no-such-package==0.0.1\n";
    let failed =
        bed.deploy("bad", &[("handler.py", b"def handle(e, c): 1\n"), ("requirements.txt", requirements)])?;
    let said = failed.failed()?;
    ensure!(said.contains("pip could not install 1 in requirements.txt"), "{said}");
    ensure!(said.contains("No matching distribution") && said.contains("see its name and version"), "{said}");
    ensure!(bed.faas(&["describe", "bad"])?.status == Some(1), "something was deployed");
    bed.finish()
}
