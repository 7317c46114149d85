//! `faas new`

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::{Context, Exit, Failure};
use crate::core::name::FunctionName;

/// Make a new function's directory
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  faas new hello && faas deploy ./hello\n  faas new hello --lang rust --dir services/hello"
)]
pub struct New {
    /// The function
    name: FunctionName,
    /// The language of the template
    #[arg(long, value_name = "LANG", default_value = "python")]
    lang: Lang,
    /// Where to make it [default: NAME]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// A checkout of faasd-sdk to build a Rust function with [default: this version's, from its repository]
    #[arg(long, value_name = "DIR")]
    sdk: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Lang {
    Python,
    Rust,
}

/// What stands for the function's name in a template.
const NAME: &str = "{{name}}";

/// What stands for where cargo finds faasd-sdk.
const SDK: &str = "{{sdk}}";

const PYTHON: &[(&str, &str)] = &[
    ("handler.py", include_str!("../../templates/python/handler.py")),
    ("faas.toml", include_str!("../../templates/python/faas.toml")),
    ("README.md", include_str!("../../templates/python/README.md")),
];

const RUST: &[(&str, &str)] = &[
    ("Cargo.toml", include_str!("../../templates/rust/Cargo.toml")),
    ("src/main.rs", include_str!("../../templates/rust/src/main.rs")),
    ("faas.toml", include_str!("../../templates/rust/faas.toml")),
    ("README.md", include_str!("../../templates/rust/README.md")),
];

impl New {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let dir = self.dir.unwrap_or_else(|| PathBuf::from(self.name.as_str()));
        let files = match self.lang {
            Lang::Python => PYTHON,
            Lang::Rust => RUST,
        };
        let sdk = sdk(self.sdk.as_deref())?;
        refuse_to_overwrite(&dir)?;
        for (path, text) in files {
            let path = dir.join(path);
            let failed =
                |e: io::Error| Failure { exit: Exit::CannotCreate, ..Failure::file("write", &path, &e) };
            fs::create_dir_all(path.parent().unwrap_or(&dir)).map_err(failed)?;
            let text = text.replace(NAME, self.name.as_str()).replace(SDK, &sdk);
            let mut file = fs::File::create_new(&path).map_err(failed)?;
            file.write_all(text.as_bytes()).map_err(failed)?;
        }
        for (path, _) in files {
            context.ui.print(&format!("{}\n", dir.join(path).display()))?;
        }
        let build = match self.lang {
            Lang::Python => "",
            Lang::Rust => "; its README says how to build it first",
        };
        let (name, dir) = (&self.name, dir.display());
        context.ui.note(&format!("deploy it with `faas deploy {name} {dir}`{build}"));
        Ok(())
    }
}

/// The keys of cargo's dependency on the SDK.
fn sdk(checkout: Option<&Path>) -> Result<String, Failure> {
    let Some(checkout) = checkout else {
        return Ok(concat!(
            "git = \"",
            env!("CARGO_PKG_REPOSITORY"),
            "\", tag = \"v",
            env!("CARGO_PKG_VERSION"),
            "\""
        )
        .to_owned());
    };
    let manifest = checkout.join("Cargo.toml");
    if !manifest.is_file() {
        let text = format!("there is no {}; --sdk names the directory of faasd-sdk", manifest.display());
        return Err(Failure::new(Exit::NoInput, text));
    }
    let path = checkout.canonicalize().map_err(|e| Failure::file("use", checkout, &e))?;
    Ok(format!("path = {}", toml::Value::String(path.to_string_lossy().into_owned())))
}

fn refuse_to_overwrite(dir: &Path) -> Result<(), Failure> {
    match fs::read_dir(dir).map(|mut entries| entries.next().is_some()) {
        Ok(true) => {
            let text = format!("{} is there already, and is not empty", dir.display());
            Err(Failure::new(Exit::CannotCreate, text)
                .hint("choose another name, or another place with --dir"))
        }
        Ok(false) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Failure { exit: Exit::CannotCreate, ..Failure::file("use", dir, &e) }),
    }
}
