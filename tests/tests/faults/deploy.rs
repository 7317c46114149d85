//! Deploys that fail.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use faasd_tests::{Bed, hello_program};

use crate::check::{has_instances, is_absent, is_idle, says};

const HANDLER: &[u8] = b"def handle(event, context):\n    return 'fine'\n";

pub fn bad_declarations() -> Result<()> {
    let mut bed = Bed::serving()?;
    let good = bed.path("good");
    fs::create_dir_all(&good)?;
    fs::write(good.join("handler.py"), HANDLER)?;
    let good = good.display().to_string();

    let long = "a".repeat(64);
    for (name, words) in [
        (long.as_str(), ["64 characters", "at most 63"]),
        ("Hello_World", ["has 'H'", "did you mean 'hello-world'"]),
        ("a.b", ["has '.'", "did you mean 'a-b'"]),
        ("../../etc", ["has '.'", "a-z, 0-9 and '-'"]),
        ("ns", ["belongs to the platform", "choose another"]),
    ] {
        let output = bed.faas(&["deploy", name, &good])?;
        ensure!(output.status == Some(64), "{name}: {output:?}");
        says(output, &words).with_context(|| name.to_owned())?;
    }
    let none = bed.path("nothing/here").display().to_string();
    let output = bed.faas(&["deploy", "f", &none])?;
    ensure!(output.status == Some(66), "{output:?}");
    says(output, &["there is no directory", "`faas deploy NAME DIR`"])?;

    for (name, toml, words) in [
        ("field", "contrat = 'fd'", ["unknown field", "did you mean `contract`"]),
        ("nested", "[limits]\nmemroy = '1GiB'", ["unknown field", "did you mean `memory"]),
        ("text", "port = 'eighty'", ["faas.toml", "port"]),
        ("list", "command = 'x'", ["faas.toml", "command"]),
        ("port", "port = 0", ["port", "1 to 65535"]),
        ("big", "port = 70000", ["port", "70000"]),
        ("syntax", "port 80", ["faas.toml", "line 1"]),
    ] {
        let output = bed.deploy(name, &[("handler.py", HANDLER), ("faas.toml", toml.as_bytes())])?;
        ensure!(output.status == Some(65), "{name}: {output:?}");
        says(output, &words).with_context(|| name.to_owned())?;
        is_absent(&bed, name)?;
    }
    is_idle(&bed)?;
    // None of it comes back with the next daemon either.
    bed.end_daemon(rustix::process::Signal::TERM)?;
    bed.serve()?;
    let listed = bed.json(&["ls"])?;
    ensure!(listed["functions"].as_array().is_some_and(Vec::is_empty), "{listed}");
    bed.finish()
}

/// A name, its files, and what must be said of them.
type Case<'a> = (&'a str, &'a [(&'a str, &'a [u8])], &'a [&'a str]);

pub fn bad_handlers() -> Result<()> {
    let bed = Bed::serving()?;
    let cases: [Case<'_>; 6] = [
        ("nothing", &[("readme.txt", b"")], &["holds no function", "handler.py"]),
        (
            "nofile",
            &[("faas.toml", b"handler = 'other.py:run'"), ("handler.py", HANDLER)],
            &["has no other.py", "FILE.py:FUNCTION"],
        ),
        (
            "nofunction",
            &[("handler.py", b"def other(event, context):\n    return 1\n")],
            &["handle", "handler.py"],
        ),
        (
            "syntax",
            &[("handler.py", b"def handle(event, context:\n    return 1\n")],
            &["SyntaxError", "line 1"],
        ),
        (
            "raises",
            &[("handler.py", b"import no_such_module\ndef handle(event, context):\n    return 1\n")],
            &["ModuleNotFoundError", "no_such_module"],
        ),
        (
            "memory",
            &[
                ("handler.py", b"hoard = b'x' * (256 << 20)\ndef handle(event, context):\n    return 1\n"),
                ("faas.toml", b"limits.memory = '32MiB'"),
            ],
            &["memory", "raise `limits.memory`"],
        ),
    ];
    for (name, files, words) in cases {
        let begin = Instant::now();
        says(bed.deploy(name, files)?, words).with_context(|| name.to_owned())?;
        // The function's own failure, not the deadline of 30 s, ends it.
        ensure!(begin.elapsed() < Duration::from_secs(15), "{name} took {:?}", begin.elapsed());
        is_absent(&bed, name).with_context(|| name.to_owned())?;
    }
    is_idle(&bed)?;
    // The names are free.
    bed.deploy("syntax", &[("handler.py", HANDLER)])?.ok()?;
    bed.finish()
}

pub fn bad_programs() -> Result<()> {
    let bed = Bed::serving()?;
    let shell = |script: &str, more: &str| {
        format!("contract = 'fd'\ncommand = ['/bin/sh', '-c', '''{script}''']\n{more}\n")
    };
    let code = fs::read(hello_program())?;
    let deploy = |name: &str, toml: &str| bed.deploy(name, &[("faas.toml", toml.as_bytes())]);

    let exits = "echo these are my last words; exit";
    let output = deploy("zero", &shell(&format!("{exits} 0"), ""))?;
    says(output, &["0", "hand-off protocol", "these are my last words"])?;
    let output = deploy("three", &shell(&format!("{exits} 3"), ""))?;
    says(output, &["3", "these are my last words"])?;
    says(deploy("killed", &shell("kill -KILL $$$$; sleep 1", ""))?, &["was not deployed"])?;

    let begin = Instant::now();
    let output = deploy("slow", &shell("sleep 1000", "deadlines.start = '1s'"))?;
    says(output, &["not ready within 1s", "raise `deadlines.start`"])?;
    ensure!(begin.elapsed() < Duration::from_secs(10), "the deadline of 1 s took {:?}", begin.elapsed());

    let output = deploy("absent", "contract = 'fd'\ncommand = ['./program']")?;
    ensure!(output.status == Some(66), "{output:?}");
    says(output, &["is not there", "relative to the function's directory"])?;
    let output = deploy("inside", "contract = 'fd'\ncommand = ['/opt/nowhere/program']")?;
    says(output, &["/opt/nowhere/program", "inside a container"])?;
    let toml: &[u8] = b"contract = 'fd'\ncommand = ['./program']";
    let output = bed.deploy("text", &[("program", b"just text"), ("faas.toml", toml)])?;
    says(output, &["no program that can be run", "`chmod +x"])?;
    // Executable by its mode and its first bytes, but by nothing else.
    let output = bed.deploy("broken", &[("program", b"\x7fELF, or so it says"), ("faas.toml", toml)])?;
    says(output, &["exec", "program"])?;

    let (ld, none) = (b"/lib64/ld-linux", b"/lib64/no-linux");
    let at = code.windows(ld.len()).position(|w| w == ld).context("a program with an interpreter")?;
    let mut foreign = code;
    foreign[at..at + ld.len()].copy_from_slice(none);
    let output = bed.deploy("foreign", &[("program", &foreign), ("faas.toml", toml)])?;
    says(output, &["exec /app/program", "no such file or directory"])?;

    for name in ["zero", "three", "killed", "slow", "absent", "inside", "text", "broken", "foreign"] {
        is_absent(&bed, name).with_context(|| name.to_owned())?;
    }
    is_idle(&bed)?;
    bed.finish()
}

pub fn bad_update() -> Result<()> {
    let bed = Bed::joined()?;
    bed.deploy("f", &[("handler.py", HANDLER)])?.ok()?;
    let before = bed.describe("f")?;
    says(bed.deploy("f", &[("handler.py", b"def handle(:\n")])?, &["SyntaxError"])?;
    let after = bed.describe("f")?;
    for kept in ["revision", "image", "state"] {
        ensure!(before[kept] == after[kept], "{kept}: {before}\n{after}");
    }
    ensure!(before["instances"][0]["id"] == after["instances"][0]["id"], "{after}");
    ensure!(bed.client().curl("http://f.faas/")? == "fine");
    has_instances(&bed, 1)?;
    bed.finish()
}

/// A program that says what it is told to on the daemon's socket, ready or not.
fn talker(said: &str) -> String {
    format!(
        "contract = 'fd'\ncommand = ['/usr/bin/python3', '-c', '''\nimport socket, struct, time\n\
         s = socket.socket(fileno=3)\nready = struct.pack(\"<HHHH\", 1, 3, 0, 32)\n{said}\ntime.sleep(1000)\n''']\n\
         deadlines.start = '15s'\n"
    )
}

pub fn malformed_messages() -> Result<()> {
    let bed = Bed::serving()?;
    bed.deploy("neighbour", &[("handler.py", HANDLER)])?.ok()?;
    for (name, said, words) in [
        ("short", "s.send(b\"abc\")", ["3 bytes", "protocol"]),
        ("version", "s.send(struct.pack(\"<HHHH\", 9, 3, 0, 32))", ["version 9", "rebuild"]),
        ("kind", "s.send(struct.pack(\"<HHHH\", 1, 77, 0, 32))", ["kind 77", "protocol"]),
        ("count", "s.send(struct.pack(\"<HHHH\", 1, 1, 5000, 32))", ["shorter", "protocol"]),
        ("ours", "s.send(struct.pack(\"<HHHH\", 1, 1, 0, 32))", ["only faasd sends", "protocol"]),
    ] {
        let begin = Instant::now();
        let toml = talker(said);
        let output = bed.deploy(name, &[("faas.toml", toml.as_bytes())])?;
        says(output, &words).with_context(|| name.to_owned())?;
        ensure!(begin.elapsed() < Duration::from_secs(10), "{name} took {:?}", begin.elapsed());
        is_absent(&bed, name)?;
    }
    has_instances(&bed, 1)?;
    ensure!(bed.faas(&["invoke", "neighbour"])?.ok()?.contains("fine"));
    bed.finish()
}

pub fn flood() -> Result<()> {
    let bed = Bed::serving()?;
    bed.deploy("neighbour", &[("handler.py", HANDLER)])?.ok()?;
    let toml = talker("while True:\n    s.send(ready)");
    bed.deploy("flood", &[("faas.toml", toml.as_bytes())])?.ok()?;
    for _ in 0..20 {
        let begin = Instant::now();
        ensure!(bed.faas(&["invoke", "neighbour"])?.ok()?.contains("fine"));
        ensure!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    }
    bed.faas(&["rm", "flood"])?.ok()?;
    is_absent(&bed, "flood")?;
    has_instances(&bed, 1)?;
    bed.finish()
}
