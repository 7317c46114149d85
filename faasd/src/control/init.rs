//! `faasd init`: what is on disk once a daemon has started, made before one does: the state's directories, the server's
//! keys, the peers' directory and zones with nobody in them yet. A package does it when it is installed, so that keys are
//! there to look at and to keep, whether the service starts or not.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;

use anyhow::Context;

use super::adopt;
use super::config::Config;
use super::daemon::{Options, lock, names, prepare};
use super::store::Embedded;
use crate::core::zone::ZONE;
use crate::sys::netns::NetNs;
use crate::tunnel::keys;

/// Makes what is missing. Where a daemon runs, nothing is: it has made everything.
///
/// # Errors
/// Settings or files that a daemon would not start with either, with the remedy.
pub fn init(options: &Options) -> anyhow::Result<()> {
    let Options { paths, .. } = options;
    let mut config = Config::load(&options.config)?;
    prepare(paths)?;
    let Some(_alone) = lock(&paths.run)? else { return Ok(()) };
    let store = Embedded::open(&paths.store())?;
    let host = NetNs::current().context("cannot open this network namespace")?;
    // A wg-quick server's key comes before a new one, as it does when a daemon starts.
    adopt::adopt(&mut config, &paths.wireguard, &store, &host)?;
    keys::load_or_create(&paths.wireguard)?;
    let peers = paths.peers();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&peers)
        .with_context(|| format!("cannot make {}", peers.display()))?;
    let zones = paths.zone_files();
    if !fs::exists(zones.join(format!("{ZONE}.db")))? {
        let (names, mut files) = names(&config, &zones)?;
        let zone = names.load();
        files.write(&zone)?;
        files.close(zone.serial())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::core::paths::Paths;

    fn options(directory: &Path) -> Options {
        let paths = Paths {
            state: directory.join("state"),
            run: directory.join("run"),
            wireguard: directory.join("wireguard"),
            instance: "faasd-init".to_owned(),
            cgroup: None,
        };
        Options { paths, config: PathBuf::from("/nonexistent"), endpoint: None }
    }

    #[test]
    #[ignore = "needs root"]
    fn what_is_missing_is_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let place = |name: &str| directory.path().join(name);
        let options = options(directory.path());
        let mode = |path: &str| place(path).metadata().unwrap().permissions().mode() & 0o7777;
        init(&options).unwrap();
        assert_eq!(mode("wireguard/server_private.key"), 0o600);
        assert_eq!(mode("wireguard/peers"), 0o700);
        assert!(place("state/bundles").is_dir() && place("state/dns/faas.db").is_file());

        let files = ["wireguard/server_private.key", "wireguard/server_public.key", "state/dns/faas.db"];
        let content = || files.map(|file| fs::read_to_string(place(file)).unwrap());
        let before = content();
        init(&options).unwrap();
        assert_eq!(content(), before);
    }

    #[test]
    #[ignore = "needs root"]
    fn a_running_daemon_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let place = |name: &str| directory.path().join(name);
        let options = options(directory.path());
        fs::create_dir(place("run")).unwrap();
        let _daemon = lock(&place("run")).unwrap().unwrap();
        init(&options).unwrap();
        assert!(!place("wireguard/server_private.key").exists());
    }
}
