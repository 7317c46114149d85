//! What the unit leaves to the daemon of root's rights is enough for what users do, and none of it can be left out.
//! `docs/SECURITY.md` has the table of what fails without which.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use faasd_tests::{Bed, alone, eventually, hello_program, only, run};
use rustix::process::Signal;

const UNIT: &str = include_str!("../../packaging/systemd/faasd.service");

/// A handler that reads a secret, and a server that is given its listener in the place of its own socket.
const HANDLER: &str = "def handle(event, context):\n    return open('/run/secrets/word').read()\n";
const SERVER: &str = "
import os, socket
listener = socket.create_server(('::', int(os.environ['PORT'])), family=socket.AF_INET6)
while True:
    connection, _ = listener.accept()
    connection.recv(4096)
    connection.sendall(b'HTTP/1.0 200 OK\\r\\ncontent-length: 6\\r\\n\\r\\nserver')
    connection.close()
";

fn main() {
    run(vec![
        alone("the_units_capabilities_are_enough", enough),
        alone("each_of_the_units_capabilities_is_needed", needed),
    ])
}

/// As the unit names them, `CAP_NET_ADMIN`.
fn capabilities() -> Result<Vec<&'static str>> {
    let line = UNIT.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let all: Vec<&str> = line.context("the unit has no CapabilityBoundingSet=")?.split_whitespace().collect();
    ensure!(all.iter().all(|name| name.starts_with("CAP_")), "{all:?}");
    Ok(all)
}

/// Whether this machine has a right to take away: machines of a CI often lack some themselves.
fn is_here(capability: &str) -> Result<bool> {
    let tried = Command::new("setpriv")
        .args(["--bounding-set", &set(&[capability]), "--", "setpriv", "--dump"])
        .output()
        .context("setpriv, of util-linux")?;
    let said = String::from_utf8_lossy(&tried.stdout).into_owned();
    let name = capability.trim_start_matches("CAP_").to_lowercase();
    let bounding = said.lines().find_map(|line| line.strip_prefix("Capability bounding set: "));
    Ok(bounding.is_some_and(|set| set.split(',').any(|one| one == name)))
}

/// What `setpriv --bounding-set` takes.
fn set(capabilities: &[&str]) -> String {
    let names =
        capabilities.iter().map(|name| format!(",+{}", name.trim_start_matches("CAP_").to_lowercase()));
    std::iter::once("-all".to_owned()).chain(names).collect()
}

fn enough() -> Result<()> {
    everything(&capabilities()?)
}

fn needed() -> Result<()> {
    let all = capabilities()?;
    let mut idle = Vec::new();
    for left_out in &all {
        if !is_here(left_out)? {
            println!("{left_out}: this machine has it not, and so cannot show what it is for");
            continue;
        }
        let others: Vec<&str> = all.iter().filter(|name| *name != left_out).copied().collect();
        match everything(&others) {
            Ok(()) => idle.push(*left_out),
            Err(error) => println!("{left_out}: {}", summary(&format!("{error:#}"))),
        }
    }
    ensure!(idle.is_empty(), "everything goes well without {}", idle.join(", "));
    Ok(())
}

/// The line that says the most of an error with a log.
fn summary(error: &str) -> String {
    let lines: Vec<&str> = error.lines().filter(|line| !line.trim().is_empty()).collect();
    let telling =
        |line: &&&str| line.contains("ERROR") || line.starts_with("faasd: ") || line.starts_with("error");
    lines.iter().rfind(telling).or(lines.first()).map_or_else(String::new, |line| (*line).trim().to_owned())
}

/// What users do: deploys of several kinds, a machine that joins, a daemon that dies, an end.
fn everything(capabilities: &[&str]) -> Result<()> {
    let mut bed = Bed::new()?;
    let wrapper = ["setpriv", "--no-new-privs", "--bounding-set", &set(capabilities), "--"];
    bed.wrapper = wrapper.map(str::to_owned).to_vec();
    let done = use_it(&mut bed);
    let finished = bed.finish();
    done.and(finished)
}

fn use_it(bed: &mut Bed) -> Result<()> {
    bed.serve()?;
    let secret = bed.path("secret");
    fs::write(&secret, "word")?;
    bed.faas(&["secret", "set", "word", "--from-file", &secret.display().to_string()])?.ok()?;
    let handler = "handler = 'handler.py:handle'\nsecrets = ['word']\n";
    bed.deploy("reader", &[("handler.py", HANDLER.as_bytes()), ("faas.toml", handler.as_bytes())])?.ok()?;
    let server = "command = ['/usr/bin/python3', 'server.py']\n";
    bed.deploy("server", &[("server.py", SERVER.as_bytes()), ("faas.toml", server.as_bytes())])?.ok()?;
    bed.deploy_hello("hello", "")?;
    image(bed)?;
    bed.join()?;
    answer(bed)?;

    // Whoever comes next finds all of it, and ends what it is told to.
    bed.end_daemon(Signal::KILL)?;
    bed.serve()?;
    answer(bed)?;
    let process = only(&bed.describe("server")?)?;
    bed.faas(&["rm", "server"])?.ok()?;
    eventually("the server's process has ended", || !Path::new(&format!("/proc/{process}")).exists())
}

fn answer(bed: &Bed) -> Result<()> {
    for (name, expected) in [
        ("reader", "word"),
        ("server", "server"),
        ("hello", "hello from faasd\n"),
        ("imaged", "hello from faasd\n"),
    ] {
        let answer = bed.client().curl(&format!("http://{name}.faas/"))?;
        ensure!(answer == expected, "{name}: {answer}");
    }
    Ok(())
}

/// A root image whose files belong to several users, and a function that runs in it as one of them.
fn image(bed: &Bed) -> Result<()> {
    let program = fs::read(hello_program())?;
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, owner: u64, mode: u32, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, content)
    };
    add("etc/own", 33, 0o640, b"x")?;
    for library in libraries()? {
        add(library.trim_start_matches('/'), 0, 0o755, &fs::read(&library)?)?;
    }
    let archive = bed.path("image.tar");
    fs::write(&archive, tar.into_inner()?)?;
    bed.faas(&["image", "import", &archive.display().to_string(), "--name", "bare:1"])?.ok()?;
    let toml = "contract = 'fd'\ncommand = ['./program']\nimage = 'bare:1'\n";
    bed.deploy("imaged", &[("program", &program), ("faas.toml", toml.as_bytes())])?.ok().map(drop)
}

/// What the program is linked with, by its paths.
fn libraries() -> Result<Vec<String>> {
    let said = Command::new("ldd").arg(hello_program()).output().context("ldd, of libc-bin")?.stdout;
    let said = String::from_utf8_lossy(&said).into_owned();
    Ok(said.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned).collect())
}
