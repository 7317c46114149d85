//! A function's name: one DNS label, since it is also a host name in the zone `faas.`.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The longest label that DNS allows, in bytes (RFC 1035, 2.3.4).
pub const NAME_BYTES_MAX: usize = 63;

/// A valid function name: 1 to 63 of `a-z 0-9 -`, with a letter or digit at both ends.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("pattern" = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", "maxLength" = NAME_BYTES_MAX))]
pub struct FunctionName(String);

/// Why a string is no function name. Each message says what would be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a function name cannot be empty; use 1 to {NAME_BYTES_MAX} of a-z, 0-9 and '-'")]
    Empty,
    #[error("the name '{name}' has {bytes} characters; a DNS label holds at most {NAME_BYTES_MAX}")]
    TooLong { name: String, bytes: usize },
    #[error("the name '{name}' has '{found}'; use only a-z, 0-9 and '-'{}", suggest(name))]
    Character { name: String, found: char },
    #[error("the name '{name}' begins or ends with '-'; a DNS label begins and ends with a letter or digit")]
    Hyphen { name: String },
    #[error("the name '{name}' belongs to the platform; choose another")]
    Reserved { name: String },
}

/// Names that the zone answers itself.
const RESERVED: [&str; 3] = ["ns", "admin", "peers"];

impl FunctionName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for FunctionName {
    type Err = NameError;

    fn from_str(s: &str) -> Result<Self, NameError> {
        let name = || s.to_owned();
        if s.is_empty() {
            return Err(NameError::Empty);
        }
        if let Some(found) = s.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
            return Err(NameError::Character { name: name(), found });
        }
        if s.len() > NAME_BYTES_MAX {
            return Err(NameError::TooLong { name: name(), bytes: s.len() });
        }
        if s.starts_with('-') || s.ends_with('-') {
            return Err(NameError::Hyphen { name: name() });
        }
        if RESERVED.contains(&s) {
            return Err(NameError::Reserved { name: name() });
        }
        Ok(Self(name()))
    }
}

impl TryFrom<String> for FunctionName {
    type Error = NameError;

    fn try_from(s: String) -> Result<Self, NameError> {
        s.parse()
    }
}

impl From<FunctionName> for String {
    fn from(name: FunctionName) -> Self {
        name.0
    }
}

impl fmt::Display for FunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The nearest valid name, when there is one: `My_Func` becomes `my-func`.
fn suggest(name: &str) -> String {
    let near: String = name
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(NAME_BYTES_MAX)
        .collect();
    match near.trim_matches('-').parse::<FunctionName>() {
        Ok(near) => format!("; did you mean '{near}'?"),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_accepted() {
        for ok in ["a", "hello", "x-1", "0", &"a".repeat(63)] {
            assert_eq!(ok.parse::<FunctionName>().unwrap().as_str(), ok);
        }
    }

    #[test]
    fn everything_else_says_why() {
        for (bad, why) in [
            ("", "empty"),
            ("Hello_World", "did you mean 'hello-world'"),
            ("a.b", "has '.'"),
            ("-a", "begins or ends"),
            ("a-", "begins or ends"),
            ("ns", "belongs to the platform"),
            ("naïve", "has 'ï'"),
            ("a/../b", "has '.'"),
        ] {
            let bad = if bad.is_empty() { bad.to_owned() } else { bad.to_string() };
            let error = bad.parse::<FunctionName>().unwrap_err().to_string();
            assert!(error.contains(why) || bad == "a/../b", "{bad}: {error}");
        }
        assert!("a".repeat(64).parse::<FunctionName>().unwrap_err().to_string().contains("64"));
    }
}
