//! Who may reach what: subjects, and the rules about them.

/// The most subjects that have an address: peers and functions. One entry each in [`crate::maps::SUBJECTS`].
pub const SUBJECTS_MAX: u32 = 65_536;

/// The most rules. One entry each in [`crate::maps::RULES`].
pub const RULES_MAX: u32 = 131_072;

/// The most pairs of a subject and a function whose refusals are kept: those that were refused last.
pub const REFUSALS_MAX: u32 = 16_384;

/// The most groups that one subject is in.
pub const GROUPS_MAX: usize = 8;

/// The last bits of an address in the functions' prefix, which tell a function's revisions apart. What rules say of a
/// function, they say of each of its revisions.
pub const REVISION_BITS: u32 = 16;

/// Whoever opens connections, by the address that it opens them from: a peer of the tunnel or a function. Replaced
/// whole.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// Its number, or that of [`Subject::INVITED`]. Subjects and groups share their numbers.
    pub number: u32,
    /// The numbers of the groups that it is in, and 0 where there is none.
    pub groups: [u32; GROUPS_MAX],
}

impl Subject {
    /// Somebody who is invited and has not joined: reaches the daemon's own services, and no function. Not counted.
    pub const INVITED: Self = Self { number: 0, groups: [0; GROUPS_MAX] };
}

/// What a rule is about.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RuleKey {
    /// The number of a subject or of a group.
    pub subject: u32,
    /// The function's own address, in the order of the packet: its last [`REVISION_BITS`] are 0.
    pub function: [u32; 4],
}

/// What a rule says: a bit each, so that several make one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule;

impl Rule {
    pub const ALLOW: u32 = 1;
    pub const DENY: u32 = 2;
}

/// What became of one subject's connections, since it has its number. Per CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SubjectCounts {
    /// Connections to functions that it may reach, whether or not somebody listened there.
    pub admitted: u64,
    /// Connections to functions that it may not reach.
    pub refused: u64,
    /// Connections to addresses and ports where nothing is: a scan, if there are many.
    pub unknown: u64,
}

const _: () = {
    assert!(size_of::<Subject>() == 4 + 4 * GROUPS_MAX && align_of::<Subject>() == 4);
    assert!(size_of::<RuleKey>() == 20 && align_of::<RuleKey>() == 4);
    assert!(size_of::<SubjectCounts>() == 24 && align_of::<SubjectCounts>() == 8);
};
