//! Who may call what, as the control plane has it: on record, in memory, in the kernel, in this order.
//!
//! Records are one small key for each fact, so that a change writes what it is about and nothing else. A change looks
//! at the policy, is put on record, is made in memory, and then in the kernel's maps. A start compares the maps with
//! what is on record, and touches what differs.
//!
//! The flags of routes are the owner's to set, together with whatever else a route says. It is told whose have changed,
//! and reads them from here.

mod change;
mod follow;
mod kernel;
mod load;
mod show;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

pub use change::RULES_MAX;
use follow::Behind;
pub use follow::Carried;
pub use kernel::KernelEnforcer;
pub use show::{NamedCounts, Names};
use tokio::sync::{Notify, mpsc, oneshot};

use super::api::{ApiError, nearest};
use super::callers::Callers;
use super::owner::Message;
use super::records::{DefaultRecord, GroupRecord, MemberRecord, PeerRecord, RuleRecord};
use super::store::{Store, StoreError, Write, json_write};
use crate::core::access::{Edit, Effect, Fact, GroupName, Guard, Image, Policy, Refused, Subject};
use crate::core::address::Prefix;
use crate::core::name::FunctionName;

/// The kernel, as the policy uses it.
pub trait Enforcer: Send + Sync + fmt::Debug {
    /// What its maps hold.
    ///
    /// # Errors
    /// Those of the maps.
    fn image(&self) -> anyhow::Result<Image>;

    /// Takes a step. A route's flags are not its business.
    ///
    /// # Errors
    /// Those of the maps.
    fn take(&self, step: &Effect) -> anyhow::Result<()>;

    /// Cuts the connections in the ingress for which this holds, by the other end's address and by this end: of a
    /// connection from one function to another it is asked for both. Returns how many.
    ///
    /// # Errors
    /// Those of `sock_diag(7)`.
    fn cut(&self, is_refused: &dyn Fn(Ipv6Addr, SocketAddrV6) -> bool) -> anyhow::Result<u64>;

    /// Forgets what it has counted of numbers that nobody has, so that whoever is given one of them begins at zero.
    ///
    /// # Errors
    /// Those of the maps.
    fn forget_counts(&self, known: &HashSet<u32>) -> anyhow::Result<()>;

    /// What it has counted.
    ///
    /// # Errors
    /// Those of the maps.
    fn counts(&self) -> anyhow::Result<Counts>;
}

/// Connections that the kernel has let in and refused.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// By the subject's number: let in, refused.
    pub subjects: Vec<(u32, u64, u64)>,
    /// By the subject's number and the function's address. Those that were refused least recently are forgotten.
    pub refusals: Vec<(u32, Ipv6Addr, u64)>,
}

/// What a running daemon adds.
#[derive(Debug)]
struct Attached {
    enforcer: Arc<dyn Enforcer>,
    callers: Arc<Callers>,
    owner: mpsc::Sender<Message>,
}

/// The policy, with what keeps it.
#[derive(Debug)]
pub struct Access {
    store: Arc<dyn Store>,
    /// The functions' addresses.
    prefix: Prefix,
    /// Held over a change, from looking at what is there to its being in the maps. Nobody waits for the owner with it.
    writer: Mutex<()>,
    policy: RwLock<Policy>,
    /// The ports at which functions were reached under this daemon: where one function has a connection with another,
    /// they tell which of them has called.
    ports: Mutex<HashMap<FunctionName, HashSet<u16>>>,
    /// What the kernel has not taken.
    behind: Mutex<Behind>,
    /// Told of it.
    late: Arc<Notify>,
    /// Held as well by what is [`Going`].
    leaving: Arc<()>,
    attached: OnceLock<Attached>,
}

/// A subject that is on record no more, and still in the kernel's maps.
#[derive(Debug)]
#[must_use = "it is in the maps until it is finished"]
pub struct Going {
    effects: Vec<Effect>,
    _leaving: Arc<()>,
}

impl Access {
    /// From here on changes are made in the kernel, whose maps are brought in line first, and whose address is whose is
    /// published. Blocks.
    ///
    /// # Errors
    /// Those of reading the maps, and of the published names.
    pub fn attach(
        &self,
        enforcer: Arc<dyn Enforcer>,
        callers: Arc<Callers>,
        owner: mpsc::Sender<Message>,
    ) -> anyhow::Result<()> {
        let _writer = self.writer();
        {
            let policy = self.policy();
            let named = |subject: &Subject| Some((policy.address(subject)?, subject.to_string()));
            callers.replace(policy.callers().filter_map(|(subject, _)| named(subject)).collect())?;
        }
        let steps = Image::of(&self.policy()).steps_from(&enforcer.image()?);
        if !steps.is_empty() {
            tracing::info!(steps = steps.len(), "bringing the kernel's policy in line");
        }
        // Only ever called once.
        let _ = self.attached.set(Attached { enforcer, callers, owner });
        // What it does not take is tried again: there would be less of a policy without a daemon.
        let Carried { .. } = self.carry_out(steps);
        // Numbers rise while a daemon runs. The next one begins after the highest that is on record, and knows of no others.
        let known = self.policy().callers().map(|(_, number)| number).collect();
        if let Some(Attached { enforcer, .. }) = self.attached.get() {
            enforcer.forget_counts(&known)?;
        }
        Ok(())
    }

    /// Notified when the kernel has not taken something.
    #[must_use]
    pub const fn late(&self) -> &Arc<Notify> {
        &self.late
    }

    /// A number for somebody who is about to be on record.
    #[must_use]
    pub fn fresh_number(&self) -> u32 {
        self.policy_mut().fresh_number()
    }

    /// The flags of a function's route.
    #[must_use]
    pub fn guard(&self, function: &FunctionName) -> Guard {
        self.policy().guard(function)
    }

    /// Whether what comes from an address may reach a function, as the kernel program decides it of what is dialled.
    #[must_use]
    pub fn lets_in(&self, from: Ipv6Addr, function: &FunctionName) -> bool {
        let policy = self.policy();
        policy.caller(from).is_some_and(|subject| policy.decide(subject, function).allowed)
    }

    /// The groups that somebody is in.
    #[must_use]
    pub fn groups_of(&self, subject: &Subject) -> Vec<GroupName> {
        self.policy().groups_of(subject).cloned().collect()
    }

    /// A peer is on record: new, or changed.
    pub fn show_peer(&self, record: &PeerRecord) {
        self.show(&peer_edit(record));
    }

    /// A function is on record, and about to be reachable.
    pub fn show_function(&self, name: &FunctionName, number: u32, address: Ipv6Addr) {
        let subject = Subject::Function(name.clone());
        self.show(&Edit::Caller { subject, number, address, active: true });
    }

    /// A function is about to be reachable at these ports.
    pub fn show_ports(&self, name: &FunctionName, ports: impl IntoIterator<Item = u16>) {
        self.ports().entry(name.clone()).or_default().extend(ports);
    }

    fn show(&self, edit: &Edit) {
        // What is computed first is written first.
        let _writer = self.writer();
        let effects = self.policy_mut().apply(edit);
        // Nobody waits for it: what is late is tried again.
        let Carried { .. } = self.carry_out(effects);
    }

    /// Deletes everything on record that speaks of a subject, together with `more`. Blocks.
    ///
    /// # Errors
    /// Those of the store; nothing was changed then.
    pub fn remove(&self, subject: &Subject, more: Vec<Write>) -> Result<Going, StoreError> {
        let _writer = self.writer();
        let facts = self.policy().attached(subject);
        let deletions = facts.iter().map(|fact| Write::Delete { key: key_of(fact) });
        self.store.write_all(&deletions.chain(more).collect::<Vec<_>>())?;
        let edit = match subject {
            Subject::Group(name) => Edit::GroupGone { name: name.clone() },
            caller => Edit::CallerGone { subject: caller.clone() },
        };
        let effects = self.policy_mut().apply(&edit);
        if let Subject::Function(name) = subject {
            self.ports().remove(name);
        }
        Ok(Going { effects, _leaving: Arc::clone(&self.leaving) })
    }

    /// Takes such a subject out of the maps. What others have changed since stays as they have it.
    pub fn finish(&self, going: Going) -> Carried {
        let _writer = self.writer();
        self.carry_out(going.effects)
    }

    /// Cuts everything that comes from an address. Blocks.
    ///
    /// # Errors
    /// [`ApiError::Failed`].
    pub fn cut_all(&self, from: Ipv6Addr) -> Result<u64, ApiError> {
        let Some(Attached { enforcer, .. }) = self.attached.get() else { return Ok(0) };
        enforcer.cut(&|remote, _| remote == from).map_err(|e| ApiError::failed(e.as_ref()))
    }

    fn ports(&self) -> MutexGuard<'_, HashMap<FunctionName, HashSet<u16>>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn policy(&self) -> RwLockReadGuard<'_, Policy> {
        self.policy.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn policy_mut(&self) -> RwLockWriteGuard<'_, Policy> {
        self.policy.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self) -> MutexGuard<'_, ()> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A refusal with the nearest name to what is not known.
    fn refusal(&self, refused: &Refused) -> ApiError {
        let policy = self.policy();
        let near = |wanted: &FunctionName, known: Vec<&FunctionName>, mark: &str| {
            let known = known.iter().map(|name| name.as_str());
            nearest(wanted.as_str(), known).map(|name| format!("{mark}{name}"))
        };
        let (what, suggestion) = match refused {
            Refused::NoFunction(name) => {
                (format!("function '{name}'"), near(name, policy.functions().collect(), ""))
            }
            Refused::NoSubject(subject) => {
                let callers = policy.callers().map(|(caller, _)| caller);
                let (known, mark) = match subject {
                    Subject::Group(_) => (policy.groups().map(|(name, _)| name).collect(), "@"),
                    Subject::Function(_) => (policy.functions().collect(), "fn:"),
                    Subject::Peer(_) => {
                        let peers = callers.filter(|caller| matches!(caller, Subject::Peer(_)));
                        (peers.map(Subject::name).collect(), "")
                    }
                };
                (format!("{} '{subject}'", subject.kind()), near(subject.name(), known, mark))
            }
            other => return ApiError::conflict(other.to_string()),
        };
        ApiError::NotFound { what, suggestion }
    }
}

fn peer_edit(record: &PeerRecord) -> Edit {
    Edit::Caller {
        subject: Subject::Peer(record.name.clone()),
        number: record.number,
        address: record.address,
        active: record.invited_until.is_none(),
    }
}

/// Where a fact is on record.
fn key_of(fact: &Fact) -> String {
    match fact {
        Fact::Rule { function, subject } => RuleRecord::key(function, subject),
        Fact::Member { group, subject } => MemberRecord::key(group, subject),
        Fact::Group { name } => GroupRecord::key(name),
        Fact::Default { function } => DefaultRecord::key(Some(function)),
    }
}

/// What is to be written of an edit. Callers have records of their own, and what goes with a subject is not told by its edit.
fn write_of(edit: &Edit) -> Result<Option<Write>, StoreError> {
    let write = match edit {
        Edit::Rule { function, subject, action } => {
            let key = RuleRecord::key(function, subject);
            match action {
                Some(action) => json_write(key, &RuleRecord { action: *action })?,
                None => Write::Delete { key },
            }
        }
        Edit::Member { group, subject, is_in } => {
            let key = MemberRecord::key(group, subject);
            if *is_in { json_write(key, &MemberRecord {})? } else { Write::Delete { key } }
        }
        Edit::Group { name, number } => json_write(GroupRecord::key(name), &GroupRecord { number: *number })?,
        Edit::Default { function, access } => {
            let key = DefaultRecord::key(function.as_ref());
            match access {
                Some(access) => json_write(key, &DefaultRecord { access: *access })?,
                None => Write::Delete { key },
            }
        }
        Edit::Caller { .. } | Edit::CallerGone { .. } | Edit::GroupGone { .. } => return Ok(None),
    };
    Ok(Some(write))
}
