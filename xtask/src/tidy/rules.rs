//! Rules on one file at a time.

use std::path::Path;

use super::Finding;
use super::source::{Source, line_of, words};

/// A longer program, in whatever language, must be on [`LONG`].
const LINES_MAX: usize = 600;

/// Files that may be longer, each with the reason.
const LONG: &[(&str, &str)] = &[(
    "faasd/src/runtime/runners/python.py",
    "every cold start compiles it anew, and each further module of it would be looked for and opened as well",
)];

/// What programs in other languages than Rust end with.
const PROGRAMS: [&str; 5] = [".py", ".cjs", ".mjs", ".js", ".sh"];

/// Where `unsafe` may stand, each with the reason. A name that ends in `/` is a directory.
const UNSAFE: &[(&str, &str)] = &[
    ("tests/tests/egress/attack.rs", "no library lets a connection be taken apart"),
    ("faasd/src/sys/", "the fence: every kernel interface of the daemon"),
    ("faasd-sdk/src/status.rs", "the status page is memory shared with the daemon"),
    ("faasd-sdk/src/sys.rs", "an instance inherits its descriptors by number"),
    ("bench/src/acceptors/", "the measured ring crates give and take descriptors as numbers"),
    ("tests/functions/escape.rs", "it attacks by system calls that safe code has no words for"),
    ("faasd-ebpf/src/", "maps and helpers of the kernel program are raw pointers"),
];

/// Files that may hold what the text rules forbid: they spell the rules, or are not ours.
const QUOTES: &[(&str, &str)] =
    &[("LICENSE", "not our text"), ("xtask/src/tidy/rules.rs", "the rules themselves")];

/// Words of unfinished work: it is finished, or it is an issue.
const UNFINISHED: [&str; 3] = ["TODO", "FIXME", "XXX"];

/// Paths of one person's machine.
const PRIVATE: [&str; 2] = ["/home/", "/Users/"];

/// Rules for any text.
pub fn text(file: &str, text: &str) -> Vec<Finding> {
    if QUOTES.iter().any(|(name, _)| *name == file) || file.ends_with("Cargo.lock") {
        return Vec::new();
    }
    let mut findings = Vec::new();
    if PROGRAMS.iter().any(|extension| file.ends_with(extension)) {
        findings.extend(too_long(file, text.lines().count()));
    }
    for (index, line) in text.lines().enumerate() {
        let mut report = |what: String| findings.push(Finding::new(file, index + 1, what));
        if let Some((_, word)) = words(line).find(|(_, word)| UNFINISHED.contains(word)) {
            report(format!("`{word}`: finish it, or open an issue"));
        }
        if let Some(path) = PRIVATE.iter().find(|path| names_path(line, path)) {
            report(format!("`{path}` is a path of one machine"));
        }
    }
    findings
}

/// Whether a line names an absolute path that begins with `path`: `…/network/Users/` and `$HOME/Users/` do not.
fn names_path(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || "_-.}*".contains(c))
    })
}

fn too_long(file: &str, lines: usize) -> Option<Finding> {
    let is_too_long = lines > LINES_MAX && !LONG.iter().any(|(name, _)| *name == file);
    is_too_long.then(|| {
        let what = format!(
            "{lines} lines: split it, or say in xtask/src/tidy/rules.rs why it is longer than {LINES_MAX}"
        );
        Finding::new(file, lines, what)
    })
}

/// Rules for Rust.
pub fn rust(file: &str, source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(too_long(file, source.code.lines().count()));
    findings.extend(unsafe_code(file, source));
    findings.extend(attributes(file, source));
    findings
}

fn unsafe_code(file: &str, source: &Source) -> Vec<Finding> {
    let allowed = UNSAFE.iter().any(|(place, _)| is_in(file, place));
    let comments: Vec<&str> = source.comments.lines().collect();
    let code: Vec<&str> = source.code.lines().collect();
    let mut findings = Vec::new();
    for (at, word) in words(&source.code) {
        if word != "unsafe" {
            continue;
        }
        let line = line_of(&source.code, at);
        if !allowed {
            findings.push(Finding::new(
                file,
                line,
                "`unsafe` outside the fence (UNSAFE in xtask/src/tidy/rules.rs)",
            ));
            continue;
        }
        let rest = source.code[at + word.len()..].trim_start();
        let is_block = rest.starts_with('{') || rest.starts_with("impl");
        if is_block && !has_safety(&code, &comments, line) {
            findings.push(Finding::new(file, line, "`unsafe` without a `SAFETY:` comment above it"));
        }
    }
    findings
}

/// Whether the comment on this line, or the one right above its statement, says why it is sound.
fn has_safety(code: &[&str], comments: &[&str], line: usize) -> bool {
    let says = |index: usize| comments.get(index).is_some_and(|text| text.contains("SAFETY:"));
    let mut index = line - 1;
    if says(index) {
        return true;
    }
    while index > 0 {
        index -= 1;
        let above = code.get(index).map_or("", |text| text.trim());
        let has_comment = comments.get(index).is_some_and(|text| !text.trim().is_empty());
        if says(index) {
            return true;
        }
        // Over comments, attributes, and the earlier lines of the same statement.
        let ends_before = above.is_empty() || above.ends_with([';', '{', '}']);
        if !has_comment && !above.starts_with("#[") && ends_before {
            return false;
        }
    }
    false
}

/// Whether a file is a place's, or in it.
fn is_in(file: &str, place: &str) -> bool {
    if place.ends_with('/') { file.starts_with(place) } else { file == place }
}

/// An exception to a lint says why.
fn attributes(file: &str, source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (at, word) in words(&source.code) {
        let opens = ["#[", "#!["].iter().any(|open| source.code[..at].trim_end().ends_with(open));
        if !matches!(word, "allow" | "expect") || !opens {
            continue;
        }
        let line = line_of(&source.code, at);
        let rest = &source.code[at..];
        let body = &rest[..rest.find(']').unwrap_or(rest.len())];
        if !words(body).any(|(_, word)| word == "reason") {
            findings.push(Finding::new(file, line, format!("`{word}` without a reason")));
        }
    }
    findings
}

/// Exceptions for what is no longer there.
pub fn stale(exists: &dyn Fn(&Path) -> bool) -> Vec<Finding> {
    let lists = LONG.iter().chain(UNSAFE).chain(QUOTES);
    let gone = lists.filter(|(name, _)| !exists(Path::new(name)));
    gone.map(|(name, _)| Finding::new("xtask/src/tidy/rules.rs", 1, format!("{name} is gone"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rust_findings(file: &str, text: &str) -> Vec<String> {
        rust(file, &Source::new(text)).into_iter().map(|finding| finding.to_string()).collect()
    }

    const FENCE: &str = "faasd/src/sys/x.rs";

    #[test]
    fn unsafe_stays_behind_the_fence() {
        let text = "// SAFETY: sound.\nunsafe { f() }";
        assert_eq!(rust_findings(FENCE, text), [""; 0]);
        let found = rust_findings("faasd/src/core/x.rs", text);
        assert!(found[0].starts_with("faasd/src/core/x.rs:2:"), "{found:?}");
        assert_eq!(rust_findings("faasd/src/core/x.rs", "// unsafe\n#![deny(unsafe_code)]"), [""; 0]);
    }

    #[test]
    fn unsafe_says_why_it_is_sound() {
        for text in [
            "fn f() {\n    unsafe { g() }\n}",
            "// SAFETY: of another.\nfn f() {}\nunsafe impl Send for X {}",
            "// SAFETY: of another.\n\nunsafe { g() }",
        ] {
            assert_eq!(rust_findings(FENCE, text).len(), 1, "{text}");
        }
        for text in [
            "// SAFETY: long\n// reason.\n#[rustfmt::skip]\nunsafe { g() }",
            "let x = unsafe { g() }; // SAFETY: here.",
            "// SAFETY: the statement's.\nlet x =\n    unsafe { g() };",
            "unsafe fn f() {}",
            "unsafe extern \"C\" {}",
        ] {
            assert_eq!(rust_findings(FENCE, text), [""; 0], "{text}");
        }
    }

    #[test]
    fn exceptions_to_lints_give_a_reason() {
        assert_eq!(rust_findings("a.rs", "#[allow(dead_code)]").len(), 1);
        assert_eq!(rust_findings("a.rs", "#![expect(dead_code)]").len(), 1);
        assert_eq!(rust_findings("a.rs", "#[expect(\n    dead_code,\n    reason = \"x\"\n)]"), [""; 0]);
        assert_eq!(rust_findings("a.rs", "x.expect(\"y\"); f(allow)"), [""; 0]);
    }

    #[test]
    fn a_file_has_a_limit() {
        assert_eq!(rust_findings("a.rs", &"\n".repeat(LINES_MAX)), [""; 0]);
        assert_eq!(rust_findings("a.rs", &"\n".repeat(LINES_MAX + 1)).len(), 1);
        assert_eq!(text("a.py", &"\n".repeat(LINES_MAX + 1)).len(), 1);
        assert!(text("a.md", &"\n".repeat(LINES_MAX + 1)).is_empty());
    }

    #[test]
    fn texts_are_finished_and_of_no_one_machine() {
        assert_eq!(text("a.md", "TODO: x\n see /Users/x, \"/home/me\"\n").len(), 2);
        assert_eq!(text("a.md", "todo, a network/Users/b, ${DIR}/home/x, TODOS\n"), []);
    }
}
