//! The daemon's modules read in one direction.

use super::Finding;
use super::source::{Source, line_of, words};

/// A module of the daemon and what it may name.
struct Module {
    name: &'static str,
    may_use: &'static [&'static str],
    why: &'static str,
}

/// `bin/` and `lib.rs` compose, and may name everything.
const MODULES: &[Module] = &[
    Module { name: "core", may_use: &[], why: "policy is pure: it knows nothing of what acts on it" },
    Module {
        name: "sys",
        may_use: &["core"],
        why: "the fence takes the types of policy and decides nothing",
    },
    Module {
        name: "api",
        may_use: &["core"],
        why: "requests and responses are data, the client needs no daemon",
    },
    Module {
        name: "telemetry",
        may_use: &["core"],
        why: "names of metrics and set-up of logs, used by others",
    },
    Module {
        name: "dataplane",
        may_use: &["core", "sys"],
        why: "the path of a connection never calls control; it reads a snapshot and a bounded queue",
    },
    Module {
        name: "runtime",
        may_use: &["core", "sys"],
        why: "containers are driven by control, not the reverse",
    },
    Module {
        name: "tunnel",
        may_use: &["core", "sys"],
        why: "the tunnel is driven by control, not the reverse",
    },
    Module {
        name: "load",
        may_use: &["core", "sys"],
        why: "it measures whatever answers, and knows of no daemon",
    },
    Module {
        name: "control",
        may_use: &["runtime", "tunnel", "dataplane", "core", "api", "sys", "telemetry"],
        why: "control drives everything and is no part of the client",
    },
    Module {
        name: "cli",
        may_use: &["api", "core", "tunnel", "runtime", "load"],
        why: "the client speaks to the API; it brings its own end of the tunnel, doctor looks at the runtime, and \
              bench sends load",
    },
];

const ROOT: &str = "faasd/src/";

pub fn check(file: &str, source: &Source) -> Vec<Finding> {
    let Some(inside) = file.strip_prefix(ROOT) else { return Vec::new() };
    let top = inside.split(['/', '.']).next().unwrap_or_default();
    let Some(module) = MODULES.iter().find(|module| module.name == top) else {
        return undeclared(file, inside, top);
    };
    let depth = inside.trim_end_matches(".rs").trim_end_matches("/mod").split('/').count();
    let mut findings = Vec::new();
    for (line, name) in named(&source.code, depth) {
        let known = MODULES.iter().any(|module| module.name == name);
        if known && name != module.name && !module.may_use.contains(&name.as_str()) {
            let what = format!("`{}` must not use `{name}`: {}", module.name, module.why);
            findings.push(Finding::new(file, line, what));
        }
    }
    findings
}

fn undeclared(file: &str, inside: &str, top: &str) -> Vec<Finding> {
    if inside.starts_with("bin/") || matches!(inside, "lib.rs" | "build.rs") {
        return Vec::new();
    }
    let what =
        format!("`{top}` is not in the table of modules: say in xtask/src/tidy/imports.rs what it may use");
    vec![Finding::new(file, 1, what)]
}

/// The top modules that a file names, with the line of each: `crate::NAME`, `crate::{NAME, …}`, and enough
/// `super::` to come out at the crate's root.
fn named(code: &str, depth: usize) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut supers = 0;
    let mut after = 0;
    for (at, word) in words(code) {
        // A path goes on only over `::`.
        let joined = code[after..at].trim() == "::";
        after = at + word.len();
        supers = match word {
            "super" => {
                if joined {
                    supers + 1
                } else {
                    1
                }
            }
            _ => 0,
        };
        if word != "crate" && supers < depth {
            continue;
        }
        let Some(rest) = code[after..].trim_start().strip_prefix("::") else { continue };
        let offset = code.len() - rest.len();
        found.extend(heads(rest).into_iter().map(|(place, name)| (line_of(code, offset + place), name)));
    }
    found
}

/// The first segments of what follows `crate::`: one, or each of a group.
fn heads(rest: &str) -> Vec<(usize, String)> {
    let skipped = rest.len() - rest.trim_start().len();
    let rest = rest.trim_start();
    if !rest.starts_with('{') {
        return words(rest)
            .next()
            .filter(|(at, _)| *at == 0)
            .map(|(_, word)| (skipped, word.to_owned()))
            .into_iter()
            .collect();
    }
    let mut heads = Vec::new();
    let mut level = 0;
    let mut expected = false;
    for (at, c) in rest.char_indices() {
        match c {
            '{' => {
                level += 1;
                expected = level == 1;
            }
            '}' => {
                level -= 1;
                if level == 0 {
                    break;
                }
            }
            ',' => expected = level == 1,
            c if c.is_whitespace() => {}
            _ if expected => {
                expected = false;
                if let Some((_, word)) = words(&rest[at..]).next() {
                    heads.push((skipped + at, word.to_owned()));
                }
            }
            _ => {}
        }
    }
    heads
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(file: &str, text: &str) -> Vec<(usize, String)> {
        check(file, &Source::new(text)).into_iter().map(|finding| (finding.line, finding.what)).collect()
    }

    #[test]
    fn an_allowed_import_passes() {
        let text = "use crate::core::name;\nuse crate::{sys, core::{address, paths}};\n";
        assert_eq!(findings("faasd/src/dataplane/mod.rs", text), []);
    }

    #[test]
    fn a_forbidden_import_is_found_where_it_stands() {
        let found = findings("faasd/src/core/pool.rs", "\nuse crate::sys::netns;\n");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0, 2);
        assert!(found[0].1.contains("`core` must not use `sys`"), "{}", found[0].1);
    }

    #[test]
    fn every_way_to_write_a_path_is_read() {
        let file = "faasd/src/runtime/runc.rs";
        for text in [
            "use crate::{core, control::{a, b}};",
            "use crate::{\n    core,\n    control,\n};",
            "fn f() { crate :: control::x() }",
            "pub(in crate::control) fn f() {}",
            "use super::super::control;",
            "mod tests { use super::super::super::control; }",
        ] {
            assert_eq!(findings(file, text).len(), 1, "{text}");
        }
        for text in [
            "// use crate::control;",
            "let x = \"crate::control\";",
            "use super::control;",
            "use crate::core::control;",
            "use other::{control};",
            "pub(crate) fn control() {}",
        ] {
            assert_eq!(findings(file, text), [], "{text}");
        }
    }

    #[test]
    fn a_module_must_be_in_the_table() {
        assert_eq!(findings("faasd/src/misc/mod.rs", "").len(), 1);
        assert_eq!(findings("faasd/src/bin/faas.rs", "use faasd::cli;"), []);
        assert_eq!(findings("bench/src/misc.rs", "use crate::control;"), []);
    }

    #[test]
    fn the_table_has_no_cycle() {
        // Take away, again and again, the modules that use nothing that is left.
        let mut left: Vec<&Module> = MODULES.iter().collect();
        while !left.is_empty() {
            let names: Vec<&str> = left.iter().map(|module| module.name).collect();
            let before = left.len();
            left.retain(|module| module.may_use.iter().any(|name| names.contains(name)));
            assert!(left.len() < before, "a cycle among {names:?}");
        }
    }
}
