//! What a directory holds, found out before anything is sent: every mistake that can be seen here is told here.

mod handler;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use super::{Exit, Failure};
use crate::core::spec::{Contract, FILE_NAME, FunctionSpec, SpecError, merge};

/// What will be deployed, and why it is taken for that.
#[derive(Debug, PartialEq)]
pub struct Detected {
    pub spec: FunctionSpec,
    /// A sentence for people.
    pub why: String,
    /// Something that looks wrong but need not be.
    pub warning: Option<String>,
    /// The program, relative to the directory: it is packed whatever the ignore files say.
    pub program: Option<PathBuf>,
    /// Whether there is anything to send: a function with an image may be all declaration.
    pub has_code: bool,
}

/// What an image's own program is taken for.
const IMAGE_CONTRACT: Contract = Contract::Port;

/// A function that is nothing but an image.
///
/// # Errors
/// [`Failure`], if it cannot be declared like this.
pub fn detect_image(over: &toml::Table) -> Result<Detected, Failure> {
    let mut table = over.clone();
    table.entry("contract").or_insert_with(|| IMAGE_CONTRACT.as_str().into());
    let spec = FunctionSpec::from_toml(&table.to_string()).map_err(|e| refused(&e, over))?;
    let why = format!("image: what {} itself runs", spec.image.as_deref().unwrap_or_default());
    Ok(Detected { spec, why, warning: None, program: None, has_code: false })
}

/// Looks at a directory, whose file says how its code is run. What `over` says comes before what the file says.
///
/// # Errors
/// [`Failure`] with the remedy.
pub fn detect(dir: &Path, over: &toml::Table) -> Result<Detected, Failure> {
    if !dir.is_dir() {
        let hint = "name the directory that holds the function: `faas deploy NAME DIR`";
        return Err(
            Failure::new(Exit::NoInput, format!("there is no directory {}", dir.display())).hint(hint)
        );
    }
    let (text, declared) = declaration(dir, over)?;
    let mut spec = read(&text).map_err(|e| refused(&e, over))?;
    let has_contract = has_contract(&text);
    if spec.image.is_some() {
        if !has_contract && spec.handler.is_none() && !handler::is_there(dir) {
            spec.contract = IMAGE_CONTRACT;
        }
        if spec.contract != Contract::Handler {
            return in_image(dir, spec);
        }
    }
    match spec.contract {
        Contract::Handler => handler::detect(dir, spec, declared),
        Contract::Fd | Contract::Port | Contract::ListenFds => program(dir, spec),
    }
}

/// A program that may be the code's or the image's: which of them has it, the daemon will see.
fn in_image(dir: &Path, spec: FunctionSpec) -> Result<Detected, Failure> {
    let image = spec.image.as_deref().unwrap_or_default();
    let entries = fs::read_dir(dir).map_err(|e| Failure::file("read", dir, &e))?;
    let has_code = entries
        .flatten()
        .any(|entry| entry.file_name() != FILE_NAME && entry.file_name() != super::pack::IGNORE_FILE);
    let parts = |program: &String| -> Option<PathBuf> {
        Path::new(program)
            .components()
            .filter(|part| *part != Component::CurDir)
            .map(|part| matches!(part, Component::Normal(_)).then_some(part))
            .collect()
    };
    let program = spec.command.first().and_then(parts).filter(|program| dir.join(program).is_file());
    let runs = match spec.command.is_empty() {
        true => "what it runs by itself".to_owned(),
        false => spec.command.join(" "),
    };
    let why = format!("image: {image} is to run {runs}");
    Ok(Detected { why, warning: None, program, has_code, spec })
}

/// Reads `faas.toml`. A `command` alone means a server.
fn read(text: &str) -> Result<FunctionSpec, SpecError> {
    match FunctionSpec::from_toml(text) {
        Err(SpecError::Misplaced { contract: "handler", .. }) if !has_contract(text) => {
            FunctionSpec::from_toml(&format!("contract = \"port\"\n{text}"))
        }
        other => other,
    }
}

fn has_contract(text: &str) -> bool {
    text.parse::<toml::Table>().is_ok_and(|table| table.contains_key("contract"))
}

fn program(dir: &Path, spec: FunctionSpec) -> Result<Detected, Failure> {
    let command = spec.command.first().map_or("", String::as_str);
    let kind = match spec.contract {
        Contract::Port => format!("server on port {}", spec.listen_port()),
        Contract::ListenFds => "server with an inherited listener".to_owned(),
        Contract::Handler | Contract::Fd => "program that is handed connections".to_owned(),
    };
    let why = format!("{kind}: {FILE_NAME} has `command`, {}", spec.command.join(" "));
    let program = Path::new(command);
    // An absolute path, or a name that is looked up, is inside the container and not here.
    if program.is_absolute() || !command.contains('/') {
        return Ok(Detected { spec, why, warning: None, program: None, has_code: true });
    }
    if program.components().any(|part| part == Component::ParentDir) {
        let text = format!("the program {command} is outside of {}", dir.display());
        return Err(Failure::new(Exit::Data, text).hint("only what is inside the directory is deployed"));
    }
    let program: PathBuf = program.components().filter(|part| *part != Component::CurDir).collect();
    let path = dir.join(&program);
    let metadata = match fs::metadata(&path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let failure = Failure::new(Exit::NoInput, format!("the program {} is not there", path.display()));
            return Err(if dir.join("Cargo.toml").exists() {
                failure.hint(format!("build it first: `{}`", cargo_build(dir, &program)))
            } else {
                failure.hint(format!("`command` in {FILE_NAME} is relative to the function's directory"))
            });
        }
        Err(e) => return Err(Failure::file("use", &path, &e)),
    };
    if !metadata.is_file() || metadata.permissions().mode() & 0o111 == 0 {
        let text = format!("{} is no program that can be run", path.display());
        return Err(Failure::new(Exit::Data, text).hint(format!("`chmod +x {}`", path.display())));
    }
    Ok(Detected { spec, why, warning: None, program: Some(program), has_code: true })
}

/// What the function's file has as `build`.
///
/// # Errors
/// [`Failure`] if the file cannot be understood; that there is none is [`detect`]'s business.
pub fn build_command(dir: &Path, over: &toml::Table) -> Result<Option<String>, Failure> {
    let (text, _) = declaration(dir, over)?;
    Ok(read(&text).map_err(|e| refused(&e, over))?.build)
}

/// The function's file with what comes before it, and whether there is a file.
fn declaration(dir: &Path, over: &toml::Table) -> Result<(String, bool), Failure> {
    let file = dir.join(FILE_NAME);
    let (text, declared) = match fs::read_to_string(&file) {
        Ok(text) => (text, true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => (String::new(), false),
        Err(e) => return Err(Failure::file("read", &file, &e)),
    };
    if over.is_empty() {
        return Ok((text, declared));
    }
    // What is wrong with the file itself is told with the place in it.
    if let Err(error @ SpecError::Syntax(_)) = read(&text) {
        return Err(refused(&error, &toml::Table::new()));
    }
    let mut table: toml::Table = text.parse().unwrap_or_default();
    merge(&mut table, over.clone());
    Ok((table.to_string(), declared))
}

fn refused(error: &SpecError, over: &toml::Table) -> Failure {
    let failure = Failure::new(Exit::Data, error.to_string());
    if over.is_empty() {
        return failure;
    }
    let keys: Vec<&str> = over.keys().map(String::as_str).collect();
    failure.hint(format!("that is {FILE_NAME} with what was given beside it: {}", keys.join(", ")))
}

/// The cargo call that would make `target/[TRIPLE/]PROFILE/NAME`.
fn cargo_build(dir: &Path, program: &Path) -> String {
    let parts: Vec<&str> = program.iter().filter_map(|part| part.to_str()).collect();
    let mut command = String::from("cargo build");
    let (profile, triple) = match parts.as_slice() {
        ["target", triple, profile, _] => (*profile, Some(*triple)),
        ["target", profile, _] => (*profile, None),
        _ => ("release", None),
    };
    match profile {
        "debug" => {}
        "release" => command.push_str(" --release"),
        other => command.push_str(&format!(" --profile {other}")),
    }
    if let Some(triple) = triple {
        command.push_str(&format!(" --target {triple}"));
    }
    if dir != Path::new(".") {
        command.push_str(&format!(" --manifest-path {}", dir.join("Cargo.toml").display()));
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn a_handler_is_found() {
        let found =
            detect(dir(&[("handler.py", "def handle(e, c): ...")]).path(), &toml::Table::new()).unwrap();
        assert_eq!((found.why.as_str(), found.warning), ("python handler: there is handler.py", None));
        let found =
            detect(dir(&[("handler.py", "def other(e, c): ...")]).path(), &toml::Table::new()).unwrap();
        assert!(found.warning.unwrap().contains("`handle`"));
    }

    #[test]
    fn a_command_means_a_program() {
        let made = dir(&[("faas.toml", "command = ['./target/release/x', '-v']"), ("target/release/x", "")]);
        assert_eq!(
            detect(made.path(), &toml::Table::new()).unwrap_err().exit,
            Exit::Data,
            "it cannot be run yet"
        );
        let program = made.path().join("target/release/x");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let found = detect(made.path(), &toml::Table::new()).unwrap();
        assert_eq!(found.spec.contract, Contract::Port);
        assert_eq!(found.program.as_deref(), Some(Path::new("target/release/x")));
    }

    #[test]
    fn what_is_missing_is_named_with_the_remedy() {
        for (files, exit, message, hint) in [
            (vec![], Exit::NoInput, "holds no function", "handler.py"),
            (vec![("faas.toml", "handler = 'a.py:f'")], Exit::NoInput, "no a.py", "FILE.py:FUNCTION"),
            (vec![("Cargo.toml", "")], Exit::NoInput, "Rust project", "cargo build --release"),
            (
                vec![
                    ("Cargo.toml", ""),
                    ("faas.toml", "command = ['./target/x86_64-unknown-linux-musl/release/x']"),
                ],
                Exit::NoInput,
                "is not there",
                "cargo build --release --target x86_64-unknown-linux-musl --manifest-path",
            ),
            (vec![("faas.toml", "command = ['./x']")], Exit::NoInput, "is not there", "relative to"),
            (vec![("faas.toml", "command = ['../x']")], Exit::Data, "outside", "inside"),
            (vec![("faas.toml", "comand = ['x']")], Exit::Data, "did you mean `command`", ""),
            (
                vec![("faas.toml", "contract = 'handler'\ncommand = ['x']")],
                Exit::Data,
                "does not go with the contract `handler`",
                "",
            ),
        ] {
            let failure = detect(dir(&files).path(), &toml::Table::new()).unwrap_err();
            assert_eq!(failure.exit, exit, "{files:?}: {failure}");
            assert!(failure.message.contains(message), "{files:?}: {failure}");
            assert!(failure.hint.unwrap_or_default().contains(hint), "{files:?}");
        }
        assert_eq!(detect(Path::new("/nonexistent"), &toml::Table::new()).unwrap_err().exit, Exit::NoInput);
    }
}
