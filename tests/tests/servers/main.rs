//! Unmodified servers, each asked by its own real client, and what may happen to them without a client's noticing.

mod lane;

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};

fn main() {
    let test = |name: &str, test: fn() -> Result<()>| {
        Trial::test(name, move || test().map_err(|e| Failed::from(format!("{e:#}"))))
    };
    let trials = vec![
        test("a_server_answers_from_its_own_listener", lane::answers),
        test("a_server_that_inherits_its_listener_answers", lane::inherits),
        test("a_cold_server_is_woken_and_serves_what_waited", lane::cold),
        test("a_killed_daemon_costs_no_connection_to_a_server", lane::daemon_killed),
        test("what_waits_at_a_dead_server_another_answers", lane::moved),
        test("a_new_revision_of_a_server_takes_over_under_load", lane::rolling),
        test("a_function_changes_its_contract_under_load", lane::contracts),
        test("each_worker_may_bind_for_itself", lane::workers),
        test("what_else_a_server_binds_is_its_own", lane::elsewhere),
        test("a_server_that_binds_ipv4_alone_is_relayed", lane::ipv4),
        test("a_server_that_never_listens_is_refused", lane::never),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
