//! What goes wrong: each mistake and each want is answered by an error that names the cause and the remedy and by an
//! exit code, and leaves nothing behind.

mod check;
mod deploy;
mod disk;
mod kill;
mod limits;
mod start;

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};

fn main() {
    let trial = |name: &str, test: fn() -> Result<()>| {
        Trial::test(name, move || test().map_err(|e| Failed::from(format!("{e:#}"))))
    };
    let trials = vec![
        trial("a_bad_declaration_is_refused", deploy::bad_declarations),
        trial("a_handler_that_cannot_be_served_is_refused", deploy::bad_handlers),
        trial("a_program_that_does_not_become_ready_fails_its_deploy", deploy::bad_programs),
        trial("a_failed_update_leaves_the_old_revision_serving", deploy::bad_update),
        trial("an_instance_that_breaks_the_protocol_is_ended", deploy::malformed_messages),
        trial("an_instance_that_floods_the_daemon_hurts_itself_alone", deploy::flood),
        trial("without_runc_or_rights_the_daemon_says_so", start::wants),
        trial("settings_and_keys_are_checked", start::settings),
        trial("a_port_that_is_taken_is_named", start::ports),
        trial("a_second_daemon_is_refused_and_disturbs_nobody", start::second_daemon),
        trial("two_daemons_started_at_once_leave_one", start::race_of_two),
        trial("maps_of_another_layout_are_refused", start::layout),
        trial("a_full_disk_fails_the_deploy_and_nothing_else", disk::full),
        trial("a_disk_that_is_full_at_start_is_named", disk::full_at_start),
        trial("deploys_and_removals_at_once_leave_one_state", kill::at_once),
        trial("a_daemon_that_stops_during_a_deploy_answers_it", kill::terminated),
        trial("a_daemon_that_is_killed_during_a_deploy_leaves_old_or_new", kill::killed),
        trial("an_archive_past_the_limit_is_refused", limits::archive),
        trial("three_hundred_connections_to_the_api_are_all_answered", limits::connections),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
