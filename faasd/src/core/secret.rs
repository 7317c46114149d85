//! Secrets: a name, which is a file's name inside of containers and part of a key of the store, and a value, which
//! shows nowhere.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// The most characters of a name.
pub const NAME_BYTES_MAX: usize = 64;

/// The most bytes of a secret.
pub const SECRET_BYTES_MAX: usize = 64 << 10;

/// The most secrets that there are.
pub const SECRETS_MAX: usize = 1000;

/// Where the files are, inside.
pub const DIRECTORY: &str = "/run/secrets";

/// A valid name of a secret: 1 to 64 of `A-Z a-z 0-9 . _ -`, not beginning with a dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct SecretName(String);

/// A string that is no secret's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no name of a secret; use 1 to {NAME_BYTES_MAX} of A-Z, a-z, 0-9, '.', '_' and '-', and no '.' at its beginning"
)]
pub struct SecretNameError(String);

/// A secret's value. Overwritten when it is dropped, and never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    /// Takes a value over. It is not copied: no second one is left behind.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretBytes({} bytes)", self.0.len())
    }
}

impl SecretName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SecretName {
    type Err = SecretNameError;

    fn from_str(s: &str) -> Result<Self, SecretNameError> {
        let is_allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let is_name =
            (1..=NAME_BYTES_MAX).contains(&s.len()) && !s.starts_with('.') && s.bytes().all(is_allowed);
        // What is told of it stays short: it may be anything, a secret included.
        if is_name {
            Ok(Self(s.to_owned()))
        } else {
            Err(SecretNameError(s.chars().take(NAME_BYTES_MAX).collect()))
        }
    }
}

impl TryFrom<String> for SecretName {
    type Error = SecretNameError;

    fn try_from(s: String) -> Result<Self, SecretNameError> {
        s.parse()
    }
}

impl From<SecretName> for String {
    fn from(name: SecretName) -> Self {
        name.0
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_not_printed() {
        assert_eq!(format!("{:?}", SecretBytes::new(b"hunter2".to_vec())), "SecretBytes(7 bytes)");
    }

    #[test]
    fn a_name_is_a_file_name_and_nothing_else() {
        for ok in ["a", "db-password", "tls.key", "A_1", &"x".repeat(64)] {
            assert_eq!(ok.parse::<SecretName>().unwrap().as_str(), ok);
        }
        for bad in ["", ".", "..", ".hidden", "a/b", "a b", "ä", "a\0", &"x".repeat(65)] {
            let error = bad.parse::<SecretName>().unwrap_err().to_string();
            assert!(error.contains("use 1 to 64"), "{error}");
        }
    }
}
