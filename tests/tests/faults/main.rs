//! What goes wrong: each mistake and each want is answered by an error that names the cause and the remedy and by an
//! exit code, and leaves nothing behind.

mod check;
mod deploy;
mod disk;
mod files;
mod kill;
mod limits;
mod start;

use faasd_tests::{run, shared};

fn main() {
    run(vec![
        shared("a_bad_declaration_is_refused", deploy::bad_declarations),
        shared("a_handler_that_cannot_be_served_is_refused", deploy::bad_handlers),
        shared("a_program_that_does_not_become_ready_fails_its_deploy", deploy::bad_programs),
        shared("a_failed_update_leaves_the_old_revision_serving", deploy::bad_update),
        shared("an_instance_that_breaks_the_protocol_is_ended", deploy::malformed_messages),
        shared("an_instance_that_floods_the_daemon_hurts_itself_alone", deploy::flood),
        shared("without_runc_or_rights_the_daemon_says_so", start::wants),
        shared("settings_and_keys_are_checked", start::settings),
        shared("a_port_that_is_taken_is_named", start::ports),
        shared("a_second_daemon_is_refused_and_disturbs_nobody", start::second_daemon),
        shared("two_daemons_started_at_once_leave_one", start::race_of_two),
        shared("maps_of_another_layout_are_refused", start::layout),
        shared("a_full_disk_fails_the_deploy_and_nothing_else", disk::full),
        shared("a_disk_that_is_full_at_start_is_named", disk::full_at_start),
        shared("functions_leave_files_to_connections_and_instances", files::full),
        shared("deploys_and_removals_at_once_leave_one_state", kill::at_once),
        shared("a_daemon_that_stops_during_a_deploy_answers_it", kill::terminated),
        shared("a_daemon_that_is_killed_during_a_deploy_leaves_old_or_new", kill::killed),
        shared("an_archive_past_the_limit_is_refused", limits::archive),
        shared("three_hundred_connections_to_the_api_are_all_answered", limits::connections),
    ])
}
