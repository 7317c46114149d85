//! The zones on disk, for other servers, and the serial that outlives the daemon.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::names::Names;
use crate::core::zone::{Origin, Zone, origin_name, serial_is_later, write_zone_file};

/// Changes within this time are written together, and told to secondaries together.
const PAUSE: Duration = Duration::from_millis(200);

/// Serials are reserved on disk this many at a time, before they are used: a daemon that is killed goes on behind them. So
/// many are more than the changes of several seconds, and few enough that a daemon that ends at once would have to start
/// 260,000 times before a secondary that saw nothing of it took a later serial for an earlier one.
const RESERVED: u32 = 1 << 13;

#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub struct ZoneFileError {
    path: PathBuf,
    operation: &'static str,
    #[source]
    source: io::Error,
}

/// The directory of the zone files.
#[derive(Debug)]
pub struct ZoneFiles {
    dir: PathBuf,
    reserved: u32,
}

impl ZoneFiles {
    /// Opens the directory, and returns the serial to begin with. It is later than any that was ever used here; where
    /// nothing says which ones were, it is the time in seconds, `now_s`, which is later than what is usual.
    ///
    /// # Errors
    /// Those of the file system, with the file's name.
    pub fn open(dir: &Path, now_s: u64) -> Result<(Self, u32), ZoneFileError> {
        let path = dir.join("serial");
        let reserved = match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse::<u32>().ok(),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => None,
            Err(source) => return Err(ZoneFileError { path, operation: "read", source }),
        };
        let first = reserved.map_or(now_s as u32, |last| last.wrapping_add(1));
        let mut files = Self { dir: dir.to_owned(), reserved: first };
        files.reserve(first.wrapping_add(RESERVED))?;
        Ok((files, first))
    }

    /// Writes all zones. Other servers see each as it was before or as it is now, whatever happens.
    ///
    /// # Errors
    /// Those of the file system, with the file's name.
    pub fn write(&mut self, zone: &Zone) -> Result<(), ZoneFileError> {
        if serial_is_later(zone.serial(), self.reserved.wrapping_sub(RESERVED / 2)) {
            self.reserve(zone.serial().wrapping_add(RESERVED))?;
        }
        for origin in Origin::ALL {
            let name = format!("{}.db", origin_name(origin, zone.settings()));
            replace(&self.dir, &name, |file| write_zone_file(zone, origin, file))?;
        }
        Ok(())
    }

    /// Gives back the serials that were not used.
    ///
    /// # Errors
    /// Those of the file system, with the file's name.
    pub fn close(mut self, serial: u32) -> Result<(), ZoneFileError> {
        self.reserve(serial)
    }

    fn reserve(&mut self, last: u32) -> Result<(), ZoneFileError> {
        replace(&self.dir, "serial", |file| writeln!(file, "{last}"))?;
        self.reserved = last;
        Ok(())
    }
}

fn replace(
    dir: &Path,
    name: &str,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), ZoneFileError> {
    let path = dir.join(name);
    let fail = |operation| {
        let path = path.clone();
        move |source| ZoneFileError { path, operation, source }
    };
    fs::create_dir_all(dir).map_err(fail("make the directory of"))?;
    let temporary = dir.join(format!("{name}.tmp"));
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&temporary);
    let mut file = BufWriter::new(file.map_err(fail("open"))?);
    write(&mut file).map_err(fail("write"))?;
    let file = file.into_inner().map_err(|e| fail("write")(e.into_error()))?;
    file.sync_all().map_err(fail("sync"))?;
    fs::rename(&temporary, &path).map_err(fail("replace"))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(fail("sync the directory of"))
}

/// Writes the zones after each change, off the path of a deploy, and tells the serial of what is written. Ends when
/// `stopped` is, and gives back the serials that were not used.
pub async fn keep(
    mut files: ZoneFiles,
    names: Arc<Names>,
    written: watch::Sender<u32>,
    mut stopped: watch::Receiver<()>,
) {
    let mut changed = names.watch();
    changed.mark_changed();
    loop {
        tokio::select! {
            _ = changed.changed() => {}
            _ = stopped.changed() => break,
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            _ = stopped.changed() => break,
        }
        changed.mark_unchanged();
        let zone = Arc::clone(&names.load());
        let serial = zone.serial();
        let done = tokio::task::spawn_blocking(move || {
            if let Err(error) = files.write(&zone) {
                tracing::warn!(error = format!("{:#}", anyhow::Error::from(error)), "the zone files are old");
            }
            files
        });
        match done.await {
            Ok(back) => files = back,
            Err(error) => return tracing::error!(%error, "the zone files are written no more"),
        }
        // Also where the disk is full: what is served has changed.
        written.send_replace(serial);
    }
    let zone = Arc::clone(&names.load());
    let done = tokio::task::spawn_blocking(move || {
        files.write(&zone)?;
        files.close(zone.serial())
    });
    if let Ok(Err(error)) = done.await {
        tracing::warn!(error = format!("{:#}", anyhow::Error::from(error)), "the zone files are old");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::address::{FUNCTION_PREFIX, VPN_PREFIX};
    use crate::core::zone::{FunctionNames, ZoneSettings};

    fn zone(serial: u32) -> Zone {
        Zone::new(ZoneSettings::new(VPN_PREFIX, FUNCTION_PREFIX), serial)
    }

    #[test]
    fn serials_rise_over_restarts_and_losses() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("dns");
        let (mut files, first) = ZoneFiles::open(&dir, 1_790_000_000).unwrap();
        assert_eq!(first, 1_790_000_000);
        files.write(&zone(first.wrapping_add(3))).unwrap();
        files.close(first + 3).unwrap();
        // An orderly end wastes none, whatever the clock says.
        let (_killed, second) = ZoneFiles::open(&dir, 5).unwrap();
        assert_eq!(second, first + 4);
        // One that was killed may have used all that it had reserved.
        let (mut files, third) = ZoneFiles::open(&dir, 5).unwrap();
        assert!(serial_is_later(third, second + RESERVED));
        // More are reserved long before they are used, also past the end of the numbers.
        files.reserve(u32::MAX - 10).unwrap();
        files.write(&zone(u32::MAX - 12)).unwrap();
        let (_, fourth) = ZoneFiles::open(&dir, 5).unwrap();
        assert!(serial_is_later(fourth, u32::MAX) && fourth < RESERVED);
        // What is no number was not written by us.
        fs::write(dir.join("serial"), "?").unwrap();
        assert_eq!(ZoneFiles::open(&dir, 5).unwrap().1, 5);
    }

    #[test]
    fn a_daemon_that_ends_again_and_again_uses_few_serials() {
        let dir = tempfile::tempdir().unwrap();
        let (_, first) = ZoneFiles::open(dir.path(), 7).unwrap();
        let mut last = first;
        for _ in 0..100 {
            let (_, serial) = ZoneFiles::open(dir.path(), 7).unwrap();
            let names = Names::new(zone(serial));
            for i in 0..100 {
                let name = format!("f{i}").parse().unwrap();
                names.publish_function(FunctionNames::new(name, FUNCTION_PREFIX.host(i), None));
            }
            // What was there before anybody could ask is one serial, and none that the one before may have used.
            names.settle();
            assert_eq!((names.load().serial(), names.load().len()), (serial, 101));
            assert!(serial_is_later(serial, last));
            last = serial;
        }
        assert!(last.wrapping_sub(first) < 1 << 20, "{first} {last}");
    }

    #[test]
    fn files_are_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (mut files, first) = ZoneFiles::open(dir.path(), 7).unwrap();
        let hello = "hello".parse().unwrap();
        let hello = FunctionNames::new(hello, FUNCTION_PREFIX.host(5), Some(80));
        let zone = zone(first).with_function(&Arc::new(hello)).unwrap();
        files.write(&zone).unwrap();
        let mut names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(
            names,
            [
                "0.0.1.0.0.0.0.0.5.a.a.f.0.0.d.f.ip6.arpa.db",
                "0.0.2.0.0.0.0.0.5.a.a.f.0.0.d.f.ip6.arpa.db",
                "faas.db",
                "serial",
            ]
        );
        let text = fs::read_to_string(dir.path().join("faas.db")).unwrap();
        assert!(text.contains("hello IN AAAA fd00:faa5:0:200::5\n"), "{text}");
        assert!(text.contains("_http._tcp.hello IN SRV 0 0 80 hello.faas.\n"), "{text}");

        let error = ZoneFiles::open(Path::new("/proc/dns"), 7).unwrap_err().to_string();
        assert!(error.contains("/proc/dns"), "{error}");
    }

    #[tokio::test]
    async fn the_last_change_is_written_before_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let (files, first) = ZoneFiles::open(dir.path(), 7).unwrap();
        let names = Arc::new(Names::new(zone(first)));
        let (written, mut told) = watch::channel(0);
        let (stop, stopped) = watch::channel(());
        let keeping = tokio::spawn(keep(files, Arc::clone(&names), written, stopped));
        told.wait_for(|serial| *serial == first).await.unwrap();
        let hello = "hello".parse().unwrap();
        names.publish_function(FunctionNames::new(hello, FUNCTION_PREFIX.host(5), None));
        drop(stop);
        keeping.await.unwrap();
        let text = fs::read_to_string(dir.path().join("faas.db")).unwrap();
        assert!(text.contains("hello IN AAAA"), "{text}");
        assert_eq!(ZoneFiles::open(dir.path(), 0).unwrap().1, first + 2);
    }
}
