//! What a handler depends on: installed here, once for each set, and uploaded apart from its code.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use super::pack::pack_all;
use super::ui::{printable, size, took};
use super::{Context, Exit, Failure};
use crate::core::spec::Language;
use crate::runtime::runners::{NODE, PYTHON, is_program};

/// Goes into every key: another way of installing makes another set.
const FORMAT: &str = "2";

const REQUIREMENTS: &str = "requirements.txt";
const PACKAGE: &str = "package.json";
const LOCKS: [&str; 2] = ["package-lock.json", "npm-shrinkwrap.json"];

/// How deep `-r` may lead from one file of requirements to others.
const DEPTH_MAX: usize = 8;

/// Sets that were not used for so long are removed.
const AGE_MAX: Duration = Duration::from_secs(30 * 86_400);

/// How much of an installer's output a failure shows.
const LINES_SHOWN: usize = 15;

/// The most of an installer's output that is kept.
const LINES_MAX: usize = 1_000;

/// What an installer is run on.
#[derive(Debug)]
struct Set {
    language: Language,
    /// Where the files below are.
    dir: PathBuf,
    /// Copied beside the installer, and hashed.
    files: Vec<(PathBuf, Vec<u8>)>,
    /// For people.
    what: String,
    key: String,
}

/// An installed set.
#[derive(Debug)]
pub struct Installed {
    /// What is mounted.
    pub tree: PathBuf,
    /// Where the digest of the last upload is.
    digest: PathBuf,
    /// Removed at the end, if there is no place to keep it.
    _temporary: Option<tempfile::TempDir>,
}

/// Where a set is, or will be.
struct Located {
    set: Set,
    installer: Vec<String>,
    home: PathBuf,
    place: PathBuf,
    installed: Installed,
}

async fn locate(context: &Context, dir: &Path, language: Language) -> Result<Option<Located>, Failure> {
    let Some(mut set) = (match language {
        Language::Python => requirements(dir)?,
        Language::Node => packages(context, dir)?,
        Language::Script => None,
    }) else {
        return Ok(None);
    };
    let (interpreter, installer) = match language {
        Language::Python => (
            identity(PYTHON, &["-c", "import sys, sysconfig; print(sys.version, sysconfig.get_platform())"])
                .await?,
            pip().await?,
        ),
        _ => (
            identity(NODE, &["-p", "process.version + process.arch + process.versions.modules"]).await?,
            npm()?,
        ),
    };
    set.key = key(&set, &interpreter);
    let (home, temporary) = match cache() {
        Some(home) => (home, None),
        None => {
            let made = tempfile::tempdir().map_err(|e| Failure::file("make", &env::temp_dir(), &e))?;
            (made.path().to_owned(), Some(made))
        }
    };
    let place = home.join(&set.key);
    let installed = Installed {
        tree: place.join(tree_name(language)),
        digest: place.join("digest"),
        _temporary: temporary,
    };
    Ok(Some(Located { set, installer, home, place, installed }))
}

/// The digest of what the function in `dir` depends on: `Some(None)` if that was never uploaded from here, and `None` if
/// it is nothing.
///
/// # Errors
/// [`Failure`].
pub async fn digest(
    context: &Context,
    dir: &Path,
    language: Language,
) -> Result<Option<Option<String>>, Failure> {
    let found = locate(context, dir, language).await?;
    Ok(found
        .map(|found| fs::read_to_string(&found.installed.digest).ok().map(|digest| digest.trim().to_owned())))
}

/// Installs what the function in `dir` depends on, unless that was done before. `None` if that is nothing.
///
/// # Errors
/// [`Failure`], with what the installer said.
pub async fn install(
    context: &Context,
    dir: &Path,
    language: Language,
) -> Result<Option<Installed>, Failure> {
    let Some(Located { set, installer, home, place, installed }) = locate(context, dir, language).await?
    else {
        return Ok(None);
    };
    if installed.tree.is_dir() {
        context.ui.note(&format!("dependencies: {}, installed already", set.what));
        // Says that it is in use.
        let _ = fs::File::open(&place).and_then(|dir| dir.set_modified(SystemTime::now()));
        return Ok(Some(installed));
    }
    fs::create_dir_all(&home).map_err(|e| Failure::file("make", &home, &e))?;
    prune(&home);
    let draft = tempfile::Builder::new().prefix(".draft-").tempdir_in(&home);
    let draft = draft.map_err(|e| Failure::file("write to", &home, &e))?;
    let began = std::time::Instant::now();
    run(context, &set, &installer, draft.path()).await?;
    context.ui.note(&format!("dependencies: {}, installed in {}", set.what, took(began.elapsed())));
    let whole = home.join(format!("{}.draft-{}", set.key, std::process::id()));
    fs::create_dir_all(&whole)
        .and_then(|()| fs::rename(draft.path().join(tree_name(language)), whole.join(tree_name(language))))
        .and_then(|()| match fs::rename(&whole, &place) {
            // Somebody else was faster with the same set.
            Err(_) if place.is_dir() => fs::remove_dir_all(&whole),
            other => other,
        })
        .map_err(|e| Failure::file("keep", &place, &e))?;
    Ok(Some(installed))
}

impl Installed {
    /// Uploads the set, unless the daemon has it. Returns its digest.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn upload(&self, context: &Context) -> Result<String, Failure> {
        if let Ok(digest) = fs::read_to_string(&self.digest)
            && context.client.has_image(digest.trim()).await?
        {
            return Ok(digest.trim().to_owned());
        }
        let packed = pack_all(&self.tree)?;
        let bar = context.ui.bar("uploading dependencies", packed.bytes);
        let archive = bar.wrap_async_read(tokio::fs::File::from_std(packed.archive));
        let image = context.client.add_image(archive, packed.bytes).await;
        bar.finish_and_clear();
        let image = image?;
        context.ui.note(&format!("dependencies: {} files, {} uploaded", packed.files, size(image.bytes)));
        // Without it, the next deploy uploads again.
        let _ = fs::write(&self.digest, &image.digest);
        Ok(image.digest)
    }
}

fn requirements(dir: &Path) -> Result<Option<Set>, Failure> {
    let mut files = Vec::new();
    gather(dir, Path::new(REQUIREMENTS), 0, &mut files)?;
    let lines: usize = files.iter().map(|(_, text)| requirement_lines(text).count()).sum();
    if lines == 0 {
        return Ok(None);
    }
    let what = format!("{lines} in {REQUIREMENTS}");
    Ok(Some(Set { language: Language::Python, dir: dir.to_owned(), files, what, key: String::new() }))
}

fn requirement_lines(text: &[u8]) -> impl Iterator<Item = &str> {
    let text = std::str::from_utf8(text).unwrap_or_default();
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Reads a file of requirements, and those that it names.
fn gather(dir: &Path, file: &Path, depth: usize, files: &mut Vec<(PathBuf, Vec<u8>)>) -> Result<(), Failure> {
    let path = dir.join(file);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound && depth == 0 => return Ok(()),
        Err(e) => return Err(Failure::file("read", &path, &e)),
    };
    if depth > DEPTH_MAX || files.iter().any(|(known, _)| known == file) {
        return Ok(());
    }
    files.push((file.to_owned(), text.clone()));
    for line in requirement_lines(&text) {
        let local = ["-e", "--editable", ".", "file:"].iter().any(|local| line.starts_with(local));
        if local {
            let text = format!("{}: '{line}' is on this machine alone", path.display());
            return Err(Failure::new(Exit::Data, text).hint(
                "put the package beside the handler, where it can be imported, or name a released version",
            ));
        }
        let named =
            ["-r", "--requirement", "-c", "--constraint"].iter().find_map(|flag| line.strip_prefix(flag));
        if let Some(named) = named {
            let named = named.trim_start_matches(['=', ' ', '\t']);
            gather(dir, &file.parent().unwrap_or(Path::new("")).join(named), depth + 1, files)?;
        }
    }
    Ok(())
}

fn packages(context: &Context, dir: &Path) -> Result<Option<Set>, Failure> {
    let path = dir.join(PACKAGE);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Failure::file("read", &path, &e)),
    };
    let package: serde_json::Value = serde_json::from_slice(&text)
        .map_err(|e| Failure::new(Exit::Data, format!("{}: {e}", path.display())))?;
    let count = |kind: &str| package[kind].as_object().map_or(0, serde_json::Map::len);
    let count = count("dependencies") + count("optionalDependencies");
    if count == 0 {
        return Ok(None);
    }
    let mut files = vec![(PathBuf::from(PACKAGE), text)];
    for file in LOCKS.iter().chain(&[".npmrc"]) {
        if let Ok(text) = fs::read(dir.join(file)) {
            files.push((file.into(), text));
        }
    }
    if !has_lock(&files) {
        context.ui.warn(
            "there is no package-lock.json, so versions are what npm finds today: `npm install` makes one",
        );
    }
    let what = format!("{count} in {PACKAGE}");
    Ok(Some(Set { language: Language::Node, dir: dir.to_owned(), files, what, key: String::new() }))
}

fn has_lock(files: &[(PathBuf, Vec<u8>)]) -> bool {
    files.iter().any(|(file, _)| LOCKS.iter().any(|lock| file == Path::new(lock)))
}

fn key(set: &Set, interpreter: &str) -> String {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(FORMAT.as_bytes());
    part(set.language.as_str().as_bytes());
    part(interpreter.as_bytes());
    for (file, text) in &set.files {
        part(file.as_os_str().as_encoded_bytes());
        part(text);
    }
    let digest = hash.finalize();
    let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{hex}", set.language.as_str())
}

fn cache() -> Option<PathBuf> {
    let home = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = home("XDG_CACHE_HOME").or_else(|| Some(home("HOME")?.join(".cache")))?;
    Some(cache.join("faas/dependencies"))
}

/// Removes sets that were not used for long, and what interrupted installations left.
fn prune(home: &Path) {
    for entry in fs::read_dir(home).into_iter().flatten().flatten() {
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        if modified.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > AGE_MAX)) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The interpreter that the function will run on.
async fn identity(program: &str, arguments: &[&str]) -> Result<String, Failure> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().await;
    match output {
        Ok(output) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        }
        _ => Err(Failure::new(
            Exit::Unavailable,
            format!("{program} cannot be run, for which packages are to be installed"),
        )
        .hint(match program {
            PYTHON => "apt install python3",
            _ => "apt install nodejs",
        })),
    }
}

/// An argument vector that is pip for [`PYTHON`]: its own, or another's that can install for it.
async fn pip() -> Result<Vec<String>, Failure> {
    for vector in [&[PYTHON, "-m", "pip"][..], &["python3", "-m", "pip", "--python", PYTHON]] {
        let found = Command::new(vector[0]).args(&vector[1..]).arg("--version").output().await;
        if found.is_ok_and(|output| output.status.success()) {
            return Ok(vector.iter().map(|&part| part.to_owned()).collect());
        }
    }
    let text = format!("there is a {REQUIREMENTS}, and no pip to install it with");
    Err(Failure::new(Exit::Unavailable, text).hint("apt install python3-pip"))
}

fn npm() -> Result<Vec<String>, Failure> {
    let path = env::var_os("PATH").unwrap_or_default();
    match env::split_paths(&path).map(|dir| dir.join("npm")).find(|npm| is_program(npm)) {
        Some(npm) => Ok(vec![npm.to_string_lossy().into_owned()]),
        None => {
            let text = format!("{PACKAGE} has dependencies, and there is no npm to install them with");
            Err(Failure::new(Exit::Unavailable, text).hint("apt install npm"))
        }
    }
}

/// What the installed tree is called. node looks for packages in directories of this name, above each file of theirs.
const fn tree_name(language: Language) -> &'static str {
    match language {
        Language::Node => "node_modules",
        Language::Python | Language::Script => "packages",
    }
}

/// Runs the installer in `draft`.
async fn run(context: &Context, set: &Set, installer: &[String], draft: &Path) -> Result<(), Failure> {
    let mut command = Command::new(&installer[0]);
    command.args(&installer[1..]);
    if set.language == Language::Python {
        command.args(["install", "--no-compile", "--no-input", "--disable-pip-version-check"]);
        command.args(["--no-warn-script-location", "--root-user-action=ignore", "--target"]);
        command.arg(draft.join(tree_name(set.language))).args(["-r", REQUIREMENTS]).current_dir(&set.dir);
    } else {
        for (file, text) in &set.files {
            let path = draft.join(file);
            fs::write(&path, text).map_err(|e| Failure::file("write", &path, &e))?;
        }
        command.arg(if has_lock(&set.files) { "ci" } else { "install" });
        // What packages would run on being installed could do here whatever the user can.
        command.args(["--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=http"]);
        command.current_dir(draft);
    }
    let program =
        Path::new(&installer[0]).file_name().unwrap_or(OsStr::new("pip")).to_string_lossy().into_owned();
    let name = if set.language == Language::Python { "pip".to_owned() } else { program };
    let spinner = context.ui.spinner(format!("{name}: installing {}", set.what));
    let done =
        follow(command, |line| spinner.set_message(format!("{name}: {}", printable(line.trim())))).await;
    spinner.finish_and_clear();
    let (success, lines) =
        done.map_err(|e| Failure::new(Exit::Failed, format!("{name} cannot be run: {e}")))?;
    // Without any dependency that applies here there is no directory.
    fs::create_dir_all(draft.join(tree_name(set.language))).map_err(|e| Failure::file("make", draft, &e))?;
    if success {
        return Ok(());
    }
    let said: Vec<&str> =
        lines.iter().filter(|line| !line.contains("npm http")).map(String::as_str).collect();
    let said = said[said.len().saturating_sub(LINES_SHOWN)..].join("\n");
    let remedy = remedy(&said, set.language);
    Err(Failure::new(Exit::Failed, format!("{name} could not install {}", set.what))
        .hint(format!("{said}\n{remedy}")))
}

/// What to do about an installer's failure.
fn remedy(said: &str, language: Language) -> &'static str {
    let says = |signs: &[&str]| signs.iter().any(|sign| said.contains(sign));
    if says(&["can only install packages when your package.json", "in sync", "EUSAGE"]) {
        "package-lock.json is not that of package.json: `npm install` mends it"
    } else if says(&["No matching distribution", "E404", "ETARGET"]) {
        match language {
            Language::Python => {
                "no such package or version for this python: see its name and version in requirements.txt"
            }
            _ => "no such package or version: see its name and version in package.json",
        }
    } else if says(&[
        "Could not resolve host",
        "Failed to establish a new connection",
        "Name or service",
        "ENOTFOUND",
        "ECONNREFUSED",
        "EAI_AGAIN",
    ]) {
        "the registry cannot be reached from here"
    } else if says(&["Failed building wheel", "error: command 'gcc'", "error: command 'cc'"]) {
        "a package is compiled here, which needs its build tools: `apt install build-essential python3-dev`"
    } else {
        "its output above says why"
    }
}

/// Runs a command to its end, and shows each line of its output; returns whether it succeeded, and the last lines.
pub async fn follow(mut command: Command, show: impl Fn(&str)) -> io::Result<(bool, Vec<String>)> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn()?;
    let stdout = child.stdout.take().map(|out| BufReader::new(out).split(b'\n'));
    let stderr = child.stderr.take().map(|out| BufReader::new(out).split(b'\n'));
    let (Some(mut stdout), Some(mut stderr)) = (stdout, stderr) else {
        return Err(io::ErrorKind::BrokenPipe.into());
    };
    let (mut lines, mut open) = (Vec::new(), (true, true));
    while open != (false, false) {
        let line = tokio::select! {
            line = stdout.next_segment(), if open.0 => { open.0 = matches!(line, Ok(Some(_))); line? }
            line = stderr.next_segment(), if open.1 => { open.1 = matches!(line, Ok(Some(_))); line? }
        };
        if let Some(line) = line {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            show(&line);
            lines.push(line);
            if lines.len() > LINES_MAX {
                lines.drain(..LINES_MAX / 2);
            }
        }
    }
    Ok((child.wait().await?.success(), lines))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(files: &[(&str, &str)]) -> Result<Option<Set>, Failure> {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in files {
            fs::write(dir.path().join(file), text).unwrap();
        }
        requirements(dir.path())
    }

    #[test]
    fn requirements_are_read_with_those_they_name() {
        assert!(set(&[]).unwrap().is_none());
        assert!(set(&[("requirements.txt", "# nothing\n\n")]).unwrap().is_none());
        let found =
            set(&[("requirements.txt", "-r more.txt\na==1\n"), ("more.txt", "b==2\n-r requirements.txt")]);
        let found = found.unwrap().unwrap();
        assert_eq!(found.files.len(), 2);
        let other =
            set(&[("requirements.txt", "-r more.txt\na==1\n"), ("more.txt", "b==3\n-r requirements.txt")]);
        let other = other.unwrap().unwrap();
        assert_ne!(key(&found, "3.11"), key(&other, "3.11"));
        assert_ne!(key(&found, "3.11"), key(&found, "3.12"));
        for local in ["-e .", "./x", "file:///x"] {
            let failure = set(&[("requirements.txt", local)]).unwrap_err();
            assert!(failure.message.contains("on this machine alone"), "{failure}");
        }
        assert_eq!(set(&[("requirements.txt", "-r nothing.txt")]).unwrap_err().exit, Exit::NoInput);
    }

    #[tokio::test]
    async fn an_installer_is_followed_to_its_end() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two >&2; exit 3"]);
        let (success, mut lines) = follow(command, |_| {}).await.unwrap();
        lines.sort();
        assert_eq!((success, lines), (false, vec!["one".to_owned(), "two".to_owned()]));
    }
}
