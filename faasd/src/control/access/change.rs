//! Changes that users ask for.

use super::*;
use crate::api::types::{Changed, DefaultChange, GroupChange, NAMED_MAX, RuleChange};
use crate::core::access::{GROUPS_MAX, Refused};

/// The most rules that there are.
pub const RULES_MAX: usize = faasd_common::RULES_MAX as usize;

impl Access {
    /// Makes, changes or forgets rules, all or none. Blocks.
    ///
    /// # Errors
    /// [`ApiError`], with the nearest name for one that is not known.
    pub fn set_rules(&self, change: &RuleChange) -> Result<Changed, ApiError> {
        let RuleChange { action, subjects, functions, keep } = change;
        for (what, len) in [("subjects", subjects.len()), ("functions", functions.len())] {
            if !(1..=NAMED_MAX).contains(&len) {
                return Err(ApiError::invalid(format!("name 1 to {NAMED_MAX} {what} at a time")));
            }
        }
        let action = action.rule();
        self.change(*keep, functions.clone(), |policy| {
            policy.check_rules(functions, subjects, action, RULES_MAX)?;
            let mut edits = Vec::new();
            for function in functions {
                for subject in subjects {
                    let present = policy.rules(function).and_then(|rules| rules.get(subject)).copied();
                    if present != action {
                        let (function, subject) = (function.clone(), subject.clone());
                        edits.push(Edit::Rule { function, subject, action });
                    }
                }
            }
            Ok(edits)
        })
    }

    /// Sets a function's default, or that of all that have none of their own. Blocks.
    ///
    /// # Errors
    /// [`ApiError`].
    pub fn set_default(
        &self,
        function: Option<&FunctionName>,
        change: &DefaultChange,
    ) -> Result<Changed, ApiError> {
        let about = match function {
            Some(name) => vec![name.clone()],
            None => self.policy().functions().cloned().collect(),
        };
        self.change(change.keep, about, |policy| {
            if let Some(name) = function.filter(|name| policy.rules(name).is_none()) {
                return Err(Refused::NoFunction(name.clone()));
            }
            let present = function.map_or_else(|| policy.set_default(), |name| policy.own_default(name));
            let edit = Edit::Default { function: function.cloned(), access: change.default };
            Ok(if present == change.default { Vec::new() } else { vec![edit] })
        })
    }

    /// Puts subjects into a group, and takes others out. Blocks.
    ///
    /// # Errors
    /// [`ApiError`].
    pub fn change_group(&self, name: &GroupName, change: &GroupChange) -> Result<Changed, ApiError> {
        let GroupChange { add, remove, keep } = change;
        if add.len() + remove.len() > NAMED_MAX {
            return Err(ApiError::invalid(format!("name at most {NAMED_MAX} subjects at a time")));
        }
        let fresh = self.fresh_number();
        self.change(*keep, Vec::new(), |policy| {
            let mut edits = Vec::new();
            match policy.members(name) {
                Some(_) => {}
                None if add.is_empty() => return Err(Refused::NoSubject(Subject::Group(name.clone()))),
                None if policy.groups().nth(GROUPS_MAX - 1).is_some() => return Err(Refused::GroupsMax),
                None => edits.push(Edit::Group { name: name.clone(), number: fresh }),
            }
            let is_in = |subject: &Subject| policy.members(name).is_some_and(|all| all.contains(subject));
            for (subjects, wanted) in [(add, true), (remove, false)] {
                for subject in subjects {
                    policy.check_member(name, subject).or_else(|refused| match (wanted, refused) {
                        (false, Refused::Crowded(_)) => Ok(()),
                        (_, refused) => Err(refused),
                    })?;
                    if is_in(subject) != wanted {
                        let (group, subject) = (name.clone(), subject.clone());
                        edits.push(Edit::Member { group, subject, is_in: wanted });
                    }
                }
            }
            Ok(edits)
        })
    }

    /// Removes a group, with the rules that speak of it. Blocks.
    ///
    /// # Errors
    /// [`ApiError`].
    pub fn remove_group(&self, name: &GroupName, keep: bool) -> Result<Changed, ApiError> {
        let subject = Subject::Group(name.clone());
        let changed = self.policy().attached(&subject).len();
        if self.policy().members(name).is_none() {
            return Err(self.refusal(&Refused::NoSubject(subject)));
        }
        let gone = self.remove(&subject, Vec::new()).map_err(|e| ApiError::failed(&e))?;
        let carried = self.finish(gone);
        self.end(carried, changed, keep)
    }

    /// Looks, puts on record, and puts into effect. It is `about` these functions' routes, among others.
    fn change(
        &self,
        keep: bool,
        about: Vec<FunctionName>,
        edits: impl FnOnce(&Policy) -> Result<Vec<Edit>, Refused>,
    ) -> Result<Changed, ApiError> {
        let writer = self.writer();
        let edits = edits(&self.policy()).map_err(|refused| self.refusal(&refused))?;
        let writes =
            edits.iter().filter_map(|edit| write_of(edit).transpose()).collect::<Result<Vec<_>, _>>();
        if edits.is_empty() {
            drop(writer);
            // Connections may have been kept when it came to be so, and the kernel may not have taken it.
            let settled = self.settle_again(about);
            let cut = self.cut_refused(keep)?;
            return settled.map(|()| Changed { changed: 0, cut });
        }
        self.store.write_all(&writes.map_err(|e| ApiError::failed(&e))?).map_err(|e| ApiError::failed(&e))?;
        let effects = {
            let mut policy = self.policy_mut();
            edits.iter().flat_map(|edit| policy.apply(edit)).collect()
        };
        let carried = self.carry_out(effects);
        // The owner may be waiting for it.
        drop(writer);
        self.end(carried, edits.len(), keep)
    }

    /// The last steps of a change, each whatever becomes of the others.
    fn end(&self, carried: Carried, changed: usize, keep: bool) -> Result<Changed, ApiError> {
        let settled = self.settle(carried);
        let cut = self.cut_refused(keep)?;
        settled.map(|()| Changed { changed, cut })
    }

    /// Cuts connections that would not be let in any more.
    fn cut_refused(&self, keep: bool) -> Result<u64, ApiError> {
        let Some(Attached { enforcer, .. }) = self.attached.get().filter(|_| !keep) else { return Ok(0) };
        let is_refused = |from: Ipv6Addr, to: SocketAddrV6| {
            let policy = self.policy();
            let called = self.prefix.function_at(*to.ip()).and_then(|address| policy.caller(address));
            let (caller, called) = (policy.caller(from), called);
            let (Some(caller), Some(Subject::Function(function))) = (caller, called) else {
                // Not between a subject and a function: the daemon's own, say.
                return false;
            };
            let is_called = || self.ports().get(function).is_some_and(|ports| ports.contains(&to.port()));
            let is_call = matches!(caller, Subject::Peer(_)) || is_called();
            is_call && !policy.decide(caller, function).allowed
        };
        enforcer.cut(&is_refused).map_err(|e| ApiError::failed(e.as_ref()))
    }
}
