//! More instances, fewer, prepared ones, and none to spare.

use super::*;

fn wide(min: u32, max: u32) -> Revision {
    Revision { max, ..revision(1, min) }
}

#[test]
fn a_rise_is_met_at_once_and_no_further_than_max() {
    let mut world = World::warm(wide(1, 4), 1);
    world.busy(1, 11);
    assert_eq!(starts(&world.load()), [2]);
    assert_eq!(world.load(), []);
    world.busy(1, 100);
    assert_eq!(starts(&world.load()), [3, 4]);
    world.demand(1, u64::MAX, 1);
    world.busy(1, u64::MAX);
    assert!(starts(&world.load()).is_empty());
}

#[test]
fn who_waits_counts_like_who_is_served() {
    let mut world = World::warm(wide(0, 4), 0);
    world.demand(1, 25, 25);
    assert_eq!(starts(&world.load()), [1, 2, 3]);
    assert!(world.life.wants_load());
}

#[test]
fn what_is_not_needed_goes_when_it_was_not_needed_for_long_enough() {
    let mut world = World::warm(wide(1, 4), 3);
    world.busy(1, 4);
    world.busy(2, 2);
    world.busy(3, 2);
    world.load();
    assert_eq!(world.load_for(IDLE - Duration::from_secs(1)), []);
    // The least busy first; the first of those that are equal.
    let actions = world.load_for(Duration::from_secs(2));
    assert_eq!(actions, [Action::Withdraw { key: 2 }, Action::Withdraw { key: 3 }]);
    assert!(!world.life.takes_connections(2));
    // An open connection keeps its instance, for ever.
    assert_eq!(world.load_for(IDLE * 100), []);
    world.busy(2, 0);
    assert_eq!(world.load(), [Action::Drain { key: 2 }]);
    // What the sample does not know is not without connections.
    world.open.retain(|(key, _)| *key != 3);
    assert_eq!(world.load(), []);
    world.busy(3, 0);
    assert_eq!(world.load(), [Action::Drain { key: 3 }]);
    assert_eq!(world.wait(DRAIN_DEADLINE), [Action::Kill { key: 2 }, Action::Kill { key: 3 }]);
    assert_eq!(world.load_for(IDLE * 2), []);
}

#[test]
fn the_fewest_stay_however_idle() {
    let mut world = World::warm(wide(2, 4), 3);
    world.load();
    assert_eq!(world.load_for(IDLE * 5)[..2], [Action::Withdraw { key: 1 }, Action::Drain { key: 1 }]);
    assert!(world.life.takes_connections(2) && world.life.takes_connections(3));
}

#[test]
fn a_peak_within_the_window_keeps_everything() {
    let mut world = World::warm(wide(1, 4), 3);
    for _ in 0..10 {
        world.busy(1, 30);
        world.load();
        world.busy(1, 0);
        assert_eq!(world.load_for(IDLE - Duration::from_secs(1)), []);
    }
    let actions = world.load_for(IDLE);
    assert_eq!(actions[..2], [Action::Withdraw { key: 1 }, Action::Withdraw { key: 2 }]);
}

#[test]
fn the_last_one_goes_when_nobody_came_for_long_enough() {
    let mut world = World::deployed(wide(0, 2));
    world.demand(1, 0, 5);
    world.busy(1, 0);
    world.load();
    // Connections so short that no sample sees one.
    for arrived in 6..10 {
        assert_eq!(world.load_for(IDLE - Duration::from_secs(1)), []);
        world.demand(1, 0, arrived);
    }
    world.busy(1, 1);
    assert_eq!(world.load_for(IDLE * 3), []);
    world.busy(1, 0);
    let actions = world.load_for(IDLE + Duration::from_secs(2));
    assert_eq!(actions, [Action::Withdraw { key: 1 }, Action::Drain { key: 1 }]);
    assert_eq!(world.exited(1), []);
    assert_eq!(world.life.outlook(), Outlook::Cold);
    assert!(!world.life.wants_load());
    // A counter that begins anew at 0 has moved, and wakes nobody.
    world.demand(1, 0, 0);
    assert_eq!(world.load(), []);
}

#[test]
fn a_clock_that_jumps_puts_nothing_to_sleep() {
    let mut world = World::warm(wide(0, 2), 2);
    world.busy(1, 15);
    world.load();
    world.now += Duration::from_secs(5 * 3600);
    world.busy(1, 0);
    assert_eq!(world.load(), []);
    assert_eq!(world.load_for(IDLE).len(), 2);
}

#[test]
fn what_was_withdrawn_is_the_first_to_take_part_again() {
    let busy = Revision { prepared: 1, ..wide(0, 4) };
    let mut world = World::warm(busy, 2);
    assert_eq!(starts(&world.tick()), [3]);
    world.step(Event::Prepared(3));
    world.busy(1, 5);
    world.busy(2, 4);
    world.load();
    assert_eq!(world.load_for(IDLE + Duration::from_secs(1)), [Action::Withdraw { key: 2 }]);
    // Then what is prepared, then new ones.
    world.busy(1, 35);
    assert_eq!(
        world.load(),
        [
            Action::Admit { key: 2 },
            Action::Release { key: 3 },
            Action::Start { key: 4, revision: 1, hold: false }
        ]
    );
    assert_eq!(world.life.phase(3), Some(Phase::Starting { until: world.now + START_DEADLINE }));
}

#[test]
fn one_on_its_way_to_sleep_is_called_back_by_who_waits() {
    let mut world = World::warm(wide(0, 1), 1);
    world.load();
    assert_eq!(world.load_for(IDLE + Duration::from_secs(1))[0], Action::Withdraw { key: 1 });
    let mut world = World::warm(wide(0, 1), 1);
    world.load();
    world.now += IDLE / 2;
    world.load();
    world.now += IDLE / 2;
    assert_eq!(world.load(), [Action::Withdraw { key: 1 }]);
    assert_eq!(world.life.outlook(), Outlook::Warm);
    assert_eq!(world.step(Event::Waiting { revision: 1 }), [Action::Admit { key: 1 }]);
    // Whoever waits is there until a sample knows better.
    world.demand(1, 1, 1);
    assert_eq!(world.load_for(IDLE * 3), []);
}

#[test]
fn containers_are_prepared_while_nothing_else_goes_on() {
    let ready = Revision { prepared: 2, ..wide(0, 3) };
    let mut world = World::deployed(ready);
    assert_eq!(world.life.phase(2), Some(Phase::Preparing));
    assert_eq!(world.life.phase(3), Some(Phase::Preparing));
    assert_eq!(world.step(Event::Prepared(2)), []);
    // What comes while they are prepared takes them.
    world.busy(1, 25);
    assert_eq!(world.load(), [Action::Release { key: 2 }]);
    assert_eq!(world.step(Event::Prepared(3)), [Action::Release { key: 3 }]);
    assert_eq!(world.life.next_tick(), Some(START_DEADLINE));
    // Back to one: there is room for two again.
    world.exited(2);
    world.exited(3);
    world.busy(1, 1);
    world.load();
    let actions = world.pause();
    assert!(matches!(
        actions[..],
        [Action::Start { key: 4, hold: true, .. }, Action::Start { key: 5, hold: true, .. }]
    ));
    // One that fails costs those that serve nothing.
    assert_eq!(world.exited(4), []);
    assert_eq!(world.life.outlook(), Outlook::Warm);
    assert_eq!(starts(&world.pause()), [6]);
    assert_eq!(world.wait(START_DEADLINE), [Action::Kill { key: 5 }, Action::Kill { key: 6 }]);
    world.exited(5);
    assert!(world.life.reason().unwrap().contains("not created within"));
}

#[test]
fn a_machine_without_room_prepares_nothing() {
    let mut world = World::new();
    world.keys.may_prepare = false;
    world.life = Lifecycle::adopted(
        1,
        vec![Share { revision: Revision { prepared: 3, ..wide(0, 3) }, weight: 100 }],
        [],
        Time::ZERO,
    );
    assert_eq!(world.tick(), []);
    world.keys.may_prepare = true;
    assert_eq!(starts(&world.tick()), [1, 2, 3]);
    // A cold start is the release of one.
    world.step(Event::Prepared(2));
    assert_eq!(world.life.outlook(), Outlook::Cold);
    assert_eq!(world.step(Event::Waiting { revision: 1 }), [Action::Release { key: 2 }]);
}

#[test]
fn a_plan_takes_what_is_prepared_for_its_proof_and_prepares_nothing() {
    let (one, two) = (Revision { prepared: 1, ..wide(0, 1) }, Revision { prepared: 1, ..revision(2, 0) });
    let mut world = World::warm(one, 0);
    assert_eq!(starts(&world.tick()), [1]);
    world.step(Event::Prepared(1));
    let actions = world.step(Event::Plan(plan(2, &[(one, 50), (two, 50)])));
    assert_eq!(actions, [Action::Release { key: 1 }, Action::Start { key: 2, revision: 2, hold: false }]);
    world.exited(2);
    // As nobody needs the other, it goes in time.
    world.ready(1);
    world.busy(1, 0);
    assert_eq!(
        world.load_for(IDLE + Duration::from_secs(2)),
        [
            Action::Withdraw { key: 1 },
            Action::Drain { key: 1 },
            Action::Start { key: 3, revision: 1, hold: true }
        ]
    );
}

#[test]
fn more_than_may_wait_are_refused_until_half_are_gone() {
    let full = Revision { queue: 10, ..wide(1, 2) };
    let mut world = World::warm(full, 1);
    world.busy(1, 0);
    world.demand(1, 10, 10);
    assert_eq!(world.load(), []);
    world.demand(1, 11, 20);
    // Help is on its way, and it was the last there is.
    let shed = |on| Action::Shed { revision: 1, on };
    assert_eq!(world.load(), [Action::Start { key: 2, revision: 1, hold: false }, shed(true)]);
    assert_eq!(world.life.outlook(), Outlook::Overloaded);
    world.demand(1, 6, 20);
    assert_eq!(world.load(), []);
    world.demand(1, 5, 20);
    assert_eq!(world.load(), [shed(false)]);
    assert_eq!(world.life.outlook(), Outlook::Warm);
}

#[test]
fn a_revision_that_goes_refuses_nobody_any_more() {
    let mut world = World::warm(Revision { queue: 1, ..wide(1, 1) }, 1);
    world.demand(1, 2, 2);
    let shed = |on| Action::Shed { revision: 1, on };
    assert_eq!(world.load(), [shed(true)]);
    world.step(Event::Plan(plan(2, &[(revision(2, 1), 100)])));
    world.ready(2);
    let actions = world.step(Event::Committed { plan: 2 });
    assert_eq!(actions[2..], [Action::Drain { key: 1 }, Action::Refuse { revision: 1 }, shed(false)]);
}

#[test]
fn no_number_of_connections_needs_more_than_max() {
    let busy = wide(1, 4);
    assert_eq!([0, 1, 10, 11, 40, 41, u64::MAX].map(|n| busy.instances_for(n)), [0, 1, 1, 2, 4, 4, 4]);
}

#[test]
fn needs_are_as_many_as_there_are_numbers() {
    let mut needs = demand::Needs::default();
    for n in 0..10_000_u32 {
        let now = Duration::from_secs(n.into());
        needs.note(n.wrapping_mul(7919) % 5, now);
        let peak = needs.peak(Duration::from_secs(3), now);
        let back = |ago| n.wrapping_sub(ago).wrapping_mul(7919) % 5;
        // At each moment of the window the need of the sample before it.
        assert!(n < 4 || peak == (0..=3).map(back).max().unwrap(), "{n}");
        assert!(needs.len() <= 5);
    }
}
