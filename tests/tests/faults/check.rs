//! What must hold after a failure.

use std::fs;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use faasd_tests::{Bed, Output, eventually};

/// The server's address in the tunnel, where its DNS answers.
const DNS: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xfaa5, 0, 0x100, 0, 0, 0, 1);

/// That a program failed, and that what it said has each of `words`.
pub fn says(output: Output, words: &[&str]) -> Result<()> {
    let status = output.status;
    let said = output.failed()?;
    ensure!(status.is_some(), "it was killed:\n{said}");
    for word in words {
        ensure!(said.contains(word), "no '{word}' in:\n{said}");
    }
    Ok(())
}

/// That nothing is there of a function that was never deployed with success.
pub fn is_absent(bed: &Bed, name: &str) -> Result<()> {
    let listed = bed.json(&["ls"])?.to_string();
    ensure!(!listed.contains(&format!("\"{name}\"")), "listed: {listed}");
    let shown = bed.faas(&["describe", name])?;
    ensure!(shown.status != Some(0), "described: {}", shown.out);
    ensure!(resolve(bed, name)? == 3, "{name}.faas resolves");
    ensure!(!bed.path("state/logs").join(name).exists(), "its logs are kept");
    // It is written a little after the change.
    eventually("the zone file does without it", || {
        let zone = fs::read_to_string(bed.path("state/dns/faas.db")).unwrap_or_default();
        !zone.lines().any(|line| line.starts_with(&format!("{name} ")))
    })
}

/// That no instance, and nothing half done, is there.
pub fn is_idle(bed: &Bed) -> Result<()> {
    // An instance that another deploy has replaced may still be on its way out.
    let clean = eventually("the traces of instances are gone", || traces(bed).is_ok_and(|t| t.is_empty()));
    clean.with_context(|| format!("{:#?}", traces(bed)))
}

/// As [`is_idle`], but for `instances` that are to be there.
pub fn has_instances(bed: &Bed, instances: usize) -> Result<()> {
    let is_so = || {
        let count = |dir: &str| fs::read_dir(bed.path(dir)).map_or(0, |d| d.flatten().count());
        let bundles = count("state/bundles");
        bundles == instances && count("run/runc") == instances && cgroups(bed).len() == instances
    };
    eventually("each instance has a bundle, a container and a cgroup", is_so)
        .with_context(|| format!("{:#?}\n{:#?}", traces(bed), cgroups(bed)))
}

fn traces(bed: &Bed) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for dir in ["state/bundles", "state/uploads", "state/images/tmp", "run/runc"] {
        for entry in fs::read_dir(bed.path(dir)).into_iter().flatten().flatten() {
            found.push(entry.path().display().to_string());
        }
    }
    found.extend(cgroups(bed));
    Ok(found)
}

/// The instances' cgroups, in the first hierarchy that has the daemon's.
fn cgroups(bed: &Bed) -> Vec<String> {
    let groups = |mount: std::path::PathBuf| -> Vec<String> {
        let group = fs::read_dir(mount.join(bed.name())).into_iter().flatten().flatten();
        let dirs = group.filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
        dirs.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
    };
    let mounts = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|e| e.path());
    let all: std::collections::BTreeSet<_> =
        mounts.chain([Path::new("/sys/fs/cgroup").to_owned()]).flat_map(groups).collect();
    all.into_iter().collect()
}

/// What DNS answers for a function's name: the response code (0: it is there, 3: there is no such name).
pub fn resolve(bed: &Bed, name: &str) -> Result<u8> {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in [name, "faas"] {
        query.push(u8::try_from(label.len())?);
        query.extend(label.as_bytes());
    }
    // The root, AAAA, IN.
    query.extend([0, 0, 28, 0, 1]);
    let answer = bed.ingress()?.run(|| {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.send_to(&query, SocketAddr::from((DNS, 53)))?;
        let mut answer = [0; 512];
        let read = socket.recv(&mut answer)?;
        Ok(answer[..read].to_vec())
    })?;
    match answer.get(3) {
        Some(flags) => Ok(flags & 0x0f),
        None => bail!("no DNS answer: {answer:?}"),
    }
}
