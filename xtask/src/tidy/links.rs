//! Links from one document of the repository to another place in it.

use std::path::{Component, Path, PathBuf};

use super::Finding;

pub fn check(file: &str, text: &str, exists: &dyn Fn(&Path) -> bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut fenced = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        for target in targets(line) {
            let mut report = |what: String| findings.push(Finding::new(file, index + 1, what));
            match resolve(file, target) {
                None => report(format!("`{target}` leads out of the repository")),
                Some(path) if !exists(&path) => report(format!("`{target}` leads nowhere")),
                Some(_) => {}
            }
        }
    }
    findings
}

/// What a line links to inside the repository: `[text](target)` and `[name]: target`.
fn targets(line: &str) -> Vec<&str> {
    let inline = line.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
    let named = line.starts_with('[').then(|| line.split_once("]: ")).flatten();
    let named = named.and_then(|(_, rest)| rest.split_whitespace().next());
    let paths = inline.chain(named).map(|target| target.split('#').next().unwrap_or_default());
    paths.filter(|path| !path.is_empty() && !path.contains(':')).collect()
}

fn resolve(file: &str, target: &str) -> Option<PathBuf> {
    let from = if target.starts_with('/') { Path::new("") } else { Path::new(file).parent()? };
    let mut path = PathBuf::new();
    for component in from.join(target.trim_start_matches('/')).components() {
        match component {
            Component::ParentDir => path.pop().then_some(())?,
            Component::Normal(name) => path.push(name),
            _ => {}
        }
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(file: &str, text: &str) -> Vec<String> {
        let there = ["README.md", "docs", "docs/SPEC.md"];
        let exists = |path: &Path| there.iter().any(|name| Path::new(name) == path);
        check(file, text, &exists).into_iter().map(|finding| finding.to_string()).collect()
    }

    #[test]
    fn links_that_lead_somewhere_pass() {
        let text =
            "[a](SPEC.md#x) and [b](../README.md), [c](https://x.org/y), [d](#here)\n[e]: /docs/SPEC.md\n";
        assert_eq!(broken("docs/A.md", text), [""; 0]);
    }

    #[test]
    fn links_that_lead_nowhere_are_found() {
        assert_eq!(broken("docs/A.md", "x\n[a](GONE.md)"), ["docs/A.md:2: `GONE.md` leads nowhere"]);
        assert_eq!(broken("docs/A.md", "[a]: GONE.md"), ["docs/A.md:1: `GONE.md` leads nowhere"]);
        assert_eq!(broken("README.md", "[a](../x)"), ["README.md:1: `../x` leads out of the repository"]);
    }

    #[test]
    fn code_is_no_link() {
        assert_eq!(broken("README.md", "```\n[a](GONE.md)\n```\n"), [""; 0]);
    }
}
