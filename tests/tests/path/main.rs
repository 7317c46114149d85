//! The path of a connection, from the client's name lookup to the function's answer, and what may die on the way
//! without a client's noticing.

mod answers;
mod apply;
mod bench;
mod caller;
mod crashes;
mod dns;
mod forward;
mod handoff;
mod joining;
mod languages;
mod life;
mod manager;
mod metrics;
mod observed;
mod secrets;
mod volume;

use std::net::TcpStream;

use anyhow::{Result, ensure};
use faasd_tests::{address, alone, only, ready, run, shared, until};

fn main() {
    run(vec![
        shared("two_commands_let_a_machine_in", joining::two_commands),
        shared("both_kinds_of_function_answer_by_name_through_the_tunnel", answers::both_kinds),
        shared("python_handlers_answer", languages::python),
        shared("a_program_takes_connections_or_a_listener", languages::contracts),
        shared("two_commands_make_a_function_of_each_language_answer", languages::templates),
        shared("scripts_answer", languages::script),
        shared("node_handlers_answer", languages::node),
        shared("a_node_handler_accepts_by_itself", languages::node_lane),
        shared("applications_of_node_run_unmodified", languages::node_applications),
        shared("applications_of_python_run_unmodified", languages::python_applications),
        shared("what_cannot_be_installed_is_told", languages::bad_dependencies),
        shared("what_is_not_there_is_refused_at_once", answers::refusals),
        shared("names_come_and_go_with_their_functions", answers::names),
        shared("names_and_addresses_are_answered_as_dig_asks", dns::every_kind),
        shared("other_names_are_asked_elsewhere_and_cannot_point_inside", dns::elsewhere),
        shared("a_secondary_is_told_and_copies_the_zones", dns::secondary),
        shared("after_the_hand_off_only_the_container_holds_the_connection", handoff::descriptors),
        shared("connections_are_spread_by_what_is_in_flight", handoff::spread),
        shared("a_function_passes_connections_on", forward::passed_on),
        shared("every_function_is_told_who_called", caller::told_by_name),
        shared("nobody_lies_about_who_called", caller::passed_on),
        shared("a_function_with_a_limit_is_given_no_more", forward::limited),
        shared("what_a_dead_instance_had_not_received_another_answers", handoff::requeue),
        shared("the_service_manager_is_told", manager::told),
        shared("a_killed_daemon_costs_no_connection", crashes::daemon_killed),
        shared("a_daemon_killed_during_a_deploy_leaves_one_revision", crashes::killed_during_deploy),
        shared("a_stopped_daemon_costs_no_connection", crashes::daemon_stopped),
        shared("a_killed_tunnel_comes_up_again", crashes::tunnel_killed),
        shared("a_killed_descriptor_store_is_replaced", crashes::store_killed),
        shared("the_first_connections_wake_a_cold_function", life::cold),
        shared("a_crashed_instance_is_replaced", life::mended),
        shared("a_new_revision_takes_over_and_the_old_one_finishes", life::redeploy),
        shared("a_bad_revision_changes_nothing", life::bad_revision),
        shared("a_removed_function_takes_only_its_own_connections_along", life::removal),
        shared("metrics_are_what_a_client_did", metrics::counted),
        shared("a_log_is_followed_across_instances", observed::logs),
        shared("a_crash_and_its_cause_are_among_the_events", observed::crashes),
        shared("events_outlive_the_daemon", observed::events),
        shared("a_secret_is_read_by_its_function_alone", secrets::read),
        shared("a_secret_that_is_gone_is_told", secrets::removed),
        shared("bench_measures_functions_through_the_tunnel_and_on_the_server", bench::measured),
        shared("bench_waits_until_a_function_sleeps", bench::cold),
        shared("what_is_applied_twice_changes_once", apply::twice),
        shared("of_many_who_edit_a_function_one_succeeds", apply::concurrent_edits),
        alone("connections_leave_nothing_in_the_daemon", volume::nothing_grows),
    ])
}

/// Whether a connection has come to its end, by FIN or RST.
fn has_ended(stream: &TcpStream) -> bool {
    matches!(stream.peek(&mut [0]), Ok(0) | Err(_))
}

/// A request that is answered with 200.
fn ask(stream: &mut TcpStream, path: &str) -> Result<Vec<u8>> {
    let (status, body) = faasd_tests::get(stream, path)?;
    ensure!(status == 200, "status {status}: {}", String::from_utf8_lossy(&body));
    Ok(body)
}
