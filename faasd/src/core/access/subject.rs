//! How subjects are written.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::core::name::{FunctionName, NameError};

/// A group's name: of the form of a function's.
pub type GroupName = FunctionName;

/// A peer, a group, or a function that calls others.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("pattern" = "^(@|fn:)?[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
pub enum Subject {
    /// `NAME`
    Peer(FunctionName),
    /// `@NAME`
    Group(GroupName),
    /// `fn:NAME`
    Function(FunctionName),
}

/// A text that is no subject.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is no subject: {source}; write PEER, @GROUP or fn:FUNCTION")]
pub struct SubjectError {
    text: String,
    source: NameError,
}

impl Subject {
    /// Its name, without what says of which kind it is.
    #[must_use]
    pub const fn name(&self) -> &FunctionName {
        match self {
            Self::Peer(name) | Self::Group(name) | Self::Function(name) => name,
        }
    }

    /// `peer`, `group` or `function`.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Peer(_) => "peer",
            Self::Group(_) => "group",
            Self::Function(_) => "function",
        }
    }
}

impl FromStr for Subject {
    type Err = SubjectError;

    fn from_str(text: &str) -> Result<Self, SubjectError> {
        let (kind, name): (fn(FunctionName) -> Self, _) =
            match (text.strip_prefix('@'), text.strip_prefix("fn:")) {
                (Some(name), _) => (Self::Group, name),
                (_, Some(name)) => (Self::Function, name),
                (None, None) => (Self::Peer, text),
            };
        name.parse().map(kind).map_err(|source| SubjectError { text: text.to_owned(), source })
    }
}

impl TryFrom<String> for Subject {
    type Error = SubjectError;

    fn try_from(text: String) -> Result<Self, SubjectError> {
        text.parse()
    }
}

impl From<Subject> for String {
    fn from(subject: Subject) -> Self {
        subject.to_string()
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(name) => write!(f, "{name}"),
            Self::Group(name) => write!(f, "@{name}"),
            Self::Function(name) => write!(f, "fn:{name}"),
        }
    }
}
