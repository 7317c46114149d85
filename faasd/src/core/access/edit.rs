//! A change of the policy, and what it means for the kernel's maps.

use std::net::Ipv6Addr;

use super::{Access, Action, GROUPS_PER_SUBJECT_MAX, GroupName, Subject};
use crate::core::name::FunctionName;

/// One change. What it takes for granted (that a subject is there, that a group has room) has been looked at before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// A peer or a function is there, or has changed. `active`: it may call functions. A peer that is invited has a
    /// number, so that rules can be made for it, and may not yet.
    Caller {
        subject: Subject,
        number: u32,
        address: Ipv6Addr,
        active: bool,
    },
    /// It is gone, with its memberships and all rules that speak of it. A function's own rules and default go as well.
    CallerGone {
        subject: Subject,
    },
    Group {
        name: GroupName,
        number: u32,
    },
    /// It is gone, with all rules that speak of it.
    GroupGone {
        name: GroupName,
    },
    Member {
        group: GroupName,
        subject: Subject,
        is_in: bool,
    },
    /// None: there is no such rule any more.
    Rule {
        function: FunctionName,
        subject: Subject,
        action: Option<Action>,
    },
    /// Of a function, or of all that have none of their own. None: by what comes next.
    Default {
        function: Option<FunctionName>,
        access: Option<Access>,
    },
}

/// A step in the kernel, to be taken in the order in which they come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    SetSubject {
        address: Ipv6Addr,
        entry: Entry,
    },
    ClearSubject {
        address: Ipv6Addr,
    },
    SetRule {
        subject: u32,
        function: Ipv6Addr,
        action: Action,
    },
    ClearRule {
        subject: u32,
        function: Ipv6Addr,
    },
    /// The flags of the function's route are to be those of its [`Guard`](super::Guard).
    Guard {
        function: FunctionName,
    },
}

/// An entry's place in the kernel's maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    Subject(Ipv6Addr),
    Rule { subject: u32, function: Ipv6Addr },
}

impl Effect {
    /// What it writes, if that is in the policy's maps.
    #[must_use]
    pub const fn place(&self) -> Option<Place> {
        match *self {
            Self::SetSubject { address, .. } | Self::ClearSubject { address } => {
                Some(Place::Subject(address))
            }
            Self::SetRule { subject, function, .. } | Self::ClearRule { subject, function } => {
                Some(Place::Rule { subject, function })
            }
            Self::Guard { .. } => None,
        }
    }
}

/// What the kernel knows of a subject.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    pub number: u32,
    /// The numbers of its groups; 0 is none.
    pub groups: [u32; GROUPS_PER_SUBJECT_MAX],
}

impl Entry {
    /// Who has not joined yet: reaches what joining takes, and no function.
    pub const INVITED: Self = Self { number: 0, groups: [0; GROUPS_PER_SUBJECT_MAX] };
}

/// Something on record that goes with a subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    Rule { function: FunctionName, subject: Subject },
    Member { group: GroupName, subject: Subject },
    Group { name: GroupName },
    Default { function: FunctionName },
}
