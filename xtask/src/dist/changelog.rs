//! `CHANGELOG.md` in the forms that packages have: Debian's, and the one that nfpm makes rpm's from.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use serde_json::json;

const MAINTAINER: &str = "The faasd developers <faasd@users.noreply.github.com>";

/// Debian's lines have 80 columns at most.
const WIDTH: usize = 78;

/// What a version begins with.
const HEADING: &str = "## [";

/// What changed in one version, a line for each entry of the list, with no markup for links.
fn entries(markdown: &str, version: &str) -> Result<Vec<String>> {
    let after = |name: &str| {
        let mut lines = markdown.lines();
        let is_of = |line: &str| line.strip_prefix(HEADING).is_some_and(|rest| rest.starts_with(name));
        lines.find(|line| is_of(line)).map(|_| lines)
    };
    // Between releases a package is of what comes next.
    let lines = after(&format!("{version}]")).or_else(|| after("Unreleased]"));
    let lines = lines.with_context(|| format!("CHANGELOG.md says nothing of {version}"))?;
    let mut entries: Vec<String> = Vec::new();
    for line in lines.take_while(|line| !line.starts_with(HEADING)) {
        if let Some(entry) = line.strip_prefix("- ") {
            entries.push(entry.to_owned());
        } else if let (Some(more), Some(entry)) = (line.strip_prefix("  "), entries.last_mut()) {
            let _ = write!(entry, " {}", more.trim());
        }
    }
    Ok(entries.iter().map(|entry| plain(entry)).collect())
}

/// `[text](target)` becomes `text`.
fn plain(markdown: &str) -> String {
    let mut text = String::new();
    let mut rest = markdown;
    while let Some((before, link)) = rest.split_once('[') {
        text.push_str(before);
        match link.split_once("](").and_then(|(words, after)| Some((words, after.split_once(')')?.1))) {
            Some((words, after)) if !words.contains('[') => {
                text.push_str(words);
                rest = after;
            }
            _ => {
                text.push('[');
                rest = link;
            }
        }
    }
    text + rest
}

/// Debian's changelog, with this version alone.
pub fn debian(markdown: &str, version: &str, date: &str) -> Result<String> {
    let mut text = format!("faasd ({version}) unstable; urgency=medium\n\n");
    for entry in entries(markdown, version)? {
        for (index, line) in wrapped(&entry, WIDTH - 4).iter().enumerate() {
            let _ = writeln!(text, "  {} {line}", if index == 0 { "*" } else { " " });
        }
    }
    let _ = writeln!(text, "\n -- {MAINTAINER}  {date}");
    Ok(text)
}

/// What nfpm reads: YAML, of which JSON is a part.
pub fn nfpm(markdown: &str, version: &str, date: &str) -> Result<String> {
    let changes: Vec<_> = entries(markdown, version)?.iter().map(|entry| json!({ "note": entry })).collect();
    Ok(json!([{ "semver": version, "date": date, "packager": MAINTAINER, "changes": changes }]).to_string())
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Changelog\n\nWords.\n\n## [0.2.0] - 2026-11-23\n\n### Added\n\n- One thing ([how](docs/X.md)),\n  \
                        in two lines [sic].\n\n### Fixed\n\n- Another.\n\n## [0.1.0]\n\n- The first.\n";

    #[test]
    fn a_version_has_its_own_entries() {
        let date = "Mon, 23 Nov 2026 12:00:00 +0000";
        let expected = "faasd (0.2.0) unstable; urgency=medium\n\n  * One thing (how), in two lines [sic].\n  * \
                        Another.\n\n -- The faasd developers <faasd@users.noreply.github.com>  Mon, 23 Nov 2026 \
                        12:00:00 +0000\n";
        assert_eq!(debian(TEXT, "0.2.0", date).unwrap(), expected);
        assert_eq!(entries(TEXT, "0.1.0").unwrap(), ["The first."]);
        assert!(entries(TEXT, "0.3.0").is_err());
        let ahead = TEXT.replace("Words.", "## [Unreleased]\n\n- Next.");
        assert_eq!(entries(&ahead, "0.3.0").unwrap(), ["Next."]);
        assert_eq!(entries(&ahead, "0.1.0").unwrap(), ["The first."]);
    }

    #[test]
    fn ours_fits_debian_s_lines() {
        let ours = include_str!("../../../CHANGELOG.md");
        let text = debian(ours, env!("CARGO_PKG_VERSION"), "Mon, 23 Nov 2026 12:00:00 +0000").unwrap();
        assert!(text.lines().filter(|line| line.starts_with("  * ")).count() > 3, "{text}");
        // What cannot be broken is left whole: names of options and paths.
        for line in text.lines().filter(|line| line.starts_with("  ") && line.chars().count() > 80) {
            assert!(!line.trim_start_matches(['*', ' ']).contains(' '), "{line}");
        }
    }
}
