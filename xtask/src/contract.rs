//! `cargo xtask contract`: what is written down of the code's interfaces, written anew from the code.

use anyhow::Result;

use crate::{repo, run};

/// The test that compares these documents is what writes them, so that both go by the same text.
pub fn main() -> Result<()> {
    let mut cargo = repo::cargo();
    cargo.args(["test", "--quiet", "--package", "faasd", "--test", "contract", "--locked"]);
    run::run(cargo.env("RENEW", "1"))
}
