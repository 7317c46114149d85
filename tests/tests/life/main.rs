//! The life of functions under load: changed, split, rolled back, scaled, overloaded, and all of it while the daemon is
//! killed at random moments.

mod chaos;
mod code;
mod restart;
mod scale;
mod traffic;

use faasd_tests::{alone, run, shared};

fn main() {
    run(vec![
        shared("connections_are_given_by_weight", traffic::split),
        shared("a_revision_without_traffic_only_shows_that_it_can", traffic::canary),
        shared("a_revision_with_a_name_is_reached_by_it", traffic::by_name),
        shared("a_rollback_goes_back_and_forth", traffic::rollback),
        shared("what_names_no_revision_is_refused", traffic::refusals),
        shared("only_some_revisions_are_kept", traffic::kept),
        shared("instances_come_and_go_with_the_load", scale::handlers),
        shared("servers_come_and_go_with_the_load", scale::servers),
        shared("an_open_connection_keeps_its_instance", scale::kept_alive),
        shared("a_prepared_container_takes_the_first_connection", scale::prepared),
        shared("a_crash_loop_backs_off_and_says_so", scale::crash_loop),
        shared("too_many_connections_are_refused_at_once", scale::overload),
        shared("a_new_revision_relieves_an_overloaded_function", scale::relieved_by_a_deploy),
        shared("what_was_draining_goes_on_draining", restart::while_draining),
        shared("a_seat_of_the_dead_leads_to_nobody", restart::dead_seat),
        alone("a_deploy_a_rollback_and_a_scale_in_cost_no_request", traffic::under_load),
        alone("kills_at_random_moments_cost_nothing", chaos::kills),
    ])
}
