//! Unmodified servers, each asked by its own real client, and what may happen to them without a client's noticing.

mod lane;
mod real;

use faasd_tests::{run, shared};

fn main() {
    run(vec![
        shared("a_server_answers_from_its_own_listener", lane::answers),
        shared("a_server_that_inherits_its_listener_answers", lane::inherits),
        shared("a_cold_server_is_woken_and_serves_what_waited", lane::cold),
        shared("a_killed_daemon_costs_no_connection_to_a_server", lane::daemon_killed),
        shared("the_least_busy_server_is_given_the_next_connection", lane::least_busy),
        shared("what_waits_at_a_dead_server_another_answers", lane::moved),
        shared("a_new_revision_of_a_server_takes_over_under_load", lane::rolling),
        shared("a_function_changes_its_contract_under_load", lane::contracts),
        shared("each_worker_may_bind_for_itself", lane::workers),
        shared("what_else_a_server_binds_is_its_own", lane::elsewhere),
        shared("a_server_that_binds_ipv4_alone_is_relayed", lane::ipv4),
        shared("a_server_that_never_listens_is_refused", lane::never),
        shared("nginx_from_zero", real::nginx),
        shared("nginx_finishes_what_it_is_serving", real::nginx_drains),
        shared("redis_from_zero", real::redis),
        shared("postgresql_from_zero", real::postgresql),
        shared("go_from_zero", real::go),
        shared("express_from_zero", real::express),
        shared("fastapi_from_zero", real::fastapi),
        shared("gunicorn_from_zero", real::gunicorn),
        shared("java_from_zero", real::java),
        shared("grpc_from_zero", real::grpc),
        shared("websocket_from_zero", real::websocket),
        shared("memcached_from_zero", real::memcached),
        shared("haproxy_from_zero", real::haproxy),
        shared("lighttpd_from_zero", real::lighttpd),
    ])
}
