//! Deploys, rollbacks, weights, removal.

use super::*;

fn abandon(plan: u64, why: &str) -> Action {
    Action::Abandon { plan, why: why.to_owned() }
}

#[test]
fn a_first_deploy_that_fails_leaves_nothing() {
    let mut world = World::new();
    world.step(Event::Plan(plan(1, &[(revision(1, 1), 100)])));
    assert!(world.life.is_planning());
    assert_eq!(world.life.outlook(), Outlook::Starting);
    assert_eq!(world.exited(1), [abandon(1, "exit 1"), Action::Refuse { revision: 1 }, Action::Gone]);
    assert!(world.life.is_removed());
    assert_eq!(world.tick(), []);
}

#[test]
fn a_first_deploy_that_cannot_be_recorded_leaves_nothing() {
    let mut world = World::new();
    world.step(Event::Plan(plan(1, &[(revision(1, 1), 100)])));
    world.ready(1);
    let actions = world.step(Event::NotCommitted { plan: 1, why: "disk full".to_owned() });
    assert_eq!(actions, [abandon(1, "disk full"), Action::Refuse { revision: 1 }, Action::Kill { key: 1 }]);
    assert_eq!(world.exited(1), [Action::Gone]);
}

#[test]
fn a_deploy_that_is_never_ready_is_killed_and_says_so() {
    let mut world = World::new();
    world.step(Event::Plan(plan(1, &[(revision(1, 1), 100)])));
    assert_eq!(world.life.next_tick(), Some(START_DEADLINE));
    assert_eq!(world.wait(START_DEADLINE), [Action::Kill { key: 1 }]);
    // Too late.
    assert_eq!(world.ready(1), []);
    let actions = world.exited(1);
    let told = |why: &str| why.contains("deadlines.start") && why.contains("exit 1");
    assert!(matches!(&actions[0], Action::Abandon { why, .. } if told(why)), "{actions:?}");
}

#[test]
fn a_bad_revision_takes_no_traffic_from_a_good_one() {
    let mut world = World::deployed(revision(1, 1));
    let actions = world.step(Event::Plan(plan(2, &[(revision(2, 1), 100)])));
    assert_eq!(actions, [Action::Start { key: 2, revision: 2, hold: false }]);
    assert_eq!(world.exited(2), [abandon(2, "exit 1")]);
    assert_eq!(world.life.outlook(), Outlook::Warm);
    assert_eq!(world.life.reason(), None);
    assert_eq!(world.life.shares()[0].revision.number, 1);
    assert!(world.life.takes_connections(1));
}

#[test]
fn a_good_revision_replaces_the_old_one_once_it_is_recorded() {
    let mut world = World::deployed(revision(1, 1));
    world.step(Event::Plan(plan(2, &[(revision(2, 2), 100)])));
    assert_eq!(world.ready(2), [Action::Commit { plan: 2 }]);
    assert!(!world.life.takes_connections(2) && world.life.takes_connections(1));
    // Another plan's answer is none.
    assert_eq!(world.step(Event::Committed { plan: 1 }), []);
    assert_eq!(
        world.step(Event::Committed { plan: 2 }),
        [
            Action::Apply { plan: 2 },
            Action::Admit { key: 2 },
            Action::Start { key: 3, revision: 2, hold: false },
            Action::Drain { key: 1 },
        ]
    );
    assert!(world.life.takes_connections(2) && !world.life.takes_connections(1));
    assert_eq!(world.life.next_tick(), Some(DRAIN_DEADLINE));
    assert_eq!(world.wait(DRAIN_DEADLINE), [Action::Kill { key: 1 }]);
    assert_eq!(world.exited(1), []);
}

#[test]
fn a_plan_that_cannot_be_recorded_changes_nothing() {
    let mut world = World::deployed(revision(1, 1));
    world.step(Event::Plan(plan(2, &[(revision(2, 1), 100)])));
    world.ready(2);
    let actions = world.step(Event::NotCommitted { plan: 2, why: "disk full".to_owned() });
    assert_eq!(actions, [abandon(2, "disk full"), Action::Kill { key: 2 }]);
    assert_eq!(world.exited(2), []);
    assert_eq!(world.life.outlook(), Outlook::Warm);
    assert!(!world.life.is_planning());
}

#[test]
fn a_revision_proves_itself_also_where_none_is_kept() {
    let mut world = World::deployed(revision(1, 0));
    assert_eq!(starts(&world.step(Event::Plan(plan(2, &[(revision(2, 0), 100)])))), [2]);
}

#[test]
fn a_plan_whose_revisions_are_ready_is_recorded_at_once() {
    let (one, two) = (revision(1, 1), revision(2, 1));
    let mut world = World::deployed(one);
    world.step(Event::Plan(plan(2, &[(one, 90), (two, 10)])));
    world.ready(2);
    world.step(Event::Committed { plan: 2 });
    // Other weights.
    let actions = world.step(Event::Plan(plan(3, &[(one, 50), (two, 50)])));
    assert_eq!(actions, [Action::Commit { plan: 3 }]);
    assert_eq!(world.step(Event::Committed { plan: 3 }), [Action::Apply { plan: 3 }]);
    assert_eq!(world.life.shares()[1].weight, 50);
    // One of the two alone.
    assert_eq!(world.step(Event::Plan(plan(4, &[(two, 100)]))), [Action::Commit { plan: 4 }]);
    assert_eq!(
        world.step(Event::Committed { plan: 4 }),
        [Action::Apply { plan: 4 }, Action::Drain { key: 1 }]
    );
}

#[test]
fn one_that_is_reached_by_its_name_alone_has_nothing_to_prove_and_wakes() {
    let (one, two) = (revision(1, 1), Revision { prepared: 1, ..revision(2, 1) });
    let mut world = World::deployed(one);
    let named = Event::Plan(plan(2, &[(one, 100), (two, 0)]));
    assert_eq!(world.step(named), [Action::Commit { plan: 2 }]);
    assert_eq!(world.step(Event::Committed { plan: 2 }), [Action::Apply { plan: 2 }]);
    assert_eq!(world.life.outlook(), Outlook::Warm);
    assert_eq!(starts(&world.step(Event::Waiting { revision: 2 })), [2]);
    assert_eq!(world.ready(2), [Action::Admit { key: 2 }]);
    // What is wrong with it is not what a caller of the function meets.
    world.exited(2);
    assert_eq!(world.life.outlook(), Outlook::Warm);
}

#[test]
fn one_that_loses_its_weight_lets_go_of_whoever_came_for_the_function() {
    let (one, two) = (revision(1, 1), revision(2, 1));
    let mut world = World::deployed(one);
    world.step(Event::Plan(plan(2, &[(two, 100), (one, 0)])));
    assert_eq!(world.ready(2), [Action::Commit { plan: 2 }]);
    assert_eq!(
        world.step(Event::Committed { plan: 2 }),
        [Action::Apply { plan: 2 }, Action::Drain { key: 1 }, Action::Admit { key: 2 }]
    );
    // Nothing is kept for its name, and it is started for who dials that.
    assert_eq!(world.exited(1), []);
    assert_eq!(starts(&world.step(Event::Waiting { revision: 1 })), [3]);
}

#[test]
fn a_revision_without_a_share_proves_itself_and_goes() {
    let mut world = World::deployed(revision(1, 1));
    let proven = Plan { prove: Some(revision(2, 3)), ..plan(2, &[(revision(1, 1), 100)]) };
    assert_eq!(starts(&world.step(Event::Plan(proven.clone()))), [2]);
    assert_eq!(world.ready(2), [Action::Commit { plan: 2 }]);
    assert_eq!(
        world.step(Event::Committed { plan: 2 }),
        [Action::Apply { plan: 2 }, Action::Drain { key: 2 }]
    );
    // With a share as well it is no different from the others.
    let both = Plan { id: 3, prove: Some(revision(1, 1)), ..proven };
    assert_eq!(world.step(Event::Plan(both)), [Action::Commit { plan: 3 }]);
}

#[test]
fn a_newer_plan_overtakes_one_that_still_proves_itself() {
    let (two, three) = (revision(2, 1), revision(3, 1));
    let mut world = World::deployed(revision(1, 1));
    world.step(Event::Plan(plan(2, &[(two, 50), (three, 50)])));
    let actions = world.step(Event::Plan(plan(3, &[(three, 100)])));
    // What the newer one needs too is kept.
    assert_eq!(
        actions,
        [abandon(2, "another change of the function overtook this one"), Action::Kill { key: 2 }]
    );
    assert_eq!(world.exited(2), []);
    assert_eq!(world.ready(3), [Action::Commit { plan: 3 }]);
    let actions = world.step(Event::Plan(plan(4, &[(two, 100)])));
    assert_eq!(actions, [abandon(4, "another change is being recorded; try again")]);
    assert_eq!(world.step(Event::Committed { plan: 3 })[0], Action::Apply { plan: 3 });
}

#[test]
fn a_revision_that_takes_over_a_load_is_ready_for_it_first() {
    let old = Revision { max: 4, ..revision(1, 0) };
    let mut world = World::warm(old, 4);
    for key in 1..=4 {
        world.busy(key, 7);
    }
    world.load();
    // 28 connections, of which it gets half, at 10 each.
    let new = Revision { max: 4, ..revision(2, 0) };
    let actions = world.step(Event::Plan(plan(2, &[(old, 50), (new, 50)])));
    assert_eq!(starts(&actions), [5, 6]);
    assert_eq!(world.ready(5), []);
    assert_eq!(world.ready(6), [Action::Commit { plan: 2 }]);
    let actions = world.step(Event::Committed { plan: 2 });
    assert_eq!(actions, [Action::Apply { plan: 2 }, Action::Admit { key: 5 }, Action::Admit { key: 6 }]);
}

#[test]
fn a_takeover_asks_for_no_more_than_serve_now() {
    let mut world = World::warm(revision(1, 1), 1);
    world.busy(1, 35);
    world.load();
    let actions = world.step(Event::Plan(plan(2, &[(revision(2, 3), 100)])));
    assert_eq!(starts(&actions), [2]);
    world.ready(2);
    assert_eq!(starts(&world.step(Event::Committed { plan: 2 })), [3, 4]);
}

#[test]
fn one_is_enough_when_another_fails_or_time_is_up() {
    let old = Revision { max: 2, ..revision(1, 2) };
    let new = Revision { max: 2, ..revision(2, 2) };
    let mut world = World::warm(old, 2);
    assert_eq!(starts(&world.step(Event::Plan(plan(2, &[(new, 100)])))), [3, 4]);
    assert_eq!(world.ready(3), []);
    assert_eq!(world.exited(4), [Action::Commit { plan: 2 }]);

    let mut world = World::warm(old, 2);
    world.step(Event::Plan(plan(2, &[(new, 100)])));
    world.ready(3);
    assert_eq!(world.life.next_tick(), Some(START_DEADLINE));
    assert_eq!(world.wait(START_DEADLINE), [Action::Kill { key: 4 }, Action::Commit { plan: 2 }]);
    // One that fails before any was ready is the end of it.
    let mut world = World::warm(old, 2);
    world.step(Event::Plan(plan(2, &[(new, 100)])));
    assert_eq!(world.exited(4), [abandon(2, "exit 1"), Action::Kill { key: 3 }]);
}

#[test]
fn a_proof_that_dies_while_it_is_recorded_is_replaced() {
    let mut world = World::deployed(revision(1, 1));
    world.step(Event::Plan(plan(2, &[(revision(2, 1), 100)])));
    world.ready(2);
    assert_eq!(world.exited(2), []);
    world.now = world.life.next_tick().unwrap();
    assert_eq!(starts(&world.tick()), [3]);
    let actions = world.step(Event::Committed { plan: 2 });
    assert_eq!(actions, [Action::Apply { plan: 2 }, Action::Drain { key: 1 }]);
    assert_eq!(world.ready(3), [Action::Admit { key: 3 }]);
}

#[test]
fn the_death_of_one_that_served_before_is_no_failure_of_a_plan() {
    let (one, two) = (revision(1, 1), revision(2, 1));
    let mut world = World::deployed(one);
    world.step(Event::Plan(plan(2, &[(one, 50), (two, 50)])));
    assert_eq!(world.exited(1), []);
    assert_eq!(world.ready(2), []);
    assert_eq!(starts(&world.pause()), [3]);
    assert_eq!(world.ready(3), [Action::Admit { key: 3 }, Action::Commit { plan: 2 }]);
}

#[test]
fn a_plan_gives_a_failing_revision_another_chance() {
    let one = revision(1, 1);
    let mut world = World::deployed(one);
    world.exited(1);
    assert_eq!(world.life.failures(), 1);
    assert_eq!(starts(&world.step(Event::Plan(plan(2, &[(one, 100)])))), [2]);
    assert_eq!(world.life.failures(), 0);
}

#[test]
fn whoever_waits_for_a_revision_that_is_gone_is_refused() {
    let cold = revision(1, 0);
    let mut world = World::warm(cold, 0);
    assert_eq!(starts(&world.step(Event::Waiting { revision: 1 })), [1]);
    world.step(Event::Plan(plan(2, &[(revision(2, 1), 100)])));
    world.ready(2);
    let actions = world.step(Event::Committed { plan: 2 });
    assert_eq!(actions[2..], [Action::Kill { key: 1 }, Action::Refuse { revision: 1 }]);
    let late = world.step(Event::Waiting { revision: 1 });
    assert_eq!(late, [Action::Refuse { revision: 1 }]);
}

#[test]
fn removal_ends_everything() {
    let mut world = World::deployed(revision(1, 1));
    world.step(Event::Plan(plan(2, &[(revision(2, 1), 100)])));
    assert_eq!(
        world.step(Event::Remove),
        [
            abandon(2, "the function was removed while it was changed"),
            Action::Refuse { revision: 1 },
            Action::Kill { key: 1 },
            Action::Kill { key: 2 },
        ]
    );
    assert_eq!(world.step(Event::Remove), []);
    let why = "the function is being removed";
    assert_eq!(world.step(Event::Plan(plan(3, &[(revision(3, 1), 100)]))), [abandon(3, why)]);
    assert_eq!(world.step(Event::Committed { plan: 2 }), []);
    assert_eq!(world.ready(2), []);
    assert_eq!(world.exited(1), []);
    assert_eq!(world.exited(2), [Action::Gone]);
    assert_eq!(world.exited(2), []);
}

#[test]
fn what_an_earlier_daemon_left_serves_on() {
    let mut world = World::new();
    let shares = vec![Share { revision: revision(2, 2), weight: 100 }];
    // The one that has no share finishes by its own deadline; the last was asked to before, though its revision serves.
    let slow = Revision { drain_deadline: 3 * DRAIN_DEADLINE, ..revision(1, 1) };
    let running = [(10, revision(2, 2), false), (11, slow, false), (12, revision(2, 2), true)];
    let running = running.map(|(key, revision, draining)| Running { key, revision, draining });
    world.life = Lifecycle::adopted(1, shares, running, world.now);
    world.keys.last = 20;
    assert_eq!([10, 11, 12].map(|key| world.life.takes_connections(key)), [true, false, false]);
    let actions = world.tick();
    assert_eq!(actions, [Action::Start { key: 21, revision: 2, hold: false }, Action::Drain { key: 11 }]);
    assert_eq!(world.life.phase(11), Some(Phase::Draining { until: 3 * DRAIN_DEADLINE }));
    assert_eq!(world.life.phase(12), Some(Phase::Draining { until: DRAIN_DEADLINE }));
}
