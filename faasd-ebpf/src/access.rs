//! Who connects, by the source address, and whether the policy lets it.

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, LruHashMap, PerCpuHashMap};
use faasd_common::{
    Config, Decision, GROUPS_MAX, REFUSALS_MAX, REVISION_BITS, RULES_MAX, Route, Rule, RuleKey, SUBJECTS_MAX,
    Subject, SubjectCounts,
};

use crate::{LOOPBACK_IFINDEX, live};

/// Source address → whose it is.
#[map]
static SUBJECTS: HashMap<[u32; 4], Subject> = HashMap::with_max_entries(SUBJECTS_MAX, BPF_F_NO_PREALLOC);

/// Subject or group, and function → [`Rule::ALLOW`] or [`Rule::DENY`].
#[map]
static RULES: HashMap<RuleKey, u32> = HashMap::with_max_entries(RULES_MAX, BPF_F_NO_PREALLOC);

/// A subject's number → what became of its connections. The daemon makes the entries.
#[map]
static COUNTS: PerCpuHashMap<u32, SubjectCounts> =
    PerCpuHashMap::with_max_entries(SUBJECTS_MAX, BPF_F_NO_PREALLOC);

/// Subject and function → how often the one was refused by the other. Those that were refused last are kept.
#[map]
static REFUSALS: LruHashMap<RuleKey, u64> = LruHashMap::with_max_entries(REFUSALS_MAX, 0);

/// `::1`, in the order of the packet.
const LOCALHOST: [u32; 4] = [0, 0, 0, 1u32.to_be()];

/// Where a packet comes from, by its interface and source address. An address proves something only where it cannot be
/// made up: WireGuard ties a peer's to its key for what comes in by the tunnel, and by loopback comes what the daemon
/// opened, for itself or for a function.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// The daemon, which may do what it likes.
    Daemon,
    /// Who has this address.
    Subject,
    /// An address that does not belong to the interface.
    Foreign,
    /// The kernel looks for a socket without a packet: `sock_diag` for one that is gone, for instance.
    NoPacket,
}

#[inline(always)]
pub fn arrival(config: &Config, ifindex: u32, source: &[u32; 4]) -> Arrival {
    let inside = ifindex == config.tunnel_ifindex || ifindex == LOOPBACK_IFINDEX;
    if !inside {
        return if ifindex == 0 { Arrival::NoPacket } else { Arrival::Foreign };
    }
    // What the daemon sends to the server's own address comes by loopback, but the kernel says that it came by the
    // tunnel, whose address that is. No peer has the address, and the rules of routing know what really came by the
    // tunnel.
    if is(source, &config.server) || is(source, &LOCALHOST) {
        return Arrival::Daemon;
    }
    let of_a_function = source[0] == config.functions[0] && source[1] == config.functions[1];
    if of_a_function == (ifindex == LOOPBACK_IFINDEX) { Arrival::Subject } else { Arrival::Foreign }
}

/// Word by word: arrays are compared by a call to `bcmp`, which is not there.
#[inline(always)]
fn is(one: &[u32; 4], other: &[u32; 4]) -> bool {
    one[0] == other[0] && one[1] == other[1] && one[2] == other[2] && one[3] == other[3]
}

/// How often an entry that changes while it is read is read again.
const ROUNDS: u32 = 8;

/// Puts who has this address into `subject`. False if nobody has.
///
/// Each entry is replaced whole, but the kernel gives the memory of the one that was replaced or removed to the next
/// one at once, also while it is being read here. So what was read counts if a second look finds the same.
#[inline(always)]
pub fn subject(source: &[u32; 4], subject: &mut Subject) -> bool {
    if !look_up(source, subject) {
        return false;
    }
    for _ in 0..ROUNDS {
        let mut again = Subject::INVITED;
        if !look_up(source, &mut again) {
            return false;
        }
        let mut changed = subject.number ^ again.number;
        for i in 0..GROUPS_MAX {
            changed |= subject.groups[i] ^ again.groups[i];
        }
        if changed == 0 {
            return true;
        }
        *subject = again;
    }
    false
}

#[inline(always)]
fn look_up(source: &[u32; 4], into: &mut Subject) -> bool {
    match SUBJECTS.get_ptr(source) {
        Some(entry) => {
            // SAFETY: an entry, which stays readable while the program runs.
            *into = unsafe { entry.read_volatile() };
            true
        }
        None => false,
    }
}

/// The number of whoever has this address now, or that of the daemon.
#[inline(always)]
pub fn number(source: &[u32; 4]) -> u32 {
    match SUBJECTS.get_ptr(source) {
        // SAFETY: a word of an entry, which stays readable while the program runs.
        Some(entry) => unsafe { (&raw const (*entry).number).read_volatile() },
        None => Subject::INVITED.number,
    }
}

/// What is left of an address's last word for all revisions of a function.
pub const FUNCTION_MASK: u32 = (!0u32 << REVISION_BITS).to_be();

/// The decision that [`admit`] returns for "yes". A number, as every other: the verifier follows it as one.
pub const ADMITTED: u32 = u32::MAX;

/// Whether `subject` may reach the function of `route`, which was dialled at `address`: [`ADMITTED`], or the index of the
/// [`Decision`] that refuses it.
#[inline(always)]
pub fn admit(subject: &Subject, route: &Route, address: &[u32; 4]) -> u32 {
    if subject.number == Subject::INVITED.number {
        return Decision::Stranger as u32;
    }
    if route.flags & Route::GUARDED != 0 {
        let [first, second, third, last] = *address;
        let function = [first, second, third, last & FUNCTION_MASK];
        let mut key = RuleKey { subject: subject.number, function };
        if !allowed(subject, route.flags, &mut key) {
            key.subject = subject.number;
            count(subject.number, REFUSED);
            count_refusal(&key);
            return Decision::Denied as u32;
        }
    }
    count(subject.number, ADMITTED_COUNT);
    ADMITTED
}

/// The subject's own rule, then its groups', then the function's default. Among groups one that denies wins.
#[inline(always)]
fn allowed(subject: &Subject, flags: u32, key: &mut RuleKey) -> bool {
    let own = rule(key);
    if own != 0 {
        return own & Rule::DENY == 0;
    }
    let mut said = 0;
    for i in 0..GROUPS_MAX {
        let group = subject.groups[i];
        if group != 0 {
            key.subject = group;
            said |= rule(key);
        }
    }
    if said != 0 { said & Rule::DENY == 0 } else { flags & Route::CLOSED == 0 }
}

/// What the rule says, or 0 if there is none. As with subjects, two looks have to agree; a rule that changes all the
/// while denies.
#[inline(always)]
fn rule(key: &RuleKey) -> u32 {
    let mut says = word(key);
    if says == 0 {
        return 0;
    }
    for _ in 0..ROUNDS {
        let again = word(key);
        if says == again {
            return says;
        }
        says = again;
    }
    Rule::DENY
}

#[inline(always)]
fn word(key: &RuleKey) -> u32 {
    match RULES.get_ptr(key) {
        // SAFETY: a word of an entry, which stays readable while the program runs.
        Some(says) => unsafe { says.read_volatile() },
        None => 0,
    }
}

/// Which of the [`SubjectCounts`], by its place.
const ADMITTED_COUNT: usize = 0;
const REFUSED: usize = 1;
const UNKNOWN: usize = 2;

/// Nothing is where `subject` dialled.
#[inline(always)]
pub fn count_unknown(subject: &Subject) {
    count(subject.number, UNKNOWN);
}

#[inline(always)]
fn count(number: u32, which: usize) {
    if let Some(counts) = COUNTS.get_ptr_mut(number) {
        // SAFETY: a per-CPU value of three such words; the program is not preempted by itself on its CPU.
        unsafe { *counts.cast::<u64>().add(which) += 1 }
    }
}

#[inline(always)]
fn count_refusal(key: &RuleKey) {
    if REFUSALS.get_ptr_mut(key).is_none() {
        // Another CPU may have been first: then its entry stays.
        let _ = REFUSALS.insert(key, 0, BPF_NOEXIST as u64);
    }
    if let Some(count) = REFUSALS.get_ptr_mut(key) {
        live::increment(count);
    }
}
