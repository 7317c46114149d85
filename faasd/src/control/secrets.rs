//! Secrets at rest: encrypted (age, X25519) in the store, with a key of this machine's in a file of its own. A copy of the
//! store tells nothing without that file.
//!
//! Values go in by the API and come out as files in containers, never by the API.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use age::secrecy::ExposeSecret;
use age::x25519::Identity;
use age::{DecryptError, Decryptor};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::api::{ApiError, nearest};
use super::store::{Expect, Store, StoreError, get_json, list_json, put_json};
use crate::api::types::Secret;
use crate::core::secret::{SECRET_BYTES_MAX, SECRETS_MAX, SecretBytes, SecretName};
use crate::tunnel::keys::write_private;

pub const SECRETS: &str = "secrets/";

/// A key file is two lines of comment and the key.
const KEY_FILE_BYTES_MAX: u64 = 4096;

/// Why a secret cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot {operation} {}", path.display())]
    Key { operation: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "{} is gone, and {count} secrets are encrypted with it: put it back from a backup; without one, remove them \
         (`faas secret rm --force NAME`) and set them anew",
        path.display()
    )]
    KeyLost { path: PathBuf, count: usize },
    #[error("{} is no key of age's: put it back from a backup", path.display())]
    KeyMalformed { path: PathBuf },
    #[error(
        "{} can be read by others (mode {mode:04o}): `chmod 600` it, and set the secrets anew elsewhere if somebody did",
        path.display()
    )]
    KeyExposed { path: PathBuf, mode: u32 },
    #[error(
        "the secret '{name}' is encrypted with another key than {}: put the earlier file back, or set the secret anew \
         (`faas secret set {name}`)",
        path.display()
    )]
    OtherKey { name: SecretName, path: PathBuf },
    #[error(
        "what is stored of the secret '{name}' is damaged ({detail}): set it anew (`faas secret set {name}`)"
    )]
    Damaged { name: SecretName, detail: String },
    #[error("there is no secret '{name}' (any longer): `faas secret set {name}`")]
    Missing { name: SecretName },
    #[error("there are {SECRETS_MAX} secrets already; remove some first (`faas secret rm NAME`)")]
    TooMany,
}

/// A secret, under `secrets/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SecretRecord {
    name: SecretName,
    /// Of the value.
    bytes: usize,
    set_at: Timestamp,
    /// An age file, in base64.
    value: String,
}

/// What is known of a secret without its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct About {
    bytes: usize,
    set_at: Timestamp,
}

/// All secrets.
#[derive(Debug)]
pub struct Secrets {
    store: Arc<dyn Store>,
    key: PathBuf,
    /// What the store has, so that a deploy is checked without asking it.
    known: Mutex<BTreeMap<SecretName, About>>,
    /// Held through each change.
    changing: Mutex<()>,
}

impl Secrets {
    /// Those in the store; `key` is where their key is, or will be.
    ///
    /// # Errors
    /// Those of the store.
    pub fn open(store: Arc<dyn Store>, key: PathBuf) -> Result<Self, StoreError> {
        let stored = list_json::<SecretRecord>(&*store, SECRETS)?;
        let about =
            |record: SecretRecord| (record.name, About { bytes: record.bytes, set_at: record.set_at });
        let known = stored.into_iter().map(|(_, stored)| about(stored.record)).collect();
        Ok(Self { store, key, known: Mutex::new(known), changing: Mutex::default() })
    }

    /// Every secret, without what it is.
    #[must_use]
    pub fn list(&self) -> Vec<Secret> {
        self.known().iter().map(|(name, about)| view(name, *about)).collect()
    }

    /// Keeps a secret, in place of the one that had its name. Blocks.
    ///
    /// # Errors
    /// [`SecretsError`].
    pub fn set(&self, name: &SecretName, value: &SecretBytes) -> Result<Secret, SecretsError> {
        let _alone = self.changing();
        let (others, count) = {
            let known = self.known();
            (known.keys().filter(|other| *other != name).count(), known.len())
        };
        if others >= SECRETS_MAX {
            return Err(SecretsError::TooMany);
        }
        let identity = match self.identity()? {
            Some(identity) => identity,
            None if others > 0 => {
                return Err(SecretsError::KeyLost { path: self.key.clone(), count });
            }
            None => self.create_key()?,
        };
        let damaged = |detail: String| SecretsError::Damaged { name: name.clone(), detail };
        let encrypted =
            age::encrypt(&identity.to_public(), value.as_bytes()).map_err(|e| damaged(e.to_string()))?;
        let about = About { bytes: value.as_bytes().len(), set_at: Timestamp::now() };
        let record = SecretRecord {
            name: name.clone(),
            bytes: about.bytes,
            set_at: about.set_at,
            value: STANDARD.encode(encrypted),
        };
        put_json(&*self.store, &key(name), &record, Expect::Any)?;
        self.known().insert(name.clone(), about);
        Ok(view(name, about))
    }

    /// Removes a secret, and says whether there was one. Blocks.
    ///
    /// # Errors
    /// Those of the store.
    pub fn remove(&self, name: &SecretName) -> Result<bool, SecretsError> {
        let _alone = self.changing();
        let was = self.store.delete(&key(name), Expect::Any)?;
        self.known().remove(name);
        Ok(was)
    }

    /// Whether all of these exist. Looks into memory alone.
    ///
    /// # Errors
    /// [`ApiError::Invalid`] for the first that does not, with its nearest neighbour.
    pub fn check(&self, names: &[SecretName]) -> Result<(), ApiError> {
        let known = self.known();
        match names.iter().find(|name| !known.contains_key(*name)) {
            None => Ok(()),
            Some(name) => Err(ApiError::Invalid {
                title: format!("`secrets` names '{name}', and there is no such secret"),
                detail: Some(match nearest(name.as_str(), known.keys().map(SecretName::as_str)) {
                    Some(near) => format!("did you mean '{near}'? Else set it: `faas secret set {name}`"),
                    None => format!("set it first: `faas secret set {name}`"),
                }),
            }),
        }
    }

    /// A secret that does not exist, with the nearest of those that do.
    #[must_use]
    pub fn not_found(&self, name: &SecretName) -> ApiError {
        let known = self.known();
        let suggestion = nearest(name.as_str(), known.keys().map(SecretName::as_str)).map(str::to_owned);
        ApiError::NotFound { what: format!("secret '{name}'"), suggestion }
    }

    /// The values of secrets, as they are now. Blocks.
    ///
    /// # Errors
    /// [`SecretsError`], which says what to do about it.
    pub fn values(&self, names: &[SecretName]) -> Result<Vec<(SecretName, SecretBytes)>, SecretsError> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let identity = self
            .identity()?
            .ok_or_else(|| SecretsError::KeyLost { path: self.key.clone(), count: self.known().len() })?;
        names.iter().map(|name| Ok((name.clone(), self.value(name, &identity)?))).collect()
    }

    fn value(&self, name: &SecretName, identity: &Identity) -> Result<SecretBytes, SecretsError> {
        let damaged = |detail: &dyn std::fmt::Display| SecretsError::Damaged {
            name: name.clone(),
            detail: detail.to_string(),
        };
        let record = get_json::<SecretRecord>(&*self.store, &key(name))?
            .ok_or_else(|| SecretsError::Missing { name: name.clone() })?
            .record;
        let encrypted = STANDARD.decode(record.value).map_err(|e| damaged(&e))?;
        let open = || Decryptor::new_buffered(&*encrypted)?.decrypt(std::iter::once(identity as _));
        let reader = open().map_err(|e| match e {
            DecryptError::NoMatchingKeys => {
                SecretsError::OtherKey { name: name.clone(), path: self.key.clone() }
            }
            other => damaged(&other),
        })?;
        // Room for all of it from the beginning: a vector that grows leaves copies behind.
        let mut value = Vec::with_capacity(SECRET_BYTES_MAX + 1);
        let read = reader.take(SECRET_BYTES_MAX as u64).read_to_end(&mut value);
        let value = SecretBytes::new(value);
        read.map_err(|e| damaged(&e))?;
        Ok(value)
    }

    /// The key, if there is one.
    fn identity(&self) -> Result<Option<Identity>, SecretsError> {
        let failed = |source| SecretsError::Key { operation: "read", path: self.key.clone(), source };
        let mut file = match File::open(&self.key) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        let mode = file.metadata().map_err(failed)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(SecretsError::KeyExposed { path: self.key.clone(), mode });
        }
        let mut text = Zeroizing::new(String::with_capacity(KEY_FILE_BYTES_MAX as usize));
        let malformed = || SecretsError::KeyMalformed { path: self.key.clone() };
        match (&mut file).take(KEY_FILE_BYTES_MAX).read_to_string(&mut text) {
            Err(e) if e.kind() == io::ErrorKind::InvalidData => return Err(malformed()),
            read => read.map_err(failed)?,
        };
        let key = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
        key.and_then(|key| key.parse().ok()).map(Some).ok_or_else(malformed)
    }

    /// Makes a key.
    fn create_key(&self) -> Result<Identity, SecretsError> {
        let identity = Identity::generate();
        // As age's own tool writes it, which can read what is encrypted with it.
        let text = Zeroizing::new(format!(
            "# created: {:.0}\n# public key: {}\n{}\n",
            Timestamp::now(),
            identity.to_public(),
            identity.to_string().expose_secret()
        ));
        write_private(&self.key, text.as_bytes()).map_err(|source| SecretsError::Key {
            operation: "make",
            path: self.key.clone(),
            source,
        })?;
        tracing::info!(key = %self.key.display(), "made a key for secrets; without it they cannot be read: keep a copy");
        Ok(identity)
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<SecretName, About>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(name: &SecretName) -> String {
    format!("{SECRETS}{name}")
}

fn view(name: &SecretName, about: About) -> Secret {
    Secret { name: name.clone(), bytes: about.bytes, set_at: about.set_at, functions: Vec::new() }
}

impl From<SecretsError> for ApiError {
    fn from(error: SecretsError) -> Self {
        match error {
            SecretsError::TooMany => Self::conflict(error.to_string()),
            other => Self::failed(&other),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::control::store::Embedded;

    struct Bed {
        dir: tempfile::TempDir,
        secrets: Secrets,
    }

    impl Bed {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let store = Arc::new(Embedded::open(&dir.path().join("store")).unwrap());
            let secrets = Secrets::open(store, dir.path().join("secrets.key")).unwrap();
            Self { dir, secrets }
        }

        fn set(&self, at: &str, value: &[u8]) -> Result<Secret, SecretsError> {
            self.secrets.set(&name(at), &SecretBytes::new(value.to_vec()))
        }

        fn get(&self, at: &str) -> Result<Vec<u8>, SecretsError> {
            Ok(self.secrets.values(&[name(at)])?.remove(0).1.as_bytes().to_vec())
        }

        fn key(&self) -> PathBuf {
            self.dir.path().join("secrets.key")
        }
    }

    fn name(name: &str) -> SecretName {
        name.parse().unwrap()
    }

    #[test]
    fn secrets_come_back_and_are_nowhere_in_the_clear() {
        let bed = Bed::new();
        assert!(bed.secrets.values(&[]).unwrap().is_empty());
        bed.set("db", b"first").unwrap();
        let large = vec![0x5a; SECRET_BYTES_MAX];
        bed.set("large", &large).unwrap();
        let value = b"correct horse battery staple";
        bed.set("db", value).unwrap();
        bed.set("empty", b"").unwrap();
        assert_eq!(bed.get("db").unwrap(), value);
        assert_eq!(bed.get("large").unwrap(), large);
        assert_eq!(bed.get("empty").unwrap(), b"");
        assert_eq!(fs::metadata(bed.key()).unwrap().permissions().mode() & 0o777, 0o600);
        for file in fs::read_dir(bed.dir.path()).unwrap() {
            let bytes = fs::read(file.unwrap().path()).unwrap();
            assert!(!bytes.windows(value.len()).any(|window| window == value));
            assert!(!bytes.windows(1000).any(|window| window.iter().all(|b| *b == 0x5a)));
        }
        // Another daemon finds them.
        let Bed { dir, secrets } = bed;
        drop(secrets);
        let store = Arc::new(Embedded::open(&dir.path().join("store")).unwrap());
        let secrets = Secrets::open(store, dir.path().join("secrets.key")).unwrap();
        let names: Vec<_> = secrets.list().into_iter().map(|s| (s.name.to_string(), s.bytes)).collect();
        assert_eq!(names, [("db".into(), 28), ("empty".into(), 0), ("large".into(), SECRET_BYTES_MAX)]);
        assert_eq!(secrets.values(&[name("db")]).unwrap()[0].1.as_bytes(), value);
        assert!(secrets.remove(&name("db")).unwrap() && !secrets.remove(&name("db")).unwrap());
        assert!(matches!(secrets.values(&[name("db")]), Err(SecretsError::Missing { .. })));
    }

    #[test]
    fn an_unknown_secret_is_refused_with_its_neighbour() {
        let bed = Bed::new();
        bed.set("db-password", b"x").unwrap();
        bed.secrets.check(&[name("db-password")]).unwrap();
        let error = bed.secrets.check(&[name("db-pasword")]).unwrap_err().problem();
        assert_eq!(error.status, 400);
        assert!(error.detail.unwrap().contains("did you mean 'db-password'?"));
    }

    #[test]
    fn a_key_that_is_lost_or_another_is_told_with_the_remedy() {
        let bed = Bed::new();
        bed.set("a", b"1").unwrap();
        bed.set("b", b"2").unwrap();
        let key = fs::read(bed.key()).unwrap();
        let write = |text: &[u8], mode| {
            fs::write(bed.key(), text).unwrap();
            fs::set_permissions(bed.key(), fs::Permissions::from_mode(mode)).unwrap();
        };
        let told = |error: SecretsError, what: &str| assert!(error.to_string().contains(what), "{error}");

        fs::remove_file(bed.key()).unwrap();
        told(bed.get("a").unwrap_err(), "put it back from a backup");
        told(bed.set("a", b"3").unwrap_err(), "`faas secret rm --force NAME`");
        assert!(!bed.key().exists(), "no new key is made beside secrets that need the old one");

        write(b"AGE-SECRET-KEY-1NOT", 0o600);
        told(bed.get("a").unwrap_err(), "is no key of age's");
        write(&key, 0o640);
        told(bed.get("a").unwrap_err(), "mode 0640");

        let other = Bed::new();
        other.set("x", b"1").unwrap();
        write(&fs::read(other.key()).unwrap(), 0o600);
        told(bed.get("a").unwrap_err(), "encrypted with another key");
        bed.set("a", b"4").unwrap();
        assert_eq!(bed.get("a").unwrap(), b"4");
        told(bed.get("b").unwrap_err(), "encrypted with another key");

        write(&key, 0o600);
        assert_eq!(bed.get("b").unwrap(), b"2");

        // With none left, there is nothing that a new key could lock out.
        fs::remove_file(bed.key()).unwrap();
        bed.secrets.remove(&name("b")).unwrap();
        bed.set("a", b"5").unwrap();
        assert_eq!(bed.get("a").unwrap(), b"5");
    }

    #[test]
    fn what_is_damaged_is_told() {
        let bed = Bed::new();
        bed.set("a", b"1").unwrap();
        let mut record = get_json::<SecretRecord>(&*bed.secrets.store, "secrets/a").unwrap().unwrap().record;
        let mut bytes = STANDARD.decode(&record.value).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        record.value = STANDARD.encode(bytes);
        put_json(&*bed.secrets.store, "secrets/a", &record, Expect::Any).unwrap();
        let error = bed.get("a").unwrap_err();
        assert!(matches!(error, SecretsError::Damaged { .. }), "{error}");
    }
}
