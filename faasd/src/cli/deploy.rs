//! `faas deploy`

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use comfy_table::Cell;

use super::dependencies;
use super::describe::url;
use super::detect::{build_command, detect};
use super::gather::Source;
use super::settings::{Settings, of_flags};
use super::ui::{printable, size, state_cell, took};
use super::{Context, Exit, Failure, Format, Output};
use crate::api::client::Outcome;
use crate::api::condition::Condition;
use crate::api::types;
use crate::core::name::FunctionName;

/// Deploy a directory as a function
///
/// The directory's faas.toml says how it is run; without one, a handler (handler.py, handler.mjs, handler.sh, …) or an
/// application (app.py, index.js, …) is looked for. What requirements.txt or package.json name is installed first, and
/// kept for the next deploy. What .faasignore lists is not sent, nor are .git, __pycache__, node_modules, virtual
/// environments and cargo's target.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  faas deploy                     this directory, under its own name
  faas deploy ./services/hello    that directory, under its own name
  faas deploy hello               this directory, as hello
  faas deploy hello src/hello     that directory, as hello
  faas deploy hello --min 0 --max 8 --env GREETING=hi
                                  with settings that come before those of its faas.toml
  faas deploy web --image nginx:1.27
                                  what the image itself runs, as web")]
pub struct Deploy {
    /// The function [default: the directory's name]
    name: Option<String>,
    /// The directory [default: .]
    dir: Option<PathBuf>,
    /// The image to run in; without a directory, what it runs by itself
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
    /// A directory of the image that may be written to; may be repeated
    #[arg(long, value_name = "DIR", requires = "image")]
    writable: Vec<String>,
    /// Only see whether it becomes ready; what serves goes on serving, until `faas promote` or `faas traffic`
    #[arg(long)]
    no_traffic: bool,
    /// Make a new revision even if nothing has changed
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    output: Output,
}

impl Deploy {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let ui = &context.ui;
        let flags = self.settings.table();
        let mut over = flags.clone();
        if let Some(image) = &self.image {
            over.insert("image".to_owned(), image.as_str().into());
        }
        let (name, dir) = match (&self.image, &self.name, &self.dir) {
            (Some(_), Some(name), None) if !is_path(name) => (parse_name(name)?, None),
            _ => {
                let (name, dir) = target(self.name, self.dir)?;
                (name, Some(dir))
            }
        };
        let source = Source { name, dir, over };
        let gathered = source.gather(context).await.map_err(|failure| of_flags(failure, &flags));
        let (name, dir) = (source.name, source.dir);
        let mut gathered = gathered.map_err(|failure| elsewhere(failure, &name, dir.as_deref()))?;
        gathered.spec.writable.extend(self.writable);
        ui.note(&printable(&gathered.why));
        if let Some(warning) = &gathered.warning {
            ui.warn(warning);
        }
        let installed = gathered.install(context).await?;

        let began = Instant::now();
        let mut sent = "none".to_owned();
        let mut image = None;
        if let Some((code, files)) = gathered.upload(context).await? {
            sent = format!("{}, {} unpacked, {files} files", code.digest, size(code.bytes));
            image = Some(code.digest);
        }
        let dependencies = match &installed {
            Some(installed) => Some(installed.upload(context).await?),
            None => None,
        };
        let uploaded = began.elapsed();

        let spinner = ui.spinner(format!("starting {name}"));
        let deploy = types::Deploy {
            image,
            dependencies,
            spec: gathered.spec,
            no_traffic: self.no_traffic,
            force: self.force,
        };
        let deployed = context.client.deploy_if(&name, &deploy, &Condition::Always).await;
        spinner.finish_and_clear();
        let (function, outcome) = deployed.map_err(|e| {
            let failure = Failure::from(e);
            // What a function wrote before it failed usually says why.
            if failure.exit == Exit::Failed && failure.hint.is_none() {
                failure.hint(format!("`faas logs {name}` may say more"))
            } else {
                failure
            }
        })?;
        if self.output.format == Format::Json {
            return ui.json(&function);
        }
        if outcome == Outcome::Unchanged {
            ui.note(&format!(
                "'{name}' is deployed like this already; --force makes a new revision all the same"
            ));
        }
        report(context, &function, &sent, uploaded, began.elapsed())
    }
}

/// Runs what the function's file has as `build`.
///
/// # Errors
/// [`Failure`], with the end of what it printed.
pub async fn build(context: &Context, dir: &Path, over: &toml::Table) -> Result<(), Failure> {
    let Some(build) = build_command(dir, over)? else { return Ok(()) };
    context.ui.note(&format!("build: {}", printable(&build)));
    let mut command = tokio::process::Command::new("/bin/sh");
    command.args(["-c", &build]).current_dir(dir);
    let (began, spinner) = (Instant::now(), context.ui.spinner(build.clone()));
    let done = dependencies::follow(command, |line| {
        spinner.println(line);
    });
    let done = done.await;
    spinner.finish_and_clear();
    let (success, lines) =
        done.map_err(|e| Failure::new(Exit::Failed, format!("`{build}` cannot be run: {e}")))?;
    if !success {
        let end = lines[lines.len().saturating_sub(BUILD_LINES_SHOWN)..].join("\n");
        return Err(Failure::new(Exit::Failed, format!("`{build}` failed in {}", dir.display())).hint(end));
    }
    context.ui.note(&format!("build: done in {}", took(began.elapsed())));
    Ok(())
}

/// How much of a failed build is shown again.
const BUILD_LINES_SHOWN: usize = 30;

fn report(
    context: &Context,
    function: &types::Function,
    sent: &str,
    uploaded: Duration,
    all: Duration,
) -> Result<(), Failure> {
    let times = format!("{} (upload {}, start {})", took(all), took(uploaded), took(all - uploaded));
    context.ui.pairs([
        ("name", Cell::new(&function.name)),
        ("state", state_cell(function.state.as_str())),
        ("revision", Cell::new(function.revision)),
        ("address", Cell::new(function.address)),
        ("url", Cell::new(url(function))),
        ("code", Cell::new(sent)),
        ("took", Cell::new(times)),
    ])
}

/// What the two optional arguments mean. One that is no name but a path is the directory.
fn target(name: Option<String>, dir: Option<PathBuf>) -> Result<(FunctionName, PathBuf), Failure> {
    let (name, dir) = match (name, dir) {
        (Some(path), None) if is_path(&path) => (None, PathBuf::from(path)),
        (name, dir) => (name, dir.unwrap_or_else(|| ".".into())),
    };
    let name = match name {
        Some(name) => parse_name(&name)?,
        None => named_after(&dir)?,
    };
    Ok((name, dir))
}

/// A function that is called what its directory is.
///
/// # Errors
/// [`Failure`], if there is no such directory, or functions cannot be called that.
pub fn named_after(dir: &Path) -> Result<FunctionName, Failure> {
    let whole = dir.canonicalize().map_err(|e| {
        Failure::file("use", dir, &e)
            .hint("name the directory that holds the function: `faas deploy NAME DIR`")
    })?;
    parse_name(&whole.file_name().unwrap_or_default().to_string_lossy())
}

fn is_path(text: &str) -> bool {
    text.contains('/') || text == "." || text == ".."
}

/// # Errors
/// [`Failure`], if functions cannot be called that.
pub fn parse_name(name: &str) -> Result<FunctionName, Failure> {
    name.parse().map_err(|e: crate::core::name::NameError| {
        Failure::new(Exit::Usage, e.to_string()).hint("give the function a name: `faas deploy NAME DIR`")
    })
}

/// `faas deploy hello` beside a directory "hello" usually means that directory.
fn elsewhere(failure: Failure, name: &FunctionName, dir: Option<&Path>) -> Failure {
    let beside = Path::new(name.as_str());
    if dir == Some(Path::new("."))
        && failure.exit == Exit::NoInput
        && detect(beside, &toml::Table::new()).is_ok()
    {
        return failure.hint(format!("there is a function in {name}: `faas deploy ./{name}`"));
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_argument_is_a_name_or_a_path() {
        let made = tempfile::tempdir().unwrap();
        let hello = made.path().join("hello");
        std::fs::create_dir(&hello).unwrap();
        let path = hello.to_str().unwrap().to_owned();
        let (name, dir) = target(Some(path.clone()), None).unwrap();
        assert_eq!((name.as_str(), dir), ("hello", hello));
        let (name, dir) = target(Some("x".into()), None).unwrap();
        assert_eq!((name.as_str(), dir), ("x", PathBuf::from(".")));
        assert_eq!(target(Some("Not_It".into()), None).unwrap_err().exit, Exit::Usage);
        assert_eq!(target(Some(path + "/nothing"), None).unwrap_err().exit, Exit::NoInput);
    }
}
