//! Whatever happens in whatever order, also what no driver would say.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Move {
    Plan(Vec<(u64, u32)>, Option<u64>),
    Committed(bool),
    Remove,
    Waiting(u64),
    Prepared(usize),
    Ready(usize),
    Exited(usize),
    Load(Vec<u64>, u64, u64),
    Wait(u64),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let shares = prop::collection::vec((1u64..6, 1u32..101), 1..4);
    let one = prop_oneof![
        3 => (shares, prop::option::of(1u64..6)).prop_map(|(shares, prove)| Move::Plan(shares, prove)),
        6 => prop::bool::weighted(0.8).prop_map(Move::Committed),
        1 => Just(Move::Remove),
        4 => (1u64..6).prop_map(Move::Waiting),
        6 => (0usize..16).prop_map(Move::Prepared),
        12 => (0usize..16).prop_map(Move::Ready),
        6 => (0usize..16).prop_map(Move::Exited),
        8 => (prop::collection::vec(0u64..30, 0..8), 0u64..40, 0u64..4).prop_map(|(o, w, a)| Move::Load(o, w, a)),
        6 => (0u64..20_000).prop_map(Move::Wait),
        1 => (0u64..10_000_000).prop_map(Move::Wait),
    ];
    prop::collection::vec(one, 1..120)
}

/// A revision's numbers follow from its number, as those of an immutable thing do.
fn of(number: u64) -> Revision {
    let n = number as u32;
    Revision { max: n, prepared: n % 3, queue: 5 * n, ..revision(number, n % 3) }
}

#[derive(Debug, Default)]
struct Ledger {
    /// Each instance that was started and has not exited, with its revision.
    alive: BTreeMap<u32, u64>,
    held: BTreeSet<u32>,
    ready: BTreeSet<u32>,
    leaving: BTreeSet<u32>,
    killed: BTreeSet<u32>,
    commits: Vec<u64>,
    open_plans: BTreeSet<u64>,
    gone: bool,
}

impl Ledger {
    fn take(&mut self, action: &Action) -> Result<(), TestCaseError> {
        match *action {
            Action::Start { key, revision, hold } => {
                prop_assert!(self.alive.insert(key, revision).is_none());
                if hold {
                    self.held.insert(key);
                }
            }
            Action::Release { key } => prop_assert!(self.held.remove(&key) && !self.leaving.contains(&key)),
            Action::Admit { key } => prop_assert!(self.ready.contains(&key) && !self.leaving.contains(&key)),
            Action::Withdraw { key } => {
                prop_assert!(self.ready.contains(&key) && !self.leaving.contains(&key));
            }
            Action::Drain { key } => prop_assert!(self.ready.contains(&key) && self.leaving.insert(key)),
            Action::Kill { key } => {
                self.leaving.insert(key);
                prop_assert!(self.alive.contains_key(&key) && self.killed.insert(key));
            }
            Action::Commit { plan } => self.commits.push(plan),
            Action::Apply { plan } | Action::Abandon { plan, .. } => {
                prop_assert!(self.open_plans.remove(&plan));
            }
            Action::Gone => {
                prop_assert!(self.alive.is_empty() && !self.gone);
                self.gone = true;
            }
            Action::Refuse { .. } | Action::Shed { .. } => {}
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn invariants_hold(moves in moves()) {
        let mut world = World::new();
        let mut ledger = Ledger::default();
        let mut plans = 0;
        for step in moves {
            let pick = |n: usize| ledger.alive.keys().nth(n % ledger.alive.len().max(1)).copied().unwrap_or(0);
            let event = match step {
                Move::Plan(mut shares, prove) => {
                    plans += 1;
                    ledger.open_plans.insert(plans);
                    shares.sort_by_key(|(number, _)| *number);
                    shares.dedup_by_key(|(number, _)| *number);
                    let shares: Vec<_> = shares.into_iter().map(|(number, weight)| (of(number), weight)).collect();
                    Event::Plan(Plan { prove: prove.map(of), ..plan(plans, &shares) })
                }
                Move::Committed(true) => Event::Committed { plan: ledger.commits.last().copied().unwrap_or(0) },
                Move::Committed(false) => {
                    Event::NotCommitted { plan: ledger.commits.last().copied().unwrap_or(0), why: "full".to_owned() }
                }
                Move::Remove => Event::Remove,
                Move::Waiting(revision) => Event::Waiting { revision },
                Move::Prepared(n) => Event::Prepared(pick(n)),
                Move::Ready(n) => {
                    let key = pick(n);
                    if !ledger.held.contains(&key) && !ledger.leaving.contains(&key) {
                        ledger.ready.insert(key);
                    }
                    Event::Ready(key)
                }
                Move::Exited(n) => {
                    let key = pick(n);
                    ledger.alive.remove(&key);
                    ledger.held.remove(&key);
                    Event::Exited { key, why: "end".to_owned() }
                }
                Move::Load(open, waiting, arrived) => Event::Load {
                    instances: ledger.alive.keys().copied().zip(open).collect(),
                    demand: (1..6).map(|revision| Demand { revision, waiting, arrived }).collect(),
                },
                Move::Wait(ms) => { world.now += Duration::from_millis(ms); Event::Tick }
            };
            for action in world.step(event) {
                ledger.take(&action)?;
            }
            // What is not asked for has an end: a caller that does what it is told is not asked at once again.
            prop_assert!(world.life.next_tick().is_none_or(|at| at > world.now));
            prop_assert_eq!(ledger.open_plans.len(), usize::from(world.life.is_planning()));
            prop_assert!(world.life.instances.0.keys().eq(ledger.alive.keys()));
            for key in ledger.alive.keys() {
                let taken = world.life.takes_connections(*key);
                prop_assert!(!taken || (ledger.ready.contains(key) && !ledger.leaving.contains(key)));
            }
            let known: BTreeSet<u64> = ledger.alive.values().copied().collect();
            for number in known {
                prop_assert!(world.life.instances.count(number).alive() <= of(number).max);
            }
            // While something is to be waited for, somebody is told when.
            let waits = |phase| matches!(phase, Phase::Preparing | Phase::Starting { .. } | Phase::Draining { .. });
            if world.life.instances.0.values().any(|i| waits(i.phase)) {
                prop_assert!(world.life.next_tick().is_some());
            }
            prop_assert_eq!(ledger.gone, world.life.is_removed() && ledger.alive.is_empty());
        }
    }
}
