//! `faas new`

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::{Context, Exit, Failure};
use crate::core::name::FunctionName;

/// Make a new function's directory
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  faas new hello && faas deploy ./hello\n  faas new hello --lang node && faas dev hello\n  faas new hello --lang rust --dir services/hello"
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Lang {
    /// A function `handle(event, context)`
    Python,
    /// A function `handle(event, context)`, in JavaScript
    Node,
    /// An Express application
    Express,
    /// A FastAPI application, as of any ASGI application
    Asgi,
    /// A Flask application, as of any WSGI application
    Wsgi,
    /// A script, run for each request
    Shell,
    /// A server of net/http
    Go,
    /// A program that uses faasd-sdk
    Rust,
}

/// What stands for the function's name in a template.
const NAME: &str = "{{name}}";

/// What stands for where cargo finds faasd-sdk.
const SDK: &str = "{{sdk}}";

/// A file's name, and its text.
type File = (&'static str, &'static str);

impl Lang {
    const fn files(self) -> &'static [File] {
        match self {
            Self::Python => &[
                ("handler.py", include_str!("../../templates/python/handler.py")),
                ("test_handler.py", include_str!("../../templates/python/test_handler.py")),
                ("faas.toml", include_str!("../../templates/python/faas.toml")),
                ("README.md", include_str!("../../templates/python/README.md")),
            ],
            Self::Node => &[
                ("handler.mjs", include_str!("../../templates/node/handler.mjs")),
                ("handler.test.mjs", include_str!("../../templates/node/handler.test.mjs")),
                ("package.json", include_str!("../../templates/node/package.json")),
                ("faas.toml", include_str!("../../templates/node/faas.toml")),
                ("README.md", include_str!("../../templates/node/README.md")),
            ],
            Self::Express => &[
                ("index.js", include_str!("../../templates/express/index.js")),
                ("index.test.js", include_str!("../../templates/express/index.test.js")),
                ("package.json", include_str!("../../templates/express/package.json")),
                ("faas.toml", include_str!("../../templates/express/faas.toml")),
                ("README.md", include_str!("../../templates/express/README.md")),
            ],
            Self::Asgi => &[
                ("main.py", include_str!("../../templates/asgi/main.py")),
                ("test_main.py", include_str!("../../templates/asgi/test_main.py")),
                ("requirements.txt", include_str!("../../templates/asgi/requirements.txt")),
                ("faas.toml", include_str!("../../templates/asgi/faas.toml")),
                ("README.md", include_str!("../../templates/asgi/README.md")),
            ],
            Self::Wsgi => &[
                ("app.py", include_str!("../../templates/wsgi/app.py")),
                ("test_app.py", include_str!("../../templates/wsgi/test_app.py")),
                ("requirements.txt", include_str!("../../templates/wsgi/requirements.txt")),
                ("faas.toml", include_str!("../../templates/wsgi/faas.toml")),
                ("README.md", include_str!("../../templates/wsgi/README.md")),
            ],
            Self::Shell => &[
                ("handler.sh", include_str!("../../templates/shell/handler.sh")),
                ("test.sh", include_str!("../../templates/shell/test.sh")),
                ("faas.toml", include_str!("../../templates/shell/faas.toml")),
                ("README.md", include_str!("../../templates/shell/README.md")),
            ],
            Self::Go => &[
                ("main.go", include_str!("../../templates/go/main.go")),
                ("main_test.go", include_str!("../../templates/go/main_test.go")),
                ("go.mod", include_str!("../../templates/go/go.mod")),
                (".faasignore", include_str!("../../templates/go/.faasignore")),
                ("faas.toml", include_str!("../../templates/go/faas.toml")),
                ("README.md", include_str!("../../templates/go/README.md")),
            ],
            Self::Rust => &[
                ("Cargo.toml", include_str!("../../templates/rust/Cargo.toml")),
                ("src/main.rs", include_str!("../../templates/rust/src/main.rs")),
                ("faas.toml", include_str!("../../templates/rust/faas.toml")),
                ("README.md", include_str!("../../templates/rust/README.md")),
            ],
        }
    }
}

impl New {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let dir = self.dir.unwrap_or_else(|| PathBuf::from(self.name.as_str()));
        let files = self.lang.files();
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
            if text.starts_with("#!") {
                file.set_permissions(fs::Permissions::from_mode(0o755)).map_err(failed)?;
            }
        }
        for (path, _) in files {
            context.ui.print(&format!("{}\n", dir.join(path).display()))?;
        }
        let (name, dir) = (&self.name, dir.display());
        context.ui.note(&format!("try it with `faas dev {dir}`, deploy it with `faas deploy {name} {dir}`"));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::detect::detect;
    use crate::core::spec::FunctionSpec;

    #[test]
    fn every_template_is_a_function_that_can_be_deployed() {
        for lang in Lang::value_variants() {
            let dir = tempfile::tempdir().unwrap();
            for (path, text) in lang.files() {
                let path = dir.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(&path, text.replace(NAME, "hello")).unwrap();
            }
            let text = fs::read_to_string(dir.path().join("faas.toml")).unwrap();
            if text.contains("build = ") {
                // It is not built here, and its faas.toml is read as `faas deploy` reads it.
                assert!(
                    crate::cli::detect::build_command(dir.path(), &toml::Table::new()).unwrap().is_some(),
                    "{lang:?}"
                );
                continue;
            }
            let found = detect(dir.path(), &toml::Table::new())
                .unwrap_or_else(|failure| panic!("{lang:?}: {failure}"));
            assert_eq!(
                (found.warning, found.spec),
                (None, FunctionSpec::from_toml(&text).unwrap()),
                "{lang:?}"
            );
        }
    }
}
