//! Who may call what: subjects, groups, rules, and what the kernel's maps must hold of them.
//!
//! A *subject* is whoever dials: a peer or a function, each by the address that it dials from. Subjects and groups have
//! numbers, by which the kernel program knows them. A *rule* allows or denies a function to a subject or to a group. What
//! no rule speaks of goes by the function's default, or else by the daemon's.
//!
//! [`Policy`] holds all of it in memory. A change is an [`Edit`]; what an edit means for the kernel is a list of
//! [`Effect`]s, in an order such that at no moment anybody may do what they might neither before nor after.

mod edit;
mod image;
mod policy;
mod subject;
#[cfg(test)]
mod tests;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use edit::{Edit, Effect, Entry, Fact, Place};
pub use image::Image;
pub use policy::{Guard, Policy, Reason, Refused, Verdict};
pub use subject::{GroupName, Subject, SubjectError};

/// The most groups that one subject is in.
pub const GROUPS_PER_SUBJECT_MAX: usize = 8;

/// The most groups that there are.
pub const GROUPS_MAX: usize = 4096;

/// What happens to whoever no rule speaks of.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Every subject may call.
    #[default]
    Open,
    /// Nobody may.
    Closed,
}

impl Access {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed",
        }
    }
}

/// What a rule says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    Allow,
    Deny,
}

impl Action {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// What a peer may do besides calling functions.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Nothing.
    #[default]
    User,
    /// Everything that root may on the server, by the API.
    Admin,
}

impl Role {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Admin => "admin",
        }
    }
}

/// A text that is no role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no role; write user or admin")]
pub struct RoleError(String);

impl std::str::FromStr for Role {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, RoleError> {
        [Self::User, Self::Admin]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| RoleError(text.to_owned()))
    }
}
