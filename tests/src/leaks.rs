//! What a daemon has on a machine, counted: anything more after a test than before it is a leak.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};

/// Names of things by kind: mounts, cgroups, namespaces, pins, processes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traces(pub BTreeMap<&'static str, BTreeSet<String>>);

impl Traces {
    /// Everything on the machine that carries a bed's name.
    ///
    /// # Errors
    /// If /proc cannot be read.
    pub fn of(name: &str) -> Result<Self> {
        let mut all = BTreeMap::new();
        let has = |text: &str| text.contains(name);
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        all.insert("mounts", mounts.lines().filter(|l| has(l)).map(str::to_owned).collect());
        let mut cgroups = BTreeSet::new();
        for mount in fs::read_dir("/sys/fs/cgroup")?.flatten().map(|e| e.path()) {
            find(&mount, 3, &has, &mut cgroups);
        }
        all.insert("cgroups", cgroups);
        let mut pins = BTreeSet::new();
        find(Path::new("/sys/fs/bpf"), 2, &has, &mut pins);
        all.insert("pins", pins);
        let mut namespaces = BTreeSet::new();
        find(Path::new("/run/netns"), 1, &has, &mut namespaces);
        all.insert("namespaces", namespaces);
        let mut processes = BTreeSet::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let pid = entry.file_name().to_string_lossy().into_owned();
            let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let group = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            // The test itself has the name in no argument, but what it started has.
            let is_ours = pid.parse::<u32>().is_ok_and(|pid| pid != std::process::id());
            if is_ours && (has(&line) || group.lines().any(&has)) {
                processes.insert(format!("{pid} {line}"));
            }
        }
        all.insert("processes", processes);
        Ok(Self(all))
    }

    /// Fails if there is more here than there was.
    ///
    /// # Errors
    /// What there is more, by kind.
    pub fn compare(&self, before: &Self) -> Result<()> {
        let more: Vec<_> = self
            .0
            .iter()
            .flat_map(|(kind, now)| {
                let none = BTreeSet::new();
                let then = before.0.get(kind).unwrap_or(&none).clone();
                now.difference(&then).map(|one| format!("{kind}: {one}")).collect::<Vec<_>>()
            })
            .collect();
        ensure!(more.is_empty(), "left over:\n{}", more.join("\n"));
        Ok(())
    }
}

fn find(dir: &Path, depth: u32, has: &impl Fn(&str) -> bool, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let text = path.display().to_string();
        if has(&text) {
            found.insert(text);
        }
        if depth > 1 && entry.file_type().is_ok_and(|t| t.is_dir()) {
            find(&path, depth - 1, has, found);
        }
    }
}
