//! WireGuard's keys: X25519, written in base64.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use x25519_dalek::{PublicKey as Point, StaticSecret};

/// The server's key, within the directory for keys.
pub const PRIVATE_KEY_FILE: &str = "server_private.key";
/// What clients know the server by.
pub const PUBLIC_KEY_FILE: &str = "server_public.key";

/// A public key: who a peer is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; 32]);

/// A private key. It is wiped from memory when dropped and never printed by `Debug`.
#[derive(Clone)]
pub struct PrivateKey(StaticSecret);

/// A text that is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no WireGuard key: one is 32 bytes in base64, 44 characters that end in '='")]
pub struct KeyFormatError;

/// Why there is no key to work with.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error("cannot {operation} {}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "{} is malformed; restore it from a backup, or remove it and the interface to make a new key (every peer \
         must then be invited again: docs/VPN.md, \"The server's own key\")",
        path.display()
    )]
    Malformed { path: PathBuf, source: KeyFormatError },
    #[error(
        "{} can be read by others (mode {mode:04o}); whoever read it can pass for the server: \
         `chmod 600` it if nobody did, else remove it and the interface to make a new key (every peer must then be \
         invited again: docs/VPN.md, \"The server's own key\")",
        path.display()
    )]
    Exposed { path: PathBuf, mode: u32 },
}

impl PrivateKey {
    /// A new key, from the operating system's randomness.
    #[must_use]
    pub fn generate() -> Self {
        Self(StaticSecret::random())
    }

    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(StaticSecret::from(bytes))
    }

    #[must_use]
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(Point::from(&self.0).to_bytes())
    }

    /// The key itself, as WireGuard's tools write it.
    #[must_use]
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.0.as_bytes())
    }
}

impl PublicKey {
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for PrivateKey {
    type Err = KeyFormatError;

    fn from_str(s: &str) -> Result<Self, KeyFormatError> {
        Ok(Self::from_bytes(bytes(s)?))
    }
}

impl FromStr for PublicKey {
    type Err = KeyFormatError;

    fn from_str(s: &str) -> Result<Self, KeyFormatError> {
        Ok(Self(bytes(s)?))
    }
}

fn bytes(s: &str) -> Result<[u8; 32], KeyFormatError> {
    STANDARD.decode(s).ok().and_then(|bytes| bytes.try_into().ok()).ok_or(KeyFormatError)
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey(of {})", self.public())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The server's private key in `dir`; the first call makes it. The public key's file is written whenever it is
/// missing or differs, since it follows from the private one.
///
/// # Errors
/// Those of the file system, and a private key that is malformed or that others can read.
pub fn load_or_create(dir: &Path) -> Result<PrivateKey, KeyFileError> {
    let io = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| KeyFileError::Io { operation, path, source }
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io("create", dir))?;
    let path = dir.join(PRIVATE_KEY_FILE);
    let key = match File::open(&path) {
        Ok(file) => read_private(file, &path)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let key = PrivateKey::generate();
            write_private(&path, format!("{}\n", key.to_base64()).as_bytes()).map_err(io("write", &path))?;
            key
        }
        Err(e) => return Err(io("open", &path)(e)),
    };
    let path = dir.join(PUBLIC_KEY_FILE);
    let public = format!("{}\n", key.public());
    if fs::read_to_string(&path).ok().as_deref() != Some(&public) {
        write_atomically(&path, public.as_bytes(), 0o644).map_err(io("write", &path))?;
    }
    Ok(key)
}

fn read_private(file: File, path: &Path) -> Result<PrivateKey, KeyFileError> {
    let io = |source| KeyFileError::Io { operation: "read", path: path.to_owned(), source };
    let mode = file.metadata().map_err(io)?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Exposed { path: path.to_owned(), mode });
    }
    let mut text = String::new();
    // A key has 44 characters; more than this is some other file.
    file.take(256).read_to_string(&mut text).map_err(io)?;
    text.trim().parse().map_err(|source| KeyFileError::Malformed { path: path.to_owned(), source })
}

/// Writes a file that only its owner can read, at any moment, and that a crash leaves whole or as it was.
///
/// # Errors
/// Those of the file system.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    write_atomically(path, content, 0o600)
}

fn write_atomically(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    // One that a crash left behind may have any mode: never write through it.
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_public_key_follows_from_the_private_one() {
        // Made by `wg genkey` and `wg pubkey`.
        let key: PrivateKey = "oLOpXjeMiGXkxOY9f55ga4qTWACDAmVHqoN9iFNnqWg=".parse().unwrap();
        assert_eq!(key.public().to_string(), "asBP5Y2M63hAEiW3poXssW5Yh4EbS+Pq4zo4l2/OdlA=");
        assert_eq!(PrivateKey::from_bytes(key.to_bytes()).to_base64(), key.to_base64());
        assert_ne!(PrivateKey::generate().public(), PrivateKey::generate().public());
        assert!(!format!("{key:?}").contains("oLOpX"));
    }

    #[test]
    fn a_key_is_made_once_and_only_its_owner_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("wireguard");
        let first = load_or_create(&dir).unwrap();
        let mode = |name| fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(PRIVATE_KEY_FILE), mode(PUBLIC_KEY_FILE)), (0o600, 0o644));
        assert_eq!(fs::read_to_string(dir.join(PUBLIC_KEY_FILE)).unwrap().trim(), first.public().to_string());
        fs::remove_file(dir.join(PUBLIC_KEY_FILE)).unwrap();
        assert_eq!(load_or_create(&dir).unwrap().public(), first.public());
        assert!(dir.join(PUBLIC_KEY_FILE).exists());
    }

    #[test]
    fn a_malformed_or_exposed_key_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(PRIVATE_KEY_FILE);
        write_private(&path, b"short").unwrap();
        assert!(matches!(load_or_create(dir.path()), Err(KeyFileError::Malformed { .. })));
        write_private(&path, PrivateKey::generate().to_base64().as_bytes()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = load_or_create(dir.path()).unwrap_err();
        assert!(error.to_string().contains("0640"), "{error}");
        assert!(path.exists());
    }
}
