//! The path of a connection, from the client's name lookup to the function's answer.

use anyhow::{Result, ensure};
use faasd_tests::Bed;
use libtest_mimic::{Arguments, Failed, Trial};

fn main() {
    let trial = |name: &str, test: fn() -> Result<()>| {
        Trial::test(name, move || test().map_err(|e| Failed::from(format!("{e:#}"))))
    };
    let trials = vec![trial("a_handler_answers_by_name_through_the_tunnel", a_handler_answers)];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn a_handler_answers() -> Result<()> {
    let bed = Bed::joined()?;
    let handler = b"def handle(event, context):\n    return 'hello through the tunnel'\n";
    bed.deploy("hello", &[("handler.py", handler)])?.ok()?;
    ensure!(bed.client().curl("http://hello.faas/")? == "hello through the tunnel");
    let connections = &bed.describe("hello")?["connections"];
    for lane in ["steered", "accepted", "handed_off"] {
        ensure!(connections[lane] == 1, "{connections}");
    }
    bed.finish()
}
