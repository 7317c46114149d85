//! What functions connect to: to what they were granted, by every contract and language, and to nothing else.

mod attack;
mod inside;
mod outside;
mod python;

use faasd_tests::{run, shared};

fn main() {
    run(vec![
        shared("a_python_handler_calls_a_function", inside::python),
        shared("a_node_handler_calls_a_function", inside::node),
        shared("a_script_calls_a_function", inside::script),
        shared("a_program_in_go_calls_a_function", inside::go),
        shared("a_program_in_rust_calls_a_function", inside::rust),
        shared("the_example_calls_a_function", inside::example),
        shared("only_what_was_granted_is_reached_and_refusals_are_counted", inside::refused),
        shared("a_call_wakes_a_function", inside::cold),
        shared("a_function_may_call_itself", inside::itself),
        shared("options_are_carried_over", inside::options),
        shared("who_calls_while_no_daemon_is_there_is_answered_by_the_next", inside::daemon_killed),
        shared("an_address_outside_is_reached_and_no_other", outside::address),
        shared("a_name_outside_is_reached_and_does_not_lead_inside", outside::names),
        shared("a_call_that_a_killed_daemon_took_is_made_again", outside::daemon_killed),
        shared("a_call_that_nobody_answers_holds_nobody_up", outside::silent),
        shared("nothing_leads_out_without_a_grant", attack::nowhere),
        shared("a_socket_from_inside_leads_nowhere_else", attack::inside),
        shared("a_socket_from_outside_leads_nowhere_else", attack::outside),
        shared("each_lock_on_a_socket_from_outside_holds_alone", attack::locks),
        shared("memory_and_descriptors_that_change_gain_nothing", attack::races),
        shared("a_flood_of_calls_harms_its_function_alone", attack::flood),
    ])
}
