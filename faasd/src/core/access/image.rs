//! What the kernel's maps hold, and how they come to hold what the policy says.

use std::collections::HashMap;
use std::net::Ipv6Addr;

use super::{Action, Effect, Entry, Policy, Subject};

/// The contents of the maps of subjects and of rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    pub subjects: HashMap<Ipv6Addr, Entry>,
    /// By the subject's number and the function's address.
    pub rules: HashMap<(u32, Ipv6Addr), Action>,
}

impl Image {
    /// What the maps are to hold.
    #[must_use]
    pub fn of(policy: &Policy) -> Self {
        let subjects = policy.entries().collect();
        let mut rules = HashMap::with_capacity(policy.rules_len());
        for (name, guarded) in &policy.functions {
            let Some(address) = policy.address(&Subject::Function(name.clone())) else { continue };
            for (subject, action) in &guarded.rules {
                rules.extend(policy.number(subject).map(|number| ((number, address), *action)));
            }
        }
        Self { subjects, rules }
    }

    /// The steps from what is there to this. What is the same is not touched. Whoever is not to be there goes first, and
    /// denials come before whom they deny; what only allowed too much or too little goes last.
    #[must_use]
    pub fn steps_from(&self, there: &Self) -> Vec<Effect> {
        let mut steps = Vec::new();
        let gone = there.subjects.keys().filter(|address| !self.subjects.contains_key(address));
        steps.extend(gone.map(|&address| Effect::ClearSubject { address }));
        let differs = |key: &(u32, Ipv6Addr), action: Action| there.rules.get(key) != Some(&action);
        let set = |wanted: Action| {
            let new =
                self.rules.iter().filter(move |(key, action)| **action == wanted && differs(key, wanted));
            new.map(|(&(subject, function), &action)| Effect::SetRule { subject, function, action })
        };
        steps.extend(set(Action::Deny));
        let subjects =
            self.subjects.iter().filter(|(address, entry)| there.subjects.get(address) != Some(entry));
        steps.extend(subjects.map(|(&address, &entry)| Effect::SetSubject { address, entry }));
        steps.extend(set(Action::Allow));
        let stale = there.rules.keys().filter(|key| !self.rules.contains_key(key));
        steps.extend(stale.map(|&(subject, function)| Effect::ClearRule { subject, function }));
        steps
    }

    /// Takes a step. A route's flags are not part of it.
    pub fn take(&mut self, step: &Effect) {
        match *step {
            Effect::SetSubject { address, entry } => {
                self.subjects.insert(address, entry);
            }
            Effect::ClearSubject { address } => {
                self.subjects.remove(&address);
            }
            Effect::SetRule { subject, function, action } => {
                self.rules.insert((subject, function), action);
            }
            Effect::ClearRule { subject, function } => {
                self.rules.remove(&(subject, function));
            }
            Effect::Guard { .. } => {}
        }
    }
}
