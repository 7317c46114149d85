//! Who may call what, as the API says it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::core::access::{Access, Action, GroupName, Role, Subject};
use crate::core::name::FunctionName;

/// The most subjects, or functions, of one request.
pub const NAMED_MAX: usize = 1000;

/// Everything about who may call what.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Policies {
    /// For functions that have no default of their own.
    pub default: Access,
    /// By the daemon's settings; `default` is another if one was set since.
    pub configured: Access,
    pub functions: Vec<FunctionPolicy>,
    /// There is more: ask again with `after` as this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Who may call a function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FunctionPolicy {
    pub function: FunctionName,
    /// For whom no rule speaks of.
    pub default: Access,
    /// Its own, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_default: Option<Access>,
    pub rules: Vec<Rule>,
    /// Whom the kernel has refused it, those most often refused first. Who was refused long ago may be left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<RefusedCount>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Rule {
    pub subject: Subject,
    pub action: Action,
}

/// How many connections the kernel has refused to a subject.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RefusedCount {
    pub subject: Subject,
    pub connections: u64,
}

/// What becomes of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RuleAction {
    Allow,
    Deny,
    /// There is none any more.
    Forget,
}

impl RuleAction {
    #[must_use]
    pub const fn rule(self) -> Option<Action> {
        match self {
            Self::Allow => Some(Action::Allow),
            Self::Deny => Some(Action::Deny),
            Self::Forget => None,
        }
    }
}

/// A rule for each of these subjects and each of these functions. All are made, or none is.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleChange {
    pub action: RuleAction,
    pub subjects: Vec<Subject>,
    pub functions: Vec<FunctionName>,
    /// Leave connections open that would not be let in any more.
    #[serde(default)]
    pub keep: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DefaultChange {
    /// Null: by what comes next, the common default or the daemon's settings.
    pub default: Option<Access>,
    /// Leave connections open that would not be let in any more.
    #[serde(default)]
    pub keep: bool,
}

/// What a change did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Changed {
    /// Rules, memberships or defaults that are not as they were.
    pub changed: usize,
    /// Connections that were cut, since they would not be let in any more.
    pub cut: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Groups {
    pub groups: Vec<Group>,
    /// There is more: ask again with `after` as this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Group {
    pub name: GroupName,
    pub members: Vec<Subject>,
    /// Those that have a rule for it.
    pub functions: Vec<FunctionName>,
}

/// Who comes and who goes. A group that somebody is to be added to is made, if there is none.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupChange {
    #[serde(default)]
    pub add: Vec<Subject>,
    #[serde(default)]
    pub remove: Vec<Subject>,
    /// Leave connections open that would not be let in any more.
    #[serde(default)]
    pub keep: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RoleChange {
    pub role: Role,
}
