//! Functions that run in images of their own: brought in, run, kept over a daemon's death, collected; from files and
//! from a real registry.

mod make;
mod registry;
mod run;

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};

fn main() {
    let trial = |name: &str, test: fn() -> Result<()>| {
        Trial::test(name, move || test().map_err(|e| Failed::from(format!("{e:#}"))))
    };
    let trials = vec![
        trial("a_function_runs_in_its_image_and_sees_nothing_of_the_host", run::alone),
        trial("an_image_is_mounted_once_and_let_go_with_its_last_instance", run::mounts),
        trial("a_function_in_an_image_has_its_secrets", run::secrets),
        trial("a_name_that_moves_changes_no_function", run::moved),
        trial("code_lies_over_an_image", run::code),
        trial("a_handler_and_a_server_run_in_images_with_python", run::handler),
        trial("a_daemon_killed_during_an_import_leaves_no_half_image", run::killed),
        trial("hostile_images_are_refused_and_leave_nothing", run::hostile),
        trial("an_image_comes_from_a_registry", registry::anonymous),
        trial("a_registry_that_wants_a_password_gets_one", registry::password),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
