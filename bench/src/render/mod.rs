//! Stored results as tables and plots in a document. What is between `<!-- generated: NAME -->` and `<!-- /generated -->`
//! is replaced; all else is prose, and stays.

mod goals;
mod plot;
mod tables;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::Value;

const BEGIN: &str = "<!-- generated: ";
const BEGIN_END: &str = " -->";
const END: &str = "<!-- /generated -->";

/// What to write where.
#[derive(Debug, Args)]
pub struct Render {
    /// Results, by the parts of a run.
    #[arg(long, value_name = "FILE")]
    results: PathBuf,
    /// The document.
    #[arg(long, value_name = "FILE")]
    document: PathBuf,
    /// Where plots go.
    #[arg(long, value_name = "DIRECTORY")]
    plots: PathBuf,
}

impl Render {
    /// Writes.
    ///
    /// # Errors
    /// If a file cannot be read or written, or the document has a block that nothing makes.
    pub fn run(&self) -> anyhow::Result<()> {
        let read = |path: &Path| {
            std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
        };
        let results: Value = serde_json::from_str(&read(&self.results)?)
            .with_context(|| format!("{} holds no results", self.results.display()))?;
        let document = fill(&read(&self.document)?, |name| block(&results, name))
            .with_context(|| self.document.display().to_string())?;
        std::fs::write(&self.document, document)
            .with_context(|| format!("writing {}", self.document.display()))?;
        std::fs::create_dir_all(&self.plots)?;
        for (name, drawn) in plot::all(&results)? {
            let file = self.plots.join(name);
            std::fs::write(&file, drawn).with_context(|| format!("writing {}", file.display()))?;
        }
        Ok(())
    }
}

/// The text of a block; `None` if its part has not been measured.
fn block(results: &Value, name: &str) -> anyhow::Result<Option<String>> {
    Ok(match name {
        "goals" => Some(goals::table(results)),
        "conditions" => Some(tables::conditions(results)),
        "idle" => results.get("lanes").map(tables::idle),
        "compare" => results.get("compare").map(tables::compare),
        "lanes" | "tunnelled" | "many" | "scrape" | "bodies" => results.get(name).map(|part| {
            format!("{}\n{}", plot::links(results, name), tables::rows(part, name == "bodies"))
                .trim_start()
                .to_owned()
        }),
        _ => match tables::COLUMNS.iter().find(|(part, ..)| *part == name) {
            Some((_, rows, columns)) => results.get(name).map(|part| tables::columns(&part[*rows], columns)),
            None => bail!("the block `{name}` is none that is generated"),
        },
    })
}

/// The document with its blocks filled. A block of which nothing is known is left as it is.
fn fill(document: &str, text: impl Fn(&str) -> anyhow::Result<Option<String>>) -> anyhow::Result<String> {
    let mut filled = String::with_capacity(document.len());
    let mut rest = document;
    while let Some(start) = rest.find(BEGIN) {
        let (before, block) = rest.split_at(start);
        let (marker, inside) = block.split_once(BEGIN_END).context("a marker without its end")?;
        let name = &marker[BEGIN.len()..];
        let (old, after) =
            inside.split_once(END).with_context(|| format!("the block `{name}` has no end"))?;
        filled.push_str(before);
        filled.push_str(marker);
        filled.push_str(BEGIN_END);
        match text(name)? {
            Some(new) => {
                filled.push_str("\n\n");
                filled.push_str(new.trim_end());
                filled.push_str("\n\n");
            }
            None => filled.push_str(old),
        }
        filled.push_str(END);
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_filled_and_prose_stays() {
        let document = "a\n<!-- generated: x -->\nold\n<!-- /generated -->\nb <!-- generated: y --> kept <!-- /generated -->.";
        let text = |name: &str| Ok((name == "x").then(|| "| new |\n".to_owned()));
        let filled = fill(document, text).unwrap();
        assert_eq!(
            filled,
            "a\n<!-- generated: x -->\n\n| new |\n\n<!-- /generated -->\nb <!-- generated: y --> kept <!-- /generated -->."
        );
        assert_eq!(fill(&filled, text).unwrap(), filled);
        assert!(fill("<!-- generated: x -->", text).is_err());
        assert!(block(&Value::Null, "nothing").is_err());
    }

    #[test]
    fn the_documents_blocks_are_all_known() {
        let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/BENCHMARKS.md");
        let text = std::fs::read_to_string(document).unwrap();
        let filled = fill(&text, |name| block(&Value::Null, name).map(|_| None)).unwrap();
        assert_eq!(filled, text);
    }
}
