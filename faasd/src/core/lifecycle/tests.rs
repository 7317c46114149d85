use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn revision(number: u64, min: u32) -> Revision {
    Revision { number, min, start_deadline: Duration::from_secs(10), drain_deadline: Duration::from_secs(5) }
}

/// A function with a clock and a source of keys.
struct World {
    life: Lifecycle,
    now: Time,
    last_key: u32,
}

impl World {
    fn new() -> Self {
        Self { life: Lifecycle::default(), now: Time::ZERO, last_key: 0 }
    }

    fn step(&mut self, event: Event) -> Vec<Action> {
        let last_key = &mut self.last_key;
        self.life.step(event, self.now, &mut || {
            *last_key += 1;
            *last_key
        })
    }

    fn exited(&mut self, key: u32) -> Vec<Action> {
        self.step(Event::Exited { key, why: "exit 1".to_owned() })
    }

    fn deployed(min: u32) -> Self {
        let mut world = Self::new();
        assert_eq!(world.step(Event::Deploy(revision(1, min))), [Action::Start { key: 1, revision: 1 }]);
        let actions = world.step(Event::Ready(1));
        assert_eq!(actions[..2], [Action::Promote { revision: 1 }, Action::Admit { key: 1 }]);
        world
    }
}

#[test]
fn a_first_deploy_that_fails_leaves_nothing() {
    let mut world = World::new();
    world.step(Event::Deploy(revision(1, 1)));
    let abandon = Action::Abandon { revision: 1, why: "exit 1".to_owned() };
    assert_eq!(world.exited(1), [abandon, Action::Refuse, Action::Gone]);
}

#[test]
fn a_deploy_that_is_never_ready_is_killed_and_says_so() {
    let mut world = World::new();
    world.step(Event::Deploy(revision(1, 1)));
    assert_eq!(world.life.next_tick(), Some(Duration::from_secs(10)));
    world.now = Duration::from_secs(10);
    assert_eq!(world.step(Event::Tick), [Action::Kill { key: 1 }]);
    let actions = world.exited(1);
    assert!(
        matches!(&actions[0], Action::Abandon { why, .. } if why.contains("deadlines.start")),
        "{actions:?}"
    );
}

#[test]
fn a_bad_revision_takes_no_traffic_from_a_good_one() {
    let mut world = World::deployed(1);
    assert_eq!(world.step(Event::Deploy(revision(2, 1))), [Action::Start { key: 2, revision: 2 }]);
    assert_eq!(world.exited(2), [Action::Abandon { revision: 2, why: "exit 1".to_owned() }]);
    assert_eq!(world.life.outlook(), Outlook::Warm);
}

#[test]
fn a_good_revision_replaces_the_old_one() {
    let mut world = World::deployed(1);
    world.step(Event::Deploy(revision(2, 2)));
    let actions = world.step(Event::Ready(2));
    assert_eq!(
        actions,
        [
            Action::Promote { revision: 2 },
            Action::Admit { key: 2 },
            Action::Drain { key: 1 },
            Action::Start { key: 3, revision: 2 }
        ]
    );
    world.now = Duration::from_secs(5);
    assert_eq!(world.step(Event::Tick), [Action::Kill { key: 1 }]);
    assert_eq!(world.exited(1), []);
}

#[test]
fn a_crash_is_mended_after_a_pause_that_grows() {
    let mut world = World::deployed(1);
    assert_eq!(world.exited(1), []);
    assert_eq!(world.life.next_tick(), Some(BACKOFF_FIRST));
    world.now = BACKOFF_FIRST;
    assert_eq!(world.step(Event::Tick), [Action::Start { key: 2, revision: 1 }]);
    assert_eq!(world.exited(2), []);
    assert_eq!(world.life.next_tick(), Some(BACKOFF_FIRST * 3));
    assert_eq!(world.life.outlook(), Outlook::Failing);
    assert_eq!(world.life.reason(), Some("exit 1"));
}

#[test]
fn the_first_connection_wakes_a_cold_function_and_is_refused_in_the_end() {
    let mut world = World::deployed(0);
    world.exited(1);
    world.now += BACKOFF_MAX;
    assert_eq!(world.step(Event::Tick), []);
    let mut refused = false;
    assert!(matches!(world.step(Event::Waiting)[..], [Action::Start { .. }]));
    for _ in 0..FAILURES_BEFORE_REFUSAL {
        let key = world.last_key;
        refused |= world.exited(key).contains(&Action::Refuse);
        world.now += BACKOFF_MAX;
        world.step(Event::Tick);
    }
    assert!(refused);
}

#[test]
fn removal_ends_everything() {
    let mut world = World::deployed(1);
    assert_eq!(world.step(Event::Remove), [Action::Refuse, Action::Kill { key: 1 }]);
    assert_eq!(world.exited(1), [Action::Gone]);
}

#[derive(Clone, Debug)]
enum Move {
    Deploy(u32),
    Remove,
    Waiting,
    Ready(usize),
    Exited(usize),
    Wait(u64),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        (0u32..4).prop_map(Move::Deploy),
        Just(Move::Waiting),
        (0usize..8).prop_map(Move::Ready),
        (0usize..8).prop_map(Move::Exited),
        (0u64..20_000).prop_map(Move::Wait),
        Just(Move::Remove),
    ];
    prop::collection::vec(one, 1..80)
}

proptest! {
    /// Whatever happens in whatever order: each instance is started once, admitted only between its readiness
    /// and its end, killed at most once; and a removed function ends when its instances have.
    #[test]
    fn invariants_hold(moves in moves()) {
        let mut world = World::new();
        let (mut alive, mut admitted, mut killed) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let (mut number, mut gone) = (0, false);
        for step in moves {
            let pick = |set: &BTreeSet<u32>, n: usize| set.iter().nth(n % set.len().max(1)).copied();
            let event = match step {
                Move::Deploy(min) => { number += 1; Event::Deploy(revision(number, min)) }
                Move::Remove => Event::Remove,
                Move::Waiting => Event::Waiting,
                Move::Ready(n) => match pick(&alive, n) { Some(key) => Event::Ready(key), None => continue },
                Move::Exited(n) => match pick(&alive, n) {
                    Some(key) => { alive.remove(&key); Event::Exited { key, why: "end".to_owned() } }
                    None => continue,
                },
                Move::Wait(ms) => { world.now += Duration::from_millis(ms); Event::Tick }
            };
            if gone { break; }
            for action in world.step(event) {
                match action {
                    Action::Start { key, .. } => prop_assert!(alive.insert(key)),
                    Action::Admit { key } => {
                        prop_assert!(alive.contains(&key) && !killed.contains(&key));
                        prop_assert!(admitted.insert(key));
                    }
                    Action::Drain { key } => prop_assert!(admitted.contains(&key)),
                    Action::Kill { key } => prop_assert!(alive.contains(&key) && killed.insert(key)),
                    Action::Gone => { prop_assert!(alive.is_empty()); gone = true; }
                    Action::Promote { .. } | Action::Abandon { .. } | Action::Refuse => {}
                }
            }
            // Instances are never more than what was declared, a candidate, one for who waits, and the old ones.
            prop_assert!(world.life.instances.len() == alive.len());
            // While something is to be waited for, somebody is told when.
            if world.life.instances.values().any(|i| matches!(i.phase, Phase::Starting { .. })) {
                prop_assert!(world.life.next_tick().is_some());
            }
        }
    }
}
