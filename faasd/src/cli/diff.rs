//! `faas diff`

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::gather::Source;
use super::targets::Targets;
use super::ui::printable;
use super::{Context, Exit, Failure, Format, Output};
use crate::api::client::ClientError;
use crate::api::types::Function;
use crate::core::image::ImageName;
use crate::core::name::FunctionName;
use crate::core::spec::FunctionSpec;

/// Show what a deploy of directories would change
///
/// Compares what is declared with what is deployed, key by key, and the digest of the code. What faas.toml has as `build`
/// is run first, since the code is what it makes. Nothing is sent. The exit code is 1 if there is a difference.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  faas diff                       this directory
  faas diff ./functions/*         several
  faas diff -f stack.toml -o json | jq '.functions[] | select(.changes != [])'")]
pub struct Diff {
    #[command(flatten)]
    targets: Targets,
    #[command(flatten)]
    output: Output,
}

/// What a deploy would do to one function.
#[derive(Debug, Serialize)]
pub struct Difference {
    pub name: FunctionName,
    /// Whether it is deployed at all.
    pub exists: bool,
    pub changes: Vec<Change>,
}

/// One key, before and after.
#[derive(Debug, PartialEq, Serialize)]
pub struct Change {
    pub key: String,
    pub from: Value,
    pub to: Value,
}

#[derive(Debug, Serialize)]
struct Differences {
    functions: Vec<Difference>,
}

impl Diff {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let found = differences(context, &self.targets.sources()?, self.output.format).await?;
        match found {
            true => Err(Failure::silent(Exit::Failed)),
            false => Ok(()),
        }
    }
}

/// Prints what is different, and tells whether anything is.
pub async fn differences(context: &Context, sources: &[Source], format: Format) -> Result<bool, Failure> {
    let mut functions = Vec::new();
    for source in sources {
        let found = difference(context, source).await;
        functions.push(found.map_err(|failure| of(&source.name, failure))?);
    }
    let is_any = functions.iter().any(|function| !function.changes.is_empty());
    if format == Format::Json {
        context.ui.json(&Differences { functions })?;
    } else {
        let text: String = functions.iter().filter(|f| !f.changes.is_empty()).map(shown).collect();
        context.ui.print(&printable(&text))?;
        if !is_any {
            context.ui.note("no difference");
        }
    }
    Ok(is_any)
}

/// Says which function failed.
pub fn of(name: &FunctionName, failure: Failure) -> Failure {
    Failure { message: format!("{name}: {}", failure.message), ..failure }
}

async fn difference(context: &Context, source: &Source) -> Result<Difference, Failure> {
    let mut gathered = source.gather(context).await?;
    let deployed = match context.client.function(&source.name).await {
        Ok(function) => Some(function),
        Err(ClientError::Problem(problem)) if problem.status == 404 => None,
        Err(error) => return Err(error.into()),
    };
    let code = gathered.digest()?;
    let dependencies = gathered.dependencies(context).await?;
    let dependencies = dependencies.map(|known| known.unwrap_or_else(|| "not uploaded yet".to_owned()));
    let root = root(context, &gathered.spec).await?;
    let digests = [("code", code), ("dependencies", dependencies), ("root", root)];
    let changes = changes(deployed.as_ref(), gathered.spec, digests);
    Ok(Difference { name: source.name.clone(), exists: deployed.is_some(), changes })
}

/// The digest that the declaration's image stands for now.
async fn root(context: &Context, spec: &FunctionSpec) -> Result<Option<String>, Failure> {
    let Some(image) = &spec.image else { return Ok(None) };
    let Ok(name) = image.parse::<ImageName>() else { return Ok(Some(image.clone())) };
    let known = context.client.images().await?.images;
    let found = known.into_iter().find(|known| known.name == name).map(|known| known.digest);
    Ok(Some(found.unwrap_or_else(|| "not there yet".to_owned())))
}

fn changes(
    deployed: Option<&Function>,
    mut spec: FunctionSpec,
    digests: [(&str, Option<String>); 3],
) -> Vec<Change> {
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    if let Some(function) = deployed {
        if spec.image.is_some() {
            // The daemon fills these in from the image, where the declaration has none.
            spec.listen_port = spec.listen_port.or(function.spec.listen_port);
            spec.stop_signal = spec.stop_signal.or(function.spec.stop_signal);
        }
        flatten("", &serde_json::to_value(&function.spec).unwrap_or_default(), &mut before);
        let found = [&function.image, &function.dependencies, &function.root];
        for ((key, _), digest) in digests.iter().zip(found) {
            before.extend(digest.clone().map(|digest| ((*key).to_owned(), digest.into())));
        }
    }
    flatten("", &serde_json::to_value(&spec).unwrap_or_default(), &mut after);
    after.extend(digests.into_iter().filter_map(|(key, digest)| Some((key.to_owned(), digest?.into()))));
    let keys: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let of = |values: &BTreeMap<String, Value>, key: &String| values.get(key).cloned().unwrap_or_default();
    keys.into_iter()
        .map(|key| Change { key: key.clone(), from: of(&before, key), to: of(&after, key) })
        .filter(|change| change.from != change.to)
        .collect()
}

/// Every value by its keys, joined by dots.
fn flatten(prefix: &str, value: &Value, found: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&key, value, found);
            }
        }
        Value::Null => {}
        other => drop(found.insert(prefix.to_owned(), other.clone())),
    }
}

fn shown(function: &Difference) -> String {
    let news = if function.exists { "" } else { " (new)" };
    let width = function.changes.iter().map(|change| change.key.len()).max().unwrap_or_default();
    let lines: String = function
        .changes
        .iter()
        .map(|Change { key, from, to }| (key, short(from), short(to)))
        .map(|(key, from, to)| match (from, to) {
            (Value::Null, to) => format!("  + {key:width$}  {to}\n"),
            (from, Value::Null) => format!("  - {key:width$}  {from}\n"),
            (from, to) => format!("  ~ {key:width$}  {from} -> {to}\n"),
        })
        .collect();
    format!("{}{news}\n{lines}", function.name)
}

/// Enough of a digest to tell it from another.
fn short(value: &Value) -> Value {
    match value.as_str().filter(|text| text.starts_with("sha256:")).and_then(|text| text.get(..19)) {
        Some(start) => format!("{start}…").into(),
        None => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_told_key_by_key() {
        let spec = |text: &str| FunctionSpec::from_toml(text).unwrap();
        let function = |spec: FunctionSpec| -> Function {
            serde_json::from_value(serde_json::json!({
                "name": "hello", "revision": 1, "address": "fd00::1", "spec": spec, "traffic": [],
                "image": "sha256:a", "deployed_at": "2026-01-02T03:04:05Z", "state": "warm", "instances": [],
                "connections": { "steered": 0, "accepted": 0, "handed_off": 0, "requeued": 0, "refused": 0 },
            }))
            .unwrap()
        };
        let code = |digest: &str| [("code", Some(digest.to_owned())), ("dependencies", None), ("root", None)];
        let old = function(spec("[env]\nA = 'a'\n'b.c' = 'b'\n[scale]\nmin = 1"));
        assert_eq!(changes(Some(&old), old.spec.clone(), code("sha256:a")), []);
        let new = spec("[env]\nA = 'x'\n[scale]\nmin = 1\nmax = 4");
        let found = changes(Some(&old), new, code("sha256:b"));
        let text = shown(&Difference { name: old.name, exists: true, changes: found });
        assert_eq!(
            text,
            "hello\n  ~ code       \"sha256:a\" -> \"sha256:b\"\n  ~ env.A      \"a\" -> \"x\"\n\
             \x20 - env.b.c    \"b\"\n  + scale.max  4\n"
        );
        // What the image says is not told to be taken away.
        let image = "contract = 'port'\nimage = 'nginx:1.27'";
        let filled = FunctionSpec { listen_port: Some(80), ..spec(image) };
        let old = Function { image: None, root: Some("sha256:r".into()), ..function(filled) };
        let digests = [("code", None), ("dependencies", None), ("root", Some("sha256:r".to_owned()))];
        assert_eq!(changes(Some(&old), spec(image), digests), []);
    }
}
