//! What is run of the code, and whether it is there.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Component, Path};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::ENTRIES_MAX;
use crate::core::spec::{Contract, FunctionSpec};
use crate::runtime::bundle;

/// Where plain names are looked for that are not in the code: servers are often in the second.
const SEARCH: [&str; 2] = ["/usr/bin", "/usr/sbin"];

/// Why code cannot be run as declared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    #[error("there is no '{file}' in the code{hint}")]
    Missing { file: String, hint: String },
    #[error("cannot look for '{file}' in the code")]
    Unseen { file: String, source: Errno },
    #[error("'{0}' is no regular file")]
    NoFile(String),
    #[error("'{0}' is not executable: `chmod +x {0}`, then deploy again")]
    NotExecutable(String),
    #[error("'{0}' is not there inside a container, which has the code at /app and the host's /usr alone")]
    NotInside(String),
    #[error(
        "a script is served over the host's /usr, and not in an image; run it by a server of the image's own, with the \
         contract `port`"
    )]
    ScriptInImage,
    #[error("the code at {0} is gone; deploy it again")]
    Gone(String),
    #[error("'{0}' is not in the image: look what is, or name another program in `command`")]
    NotInImage(String),
    #[error("there is no code, and no image to run in its place")]
    NoCode,
    #[error("the image has neither Entrypoint nor Cmd: say what is run, `command = [\"/path/to/program\"]`")]
    NoProgram,
    #[error("the image's user '{0}' is not known in its /etc/passwd or /etc/group")]
    User(String),
    #[error(
        "`writable` names {0}, which cannot be: name directories of the image, without links on the way and outside of \
         /app, /dev, /proc, /run, /sys and /tmp"
    )]
    Writable(String),
    #[error("the image's working directory {0} is not in it")]
    WorkingDir(String),
}

/// Checks that the code has what the declaration runs. Of a function with a `command` it returns the argument vector as
/// it is inside a container; of a handler, whose runner is not its own, an empty one.
///
/// # Errors
/// [`EntryError`], which names the file and, if there is one like it, the one that may be meant.
pub fn entry_point(image: &Path, spec: &FunctionSpec) -> Result<Vec<String>, EntryError> {
    let opened = rustix::fs::open(image, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let root = opened.map_err(|source| match source {
        Errno::NOENT => EntryError::Gone(image.display().to_string()),
        source => EntryError::Unseen { file: image.display().to_string(), source },
    })?;
    match (spec.contract, spec.command.split_first()) {
        (Contract::Handler, _) => {
            let file = spec.handler_parts().file;
            match find(&root, Path::new(file))? {
                None => Err(missing(image, file)),
                Some(stat) if !is_file(&stat) => Err(EntryError::NoFile(file.to_owned())),
                Some(_) => Ok(Vec::new()),
            }
        }
        (_, None) => Err(missing(image, "")),
        (_, Some((program, rest))) => {
            let program = resolve(image, &root, program)?;
            Ok([&[program], rest].concat())
        }
    }
}

/// A program's path inside: relative ones and plain names are looked for in the code, then plain names on the search
/// path.
fn resolve(image: &Path, root: &impl AsFd, program: &str) -> Result<String, EntryError> {
    let path = Path::new(program);
    let in_code = match path.strip_prefix(bundle::APP) {
        Ok(path) => Some(path),
        Err(_) if path.is_relative() => Some(path),
        Err(_) => None,
    };
    if let Some(in_code) = in_code {
        if let Some(stat) = find(root, in_code)? {
            return executable(&stat, program)
                .map(|()| Path::new(bundle::APP).join(in_code.strip_prefix(".").unwrap_or(in_code)))
                .map(|path| path.to_string_lossy().into_owned());
        }
        if program.contains('/') {
            return Err(missing(image, program));
        }
    }
    if path.is_absolute() {
        let absent = || EntryError::NotInside(program.to_owned());
        executable(&on_host(path).ok_or_else(absent)?, program)?;
        return Ok(program.to_owned());
    }
    for dir in SEARCH {
        let inside = Path::new(dir).join(path);
        if let Some(stat) = on_host(&inside) {
            return executable(&stat, program).map(|()| inside.to_string_lossy().into_owned());
        }
    }
    Err(missing(image, program))
}

/// What a path inside is on the host, whose /usr is the container's; /bin, /sbin and /lib are links into it there.
fn on_host(inside: &Path) -> Option<Stat> {
    let path = match ["/bin", "/sbin", "/lib", "/lib64"].iter().find(|dir| inside.starts_with(dir)) {
        Some(_) => Path::new("/usr").join(inside.strip_prefix("/").unwrap_or(inside)),
        None => inside.to_owned(),
    };
    let is_seen = path.starts_with("/usr") && !path.starts_with("/usr/local");
    is_seen.then(|| rustix::fs::stat(&path).ok()).flatten()
}

/// A file in the code, through links, as a container sees it.
fn find(root: &impl AsFd, path: &Path) -> Result<Option<Stat>, EntryError> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let found = rustix::fs::openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT);
    match found.and_then(rustix::fs::fstat) {
        Ok(stat) => Ok(Some(stat)),
        // That nothing could be opened says nothing of the code.
        Err(source @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::IO)) => {
            Err(EntryError::Unseen { file: path.display().to_string(), source })
        }
        Err(_) => Ok(None),
    }
}

/// Whether a file in the code is a regular one, and its mode; `None` if it is not there.
pub(super) fn in_directory(code: &Path, path: &Path) -> Option<(bool, u32)> {
    let root =
        rustix::fs::open(code, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    find(&root, path).ok()?.map(|stat| (is_file(&stat), stat.st_mode))
}

fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

fn executable(stat: &Stat, program: &str) -> Result<(), EntryError> {
    match (is_file(stat), stat.st_mode & 0o111 != 0) {
        (false, _) => Err(EntryError::NoFile(program.to_owned())),
        (true, false) => Err(EntryError::NotExecutable(program.to_owned())),
        (true, true) => Ok(()),
    }
}

/// Names what is there instead: the nearest name in the same directory, or else the first few.
fn missing(image: &Path, file: &str) -> EntryError {
    const SHOWN_MAX: usize = 5;
    let wanted = Path::new(file);
    let name = wanted.file_name().unwrap_or_default().to_string_lossy();
    // Only within the code: the file may be declared with any path.
    let in_code = wanted.strip_prefix(bundle::APP).unwrap_or(wanted);
    let parent = in_code
        .parent()
        .filter(|p| p.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)));
    let mut names: Vec<String> = fs::read_dir(image.join(parent.unwrap_or(Path::new(""))))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .take(ENTRIES_MAX)
        .collect();
    names.sort();
    let nearest = names
        .iter()
        .map(|known| (strsim::damerau_levenshtein(&name, known), known))
        .filter(|(distance, known)| *distance <= known.len().div_ceil(3))
        .min();
    let hint = match nearest {
        Some((_, known)) => format!("; did you mean '{known}'?"),
        None if names.is_empty() => "; its directory is empty".to_owned(),
        None => {
            let more = if names.len() > SHOWN_MAX { ", …" } else { "" };
            format!("; it has {}{more}", names[..names.len().min(SHOWN_MAX)].join(", "))
        }
    };
    EntryError::Missing { file: file.to_owned(), hint }
}
