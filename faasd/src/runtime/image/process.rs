//! The process that a root image and a declaration ask for together.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use super::entry::EntryError;
use super::roots::{OWNERS, RootImage};
use super::view::View;
use crate::core::spec::FunctionSpec;
use crate::runtime::bundle::{APP, IMAGE_SEARCH_PATH, USER};

/// Volumes of an image that are made.
const VOLUMES_MAX: usize = 16;

/// Supplementary groups that are taken from an image.
const GROUPS_MAX: usize = 64;

/// A container's first process, as it is inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// The program with its whole path. For a handler only the interpreter.
    pub arguments: Vec<String>,
    /// The image's own environment.
    pub env: Vec<(String, String)>,
    pub cwd: String,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    /// Directories that are empty and can be written to: the image's volumes, and what the function names.
    pub writable: Vec<String>,
}

/// Puts together what is run. `interpreter` is the program that serves a handler, looked for in the image.
///
/// # Errors
/// [`EntryError`], which names what is not there.
pub fn process(
    root: &RootImage,
    code: Option<&Path>,
    spec: &FunctionSpec,
    interpreter: Option<&str>,
) -> Result<Process, EntryError> {
    let view = View { layers: &root.layers };
    let settings = &root.settings;
    let env: Vec<(String, String)> = settings
        .env
        .iter()
        .filter_map(|pair| pair.split_once('='))
        .filter(|(key, value)| !key.is_empty() && !key.contains('\0') && !value.contains('\0'))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let cwd = match (code, settings.working_dir.as_str()) {
        (Some(_), _) => APP,
        (None, "") => "/",
        (None, dir) => dir,
    };
    let is_app = cwd == APP;
    if !is_app && !view.find(Path::new(cwd)).is_some_and(|seen| seen.metadata.is_dir()) {
        return Err(EntryError::WorkingDir(cwd.to_owned()));
    }
    let mut arguments = match interpreter {
        Some(interpreter) => vec![interpreter.to_owned()],
        None if spec.command.is_empty() => [settings.entrypoint.as_slice(), &settings.cmd].concat(),
        None => spec.command.clone(),
    };
    let program = arguments.first_mut().ok_or(EntryError::NoProgram)?;
    let of_image = env.iter().rev().find(|(key, _)| key == "PATH").map(|(_, value)| value);
    let search = spec.env.get("PATH").or(of_image).map_or(IMAGE_SEARCH_PATH, String::as_str);
    *program = resolve(view, code, cwd, search, program)?;
    let (uid, gid, groups) = match settings.user.as_str() {
        "" => (USER, USER, Vec::new()),
        user => user_of(view, user)?,
    };
    let mut writable = BTreeSet::new();
    for place in &spec.writable {
        let place = place_of(view, place).ok_or_else(|| EntryError::Writable(place.clone()))?;
        writable.insert(place);
    }
    // What of an image's volumes cannot be had is as the image has it.
    let volumes = settings.volumes.iter().take(VOLUMES_MAX);
    writable.extend(volumes.filter_map(|volume| place_of(view, volume)));
    let writable = writable.into_iter().collect();
    Ok(Process { arguments, env, cwd: cwd.to_owned(), uid, gid, groups, writable })
}

/// A program's path inside, if it can be executed.
fn resolve(
    view: View<'_>,
    code: Option<&Path>,
    cwd: &str,
    search: &str,
    program: &str,
) -> Result<String, EntryError> {
    let path = Path::new(program);
    let places: Vec<PathBuf> = match (path.is_absolute(), program.contains('/')) {
        (true, _) => vec![path.to_owned()],
        (false, true) => vec![Path::new(cwd).join(path)],
        // A plain name may be one of the code's own files, as without an image.
        (false, false) => {
            let own = code.map(|_| Path::new(APP).join(path));
            own.into_iter().chain(search.split(':').map(|dir| Path::new("/").join(dir).join(path))).collect()
        }
    };
    for place in places {
        // Without the `.` of `./program`.
        let place: PathBuf = place.components().collect();
        let metadata = match (code, in_code(&place)) {
            (Some(code), Some(inside)) => super::entry::in_directory(code, &inside),
            _ => view.find(&place).map(|seen| seen.metadata).map(|m| (m.is_file(), m.permissions().mode())),
        };
        match metadata {
            None => {}
            Some((false, _)) if !program.contains('/') => {}
            Some((false, _)) => return Err(EntryError::NoFile(program.to_owned())),
            Some((true, mode)) if mode & 0o111 == 0 => {
                return Err(EntryError::NotExecutable(program.to_owned()));
            }
            Some((true, _)) => return Ok(place.to_string_lossy().into_owned()),
        }
    }
    Err(EntryError::NotInImage(program.to_owned()))
}

/// What of a path is below `/app`, where the code hides what the image has.
fn in_code(path: &Path) -> Option<PathBuf> {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => drop(plain.pop()),
            _ => {}
        }
    }
    plain.strip_prefix(APP.trim_start_matches('/')).ok().map(Path::to_owned)
}

/// `USER`, `USER:GROUP`, by names that the image's own files know, or by numbers.
fn user_of(view: View<'_>, text: &str) -> Result<(u32, u32, Vec<u32>), EntryError> {
    let unknown = || EntryError::User(text.to_owned());
    let number = |text: &str| text.parse::<u32>().ok().filter(|id| *id < OWNERS);
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let passwd = view.text("etc/passwd").unwrap_or_default();
    let known = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| {
        fields.first() == Some(&user) || (fields.get(2) == Some(&user) && number(user).is_some())
    });
    let field = |index: usize| known.as_ref().and_then(|fields| number(fields.get(index)?));
    let uid = field(2).or_else(|| number(user)).ok_or_else(unknown)?;
    let groups = view.text("etc/group").unwrap_or_default();
    let lines: Vec<Vec<&str>> = groups.lines().map(|line| line.split(':').collect()).collect();
    let gid = match group {
        Some(group) => {
            let named = lines.iter().find(|fields| fields.first() == Some(&group));
            named.and_then(|fields| number(fields.get(2)?)).or_else(|| number(group)).ok_or_else(unknown)?
        }
        None => field(3).unwrap_or(0),
    };
    let name = known.as_ref().and_then(|fields| fields.first()).copied().unwrap_or(user);
    // A group that is asked for is the only one.
    let more = lines.iter().filter(|fields| {
        group.is_none() && fields.get(3).is_some_and(|members| members.split(',').any(|m| m == name))
    });
    let more = more.filter_map(|fields| number(fields.get(2)?)).filter(|id| *id != gid).take(GROUPS_MAX);
    Ok((uid, gid, more.collect()))
}

/// A place that can be mounted on: a plain absolute path to a directory of the image, none that is mounted anyway.
fn place_of(view: View<'_>, place: &str) -> Option<String> {
    let path = Path::new(place);
    let is_plain = path.is_absolute()
        && path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    let is_taken = ["/", APP, "/dev", "/proc", "/sys", "/run", "/tmp"]
        .iter()
        .any(|taken| path == Path::new(taken) || (*taken != "/" && path.starts_with(taken)));
    // Without a link on the way: what runc mounts on is what was looked at.
    let mut walked = PathBuf::new();
    let is_direct = path.iter().skip(1).all(|name| {
        walked.push(name);
        view.find_last(&walked).is_some_and(|seen| seen.metadata.is_dir())
    });
    (is_plain && !is_taken && is_direct).then(|| path.components().collect::<PathBuf>().display().to_string())
}
