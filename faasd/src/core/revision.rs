//! How a revision is named: by its number, or by an alias.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::name::{FunctionName, NAME_BYTES_MAX, NameError};

/// A name for a revision, of the same form as a function's. `v` and digits are the revisions' own names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("pattern" = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", "maxLength" = NAME_BYTES_MAX))]
pub struct Alias(String);

/// Why a text names no revision.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RevisionError {
    #[error("'{0}' is the name of revision {1} itself; an alias is another name")]
    Number(String, u64),
    #[error("'{0}' names no revision; write v3, 3, or an alias")]
    Alias(String, #[source] NameError),
    #[error("'{0}' is no share of the traffic; write REVISION=PERCENT, like v3=95")]
    Share(String),
    #[error("the shares add up to {0}; they are to add up to 100")]
    Sum(u64),
    #[error("revision '{0}' is named twice")]
    Twice(String),
    #[error("{0} shares are too many; at most {SHARES_MAX} revisions can serve at a time")]
    Many(usize),
}

/// The most revisions that serve at a time.
pub const SHARES_MAX: usize = 8;

/// The most aliases of one function.
pub const ALIASES_MAX: usize = 32;

impl Alias {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Alias {
    type Err = RevisionError;

    fn from_str(text: &str) -> Result<Self, RevisionError> {
        if let Some(number) = number(text) {
            return Err(RevisionError::Number(text.to_owned(), number));
        }
        match text.parse::<FunctionName>() {
            Ok(name) => Ok(Self(name.into())),
            Err(e) => Err(RevisionError::Alias(text.to_owned(), e)),
        }
    }
}

impl TryFrom<String> for Alias {
    type Error = RevisionError;

    fn try_from(text: String) -> Result<Self, RevisionError> {
        text.parse()
    }
}

impl From<Alias> for String {
    fn from(alias: Alias) -> Self {
        alias.0
    }
}

impl fmt::Display for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A revision, as a user names it: `v3`, `3` or an alias.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub enum RevisionName {
    Number(u64),
    Alias(Alias),
}

impl FromStr for RevisionName {
    type Err = RevisionError;

    fn from_str(text: &str) -> Result<Self, RevisionError> {
        match number(text) {
            Some(number) => Ok(Self::Number(number)),
            None => text.parse().map(Self::Alias),
        }
    }
}

impl TryFrom<String> for RevisionName {
    type Error = RevisionError;

    fn try_from(text: String) -> Result<Self, RevisionError> {
        text.parse()
    }
}

impl From<RevisionName> for String {
    fn from(name: RevisionName) -> Self {
        name.to_string()
    }
}

impl fmt::Display for RevisionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "v{number}"),
            Self::Alias(alias) => alias.fmt(f),
        }
    }
}

/// `v3` or `3`.
fn number(text: &str) -> Option<u64> {
    let digits = text.strip_prefix('v').unwrap_or(text);
    let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    digits.parse().ok().filter(|_| is_number)
}

/// A revision's part of the traffic as it is wanted, in percent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WantedShare {
    pub revision: RevisionName,
    pub weight: u32,
}

/// `v3=95`.
impl FromStr for WantedShare {
    type Err = RevisionError;

    fn from_str(text: &str) -> Result<Self, RevisionError> {
        let bad = || RevisionError::Share(text.to_owned());
        let (revision, weight) = text.split_once('=').ok_or_else(bad)?;
        let weight = weight.strip_suffix('%').unwrap_or(weight).parse().map_err(|_| bad())?;
        Ok(Self { revision: revision.parse()?, weight })
    }
}

/// Whether the shares make up the whole. Those of 0 are left out.
///
/// # Errors
/// [`RevisionError`].
pub fn check_shares(shares: &[WantedShare]) -> Result<Vec<WantedShare>, RevisionError> {
    let shares: Vec<_> = shares.iter().filter(|share| share.weight > 0).cloned().collect();
    let sum: u64 = shares.iter().map(|share| u64::from(share.weight)).sum();
    if sum != 100 {
        return Err(RevisionError::Sum(sum));
    }
    if shares.len() > SHARES_MAX {
        return Err(RevisionError::Many(shares.len()));
    }
    let twice =
        shares.iter().enumerate().find(|(i, s)| shares[..*i].iter().any(|o| o.revision == s.revision));
    match twice {
        Some((_, share)) => Err(RevisionError::Twice(share.revision.to_string())),
        None => Ok(shares),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_are_named_by_number_or_alias() {
        let parse = |text: &str| text.parse::<RevisionName>();
        assert_eq!(parse("v3").unwrap(), RevisionName::Number(3));
        assert_eq!(parse("12").unwrap(), RevisionName::Number(12));
        assert_eq!(parse("canary").unwrap().to_string(), "canary");
        assert_eq!(parse("v3").unwrap().to_string(), "v3");
        for bad in ["", "V3", "a b", "v", "../x"] {
            // `v` alone is a name like any other.
            assert_eq!(parse(bad).is_err(), bad != "v", "{bad}");
        }
        assert_eq!("v3".parse::<Alias>(), Err(RevisionError::Number("v3".to_owned(), 3)));
        assert_eq!(serde_json::to_string(&parse("v3").unwrap()).unwrap(), "\"v3\"");
        assert_eq!(serde_json::from_str::<RevisionName>("\"3\"").unwrap(), RevisionName::Number(3));
    }

    #[test]
    fn shares_make_up_the_whole() {
        let shares = |texts: &[&str]| {
            let all: Result<Vec<WantedShare>, _> = texts.iter().map(|text| text.parse()).collect();
            check_shares(&all?)
        };
        assert_eq!(shares(&["v1=95", "v2=5%"]).unwrap().len(), 2);
        assert_eq!(shares(&["v1=100", "v2=0"]).unwrap().len(), 1);
        assert_eq!(shares(&["v1=95"]), Err(RevisionError::Sum(95)));
        assert_eq!(shares(&[]), Err(RevisionError::Sum(0)));
        assert_eq!(shares(&["v1=50", "1=50"]), Err(RevisionError::Twice("v1".to_owned())));
        assert_eq!(shares(&["v1"]), Err(RevisionError::Share("v1".to_owned())));
        let many: Vec<String> = (1..=9).map(|n| format!("v{n}={}", if n == 9 { 20 } else { 10 })).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(shares(&many), Err(RevisionError::Many(9)));
    }
}
