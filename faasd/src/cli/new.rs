//! `faas new`

use std::fs;
use std::io;
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
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Lang {
    Python,
    Rust,
}

/// What stands for the function's name in a template.
const NAME: &str = "{{name}}";

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
        refuse_to_overwrite(&dir)?;
        for (path, text) in files {
            let path = dir.join(path);
            let failed =
                |e: io::Error| Failure { exit: Exit::CannotCreate, ..Failure::file("write", &path, &e) };
            fs::create_dir_all(path.parent().unwrap_or(&dir)).map_err(failed)?;
            let file = fs::File::create_new(&path).map_err(failed)?;
            io::Write::write_all(&mut &file, text.replace(NAME, self.name.as_str()).as_bytes())
                .map_err(failed)?;
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
