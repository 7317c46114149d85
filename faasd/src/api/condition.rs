//! Writes that depend on what is there: RFC 9110's entity tags.

use std::fmt;

use sha2::{Digest, Sha256};

use super::types::Function;

/// What a function does and meets, as against what was declared of it: no part of its tag.
const OBSERVED: [&str; 6] = ["state", "reason", "failures", "retry_in_ms", "instances", "connections"];

/// The most tags of one condition.
const TAGS_MAX: usize = 16;

/// The tag of a function's declaration: another after each deploy, and each change of its traffic and its aliases.
#[must_use]
pub fn etag(function: &Function) -> String {
    let mut declared = serde_json::to_value(function).unwrap_or_default();
    if let Some(declared) = declared.as_object_mut() {
        declared.retain(|key, _| !OBSERVED.contains(&key.as_str()));
    }
    // Two daemons of one version agree on it, whatever the features of their libraries.
    declared.sort_all_objects();
    let digest = Sha256::digest(declared.to_string());
    let hex: String = digest.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    format!("\"{hex}\"")
}

/// What must hold of a function for a write to happen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    #[default]
    Always,
    /// `If-Match: *`
    Exists,
    /// `If-None-Match: *`
    Absent,
    /// `If-Match: "…", …`
    Tagged(Vec<String>),
}

/// Why a condition cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConditionError(&'static str);

impl Condition {
    /// Reads the two headers.
    ///
    /// # Errors
    /// [`ConditionError`] for what is none of the forms above.
    pub fn parse(if_match: Option<&str>, if_none_match: Option<&str>) -> Result<Self, ConditionError> {
        match (if_match.map(str::trim), if_none_match.map(str::trim)) {
            (None, None) => Ok(Self::Always),
            (Some("*"), None) => Ok(Self::Exists),
            (None, Some("*")) => Ok(Self::Absent),
            (None, Some(_)) => Err(ConditionError("If-None-Match is '*' with a write")),
            (Some(_), Some(_)) => Err(ConditionError("If-Match and If-None-Match contradict each other")),
            (Some(tags), None) => {
                let tags: Vec<String> = tags.split(',').map(|tag| tag.trim().to_owned()).collect();
                let is_tag = |tag: &String| tag.len() > 2 && tag.starts_with('"') && tag.ends_with('"');
                if tags.len() > TAGS_MAX || !tags.iter().all(is_tag) {
                    return Err(ConditionError(
                        "If-Match is '*', or an ETag as it was answered, with its quotes",
                    ));
                }
                Ok(Self::Tagged(tags))
            }
        }
    }

    /// Whether it holds of a function, or of its absence.
    #[must_use]
    pub fn holds(&self, function: Option<&Function>) -> bool {
        match (self, function) {
            (Self::Always, _) | (Self::Exists, Some(_)) | (Self::Absent, None) => true,
            (Self::Tagged(tags), Some(function)) => tags.contains(&etag(function)),
            (Self::Exists | Self::Tagged(_), None) | (Self::Absent, Some(_)) => false,
        }
    }

    /// The header that says it, if it takes one.
    #[must_use]
    pub fn header(&self) -> Option<(&'static str, String)> {
        match self {
            Self::Always => None,
            Self::Exists => Some(("if-match", "*".to_owned())),
            Self::Absent => Some(("if-none-match", "*".to_owned())),
            Self::Tagged(tags) => Some(("if-match", tags.join(", "))),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Always => f.write_str("anything"),
            Self::Exists => f.write_str("a function"),
            Self::Absent => f.write_str("no function"),
            Self::Tagged(tags) => f.write_str(&tags.join(" or ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(revision: u64, failures: u32) -> Function {
        serde_json::from_value(serde_json::json!({
            "name": "hello", "revision": revision, "address": "fd00::1", "spec": {}, "traffic": [],
            "deployed_at": "2026-01-02T03:04:05Z", "state": "warm", "failures": failures, "instances": [],
            "connections": { "steered": failures, "accepted": 0, "handed_off": 0, "requeued": 0, "refused": 0 },
        }))
        .unwrap()
    }

    #[test]
    fn a_tag_is_of_what_is_declared() {
        let tag = etag(&function(1, 0));
        assert_eq!(tag, etag(&function(1, 7)), "what is observed changes nothing");
        assert_ne!(tag, etag(&function(2, 0)));
        assert!(tag.starts_with('"') && tag.len() == 26, "{tag}");
    }

    #[test]
    fn conditions_are_read_and_hold_or_not() {
        let (old, new) = (function(1, 0), function(2, 0));
        let tag = etag(&old);
        for (if_match, if_none_match, holds) in [
            (None, None, [true, true, true]),
            (Some("*"), None, [false, true, true]),
            (None, Some("*"), [true, false, false]),
            (Some(tag.as_str()), None, [false, true, false]),
            (Some(&*format!("\"x\", {tag}")), None, [false, true, false]),
        ] {
            let condition = Condition::parse(if_match, if_none_match).unwrap();
            let found = [None, Some(&old), Some(&new)].map(|function| condition.holds(function));
            assert_eq!(found, holds, "{condition}");
            if let Some((_, value)) = condition.header() {
                assert_eq!(if_match.or(if_none_match), Some(value.as_str()));
            }
        }
        for (if_match, if_none_match) in
            [(Some("abc"), None), (Some("W/\"a\""), None), (None, Some("\"a\"")), (Some("*"), Some("*"))]
        {
            assert!(Condition::parse(if_match, if_none_match).is_err(), "{if_match:?} {if_none_match:?}");
        }
    }
}
