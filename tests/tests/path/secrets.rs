//! Secrets: who can read them, and where they are not.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use faasd_tests::{Bed, eventually, signal};
use rustix::process::Signal;
use serde_json::Value;

use crate::{only, ready, until};

/// Nothing else on the machine has these in it.
const FIRST: &str = "first-d8c1b0a2-what-nobody-else-may-read";
const SECOND: &str = "second-77e0f6d3-what-nobody-else-may-read";

/// Reads its secret, or says how it sees it and what it may do to it.
const READER: &str = r#"
import json, os

DIR = '/run/secrets'
SECRET = DIR + '/db-password'


def tried(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        return os.strerror(error.errno)
    return 'done'


def handle(event, context):
    if event.path == '/look':
        mounts = [line.split() for line in open('/proc/self/mountinfo')]
        state = os.stat(SECRET)
        return json.dumps({
            'names': os.listdir(DIR),
            'mode': oct(state.st_mode & 0o7777),
            'own': state.st_uid == os.getuid() and state.st_gid == os.getgid(),
            'mount': [line[5] + ' ' + line[line.index('-') + 1] for line in mounts if line[4] == DIR],
            'tried': [tried(os.chmod, SECRET, 0o444), tried(open, SECRET, 'w'), tried(os.remove, SECRET),
                      tried(open, DIR + '/other', 'w'), tried(os.chmod, DIR, 0o777)],
        })
    return open(SECRET).read()
"#;

/// Says what it finds without having been given anything, or something else.
const OTHER: &str = "import os\n\ndef handle(event, context):\n    \
    found = [os.path.join(d, f) for d, _, files in os.walk('/run/secrets') for f in files]\n    \
    return ' '.join(found) + ';' + ' '.join(open(f).read() for f in found)\n";

const DECLARED: &str = "secrets = [\"db-password\"]\n";

pub fn read() -> Result<()> {
    let mut bed = Bed::joined()?;
    let files = [("handler.py", READER.as_bytes()), ("faas.toml", DECLARED.as_bytes())];
    set(&bed, "db-pasword", "")?;
    let refused = bed.deploy("reader", &files)?.failed()?;
    ensure!(refused.contains("did you mean 'db-pasword'?"), "{refused}");
    set(&bed, "db-password", FIRST)?;
    set(&bed, "other", SECOND)?;
    bed.deploy("reader", &files)?.ok()?;
    ensure!(ask(&bed)? == FIRST);
    let look = bed.client().curl("http://reader.faas/look")?;
    let look: Value = serde_json::from_str(&look).with_context(|| look.clone())?;
    ensure!(look["names"] == serde_json::json!(["db-password"]), "{look}");
    ensure!(look["mode"] == "0o400" && look["own"] == true, "{look}");
    let mount = look["mount"][0].as_str().unwrap_or_default();
    ensure!(mount.ends_with(" tmpfs"), "{look}");
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        ensure!(mount.split([' ', ',']).any(|o| o == option), "{option}: {look}");
    }
    for tried in look["tried"].as_array().context("nothing was tried")? {
        ensure!(tried == "Read-only file system", "{look}");
    }
    others(&bed)?;
    nowhere_else(&bed)?;

    // Its instance and its secrets outlive the daemon, and the next daemon knows both.
    let pid = only(&bed.describe("reader")?)?;
    bed.end_daemon(Signal::KILL)?;
    bed.serve()?;
    ensure!(only(&bed.describe("reader")?)? == pid);
    ensure!(ask(&bed)? == FIRST);
    // A change is for those that start from now on.
    set(&bed, "db-password", SECOND)?;
    ensure!(ask(&bed)? == FIRST);
    signal(pid, Signal::KILL)?;
    until(&bed, "reader", "another instance", |f| only(f).is_ok_and(|next| next != pid))?;
    ensure!(ask(&bed)? == SECOND);
    nowhere_else(&bed)?;

    // What an instance had goes with it, also while nobody is there to see.
    let pid = only(&bed.describe("reader")?)?;
    bed.end_daemon(Signal::KILL)?;
    signal(pid, Signal::KILL)?;
    let before = directories(&bed)?;
    bed.serve()?;
    until(&bed, "reader", "an instance", |f| only(f).is_ok())?;
    ensure!(ask(&bed)? == SECOND);
    ensure!(directories(&bed)?.is_disjoint(&before), "{before:?} are still there");
    bed.finish()
}

pub fn removed() -> Result<()> {
    let bed = Bed::joined()?;
    set(&bed, "db-password", FIRST)?;
    bed.deploy("reader", &[("handler.py", READER.as_bytes()), ("faas.toml", DECLARED.as_bytes())])?.ok()?;
    let listed = bed.json(&["secret", "ls"])?;
    ensure!(listed["secrets"][0]["functions"] == serde_json::json!(["reader"]), "{listed}");
    let refused = bed.faas(&["secret", "rm", "db-password"])?.failed()?;
    ensure!(refused.contains("is read by reader") && refused.contains("--force"), "{refused}");
    bed.faas(&["secret", "rm", "db-password", "--force"])?.ok()?;
    ensure!(ask(&bed)? == FIRST, "what runs keeps it");
    signal(only(&bed.describe("reader")?)?, Signal::KILL)?;
    let failing = until(&bed, "reader", "the reason", |f| {
        f["reason"].as_str().is_some_and(|why| why.contains("there is no secret 'db-password'"))
    })?;
    ensure!(ready(&failing).is_empty(), "{failing}");
    set(&bed, "db-password", SECOND)?;
    until(&bed, "reader", "an instance", |f| only(f).is_ok())?;
    ensure!(ask(&bed)? == SECOND);

    // Without its key it is lost, and says so.
    fs::rename(bed.path("state/secrets.key"), bed.path("kept.key"))?;
    signal(only(&bed.describe("reader")?)?, Signal::KILL)?;
    until(&bed, "reader", "the reason", |f| {
        f["reason"].as_str().is_some_and(|why| why.contains("secrets.key is gone"))
    })?;
    fs::rename(bed.path("kept.key"), bed.path("state/secrets.key"))?;
    until(&bed, "reader", "an instance", |f| only(f).is_ok())?;

    bed.faas(&["rm", "reader"])?.ok()?;
    eventually("its files are gone", || directories(&bed).is_ok_and(|left| left.is_empty()))?;
    bed.finish()
}

fn set(bed: &Bed, name: &str, value: &str) -> Result<()> {
    let file = bed.path("value");
    fs::write(&file, value)?;
    bed.faas(&["secret", "set", name, "--from-file", &file.display().to_string()])?.ok()?;
    Ok(fs::remove_file(file)?)
}

fn ask(bed: &Bed) -> Result<String> {
    bed.client().curl("http://reader.faas/")
}

/// Instances' directories, on the host.
fn directories(bed: &Bed) -> Result<BTreeSet<PathBuf>> {
    Ok(fs::read_dir(bed.path("run/secrets"))?.flatten().map(|entry| entry.path()).collect())
}

/// No function finds what another has.
fn others(bed: &Bed) -> Result<()> {
    let handler = ("handler.py", OTHER.as_bytes());
    bed.deploy("none", &[handler])?.ok()?;
    bed.deploy("another", &[handler, ("faas.toml", b"secrets = [\"other\"]\n")])?.ok()?;
    ensure!(bed.client().curl("http://none.faas/")? == ";");
    ensure!(bed.client().curl("http://another.faas/")? == format!("/run/secrets/other;{SECOND}"));
    // On the host, each directory is one user's alone, and no user is two functions'.
    let mut users = BTreeSet::new();
    for dir in directories(bed)? {
        let meta = fs::metadata(&dir)?;
        ensure!(meta.mode() & 0o7777 == 0o500 && meta.uid() >= 0x1000_0000, "{}: {meta:?}", dir.display());
        users.insert(meta.uid());
    }
    ensure!(users.len() == 2, "{users:?}");
    for name in ["none", "another"] {
        bed.faas(&["rm", name])?.ok()?;
    }
    Ok(())
}

/// Neither on disk, nor in the environment or the arguments of a process, nor in what the daemon says.
fn nowhere_else(bed: &Bed) -> Result<()> {
    let pid = only(&bed.describe("reader")?)?;
    for file in ["environ", "cmdline"] {
        clean(&PathBuf::from(format!("/proc/{pid}/{file}")))?;
    }
    let mut files = vec![bed.path("faasd.log")];
    walk(&bed.path("state"), &mut files)?;
    ensure!(files.iter().any(|file| file.ends_with("config.json")), "no bundle was looked at");
    files.iter().try_for_each(|file| clean(file))?;
    let described = bed.describe("reader")?.to_string();
    ensure!(described.contains("db-password") && !described.contains("nobody-else"), "{described}");
    let listed = bed.json(&["secret", "ls"])?.to_string();
    ensure!(listed.contains("db-password") && !listed.contains("nobody-else"), "{listed}");
    Ok(())
}

fn clean(file: &Path) -> Result<()> {
    // It may be gone by now: the daemon is at work.
    let bytes = fs::read(file).unwrap_or_default();
    for secret in [FIRST, SECOND] {
        let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        ensure!(!found, "{secret} is in {}", file.display());
    }
    Ok(())
}

fn walk(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)?.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => walk(&entry.path(), files)?,
            Ok(kind) if kind.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
    Ok(())
}
