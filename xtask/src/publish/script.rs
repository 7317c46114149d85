//! `install.sh`, as it is published: with whose signature counts, the version and the place written into it.

use anyhow::{Context, Result};

/// Lines of the script, each there once.
const FINGERPRINTS: &str = "FINGERPRINTS=";
const VERSION: &str = "VERSION=";
const BASE_URL: &str = "BASE_URL=${FAASD_BASE_URL:-";

pub fn stamp(text: &str, fingerprints: &[String], version: &str, url: &str) -> Result<String> {
    let text = replace(text, FINGERPRINTS, &format!("FINGERPRINTS='{}'", fingerprints.join(" ")))?;
    let text = replace(&text, VERSION, &format!("VERSION='{version}'"))?;
    replace(&text, BASE_URL, &format!("BASE_URL=${{FAASD_BASE_URL:-{url}}}"))
}

fn replace(text: &str, prefix: &str, with: &str) -> Result<String> {
    let mut found = 0;
    let lines = text.lines().map(|line| {
        if line.starts_with(prefix) {
            found += 1;
            with
        } else {
            line
        }
    });
    let done = lines.collect::<Vec<_>>().join("\n") + "\n";
    (found == 1)
        .then_some(done)
        .with_context(|| format!("install.sh has {found} lines that begin with {prefix}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_has_the_places_for_what_is_written_into_it() {
        let keys = ["AB".repeat(20), "CD".repeat(20)];
        let script = include_str!("../../../packaging/install.sh");
        let done = stamp(script, &keys, "1.2.3", "http://127.0.0.1").unwrap();
        assert!(done.contains(&format!("\nFINGERPRINTS='{} {}'\nVERSION='1.2.3'\n", keys[0], keys[1])));
        assert!(done.contains("\nBASE_URL=${FAASD_BASE_URL:-http://127.0.0.1}\n"));
        assert_eq!(done.lines().count(), script.lines().count());
        // Once more changes nothing: a release may have been stamped already.
        assert_eq!(stamp(&done, &keys, "1.2.3", "http://127.0.0.1").unwrap(), done);
        assert!(stamp("#!/bin/sh\n", &keys, "1.2.3", "http://127.0.0.1").is_err());
    }

    /// Nothing runs of a script that was cut short: what runs is the last line, and that only whole.
    #[test]
    fn the_last_line_is_the_only_one_that_does_something() {
        let script = include_str!("../../../packaging/install.sh");
        assert!(script.ends_with("\n}\n\n{ main \"$@\"; }\n"));
    }
}
