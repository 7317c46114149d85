//! What is written down of the API and of the function file is what the code does.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

/// Compares a checked-in document with what the code makes, or with RENEW=1 writes it anew.
fn compare(file: &str, made: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(file);
    if std::env::var_os("RENEW").is_some() {
        std::fs::write(&path, made).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = found.lines().zip(made.lines()).position(|(found, made)| found != made);
    assert!(
        found == made,
        "docs/{file} is not what the code says, from line {} on; `cargo xtask contract` renews it",
        differs.unwrap_or(found.lines().count().min(made.lines().count())) + 1
    );
}

#[test]
fn the_document_is_that_of_the_code() {
    compare("openapi.json", faasd::control::api::document());
}
