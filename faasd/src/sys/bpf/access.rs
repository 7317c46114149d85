//! Who may reach what, as the kernel program knows it: subjects by their address, rules by subject and function.
//!
//! Each entry is replaced whole, so that a connection meets either what was or what is. What was opened before stays
//! open: [`crate::sys::sock_diag`] ends it.

use std::net::Ipv6Addr;
use std::path::Path;

use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData, MapError, PerCpuHashMap, PerCpuValues};
use faasd_common::{Flow, FlowKey, RuleKey, Subject, SubjectCounts, maps};

#[cfg(doc)]
use super::Kernel;
use super::{BpfError, Plain, absent_is_fine, address, io_error, map_error, typed, words};

/// An insertion that leaves alone what is there.
const BPF_NOEXIST: u64 = 1;

/// The maps: open beside a [`Kernel`]'s, so that the policy changes without the owner of the routes.
pub struct AccessMaps {
    subjects: HashMap<MapData, [u32; 4], Plain<Subject>>,
    rules: HashMap<MapData, Plain<RuleKey>, u32>,
    counts: PerCpuHashMap<MapData, u32, Plain<SubjectCounts>>,
    refusals: HashMap<MapData, Plain<RuleKey>, u64>,
    flows: HashMap<MapData, Plain<FlowKey>, Plain<Flow>>,
}

impl std::fmt::Debug for AccessMaps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AccessMaps")
    }
}

impl AccessMaps {
    /// Those that are pinned under `dir`.
    ///
    /// # Errors
    /// [`BpfError::Map`], if nothing is.
    pub fn open(dir: &Path) -> Result<Self, BpfError> {
        Ok(Self {
            subjects: pinned(dir, maps::SUBJECTS, Map::HashMap)?,
            rules: pinned(dir, maps::RULES, Map::HashMap)?,
            counts: pinned(dir, maps::COUNTS, Map::PerCpuHashMap)?,
            refusals: pinned(dir, maps::REFUSALS, Map::LruHashMap)?,
            flows: pinned(dir, maps::FLOWS, Map::LruHashMap)?,
        })
    }

    pub(super) fn of(object: &mut Ebpf) -> Result<Self, BpfError> {
        Ok(Self {
            subjects: typed(object, maps::SUBJECTS)?,
            rules: typed(object, maps::RULES)?,
            counts: typed(object, maps::COUNTS)?,
            refusals: typed(object, maps::REFUSALS)?,
            flows: typed(object, maps::FLOWS)?,
        })
    }
}

/// Whether a subject, or the members of a group, may reach a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The subject's or group's number.
    pub subject: u32,
    /// The function's own address.
    pub function: Ipv6Addr,
    pub allow: bool,
}

/// How often a subject was refused by a function's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The subject's number.
    pub subject: u32,
    /// The function's own address.
    pub function: Ipv6Addr,
    pub count: u64,
}

impl AccessMaps {
    /// Whoever connects from `address` is this subject from now on. A subject that keeps its number keeps its counts.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn set_subject(&mut self, address: Ipv6Addr, subject: Subject) -> Result<(), BpfError> {
        let before = self.subject(address)?;
        if subject.number != 0 {
            self.count_subject(subject.number)?;
        }
        let set = self.subjects.insert(words(address), Plain(subject), 0);
        set.map_err(|e| map_error(maps::SUBJECTS, &e))?;
        match before {
            Some(before) if before.number != subject.number => self.forget_counts_of(before.number),
            _ => Ok(()),
        }
    }

    /// Whoever connects from `address` is a stranger from now on.
    ///
    /// # Errors
    /// [`BpfError::Map`]; an absent subject is none.
    pub fn clear_subject(&mut self, address: Ipv6Addr) -> Result<(), BpfError> {
        let Some(before) = self.subject(address)? else { return Ok(()) };
        absent_is_fine(maps::SUBJECTS, self.subjects.remove(&words(address)))?;
        self.forget_counts_of(before.number)
    }

    /// Who connects from `address`.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn subject(&self, address: Ipv6Addr) -> Result<Option<Subject>, BpfError> {
        let found = self.subjects.get(&words(address), 0);
        Ok(present(maps::SUBJECTS, found)?.map(|Plain(subject)| subject))
    }

    /// All subjects, so that a new daemon can remove what is no longer declared.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn subjects(&self) -> Result<Vec<(Ipv6Addr, Subject)>, BpfError> {
        let read = |entry: Result<([u32; 4], Plain<Subject>), MapError>| {
            let (key, Plain(subject)) = entry.map_err(|e| map_error(maps::SUBJECTS, &e))?;
            Ok((address(key), subject))
        };
        self.subjects.iter().map(read).collect()
    }

    /// The subject or group of this number may or may not reach the function of this address. Asked only on routes
    /// that are [`super::Route::GUARDED`].
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn set_rule(&mut self, subject: u32, function: Ipv6Addr, allow: bool) -> Result<(), BpfError> {
        let says = if allow { faasd_common::Rule::ALLOW } else { faasd_common::Rule::DENY };
        let set = self.rules.insert(rule_key(subject, function), says, 0);
        set.map_err(|e| map_error(maps::RULES, &e))
    }

    /// There is no such rule from now on.
    ///
    /// # Errors
    /// [`BpfError::Map`]; an absent rule is none.
    pub fn clear_rule(&mut self, subject: u32, function: Ipv6Addr) -> Result<(), BpfError> {
        absent_is_fine(maps::RULES, self.rules.remove(&rule_key(subject, function)))
    }

    /// All rules, so that a new daemon can remove what is no longer declared.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn rules(&self) -> Result<Vec<Rule>, BpfError> {
        let read = |entry: Result<(Plain<RuleKey>, u32), MapError>| {
            let (Plain(key), says) = entry.map_err(|e| map_error(maps::RULES, &e))?;
            let allow = says == faasd_common::Rule::ALLOW;
            Ok(Rule { subject: key.subject, function: address(key.function), allow })
        };
        self.rules.iter().map(read).collect()
    }

    /// What became of a subject's connections, if there is such a subject.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn subject_counts(&self, number: u32) -> Result<Option<SubjectCounts>, BpfError> {
        let Some(each) = present(maps::COUNTS, self.counts.get(&number, 0))? else { return Ok(None) };
        let add = |sum: SubjectCounts, Plain(one): &Plain<SubjectCounts>| SubjectCounts {
            admitted: sum.admitted + one.admitted,
            refused: sum.refused + one.refused,
            unknown: sum.unknown + one.unknown,
        };
        Ok(Some(each.iter().fold(SubjectCounts::default(), add)))
    }

    /// How often whom was refused where, as far as it is kept ([`faasd_common::REFUSALS_MAX`]).
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn refusals(&self) -> Result<Vec<Refusal>, BpfError> {
        let read = |entry: Result<(Plain<RuleKey>, u64), MapError>| {
            let (Plain(key), count) = entry.map_err(|e| map_error(maps::REFUSALS, &e))?;
            Ok(Refusal { subject: key.subject, function: address(key.function), count })
        };
        self.refusals.iter().map(read).collect()
    }

    /// Forgets everything that was counted of numbers that are `gone`. What is counted of nobody's number, 0, stays.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn forget_counts(&mut self, gone: impl Fn(u32) -> bool) -> Result<(), BpfError> {
        let gone = |number: u32| number != 0 && gone(number);
        let stale = keys(maps::COUNTS, self.counts.keys(), |number| gone(*number))?;
        stale.iter().try_for_each(|number| self.forget_counts_of(*number))?;
        for key in keys(maps::REFUSALS, self.refusals.keys(), |Plain(key)| gone(key.subject))? {
            absent_is_fine(maps::REFUSALS, self.refusals.remove(&key))?;
        }
        for key in keys(maps::FLOWS, self.flows.keys(), |Plain(key)| gone(key.subject))? {
            absent_is_fine(maps::FLOWS, self.flows.remove(&key))?;
        }
        Ok(())
    }

    /// Has the connections of a subject counted from now on, if they are not yet.
    fn count_subject(&mut self, number: u32) -> Result<(), BpfError> {
        let cpus =
            aya::util::nr_cpus().map_err(|(what, source)| io_error(&format!("read {what}"), source))?;
        let zeroes = PerCpuValues::try_from(vec![Plain(SubjectCounts::default()); cpus])
            .map_err(|source| io_error("count the CPUs", source))?;
        match self.counts.insert(number, zeroes, BPF_NOEXIST) {
            Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            other => other.map_err(|e| map_error(maps::COUNTS, &e)),
        }
    }

    fn forget_counts_of(&mut self, number: u32) -> Result<(), BpfError> {
        absent_is_fine(maps::COUNTS, self.counts.remove(&number))
    }
}

fn keys<K>(
    map: &'static str,
    all: impl Iterator<Item = Result<K, MapError>>,
    wanted: impl Fn(&K) -> bool,
) -> Result<Vec<K>, BpfError> {
    let all = all.map(|key| key.map_err(|e| map_error(map, &e)));
    all.filter(|key| key.as_ref().map_or(true, &wanted)).collect()
}

pub(super) fn pinned<T: TryFrom<Map, Error = MapError>>(
    dir: &Path,
    map: &'static str,
    kind: fn(MapData) -> Map,
) -> Result<T, BpfError> {
    let data = MapData::from_pin(dir.join(map)).map_err(|e| map_error(map, &e))?;
    T::try_from(kind(data)).map_err(|e| map_error(map, &e))
}

fn rule_key(subject: u32, function: Ipv6Addr) -> Plain<RuleKey> {
    Plain(RuleKey { subject, function: words(function) })
}

pub(super) fn present<T>(map: &'static str, result: Result<T, MapError>) -> Result<Option<T>, BpfError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(e) => Err(map_error(map, &e)),
    }
}
