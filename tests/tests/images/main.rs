//! Functions that run in images of their own: brought in, run, kept over a daemon's death, collected; from files and
//! from a real registry.

mod make;
mod registry;
mod run;

use faasd_tests::{run, shared};

fn main() {
    run(vec![
        shared("a_function_runs_in_its_image_and_sees_nothing_of_the_host", run::alone),
        shared("an_image_is_mounted_once_and_let_go_with_its_last_instance", run::mounts),
        shared("a_function_in_an_image_has_its_secrets", run::secrets),
        shared("a_name_that_moves_changes_no_function", run::moved),
        shared("code_lies_over_an_image", run::code),
        shared("a_handler_and_a_server_run_in_images_with_python", run::handler),
        shared("a_daemon_killed_during_an_import_leaves_no_half_image", run::killed),
        shared("hostile_images_are_refused_and_leave_nothing", run::hostile),
        shared("an_image_comes_from_a_registry", registry::anonymous),
        shared("a_registry_that_wants_a_password_gets_one", registry::password),
    ])
}
