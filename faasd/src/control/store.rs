//! Desired state: a small ordered map of keys to versioned values, durable once a write returns.
//!
//! [`Store`] has the shape of etcd's key space (a store-wide revision, compare-and-set on a key's last revision), so
//! that a cluster's store can stand behind it: a key's version is its `mod_revision`, and what changed since a revision
//! is what a watch from there would tell. [`Embedded`] is one machine's: one file, one process, of which this daemon is the
//! only writer, so that nothing here watches or leases yet. `conformance` holds every store to the same rules.
//!
//! Calls block for as long as the disk takes. Call writes from a thread that may block.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use redb::backends::FileBackend;
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table, TableDefinition,
    WriteTransaction,
};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub const KEY_BYTES_MAX: usize = 512;
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// Keys in the whole store: forty for each function that one machine is built for, rules among them.
pub const KEYS_MAX: u64 = 400_000;
/// What the daemon lends redb for its page cache; the default is 1 GiB.
const CACHE_BYTES: usize = 4 << 20;
/// The layout of the file's tables.
const FORMAT: u64 = 1;

/// A value and the store's revision when it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    pub value: Vec<u8>,
    pub version: u64,
}

/// What must hold of a key for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    Any,
    Absent,
    /// The key exists and was last written at this revision.
    Version(u64),
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("anything"),
            Self::Absent => f.write_str("no value"),
            Self::Version(version) => write!(f, "version {version}"),
        }
    }
}

/// One of several changes that are made together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    Put { key: String, value: Vec<u8> },
    Delete { key: String },
}

/// Where desired state is kept.
pub trait Store: Send + Sync + fmt::Debug {
    /// # Errors
    /// Those of the medium; see [`StoreError`].
    fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError>;

    /// All keys that begin with `prefix`, in order, as of one moment.
    ///
    /// # Errors
    /// Those of the medium; see [`StoreError`].
    fn list(&self, prefix: &str) -> Result<Vec<(String, Versioned)>, StoreError>;

    /// Writes, and returns the store's new revision, which is now the key's version. Survives a crash or a power
    /// failure once it returned.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if `expect` does not hold; limits; those of the medium. Nothing was written then,
    /// except that after [`StoreError::Io`] only reading the key tells.
    fn put(&self, key: &str, value: &[u8], expect: Expect) -> Result<u64, StoreError>;

    /// Deletes, and returns whether there was anything to delete.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if `expect` does not hold; those of the medium. Nothing was deleted then, with the
    /// same exception.
    fn delete(&self, key: &str, expect: Expect) -> Result<bool, StoreError>;

    /// Makes all of these changes or none of them, whatever was there, as one revision. With nothing to delete and
    /// nothing to write it makes none.
    ///
    /// # Errors
    /// Limits; those of the medium. Nothing was changed then, with the same exception.
    fn write_all(&self, writes: &[Write]) -> Result<(), StoreError>;

    /// The number of changes ever made. It never falls.
    ///
    /// # Errors
    /// Those of the medium; see [`StoreError`].
    fn revision(&self) -> Result<u64, StoreError>;
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("'{key}' was to have {expected}, but {}", found.map_or("does not exist".to_owned(), |v| format!("has version {v}: it was changed meanwhile; read it again")))]
    Conflict { key: String, expected: Expect, found: Option<u64> },
    #[error("the key '{0}' must be 1 to {KEY_BYTES_MAX} printable ASCII characters")]
    Key(String),
    #[error("the value of '{key}' has {bytes} bytes; at most {VALUE_BYTES_MAX} can be stored")]
    ValueTooLarge { key: String, bytes: usize },
    #[error("the store has its {KEYS_MAX} keys already; remove functions or peers first")]
    KeysMax,
    #[error("the value of '{key}' is not what this version of faasd writes; was a newer one run here?")]
    Value {
        key: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("{} is in use by another faasd; stop it, or give this one a state directory of its own (FAAS_ROOT)", path.display())]
    InUse { path: PathBuf },
    #[error("no room on the disk for {}; nothing was changed. Free some space and try again", path.display())]
    Full {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is damaged ({detail}); move it away and restore a backup, or start anew without it", path.display())]
    Damaged { path: PathBuf, detail: String },
    #[error("{} has layout {found}, and this faasd reads {FORMAT}; run the version that wrote it", path.display())]
    Format { path: PathBuf, found: u64 },
    #[error("cannot {operation} {}", path.display())]
    Io {
        path: PathBuf,
        operation: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot use {}", path.display())]
    Database { path: PathBuf, source: Box<redb::Error> },
}

const DATA: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("data");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const META_REVISION: &str = "revision";
const META_FORMAT: &str = "format";

/// The store of a single machine, in one file.
pub struct Embedded {
    path: PathBuf,
    /// None after a failure of the disk, from which redb recovers only by opening the file again: the next call
    /// tries that, so that freeing space is all the repair a full disk needs.
    database: RwLock<Option<Database>>,
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Embedded {
    /// Opens the file, or makes it, readable by its owner alone. Every page is checked, so that damage shows here
    /// and not in the middle of a deploy.
    ///
    /// # Errors
    /// [`StoreError::InUse`], [`StoreError::Damaged`], [`StoreError::Full`], [`StoreError::Format`], or `open(2)`'s.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let store = Self { path: path.to_owned(), database: RwLock::new(None) };
        if !path.try_exists().map_err(|e| store.io("open", e))? {
            let made = store.create();
            // Another daemon may have been quicker and swept ours away; then it is its store that counts.
            if !path.try_exists().map_err(|e| store.io("open", e))? {
                made?;
            }
        }
        let database = store.open_existing()?;
        store.sweep();
        *store.database.write().unwrap_or_else(PoisonError::into_inner) = Some(database);
        Ok(store)
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the store under another name and gives it its own once it is whole: redb cannot open a file whose
    /// making was cut short.
    fn create(&self) -> Result<(), StoreError> {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let temporary = self.temporary(&format!("{}-{number}", std::process::id()));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(|e| self.io("make", e))?;
        let made = self.fill(file).and_then(|()| {
            File::open(&temporary).and_then(|file| file.sync_all()).map_err(|e| self.io("sync", e))?;
            // Without replacing what another daemon may have made meanwhile.
            match renameat_with(CWD, &temporary, CWD, &self.path, RenameFlags::NOREPLACE) {
                Ok(()) | Err(Errno::EXIST) => Ok(()),
                Err(e) => Err(self.io("name", e.into())),
            }
        });
        // There is nothing left to remove if all went well.
        let _ = fs::remove_file(&temporary);
        made?;
        File::open(self.dir()).and_then(|dir| dir.sync_all()).map_err(|e| self.io("sync the directory of", e))
    }

    /// Makes the tables, so that everyone else can rely on them.
    fn fill(&self, file: File) -> Result<(), StoreError> {
        let database = self.open_database(file)?;
        let transaction = database.begin_write().map_err(|e| self.error(e))?;
        transaction.open_table(DATA).map_err(|e| self.error(e))?;
        {
            let mut meta = transaction.open_table(META).map_err(|e| self.error(e))?;
            meta.insert(META_FORMAT, FORMAT).map_err(|e| self.error(e))?;
        }
        transaction.commit().map_err(|e| self.error(e))
    }

    /// Opens the file and checks its layout. Never makes one: an empty store would undeploy everything.
    fn open_existing(&self) -> Result<Database, StoreError> {
        let file =
            OpenOptions::new().read(true).write(true).open(&self.path).map_err(|e| self.io("open", e))?;
        if file.metadata().map_err(|e| self.io("open", e))?.len() == 0 {
            return Err(StoreError::Damaged {
                path: self.path.clone(),
                detail: "the file is empty".to_owned(),
            });
        }
        let database = self.open_database(file)?;
        let found = (|| {
            let meta = database.begin_read()?.open_table(META)?;
            Ok::<_, redb::Error>(meta.get(META_FORMAT)?.map(|found| found.value()))
        })();
        match found.map_err(|e| self.error(e))? {
            Some(FORMAT) => Ok(database),
            found => Err(StoreError::Format { path: self.path.clone(), found: found.unwrap_or(0) }),
        }
    }

    fn open_database(&self, file: File) -> Result<Database, StoreError> {
        let backend = FileBackend::new(file).map_err(|e| self.error(e))?;
        Database::builder()
            .set_cache_size(CACHE_BYTES)
            .set_check_integrity_on_open(true)
            .create_with_backend(backend)
            .map_err(|e| self.error(e))
    }

    /// Removes what daemons killed while making the store left behind. Whoever still makes one finds this one there.
    fn sweep(&self) {
        let prefix = self.temporary("");
        for entry in fs::read_dir(self.dir()).into_iter().flatten().flatten() {
            if entry.path().as_os_str().as_bytes().starts_with(prefix.as_os_str().as_bytes()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// The name under which a store is made.
    fn temporary(&self, suffix: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".new-");
        name.push(suffix);
        name.into()
    }

    fn dir(&self) -> &Path {
        self.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    /// Runs `work` on the open database, and closes that after a failure of the disk.
    fn run<T>(&self, work: impl FnOnce(&Database) -> Result<T, Failure>) -> Result<T, StoreError> {
        let result = {
            let open = self.database.read().unwrap_or_else(PoisonError::into_inner);
            match open.as_ref() {
                Some(database) => work(database),
                None => {
                    drop(open);
                    self.reopen()?;
                    match self.database.read().unwrap_or_else(PoisonError::into_inner).as_ref() {
                        Some(database) => work(database),
                        // Another thread met the next failure in between.
                        None => Err(Failure::Redb(Box::new(redb::Error::PreviousIo))),
                    }
                }
            }
        };
        result.map_err(|failure| match failure {
            Failure::Refused(error) => error,
            Failure::Redb(error) => {
                if matches!(*error, redb::Error::Io(_) | redb::Error::PreviousIo) {
                    *self.database.write().unwrap_or_else(PoisonError::into_inner) = None;
                }
                self.error(*error)
            }
        })
    }

    fn reopen(&self) -> Result<(), StoreError> {
        let mut open = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if open.is_none() {
            *open = Some(self.open_existing()?);
        }
        Ok(())
    }

    /// Runs `change` in a transaction that becomes the next revision, if it changes anything.
    fn write<T>(
        &self,
        change: impl FnOnce(&WriteTransaction, u64) -> Result<(bool, T), Failure>,
    ) -> Result<T, StoreError> {
        self.run(|database| {
            let mut transaction = database.begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            let revision = {
                let meta = transaction.open_table(META)?;
                let last = meta.get(META_REVISION)?;
                last.map_or(0, |last| last.value()) + 1
            };
            let (changed, result) = change(&transaction, revision)?;
            if changed {
                transaction.open_table(META)?.insert(META_REVISION, revision)?;
                transaction.commit()?;
            } else {
                transaction.abort()?;
            }
            Ok(result)
        })
    }

    fn io(&self, operation: &'static str, source: io::Error) -> StoreError {
        let path = self.path.clone();
        if is_full(&source) {
            StoreError::Full { path, source }
        } else {
            StoreError::Io { path, operation, source }
        }
    }

    /// An error of redb's, with the file's name and what can be done.
    fn error(&self, error: impl Into<redb::Error>) -> StoreError {
        let path = self.path.clone();
        match error.into() {
            redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => {
                StoreError::InUse { path }
            }
            // What redb says of a file that never was one of its own.
            redb::Error::Io(source)
                if matches!(source.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
            {
                StoreError::Damaged { path, detail: source.to_string() }
            }
            redb::Error::Io(source) => self.io("read or write", source),
            redb::Error::Corrupted(detail) => StoreError::Damaged { path, detail },
            error @ (redb::Error::RepairAborted
            | redb::Error::UpgradeRequired(_)
            | redb::Error::TableTypeMismatch { .. }
            | redb::Error::TypeDefinitionChanged { .. }
            | redb::Error::TableDoesNotExist(_)) => StoreError::Damaged { path, detail: error.to_string() },
            error => StoreError::Database { path, source: Box::new(error) },
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

/// Why a transaction did not happen.
enum Failure {
    Refused(StoreError),
    Redb(Box<redb::Error>),
}

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Redb(Box::new(error.into()))
    }
}

fn check_key(key: &str) -> Result<(), StoreError> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(StoreError::Key(key.chars().take(KEY_BYTES_MAX).collect()));
    }
    Ok(())
}

fn check_value(key: &str, value: &[u8]) -> Result<(), StoreError> {
    match value.len() {
        bytes if bytes > VALUE_BYTES_MAX => Err(StoreError::ValueTooLarge { key: key.to_owned(), bytes }),
        _ => Ok(()),
    }
}

fn insert(
    data: &mut Table<'_, &'static str, (u64, &'static [u8])>,
    key: &str,
    value: &[u8],
    expect: Expect,
    revision: u64,
) -> Result<(), Failure> {
    let found = data.get(key)?.map(|found| found.value().0);
    check_expect(key, expect, found)?;
    if found.is_none() && data.len()? >= KEYS_MAX {
        return Err(Failure::Refused(StoreError::KeysMax));
    }
    data.insert(key, (revision, value))?;
    Ok(())
}

fn check_expect(key: &str, expected: Expect, found: Option<u64>) -> Result<(), Failure> {
    let holds = match expected {
        Expect::Any => true,
        Expect::Absent => found.is_none(),
        Expect::Version(version) => found == Some(version),
    };
    if holds {
        Ok(())
    } else {
        Err(Failure::Refused(StoreError::Conflict { key: key.to_owned(), expected, found }))
    }
}

impl Store for Embedded {
    fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError> {
        check_key(key)?;
        self.run(|database| {
            let data = database.begin_read()?.open_table(DATA)?;
            Ok(data.get(key)?.map(|found| versioned(found.value())))
        })
    }

    fn list(&self, prefix: &str) -> Result<Vec<(String, Versioned)>, StoreError> {
        self.run(|database| {
            let data = database.begin_read()?.open_table(DATA)?;
            let mut found = Vec::new();
            for entry in data.range(prefix..)? {
                let (key, value) = entry?;
                if !key.value().starts_with(prefix) {
                    break;
                }
                found.push((key.value().to_owned(), versioned(value.value())));
            }
            Ok(found)
        })
    }

    fn put(&self, key: &str, value: &[u8], expect: Expect) -> Result<u64, StoreError> {
        check_key(key)?;
        check_value(key, value)?;
        self.write(|transaction, revision| {
            let mut data = transaction.open_table(DATA)?;
            insert(&mut data, key, value, expect, revision)?;
            Ok((true, revision))
        })
    }

    fn delete(&self, key: &str, expect: Expect) -> Result<bool, StoreError> {
        check_key(key)?;
        self.write(|transaction, _| {
            let mut data = transaction.open_table(DATA)?;
            let found = data.get(key)?.map(|found| found.value().0);
            check_expect(key, expect, found)?;
            let removed = data.remove(key)?.is_some();
            Ok((removed, removed))
        })
    }

    fn write_all(&self, writes: &[Write]) -> Result<(), StoreError> {
        for write in writes {
            match write {
                Write::Put { key, value } => check_key(key).and_then(|()| check_value(key, value))?,
                Write::Delete { key } => check_key(key)?,
            }
        }
        self.write(|transaction, revision| {
            let mut data = transaction.open_table(DATA)?;
            let mut changed = false;
            for write in writes {
                changed |= match write {
                    Write::Put { key, value } => {
                        insert(&mut data, key, value, Expect::Any, revision).map(|()| true)?
                    }
                    Write::Delete { key } => data.remove(key.as_str())?.is_some(),
                };
            }
            Ok((changed, ()))
        })
    }

    fn revision(&self) -> Result<u64, StoreError> {
        self.run(|database| {
            let meta = database.begin_read()?.open_table(META)?;
            Ok(meta.get(META_REVISION)?.map_or(0, |revision| revision.value()))
        })
    }
}

fn versioned((version, value): (u64, &[u8])) -> Versioned {
    Versioned { value: value.to_vec(), version }
}

/// A record and the version to expect when changing it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored<T> {
    pub record: T,
    pub version: u64,
}

/// # Errors
/// [`Store::get`]'s, and [`StoreError::Value`] if the value is no `T`.
pub fn get_json<T: DeserializeOwned>(store: &dyn Store, key: &str) -> Result<Option<Stored<T>>, StoreError> {
    store.get(key)?.map(|found| parse(key, &found)).transpose()
}

/// # Errors
/// [`Store::put`]'s.
pub fn put_json<T: Serialize>(
    store: &dyn Store,
    key: &str,
    record: &T,
    expect: Expect,
) -> Result<u64, StoreError> {
    store.put(key, &to_json(key, record)?, expect)
}

/// A record's write, for [`Store::write_all`].
///
/// # Errors
/// [`StoreError::Value`].
pub fn json_write<T: Serialize>(key: String, record: &T) -> Result<Write, StoreError> {
    let value = to_json(&key, record)?;
    Ok(Write::Put { key, value })
}

fn to_json<T: Serialize>(key: &str, record: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(record).map_err(|source| StoreError::Value { key: key.to_owned(), source })
}

/// # Errors
/// [`Store::list`]'s, and [`StoreError::Value`] for the first value that is no `T`.
pub fn list_json<T: DeserializeOwned>(
    store: &dyn Store,
    prefix: &str,
) -> Result<Vec<(String, Stored<T>)>, StoreError> {
    store
        .list(prefix)?
        .into_iter()
        .map(|(key, found)| {
            let stored = parse(&key, &found)?;
            Ok((key, stored))
        })
        .collect()
}

fn parse<T: DeserializeOwned>(key: &str, found: &Versioned) -> Result<Stored<T>, StoreError> {
    let record = serde_json::from_slice(&found.value)
        .map_err(|source| StoreError::Value { key: key.to_owned(), source })?;
    Ok(Stored { record, version: found.version })
}

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod tests;
