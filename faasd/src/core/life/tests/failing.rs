//! Failures: pauses, refusals, what callers are told.

use super::*;

#[test]
fn a_crash_is_mended_after_a_pause_that_grows() {
    let mut world = World::deployed(revision(1, 1));
    let mut pauses = Vec::new();
    for key in 1..=12 {
        assert_eq!(world.exited(key), []);
        assert_eq!(world.life.outlook(), Outlook::Failing);
        assert_eq!(world.life.reason(), Some("exit 1"));
        assert_eq!(world.life.failures(), key);
        let at = world.life.next_tick().unwrap();
        assert_eq!(world.life.retry_at(), Some(at));
        pauses.push(at - world.now);
        world.now = at - Duration::from_nanos(1);
        assert_eq!(world.tick(), []);
        assert_eq!(starts(&world.wait(Duration::from_nanos(1))), [key + 1]);
    }
    let mut middle = BACKOFF_FIRST;
    for pause in &pauses {
        assert!(*pause >= middle.mul_f64(0.75) && *pause <= middle.mul_f64(1.25), "{pauses:?}");
        middle = (middle * 2).min(BACKOFF_MAX);
    }
    // By the seed, and different for each.
    let again = |seed| {
        let mut world = World::deployed(revision(1, 1));
        world.life.jitter = Jitter(seed);
        world.exited(1);
        world.life.retry_at()
    };
    assert_eq!(again(7), again(7));
    assert_ne!(again(7), again(8));
}

#[test]
fn readiness_alone_forgives_nothing() {
    let mut world = World::deployed(revision(1, 1));
    for key in 1..=5 {
        world.exited(key);
        world.pause();
        world.ready(key + 1);
        assert_eq!(world.life.reason(), None);
        assert_eq!(world.life.failures(), key);
    }
    // Some time of it does.
    assert_eq!(world.life.next_tick(), Some(world.now + STABLE_AFTER));
    world.wait(STABLE_AFTER);
    assert_eq!(world.life.failures(), 0);
    assert_eq!(world.life.next_tick(), None);
    world.exited(6);
    assert_eq!(world.life.failures(), 1);
}

#[test]
fn an_instance_beside_those_that_fail_forgives_them_nothing() {
    let busy = Revision { max: 2, concurrency: 1, ..revision(1, 1) };
    let mut world = World::warm(busy, 1);
    world.busy(1, 2);
    assert_eq!(starts(&world.load()), [2]);
    for failures in 1..=4 {
        world.ready(1 + failures);
        world.exited(1 + failures);
        world.pause();
        world.wait(STABLE_AFTER / 2);
        assert_eq!(world.life.failures(), failures);
    }
    assert_eq!(world.life.outlook(), Outlook::Warm);
}

#[test]
fn what_fails_together_has_failed_once() {
    let mut world = World::warm(revision(1, 4), 4);
    for key in 1..=4 {
        assert_eq!(world.exited(key), []);
    }
    assert_eq!(world.life.failures(), 1);
    assert_eq!(starts(&world.pause()), [5, 6, 7, 8]);
    for key in 5..=8 {
        world.exited(key);
    }
    assert_eq!(world.life.failures(), 2);
    assert_eq!(starts(&world.pause()).len(), 4);
    world.exited(9);
    assert_eq!(world.life.failures(), FAILURES_BEFORE_REFUSAL);
    for key in 10..=12 {
        world.exited(key);
    }
    // A loop: one at a time from here, until one is ready.
    assert_eq!(starts(&world.pause()), [13]);
    assert_eq!(starts(&world.ready(13)), [14, 15, 16]);
}

#[test]
fn the_first_connection_wakes_a_cold_function_and_is_refused_in_the_end() {
    let mut world = World::deployed(revision(1, 0));
    world.exited(1);
    world.pause();
    // Nobody waits, and nobody would be met by a failure: only the reason is left.
    assert_eq!(world.life.outlook(), Outlook::Cold);
    assert_eq!(world.life.reason(), Some("exit 1"));
    let mut refused = 0;
    assert_eq!(starts(&world.step(Event::Waiting { revision: 1 })), [2]);
    assert_eq!(world.life.outlook(), Outlook::Starting);
    while !world.exited(world.keys.last).contains(&Action::Refuse { revision: 1 }) {
        refused += 1;
        assert_eq!(starts(&world.pause()).len(), 1);
        assert!(refused < FAILURES_BEFORE_REFUSAL);
    }
    assert_eq!(world.life.failures(), FAILURES_BEFORE_REFUSAL);
    assert_eq!(world.life.outlook(), Outlook::Failing);
    // Who comes during the pause waits for its end.
    let last = world.keys.last;
    assert_eq!(world.step(Event::Waiting { revision: 1 }), []);
    assert_eq!(starts(&world.pause()), [last + 1]);
    assert_eq!(world.exited(last + 1), [Action::Refuse { revision: 1 }]);
    world.wait(Duration::from_secs(3600));
    assert_eq!(world.life.outlook(), Outlook::Cold);
    assert_eq!(world.life.next_tick(), None);
}

#[test]
fn one_that_is_too_slow_is_killed_and_not_started_again_before_the_pause() {
    let mut world = World::warm(revision(1, 0), 0);
    world.step(Event::Waiting { revision: 1 });
    assert_eq!(world.wait(START_DEADLINE), [Action::Kill { key: 1 }]);
    assert_eq!(world.tick(), []);
    assert_eq!(world.exited(1), []);
    assert!(world.life.reason().unwrap().contains("deadlines.start"));
    assert_eq!(starts(&world.pause()), [2]);
}

#[test]
fn an_end_that_was_asked_for_is_no_failure() {
    let mut world = World::deployed(revision(1, 1));
    world.step(Event::Plan(plan(2, &[(revision(2, 1), 100)])));
    world.ready(2);
    world.step(Event::Committed { plan: 2 });
    assert_eq!(world.exited(1), []);
    assert_eq!((world.life.failures(), world.life.reason()), (0, None));
}

#[test]
fn an_instance_that_dies_as_it_is_admitted_leaves_who_waits_to_the_next() {
    let mut world = World::warm(revision(1, 0), 0);
    world.step(Event::Waiting { revision: 1 });
    assert_eq!(world.ready(1), [Action::Admit { key: 1 }]);
    world.exited(1);
    assert_eq!(starts(&world.pause()), [2]);
    world.ready(2);
    world.busy(2, 1);
    world.load();
    world.exited(2);
    assert_eq!(world.pause(), []);
}

#[test]
fn each_revision_fails_for_itself() {
    let (one, two) = (revision(1, 1), revision(2, 1));
    let mut world = World::deployed(one);
    world.step(Event::Plan(plan(2, &[(one, 50), (two, 50)])));
    world.ready(2);
    world.step(Event::Committed { plan: 2 });
    for _ in 0..3 {
        world.exited(world.keys.last);
        assert_eq!(starts(&world.pause()).len(), 1);
    }
    world.exited(world.keys.last);
    assert_eq!(world.life.outlook(), Outlook::Failing);
    assert_eq!(world.exited(1), []);
    assert!(world.life.retry_at().unwrap() - world.now <= BACKOFF_FIRST.mul_f64(1.25));
}
