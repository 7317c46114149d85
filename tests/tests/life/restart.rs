//! What a daemon that is killed in the midst of things leaves to the next one.

use std::io::Write;

use anyhow::{Result, ensure};
use faasd_tests::{Bed, Load, address, eventually, get, ready, signal, until};
use rustix::process::Signal;

use crate::code::{KINDS, Kind, deploy};

pub fn while_draining() -> Result<()> {
    let mut bed = Bed::joined()?;
    for (kind, name) in KINDS.into_iter().zip(["handler", "server"]) {
        deploy(&bed, kind, name, "one", "", &[])?;
        let old = ready(&bed.describe(name)?)[0];
        let mut busy = bed.client().connect(address(&bed.describe(name)?)?, 80)?;
        write!(busy, "GET /?s=6 HTTP/1.1\r\nHost: test\r\n\r\n")?;
        deploy(&bed, kind, name, "two", "", &[])?;
        // Back to the revision whose first instance has not finished.
        bed.faas(&["rollback", name])?.ok()?;
        bed.end_daemon(Signal::KILL)?;
        bed.serve()?;
        // The daemon may have been killed between its answer and the server's; that server is then replaced.
        let after = until(&bed, name, "somebody serves", |f| !ready(f).is_empty())?;
        ensure!(!ready(&after).contains(&old), "{after}");
        let load = Load::reconnecting(&bed.client(), address(&after)?, 80, 2)?;
        load.more(100)?;
        load.finish()?;
        // What it had begun it ends, by an answer that says that it is the last.
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut busy, &mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("one"), "{answer:?}");
        until(&bed, name, "the old instance is gone", |f| {
            f["instances"].as_array().is_some_and(|all| all.iter().all(|i| i["pid"] != old))
        })?;
    }
    bed.finish()
}

pub fn dead_seat() -> Result<()> {
    let mut bed = Bed::joined()?;
    deploy(&bed, Kind::Server, "first", "first", "[scale]\nmin = 0", &[])?;
    let pid = ready(&bed.describe("first")?)[0];
    bed.end_daemon(Signal::KILL)?;
    signal(pid, Signal::KILL)?;
    eventually("it is gone", || !std::path::Path::new(&format!("/proc/{pid}/fd/0")).exists())?;
    bed.serve()?;
    // It may get the seat that the dead one had; the connections that go with it are not its own.
    deploy(&bed, Kind::Server, "second", "second", "", &[])?;
    for (name, answer) in [("first", "first"), ("second", "second")] {
        let to = address(&bed.describe(name)?)?;
        let (_, body) = get(&mut bed.client().connect(to, 80)?, "/")?;
        ensure!(body == answer.as_bytes(), "{name} answered {:?}", String::from_utf8_lossy(&body));
    }
    bed.finish()
}
