//! The peers, written down for whoever looks: a file each, in the form that WireGuard's tools read (`wg addconf`). They
//! follow the store and are never read back. Nothing in them is secret.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::PathBuf;

use super::records::PeerRecord;
use crate::core::name::FunctionName;

/// How a file of ours begins; others are left alone.
const MARK: &str = "# Written by faasd";

const SUFFIX: &str = ".conf";

/// The directory of the files.
#[derive(Debug)]
pub struct PeerFiles {
    dir: PathBuf,
}

impl PeerFiles {
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Makes the files those of the peers on record. What cannot be written is told of in the log: nobody depends on it.
    pub fn write_all<'a>(&self, records: impl Iterator<Item = &'a PeerRecord>) {
        let prepared = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .and_then(|()| fs::set_permissions(&self.dir, fs::Permissions::from_mode(0o700)));
        if let Err(error) = prepared {
            tracing::warn!(%error, directory = %self.dir.display(), "cannot write the peers' files");
            return;
        }
        let mut wanted = HashSet::new();
        for record in records {
            self.write(record);
            wanted.insert(format!("{}{SUFFIX}", record.name));
        }
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let is_old = name.to_str().is_some_and(|name| name.ends_with(SUFFIX) && !wanted.contains(name));
            if is_old && fs::read_to_string(entry.path()).is_ok_and(|text| text.starts_with(MARK)) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Writes one peer's file, if it differs.
    pub fn write(&self, record: &PeerRecord) {
        let path = self.path(&record.name);
        let text = text(record);
        let same = fs::read_to_string(&path).is_ok_and(|before| before == text);
        if !same && let Err(error) = fs::write(&path, text) {
            tracing::warn!(%error, file = %path.display(), "cannot write the peer's file");
        }
    }

    /// Removes the file of a peer that is no more.
    pub fn remove(&self, name: &FunctionName) {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, file = %path.display(), "cannot remove the peer's file");
            }
            _ => {}
        }
    }

    fn path(&self, name: &FunctionName) -> PathBuf {
        self.dir.join(format!("{name}{SUFFIX}"))
    }
}

fn text(record: &PeerRecord) -> String {
    let state = record.invited_until.map_or_else(String::new, |until| format!(", invited until {until}"));
    format!(
        "{MARK}, which does not read it: {}{state}\n[Peer]\nPublicKey = {}\nAllowedIPs = {}/128\n",
        record.name, record.public_key, record.address
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str) -> PeerRecord {
        serde_json::from_value(serde_json::json!({
            "name": name,
            "address": "fd00:faa5:0:100::2",
            "public_key": "asBP5Y2M63hAEiW3poXssW5Yh4EbS+Pq4zo4l2/OdlA=",
        }))
        .unwrap()
    }

    #[test]
    fn the_files_are_those_of_the_peers_on_record() {
        let dir = tempfile::tempdir().unwrap();
        let files = PeerFiles::new(dir.path().join("peers"));
        let (anna, bert) = (record("anna"), record("bert"));
        files.write_all([&anna, &bert].into_iter());
        let mode = fs::metadata(dir.path().join("peers")).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o700);
        let foreign = dir.path().join("peers/old.conf");
        fs::write(&foreign, "[Peer]\n").unwrap();
        files.write_all([&anna].into_iter());
        let names = || {
            let mut names: Vec<_> =
                fs::read_dir(dir.path().join("peers")).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(), ["anna.conf", "old.conf"], "what is not ours stays");
        let text = fs::read_to_string(dir.path().join("peers/anna.conf")).unwrap();
        assert!(
            text.contains("[Peer]\nPublicKey = asBP5Y2M63hAEiW3poXssW5Yh4EbS+Pq4zo4l2/OdlA=\n"),
            "{text}"
        );
        assert!(text.ends_with("AllowedIPs = fd00:faa5:0:100::2/128\n"), "{text}");
        files.remove(&anna.name);
        files.remove(&anna.name);
        assert_eq!(names(), ["old.conf"]);
    }
}
