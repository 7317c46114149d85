//! Which file of a directory is the handler, and what kind of one.

use std::fs;
use std::io;
use std::path::Path;

use super::Detected;
use crate::cli::{Exit, Failure};
use crate::core::spec::{FILE_NAME, FunctionSpec, Handler, Language};
use crate::runtime::runners::is_program;

/// Looked for in this order, when the function's file names none.
const HANDLERS: [&str; 6] =
    ["handler.py", "handler.mjs", "handler.js", "handler.cjs", "handler.sh", "handler"];

/// Then files that may have an application, in Python and in JavaScript.
const PYTHON_APPS: [&str; 4] = ["app.py", "main.py", "asgi.py", "wsgi.py"];
const NODE_APPS: [&str; 6] = ["app.mjs", "app.js", "index.mjs", "index.js", "server.mjs", "server.js"];

/// What an application is called in Python.
const PYTHON_NAMES: [&str; 2] = ["app", "application"];

/// What of a text says which kind of application it makes. For people only: the runner looks at the object.
const KINDS: [(&str, &str); 10] = [
    ("FastAPI(", "ASGI, FastAPI"),
    ("Starlette(", "ASGI, Starlette"),
    ("Litestar(", "ASGI, Litestar"),
    ("Quart(", "ASGI, Quart"),
    ("get_asgi_application(", "ASGI, Django"),
    ("Flask(", "WSGI, Flask"),
    ("get_wsgi_application(", "WSGI, Django"),
    ("start_response", "WSGI"),
    ("async def app(scope", "ASGI"),
    ("Bottle(", "WSGI, Bottle"),
];

pub(super) fn detect(dir: &Path, spec: FunctionSpec, declared: bool) -> Result<Detected, Failure> {
    let (spec, found) = match &spec.handler {
        Some(named) => {
            let found = format!("{FILE_NAME} names {named}");
            (spec, Found { found, warning: None })
        }
        None => search(dir, &spec, declared)?,
    };
    let handler = spec.handler_parts();
    let path = dir.join(handler.file);
    let text = match fs::read(&path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(none(dir, handler.file, declared)),
        Err(e) => return Err(Failure::file("read", &path, &e)),
    };
    check_script(&path, handler, &text)?;
    let why = format!("{}: {}", kind(handler, &text), found.found);
    // It may be imported or assigned, so this is no proof.
    let absent = handler.name.filter(|name| !text.contains(name));
    let warning = absent.map(|name| format!("{} does not mention `{name}`", handler.file)).or(found.warning);
    Ok(Detected { why, warning, program: None, has_code: true, spec })
}

/// Whether a directory has a handler that needs no naming.
pub(super) fn is_there(dir: &Path) -> bool {
    HANDLERS.iter().any(|file| dir.join(file).is_file())
}

struct Found {
    found: String,
    warning: Option<String>,
}

/// Looks for a handler that the function's file does not name.
fn search(dir: &Path, spec: &FunctionSpec, declared: bool) -> Result<(FunctionSpec, Found), Failure> {
    let is_file = |file: &&&str| dir.join(file).is_file();
    let with = |handler: String| FunctionSpec { handler: Some(handler), ..spec.clone() };
    let prefix =
        if declared { format!("{FILE_NAME} has no `command`, and there is ") } else { "there is ".into() };
    let there: Vec<&&str> = HANDLERS.iter().filter(is_file).collect();
    if let Some((first, others)) = there.split_first() {
        let others: Vec<&str> = others.iter().map(|file| **file).collect();
        let warning = (!others.is_empty()).then(|| {
            format!("there is {} as well; `handler` in {FILE_NAME} names one of them", others.join(", "))
        });
        let name = if first.ends_with(".py") { format!("{first}:handle") } else { (**first).to_owned() };
        return Ok((with(name), Found { found: format!("{prefix}{first}"), warning }));
    }
    for file in PYTHON_APPS.iter().filter(is_file) {
        let text = fs::read_to_string(dir.join(file)).unwrap_or_default();
        let line = text.lines().find_map(|line| {
            let (name, rest) = line.split_once(|c: char| c == '=' || c == ':' || c.is_whitespace())?;
            let assigned = rest.contains('=') || line.contains(&format!("{name}="));
            (assigned && PYTHON_NAMES.contains(&name)).then_some((name, line))
        });
        let function = PYTHON_NAMES.iter().find(|name| {
            [format!("def {name}("), format!("async def {name}(")]
                .iter()
                .any(|def| text.lines().any(|line| line.starts_with(def.as_str())))
        });
        let found = match (line, function) {
            (Some((name, line)), _) => Some((name, line.trim().to_owned())),
            (None, Some(name)) => Some((*name, format!("def {name}"))),
            (None, None) => None,
        };
        if let Some((name, line)) = found {
            let found = Found { found: format!("{prefix}{file}, with `{line}`"), warning: None };
            return Ok((with(format!("{file}:{name}")), found));
        }
    }
    let main = package_main(dir);
    for file in main.iter().map(String::as_str).chain(NODE_APPS).filter(|file| dir.join(file).is_file()) {
        let text = fs::read_to_string(dir.join(file)).unwrap_or_default();
        if text.contains("module.exports") || text.contains("export ") || text.contains("exports.") {
            let from = if main.as_deref() == Some(file) { " (package.json: main)" } else { "" };
            let found =
                Found { found: format!("{prefix}{file}{from}, which exports something"), warning: None };
            return Ok((with(file.to_owned()), found));
        }
        if text.contains(".listen(") {
            let text = format!("{file} is a server that listens by itself and exports nothing");
            let hint = format!(
                "deploy it as it is, with this in {FILE_NAME}: command = [\"node\", \"{file}\"]; or export the app instead"
            );
            return Err(Failure::new(Exit::Data, text).hint(hint));
        }
    }
    Err(none(dir, "handler.py", declared))
}

/// What package.json calls the package's file.
fn package_main(dir: &Path) -> Option<String> {
    let text = fs::read(dir.join("package.json")).ok()?;
    let package: serde_json::Value = serde_json::from_slice(&text).ok()?;
    let main = package["main"].as_str()?;
    let main = main.strip_prefix("./").unwrap_or(main);
    let spec = FunctionSpec { handler: Some(main.to_owned()), ..FunctionSpec::default() };
    (spec.check().is_ok() && spec.handler_parts().language == Language::Node).then(|| main.to_owned())
}

fn kind(handler: Handler<'_>, text: &str) -> String {
    match handler.language {
        Language::Python if handler.name == Some("handle") => "python handler".to_owned(),
        Language::Python => match KINDS.iter().find(|(sign, _)| text.contains(sign)) {
            Some((_, kind)) => format!("python application ({kind})"),
            None => "python application".to_owned(),
        },
        Language::Node => "node handler".to_owned(),
        Language::Script => match text.lines().next().and_then(|line| line.strip_prefix("#!")) {
            Some(interpreter) => format!("script, run by {}", interpreter.trim()),
            None => "shell script".to_owned(),
        },
    }
}

/// Whether a script can be run, which the runner would find out later.
fn check_script(path: &Path, handler: Handler<'_>, text: &str) -> Result<(), Failure> {
    let is_shell = handler.file.ends_with(".sh");
    if handler.language != Language::Script || is_shell && !is_program(path) {
        return Ok(());
    }
    if !is_program(path) {
        let text = format!("{} is no program that can be run", path.display());
        return Err(Failure::new(Exit::Data, text).hint(format!("`chmod +x {}`", path.display())));
    }
    if !text.starts_with("#!") && !text.starts_with("\u{7f}ELF") {
        let text = format!("{} does not begin with #!, so nobody knows what runs it", path.display());
        return Err(Failure::new(Exit::Data, text).hint("write `#!/bin/sh`, or the like, in its first line"));
    }
    Ok(())
}

fn none(dir: &Path, file: &str, declared: bool) -> Failure {
    if dir.join("Cargo.toml").exists() {
        let text = format!("{} is a Rust project without `command` in {FILE_NAME}", dir.display());
        let hint = "name how it is built and its program in faas.toml:\n\
                    contract = \"fd\"\nbuild = \"cargo build --release\"\ncommand = [\"./target/release/NAME\"]";
        return Failure::new(Exit::NoInput, text).hint(hint);
    }
    if dir.join("go.mod").exists() {
        let text = format!("{} is a Go module without `command` in {FILE_NAME}", dir.display());
        let hint = "name how it is built and its program in faas.toml:\n\
                    build = \"CGO_ENABLED=0 go build -o server .\"\ncommand = [\"./server\"]";
        return Failure::new(Exit::NoInput, text).hint(hint);
    }
    let text = if declared {
        format!("{} has no {file}, which its {FILE_NAME} needs", dir.display())
    } else {
        format!("{} holds no function: neither {file} nor {FILE_NAME} is there", dir.display())
    };
    Failure::new(Exit::NoInput, text).hint(
        "write `handle` in handler.py or handler.mjs, or name another in faas.toml: handler = \"FILE.py:FUNCTION\"; \
         `faas new` has templates",
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::tests::dir;
    use super::*;
    use crate::cli::detect::detect as detect_in;

    #[test]
    fn each_language_is_found_and_told() {
        for (files, handler, why) in [
            (vec![("handler.mjs", "export default 1")], "handler.mjs", "node handler: there is handler.mjs"),
            (vec![("handler.sh", "echo hello")], "handler.sh", "shell script: there is handler.sh"),
            (
                vec![("main.py", "from fastapi import FastAPI\napp = FastAPI()\n")],
                "main.py:app",
                "python application (ASGI, FastAPI): there is main.py, with `app = FastAPI()`",
            ),
            (
                vec![("wsgi.py", "def application(environ, start_response):\n  pass\n")],
                "wsgi.py:application",
                "python application (WSGI): there is wsgi.py, with `def application`",
            ),
            (
                vec![("package.json", r#"{"main": "./lib/x.js"}"#), ("lib/x.js", "module.exports = 1")],
                "lib/x.js",
                "node handler: there is lib/x.js (package.json: main), which exports something",
            ),
            (
                vec![("index.js", "export default app"), ("faas.toml", "")],
                "index.js",
                "node handler: faas.toml has no `command`, and there is index.js, which exports something",
            ),
            (
                vec![("a.py", "f = 1"), ("faas.toml", "handler = 'a.py:f'")],
                "a.py:f",
                "python application: faas.toml names a.py:f",
            ),
        ] {
            let found = detect_in(dir(&files).path(), &toml::Table::new()).unwrap();
            assert_eq!((found.spec.handler_parts().to_string().as_str(), found.why.as_str()), (handler, why));
            assert_eq!(found.warning, None, "{files:?}");
        }
        let two = detect_in(
            dir(&[("handler.py", "def handle(): 1"), ("handler.js", "")]).path(),
            &toml::Table::new(),
        )
        .unwrap();
        assert!(two.warning.unwrap().contains("handler.js as well"));
    }

    #[test]
    fn a_script_must_say_what_runs_it() {
        let made = dir(&[("handler", "echo")]);
        let file = made.path().join("handler");
        assert!(detect_in(made.path(), &toml::Table::new()).unwrap_err().hint.unwrap().contains("chmod +x"));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(detect_in(made.path(), &toml::Table::new()).unwrap_err().message.contains("#!"));
        fs::write(&file, "#!/usr/bin/perl\n").unwrap();
        let found = detect_in(made.path(), &toml::Table::new()).unwrap();
        assert_eq!(found.why, "script, run by /usr/bin/perl: there is handler");
    }

    #[test]
    fn a_server_that_listens_by_itself_is_told_how_to_be_deployed() {
        let failure =
            detect_in(dir(&[("server.js", "app.listen(80)")]).path(), &toml::Table::new()).unwrap_err();
        assert!(failure.hint.unwrap().contains(r#"command = ["node", "server.js"]"#));
    }
}
