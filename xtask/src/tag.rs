//! `cargo xtask tag`: whether a tag is that of a release, and what the release brings.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::repo;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The tag: v and the version in Cargo.toml
    #[arg(value_name = "TAG")]
    tag: String,
}

/// Prints the changelog's part about it, for the release's page.
pub fn main(args: &Args) -> Result<()> {
    let changelog = fs::read_to_string(repo::root().join("CHANGELOG.md")).context("reading CHANGELOG.md")?;
    print!("{}", notes(&args.tag, env!("CARGO_PKG_VERSION"), &changelog)?);
    Ok(())
}

fn notes(tag: &str, version: &str, changelog: &str) -> Result<String> {
    ensure!(
        tag.strip_prefix('v') == Some(version),
        "the tag {tag} is not v{version}, the version in Cargo.toml: change one of them"
    );
    let heading = format!("## [{version}]");
    let mut lines = changelog.lines().skip_while(|line| !line.starts_with(&heading));
    let first = lines.next().with_context(|| format!("CHANGELOG.md has no heading `{heading} - DATE`"))?;
    let date = first[heading.len()..].trim_start_matches([' ', '-']);
    ensure!(is_date(date), "`{first}` in CHANGELOG.md has no date: `{heading} - YYYY-MM-DD`");
    let body: Vec<&str> = lines
        .take_while(|line| !line.starts_with("## ") && !line.starts_with(&format!("[{version}]:")))
        .collect();
    let body = body.join("\n");
    ensure!(!body.trim().is_empty(), "CHANGELOG.md says nothing about {version}");
    Ok(format!("{}\n", body.trim()))
}

fn is_date(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let is_number = |part: &&str| !part.is_empty() && part.bytes().all(|c| c.is_ascii_digit());
    parts.iter().map(|part| part.len()).eq([4, 2, 2]) && parts.iter().all(is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANGELOG: &str = "# Changelog\n\n## [Unreleased]\n\n- later\n\n## [1.2.3] - 2026-11-23\n\n### Added\n\n- this\n\n## [1.2.2] - 2026-10-01\n\n- that\n";

    #[test]
    fn the_notes_are_those_of_the_version() {
        assert_eq!(notes("v1.2.3", "1.2.3", CHANGELOG).unwrap(), "### Added\n\n- this\n");
        assert_eq!(notes("v1.2.2", "1.2.2", CHANGELOG).unwrap(), "- that\n");
    }

    #[test]
    fn another_version_or_none_in_the_changelog_is_refused() {
        let error = |tag, version, changelog: &str| notes(tag, version, changelog).unwrap_err().to_string();
        for tag in ["v1.2.4", "1.2.3", "v1.2.3-rc1", "", "vv1.2.3"] {
            assert!(error(tag, "1.2.3", CHANGELOG).contains("not v1.2.3"), "{tag}");
        }
        assert!(error("v1.2.4", "1.2.4", CHANGELOG).contains("no heading"));
        assert!(error("v1.2.3", "1.2.3", &CHANGELOG.replace(" - 2026-11-23", "")).contains("no date"));
        assert!(error("v1.2.2", "1.2.2", &CHANGELOG.replace("- that", "")).contains("says nothing"));
    }
}
