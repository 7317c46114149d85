//! `faas apply`

use std::time::Instant;

use clap::Args;
use comfy_table::Cell;
use futures_util::StreamExt;
use futures_util::stream;
use serde::Serialize;

use super::diff::{differences, of};
use super::gather::Source;
use super::targets::Targets;
use super::ui::{printable, state_cell, took};
use super::{Context, Exit, Failure, Format, Output};
use crate::api::client::Outcome;
use crate::api::condition::Condition;
use crate::api::types::{Deploy, Function};
use crate::core::name::FunctionName;

/// Make functions what directories declare
///
/// Each is deployed as `faas deploy` would, several at a time, and only where something has changed: a function that is
/// deployed like that already is left alone. A file lists functions like this, and may set what is in their own
/// faas.toml:
///
///   [functions.hello]
///   path = "./hello"        # relative to the file
///   [functions.hello.scale]
///   max = 8
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
#[command(after_help = "Examples:
  faas apply ./functions/*        each directory under its own name
  faas apply shop=./src/shop      as shop
  faas apply -f stack.toml
  faas apply -f stack.toml --dry-run")]
pub struct Apply {
    #[command(flatten)]
    targets: Targets,
    /// Only show what would be changed, as `faas diff` does
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: Output,
}

/// How many functions are deployed at a time. The daemon takes as many uploads.
const AT_A_TIME: usize = 4;

#[derive(Debug, Serialize)]
struct Applied {
    name: FunctionName,
    /// `created`, `updated`, `unchanged` or `failed`.
    result: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

#[derive(Debug, Serialize)]
struct AllApplied {
    functions: Vec<Applied>,
}

impl Apply {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let sources = self.targets.sources()?;
        if self.dry_run {
            return differences(context, &sources, self.output.format).await.map(drop);
        }
        let began = Instant::now();
        let spinner = context.ui.spinner(format!("0 of {} done", sources.len()));
        // Who works side by side is told of when it is done.
        let quiet = Context { client: context.client.clone(), ui: context.ui.quiet() };
        let work = sources.iter().enumerate().map(|(index, source)| {
            let quiet = &quiet;
            async move { (index, apply(quiet, source).await) }
        });
        let mut work = stream::iter(work).buffer_unordered(AT_A_TIME);
        let mut done = Vec::new();
        while let Some((index, result)) = work.next().await {
            done.push((index, applied(&sources[index].name, result)));
            spinner.set_message(format!("{} of {} done", done.len(), sources.len()));
        }
        drop(work);
        spinner.finish_and_clear();
        done.sort_by_key(|(index, _)| *index);
        let functions: Vec<Applied> = done.into_iter().map(|(_, applied)| applied).collect();
        let failed = functions.iter().filter(|applied| applied.result == "failed").count();
        if self.output.format == Format::Json {
            context.ui.json(&AllApplied { functions })?;
        } else {
            report(context, &functions, began)?;
        }
        match failed {
            0 => Ok(()),
            _ => Err(Failure::silent(Exit::Failed)),
        }
    }
}

async fn apply(context: &Context, source: &Source) -> Result<(Function, Outcome), Failure> {
    let mut gathered = source.gather(context).await?;
    if let Some(warning) = &gathered.warning {
        context.ui.warn(&format!("{}: {warning}", source.name));
    }
    let installed = gathered.install(context).await?;
    let image = match gathered.digest()? {
        Some(digest) if context.client.has_image(&digest).await? => Some(digest),
        _ => gathered.upload(context).await?.map(|(code, _)| code.digest),
    };
    let dependencies = match &installed {
        Some(installed) => Some(installed.upload(context).await?),
        None => None,
    };
    let deploy = Deploy { image, dependencies, spec: gathered.spec, ..Deploy::default() };
    Ok(context.client.deploy_if(&source.name, &deploy, &Condition::Always).await?)
}

fn applied(name: &FunctionName, result: Result<(Function, Outcome), Failure>) -> Applied {
    let name = name.clone();
    match result {
        Ok((function, outcome)) => {
            let result = match outcome {
                Outcome::Created => "created",
                Outcome::Updated => "updated",
                Outcome::Unchanged => "unchanged",
            };
            Applied { name, result, revision: Some(function.revision), error: None, hint: None }
        }
        Err(failure) => Applied {
            name,
            result: "failed",
            revision: None,
            error: Some(failure.message),
            hint: failure.hint,
        },
    }
}

fn report(context: &Context, functions: &[Applied], began: Instant) -> Result<(), Failure> {
    let row = |applied: &Applied| {
        let revision = applied.revision.map(|revision| revision.to_string());
        vec![Cell::new(&applied.name), state_cell(applied.result), Cell::new(revision.unwrap_or_default())]
    };
    context.ui.table(["NAME", "RESULT", "REVISION"], functions.iter().map(row))?;
    for applied in functions {
        if let Some(error) = &applied.error {
            let failure = Failure::new(Exit::Failed, printable(error));
            let failure = match &applied.hint {
                Some(hint) => failure.hint(printable(hint)),
                None => failure,
            };
            context.ui.failure(&of(&applied.name, failure));
        }
    }
    let count = |result| functions.iter().filter(|applied| applied.result == result).count();
    let all: Vec<String> = ["created", "updated", "unchanged", "failed"]
        .into_iter()
        .filter_map(|result| Some((result, count(result))).filter(|(_, count)| *count > 0))
        .map(|(result, count)| format!("{count} {result}"))
        .collect();
    context.ui.note(&format!("{} in {}", all.join(", "), took(began.elapsed())));
    Ok(())
}
