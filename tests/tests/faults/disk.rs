//! A full disk.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use faasd_tests::{Bed, eventually};
use rustix::process::Signal;

use crate::check::{has_instances, is_absent, says};

/// A small file system, gone with the value.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, size: &str) -> Result<Self> {
        fs::create_dir_all(at)?;
        let size = format!("size={size},mode=0755");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "faults"]).arg(at).status()?;
        ensure!(done.success(), "mount");
        Ok(Self(at.to_owned()))
    }

    /// Takes all the room there is.
    fn fill(&self) -> Result<()> {
        let mut file = File::create(self.0.join("ballast"))?;
        for size in [1 << 20, 4096] {
            let block = vec![0; size];
            while file.write_all(&block).is_ok() {}
        }
        Ok(())
    }

    fn free(&self) -> Result<()> {
        fs::remove_file(self.0.join("ballast")).context("no ballast")
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Answers, and prints as much as it is asked to.
const HANDLER: &[u8] = b"import sys\n\
def handle(event, context):\n    sys.stdout.write('x' * 79 + chr(10))\n    sys.stdout.write(('y' * 1023 + chr(10)) * 4096)\n    sys.stdout.flush()\n    return 'fine'\n";

pub fn full() -> Result<()> {
    let mut bed = Bed::new()?;
    let small = Small::mount(&bed.path("state"), "48m")?;
    bed.serve()?;
    bed.deploy("first", &[("handler.py", HANDLER)])?.ok()?;
    ensure!(bed.faas(&["invoke", "first"])?.ok()?.contains("fine"));
    small.fill()?;

    let large = vec![b'#'; 1 << 20];
    let files: [(&str, &[u8]); 2] =
        [("handler.py", b"def handle(e, c):\n    return 'second'\n"), ("large.py", &large)];
    let output = bed.deploy("second", &files)?;
    says(output, &["pace"])?;
    is_absent(&bed, "second")?;
    // Small enough to be taken in, perhaps, but not to be recorded.
    let tiny: [(&str, &[u8]); 1] = [("handler.py", b"def handle(e, c):\n    return 'third'\n")];
    says(bed.deploy("third", &tiny)?, &["pace"])?;
    is_absent(&bed, "third")?;
    has_instances(&bed, 1)?;

    // What it prints, some 4 MiB each time, has nowhere to go; it answers all the same.
    for _ in 0..5 {
        ensure!(bed.faas(&["invoke", "first"])?.ok()?.contains("fine"));
    }
    small.free()?;
    bed.deploy("second", &files)?.ok()?;
    ensure!(bed.faas(&["invoke", "second"])?.ok()?.contains("second"));
    has_instances(&bed, 2)?;
    // Logs are written again.
    eventually("what is printed now is kept", || {
        let _ = bed.faas(&["invoke", "first"]);
        bed.faas(&["logs", "first"]).is_ok_and(|o| o.out.contains("yyyy"))
    })?;

    // A removal works on a full disk as well, or says why not.
    bed.faas(&["rm", "second"])?.ok()?;
    bed.faas(&["rm", "first"])?.ok()?;
    has_instances(&bed, 0)?;
    bed.end_daemon(Signal::TERM)?;
    drop(small);
    bed.finish()
}

pub fn full_at_start() -> Result<()> {
    let mut bed = Bed::new()?;
    let small = Small::mount(&bed.path("state"), "1m")?;
    small.fill()?;
    let output = bed.serve_in_vain()?;
    says(output, &["pace", "state"])?;
    small.free()?;
    drop(small);
    bed.serve()?;
    bed.finish()
}
