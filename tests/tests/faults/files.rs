//! The limit of open files.

use anyhow::{Result, ensure};
use faasd_tests::Bed;
use rustix::process::Signal;

use crate::check::{is_absent, says};

const ASLEEP: &[u8] = b"handler = 'handler.py:handle'\n[scale]\nmin = 0\nprepared = 0\nidle = '1s'\n";

pub fn full() -> Result<()> {
    let mut bed = Bed::new()?;
    bed.wrapper.extend(["prlimit", "--nofile=240:240"].map(str::to_owned));
    bed.serve()?;
    let mut names = Vec::new();
    loop {
        let name = format!("f-{}", names.len());
        let code = format!("def handle(event, context):\n    return '{name}'\n");
        let output = bed.deploy(&name, &[("handler.py", code.as_bytes()), ("faas.toml", ASLEEP)])?;
        if output.status != Some(0) {
            says(output, &["no room for another function", "240 files", "LimitNOFILE"])?;
            is_absent(&bed, &name)?;
            break;
        }
        names.push(name);
        ensure!(names.len() < 240, "{} functions have more files than there are", names.len());
    }
    ensure!(!names.is_empty(), "a daemon that just serves has no room for a function");
    // What is declared works as before: it is called, it is replaced, and the next daemon has room for it.
    for generation in 0..2 {
        for name in names.iter().take(3) {
            ensure!(bed.faas(&["invoke", name])?.ok()?.trim() == name);
        }
        let code = format!("def handle(event, context):\n    return 'f-0' # {generation}\n");
        bed.deploy("f-0", &[("handler.py", code.as_bytes()), ("faas.toml", ASLEEP)])?.ok()?;
        bed.end_daemon(Signal::KILL)?;
        bed.serve()?;
    }
    // Whoever makes room has it.
    let last = names.pop().unwrap_or_default();
    bed.faas(&["rm", &last])?.ok()?;
    bed.deploy("another", &[("handler.py", b"def handle(e, c):\n    return 1\n"), ("faas.toml", ASLEEP)])?
        .ok()?;
    bed.finish()
}
