//! The policy in memory. Nothing here grows with the number of all peers, functions or rules, but with what a change is
//! about; what asks for lists says so.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv6Addr;

use super::{
    Access, Action, Edit, Effect, Entry, Fact, GROUPS_MAX, GROUPS_PER_SUBJECT_MAX, GroupName, Subject,
};
use crate::core::name::FunctionName;

/// Everything that is known of who may call what.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// By the daemon's settings.
    configured: Access,
    /// Set since, in its place.
    default: Option<Access>,
    callers: HashMap<Subject, Caller>,
    by_address: HashMap<Ipv6Addr, Subject>,
    pub(super) groups: BTreeMap<GroupName, Group>,
    pub(super) functions: BTreeMap<FunctionName, Guarded>,
    /// The functions that have a rule for a subject.
    named_by: HashMap<Subject, BTreeSet<FunctionName>>,
    rules: usize,
    /// The highest number that was ever given.
    highest: u32,
}

#[derive(Clone, Debug)]
struct Caller {
    number: u32,
    address: Ipv6Addr,
    active: bool,
    groups: BTreeSet<GroupName>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    pub number: u32,
    pub members: BTreeSet<Subject>,
}

/// A function, as something that is called.
#[derive(Clone, Debug, Default)]
pub(super) struct Guarded {
    pub default: Option<Access>,
    pub rules: BTreeMap<Subject, Action>,
}

/// The flags that a function's route has by its policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    /// Rules are looked at.
    pub guarded: bool,
    /// No rule means refused.
    pub closed: bool,
}

/// Whether a subject may call a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub allowed: bool,
    pub reason: Reason,
}

/// What decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The subject's own rule.
    Own,
    /// That of a group: the first that denies, or else the first that allows.
    Group(GroupName),
    /// The default: no rule speaks of it.
    Default,
    /// It is nobody.
    Stranger,
}

/// Why a change cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("no {} '{}'", .0.kind(), .0.name())]
    NoSubject(Subject),
    #[error("no function '{0}'")]
    NoFunction(FunctionName),
    #[error("a group cannot be in a group: '{0}'")]
    Nested(Subject),
    #[error("'{0}' is in {GROUPS_PER_SUBJECT_MAX} groups already, and can be in no more")]
    Crowded(Subject),
    #[error("there are {GROUPS_MAX} groups already; remove one first")]
    GroupsMax,
    #[error("there would be more than {0} rules; forget some first, or speak of groups")]
    RulesMax(usize),
}

impl Policy {
    /// An empty one, with the default of the daemon's settings.
    #[must_use]
    pub fn new(configured: Access) -> Self {
        Self { configured, ..Self::default() }
    }

    /// A number that nobody has, nor had while this daemon ran.
    #[must_use]
    pub fn fresh_number(&mut self) -> u32 {
        self.highest = self.highest.wrapping_add(1).max(1);
        self.highest
    }

    /// A caller's number, if it is known.
    #[must_use]
    pub fn number(&self, subject: &Subject) -> Option<u32> {
        match subject {
            Subject::Group(name) => self.groups.get(name).map(|group| group.number),
            caller => self.callers.get(caller).map(|caller| caller.number),
        }
    }

    /// Who dials from an address.
    #[must_use]
    pub fn caller(&self, address: Ipv6Addr) -> Option<&Subject> {
        self.by_address.get(&address)
    }

    #[must_use]
    pub fn address(&self, subject: &Subject) -> Option<Ipv6Addr> {
        self.callers.get(subject).map(|caller| caller.address)
    }

    #[must_use]
    pub const fn rules_len(&self) -> usize {
        self.rules
    }

    /// Every caller, in no order.
    pub fn callers(&self) -> impl Iterator<Item = (&Subject, u32)> {
        self.callers.iter().map(|(subject, caller)| (subject, caller.number))
    }

    /// The groups of a caller.
    pub fn groups_of(&self, subject: &Subject) -> impl Iterator<Item = &GroupName> {
        self.callers.get(subject).into_iter().flat_map(|caller| &caller.groups)
    }

    /// The groups from `after` on, with their members.
    pub fn groups(&self) -> impl Iterator<Item = (&GroupName, &BTreeSet<Subject>)> {
        self.groups.iter().map(|(name, group)| (name, &group.members))
    }

    #[must_use]
    pub fn members(&self, group: &GroupName) -> Option<&BTreeSet<Subject>> {
        self.groups.get(group).map(|group| &group.members)
    }

    /// The functions, in their order.
    pub fn functions(&self) -> impl Iterator<Item = &FunctionName> {
        self.functions.keys()
    }

    /// The functions that have a rule for this subject itself.
    pub fn functions_naming(&self, subject: &Subject) -> impl Iterator<Item = &FunctionName> {
        self.named_by.get(subject).into_iter().flatten()
    }

    /// The rules of a function.
    #[must_use]
    pub fn rules(&self, function: &FunctionName) -> Option<&BTreeMap<Subject, Action>> {
        self.functions.get(function).map(|guarded| &guarded.rules)
    }

    /// A function's own default.
    #[must_use]
    pub fn own_default(&self, function: &FunctionName) -> Option<Access> {
        self.functions.get(function).and_then(|guarded| guarded.default)
    }

    /// That of functions without one of their own: set, or else configured.
    #[must_use]
    pub fn common_default(&self) -> Access {
        self.default.unwrap_or(self.configured)
    }

    /// By the daemon's settings.
    #[must_use]
    pub const fn configured(&self) -> Access {
        self.configured
    }

    /// Set in place of the configured one, if it is.
    #[must_use]
    pub const fn set_default(&self) -> Option<Access> {
        self.default
    }

    #[must_use]
    pub fn default_of(&self, function: &FunctionName) -> Access {
        self.own_default(function).unwrap_or_else(|| self.common_default())
    }

    /// The flags of a function's route. One that is not known has the common default.
    #[must_use]
    pub fn guard(&self, function: &FunctionName) -> Guard {
        let closed = self.default_of(function) == Access::Closed;
        let has_rules = self.functions.get(function).is_some_and(|guarded| !guarded.rules.is_empty());
        Guard { guarded: closed || has_rules, closed }
    }

    /// As the kernel program decides it.
    #[must_use]
    pub fn decide(&self, subject: &Subject, function: &FunctionName) -> Verdict {
        let Some(caller) = self.callers.get(subject).filter(|caller| caller.active) else {
            return Verdict { allowed: false, reason: Reason::Stranger };
        };
        let by = |allowed, reason| Verdict { allowed, reason };
        if let Some(guarded) = self.functions.get(function) {
            if let Some(action) = guarded.rules.get(subject) {
                return by(*action == Action::Allow, Reason::Own);
            }
            let of = |group: &GroupName| guarded.rules.get(&Subject::Group(group.clone())).copied();
            let says = |action| caller.groups.iter().find(|group| of(group) == Some(action));
            if let Some(group) = says(Action::Deny) {
                return by(false, Reason::Group(group.clone()));
            }
            if let Some(group) = says(Action::Allow) {
                return by(true, Reason::Group(group.clone()));
            }
        }
        by(self.default_of(function) == Access::Open, Reason::Default)
    }

    /// Whether rules for these can be made or, with no action, forgotten: all are known, and there is room for them.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn check_rules(
        &self,
        functions: &[FunctionName],
        subjects: &[Subject],
        action: Option<Action>,
        rules_max: usize,
    ) -> Result<(), Refused> {
        let unknown = functions.iter().find(|name| !self.functions.contains_key(name));
        if let Some(function) = unknown {
            return Err(Refused::NoFunction(function.clone()));
        }
        if let Some(subject) = subjects.iter().find(|subject| self.number(subject).is_none()) {
            return Err(Refused::NoSubject(subject.clone()));
        }
        let is_new = |function: &&FunctionName, subject: &&Subject| {
            action.is_some() && self.rules(function).is_none_or(|rules| !rules.contains_key(*subject))
        };
        let new = |function| subjects.iter().filter(move |subject| is_new(&function, subject)).count();
        match self.rules + functions.iter().map(new).sum::<usize>() > rules_max {
            true => Err(Refused::RulesMax(rules_max)),
            false => Ok(()),
        }
    }

    /// Whether somebody can be put into a group.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn check_member(&self, group: &GroupName, subject: &Subject) -> Result<(), Refused> {
        if matches!(subject, Subject::Group(_)) {
            return Err(Refused::Nested(subject.clone()));
        }
        let caller = self.callers.get(subject).ok_or_else(|| Refused::NoSubject(subject.clone()))?;
        match caller.groups.len() >= GROUPS_PER_SUBJECT_MAX && !caller.groups.contains(group) {
            true => Err(Refused::Crowded(subject.clone())),
            false => Ok(()),
        }
    }

    /// What is on record of a subject and goes with it.
    #[must_use]
    pub fn attached(&self, subject: &Subject) -> Vec<Fact> {
        let rules = self.functions_naming(subject);
        let mut facts: Vec<_> =
            rules.map(|f| Fact::Rule { function: f.clone(), subject: subject.clone() }).collect();
        match subject {
            Subject::Group(name) => {
                let members = self.members(name).into_iter().flatten();
                facts.extend(members.map(|m| Fact::Member { group: name.clone(), subject: m.clone() }));
                facts.push(Fact::Group { name: name.clone() });
            }
            caller => {
                let groups = self.groups_of(caller);
                facts.extend(groups.map(|g| Fact::Member { group: g.clone(), subject: caller.clone() }));
            }
        }
        if let Subject::Function(name) = subject
            && let Some(guarded) = self.functions.get(name)
        {
            // One that speaks of itself is in the list already.
            let others = guarded.rules.keys().filter(|named| *named != subject);
            facts.extend(others.map(|s| Fact::Rule { function: name.clone(), subject: s.clone() }));
            facts.extend(guarded.default.map(|_| Fact::Default { function: name.clone() }));
        }
        facts
    }

    /// Makes a change, and tells what it means for the kernel.
    pub fn apply(&mut self, edit: &Edit) -> Vec<Effect> {
        let mut effects = Vec::new();
        match edit {
            Edit::Caller { subject, number, address, active } => {
                self.add_caller(subject, (*number, *address, *active), &mut effects);
            }
            Edit::CallerGone { subject } => self.remove_caller(subject, &mut effects),
            Edit::Group { name, number } => {
                self.highest = self.highest.max(*number);
                self.groups.entry(name.clone()).or_default().number = *number;
            }
            Edit::GroupGone { name } => self.remove_group(name, &mut effects),
            Edit::Member { group, subject, is_in } => {
                let Some(found) = self.groups.get_mut(group) else { return effects };
                let Some(caller) = self.callers.get_mut(subject) else { return effects };
                if *is_in {
                    found.members.insert(subject.clone());
                    caller.groups.insert(group.clone());
                } else {
                    found.members.remove(subject);
                    caller.groups.remove(group);
                }
                self.show(subject, &mut effects);
            }
            Edit::Rule { function, subject, action } => {
                self.set_rule(function, subject, *action, &mut effects);
            }
            Edit::Default { function: Some(name), access } => {
                if let Some(guarded) = self.functions.get_mut(name) {
                    guarded.default = *access;
                    effects.push(Effect::Guard { function: name.clone() });
                }
            }
            Edit::Default { function: None, access } => {
                self.default = *access;
                let follow = self.functions.iter().filter(|(_, guarded)| guarded.default.is_none());
                effects.extend(follow.map(|(name, _)| Effect::Guard { function: name.clone() }));
            }
        }
        effects
    }

    fn add_caller(
        &mut self,
        subject: &Subject,
        (number, address, active): (u32, Ipv6Addr, bool),
        effects: &mut Vec<Effect>,
    ) {
        self.highest = self.highest.max(number);
        let new = || Caller { number, address, active, groups: BTreeSet::new() };
        let caller = self.callers.entry(subject.clone()).or_insert_with(new);
        let moved = std::mem::replace(&mut caller.address, address);
        (caller.number, caller.active) = (number, active);
        if moved != address {
            self.by_address.remove(&moved);
            effects.push(Effect::ClearSubject { address: moved });
        }
        self.by_address.insert(address, subject.clone());
        if let Subject::Function(name) = subject {
            self.functions.entry(name.clone()).or_default();
        }
        self.show(subject, effects);
    }

    /// The subject goes first: were its rules first, it would for a moment be one that no rule denies anything.
    fn remove_caller(&mut self, subject: &Subject, effects: &mut Vec<Effect>) {
        let facts = self.attached(subject);
        let Some(address) = self.address(subject) else { return };
        self.by_address.remove(&address);
        effects.push(Effect::ClearSubject { address });
        for fact in facts {
            match fact {
                Fact::Rule { function, subject } => self.set_rule(&function, &subject, None, effects),
                Fact::Member { group, subject } => {
                    if let Some(group) = self.groups.get_mut(&group) {
                        group.members.remove(&subject);
                    }
                }
                Fact::Group { .. } | Fact::Default { .. } => {}
            }
        }
        self.callers.remove(subject);
        if let Subject::Function(name) = subject {
            self.functions.remove(name);
            effects.retain(|effect| !matches!(effect, Effect::Guard { function } if function == name));
        }
    }

    /// Its members leave first, each at once; then nobody is whom its rules speak of.
    fn remove_group(&mut self, name: &GroupName, effects: &mut Vec<Effect>) {
        let subject = Subject::Group(name.clone());
        let facts = self.attached(&subject);
        for fact in &facts {
            if let Fact::Member { group, subject } = fact {
                let leaves = Edit::Member { group: group.clone(), subject: subject.clone(), is_in: false };
                effects.extend(self.apply(&leaves));
            }
        }
        for fact in facts {
            if let Fact::Rule { function, subject } = fact {
                self.set_rule(&function, &subject, None, effects);
            }
        }
        self.groups.remove(name);
    }

    fn set_rule(
        &mut self,
        function: &FunctionName,
        subject: &Subject,
        action: Option<Action>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(number) = self.number(subject) else { return };
        let Some(address) = self.address(&Subject::Function(function.clone())) else { return };
        let before = self.guard(function);
        let Some(guarded) = self.functions.get_mut(function) else { return };
        let had = match action {
            Some(action) => guarded.rules.insert(subject.clone(), action),
            None => guarded.rules.remove(subject),
        };
        match (had, action) {
            (had, Some(new)) if had != Some(new) => {
                self.rules += usize::from(had.is_none());
                self.named_by.entry(subject.clone()).or_default().insert(function.clone());
                effects.push(Effect::SetRule { subject: number, function: address, action: new });
            }
            (Some(_), None) => {
                self.rules -= 1;
                if let Some(functions) = self.named_by.get_mut(subject) {
                    functions.remove(function);
                    if functions.is_empty() {
                        self.named_by.remove(subject);
                    }
                }
                effects.push(Effect::ClearRule { subject: number, function: address });
            }
            _ => {}
        }
        // After the first rule is there, and as the last one goes.
        if self.guard(function) != before {
            effects.push(Effect::Guard { function: function.clone() });
        }
    }

    /// What the kernel is to know of a caller, whole: groups come and go in one write.
    fn show(&self, subject: &Subject, effects: &mut Vec<Effect>) {
        if let Some(caller) = self.callers.get(subject) {
            effects.push(Effect::SetSubject { address: caller.address, entry: self.entry(caller) });
        }
    }

    fn entry(&self, caller: &Caller) -> Entry {
        if !caller.active {
            return Entry::INVITED;
        }
        let mut entry = Entry { number: caller.number, ..Entry::default() };
        let numbers = caller.groups.iter().filter_map(|name| Some(self.groups.get(name)?.number));
        entry.groups.iter_mut().zip(numbers).for_each(|(place, number)| *place = number);
        entry
    }

    /// What the kernel is to know of who dials from an address.
    #[must_use]
    pub fn entry_at(&self, address: Ipv6Addr) -> Option<Entry> {
        self.callers.get(self.by_address.get(&address)?).map(|caller| self.entry(caller))
    }

    /// Everyone, as the kernel is to know them.
    pub(super) fn entries(&self) -> impl Iterator<Item = (Ipv6Addr, Entry)> {
        self.callers.values().map(|caller| (caller.address, self.entry(caller)))
    }
}
