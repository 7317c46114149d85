//! The policy as callers see it.

use super::*;
use crate::api::types::{FunctionPolicy, Group, Policies, RefusedCount, Rule};

/// The most subjects that are named with what they were refused.
const REFUSED_SHOWN: usize = 100;

/// What the kernel has counted, by name.
#[derive(Clone, Debug, Default)]
pub struct NamedCounts {
    /// Let in, refused.
    pub subjects: Vec<(Subject, u64, u64)>,
    pub refusals: Vec<(Subject, FunctionName, u64)>,
}

/// The names of subjects and functions.
#[derive(Debug)]
pub struct Names<'a> {
    policy: RwLockReadGuard<'a, Policy>,
    numbers: HashMap<u32, Subject>,
    functions: Prefix,
}

impl Names<'_> {
    /// Who has a number.
    #[must_use]
    pub fn subject(&self, number: u32) -> Option<Subject> {
        self.numbers.get(&number).cloned()
    }

    /// Who connects from an address.
    #[must_use]
    pub fn caller(&self, address: Ipv6Addr) -> Option<Subject> {
        self.policy.caller(address).cloned()
    }

    /// Whose address was dialled, be it a revision's.
    #[must_use]
    pub fn function(&self, address: Ipv6Addr) -> Option<FunctionName> {
        match self.policy.caller(self.functions.function_at(address)?) {
            Some(Subject::Function(name)) => Some(name.clone()),
            _ => None,
        }
    }
}

impl Access {
    /// What the kernel has counted. Whoever is not there any more is left out.
    ///
    /// # Errors
    /// [`ApiError::Failed`].
    pub fn counts(&self) -> Result<NamedCounts, ApiError> {
        let Some(Attached { enforcer, .. }) = self.attached.get() else { return Ok(NamedCounts::default()) };
        let counts = enforcer.counts().map_err(|e| ApiError::failed(e.as_ref()))?;
        let policy = self.policy();
        let names: HashMap<u32, &Subject> =
            policy.callers().map(|(subject, number)| (number, subject)).collect();
        let subject = |number: &u32| names.get(number).map(|subject| (*subject).clone());
        let function = |address: Ipv6Addr| match policy.caller(address) {
            Some(Subject::Function(name)) => Some(name.clone()),
            _ => None,
        };
        let subjects = counts
            .subjects
            .iter()
            .filter_map(|(n, admitted, refused)| Some((subject(n)?, *admitted, *refused)));
        let refusals =
            counts.refusals.iter().filter_map(|(n, to, count)| Some((subject(n)?, function(*to)?, *count)));
        Ok(NamedCounts { subjects: subjects.collect(), refusals: refusals.collect() })
    }

    /// Who is behind the kernel's numbers and addresses, as it is now.
    #[must_use]
    pub fn names(&self) -> Names<'_> {
        let policy = self.policy();
        let numbers = policy.callers().map(|(subject, number)| (number, subject.clone())).collect();
        Names { policy, numbers, functions: self.prefix }
    }

    /// Every function whose name begins so.
    ///
    /// # Errors
    /// [`ApiError::Failed`].
    pub fn policies(&self, prefix: &str) -> Result<Policies, ApiError> {
        let mut refused: HashMap<FunctionName, Vec<RefusedCount>> = HashMap::new();
        for (subject, function, connections) in self.counts()?.refusals {
            refused.entry(function).or_default().push(RefusedCount { subject, connections });
        }
        let policy = self.policy();
        let named = policy.functions().filter(|name| name.as_str().starts_with(prefix));
        let functions =
            named.map(|name| one(&policy, name, refused.remove(name).unwrap_or_default())).collect();
        Ok(Policies {
            default: policy.common_default(),
            configured: policy.configured(),
            functions,
            next: None,
        })
    }

    /// Who may call a function.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn policy_of(&self, name: &FunctionName) -> Result<FunctionPolicy, ApiError> {
        if self.policy().rules(name).is_none() {
            return Err(self.refusal(&Refused::NoFunction(name.clone())));
        }
        let refused = self.counts()?.refusals.into_iter().filter(|(_, function, _)| function == name);
        let refused =
            refused.map(|(subject, _, connections)| RefusedCount { subject, connections }).collect();
        Ok(one(&self.policy(), name, refused))
    }

    /// Every group.
    #[must_use]
    pub fn groups(&self) -> Vec<Group> {
        let policy = self.policy();
        policy.groups().map(|(name, _)| group(&policy, name)).collect()
    }

    /// A group.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn group(&self, name: &GroupName) -> Result<Group, ApiError> {
        let policy = self.policy();
        if policy.members(name).is_some() {
            return Ok(group(&policy, name));
        }
        drop(policy);
        Err(self.refusal(&Refused::NoSubject(Subject::Group(name.clone()))))
    }
}

fn one(policy: &Policy, name: &FunctionName, mut refused: Vec<RefusedCount>) -> FunctionPolicy {
    refused.sort_by(|a, b| b.connections.cmp(&a.connections).then_with(|| a.subject.cmp(&b.subject)));
    refused.truncate(REFUSED_SHOWN);
    let rules = policy.rules(name).into_iter().flatten();
    FunctionPolicy {
        function: name.clone(),
        default: policy.default_of(name),
        own_default: policy.own_default(name),
        rules: rules.map(|(subject, action)| Rule { subject: subject.clone(), action: *action }).collect(),
        refused,
    }
}

fn group(policy: &Policy, name: &GroupName) -> Group {
    Group {
        name: name.clone(),
        members: policy.members(name).into_iter().flatten().cloned().collect(),
        functions: policy.functions_naming(&Subject::Group(name.clone())).cloned().collect(),
    }
}
