//! Unmodified servers, each asked by its own real client, and what may happen to them without a client's noticing.

mod lane;

use std::sync::{PoisonError, RwLock};

use anyhow::{Result, ensure};
use faasd_tests::{Bed, eventually};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

fn main() {
    let test = |name: &str, test: fn() -> Result<()>| {
        Trial::test(name, move || test().map_err(|e| Failed::from(format!("{e:#}"))))
    };
    let trials = vec![
        test("a_server_answers_from_its_own_listener", lane::answers),
        test("a_cold_server_is_woken_and_serves_what_waited", lane::cold),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
