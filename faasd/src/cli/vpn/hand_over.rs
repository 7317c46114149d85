//! How something that lets a machine in leaves this one: as text, as a file for its owner's eyes, or to be photographed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use qrcode::render::unicode::Dense1x2;
use qrcode::{EcLevel, QrCode};

use crate::cli::{Context, Exit, Failure};

#[derive(Debug, Args)]
pub(super) struct HandOver {
    /// Write it to this file, which only its owner can read, instead of printing it
    #[arg(long, value_name = "FILE", conflicts_with = "qr")]
    out: Option<PathBuf>,
    /// Show it as a QR code
    #[arg(long)]
    qr: bool,
}

impl HandOver {
    /// Whether it is to leave otherwise than as text.
    pub(super) const fn is_set(&self) -> bool {
        self.out.is_some() || self.qr
    }

    /// The place for it, made before the server is asked: what it has given away once cannot be asked for again.
    pub(super) fn open(&self) -> Result<Place<'_>, Failure> {
        Ok(match &self.out {
            Some(path) => {
                let failed = |e| Failure::new(Exit::Failed, format!("cannot write {}: {e}", path.display()));
                Place::File(path, Out::open(path).map_err(failed)?)
            }
            None if self.qr => Place::Picture,
            None => Place::Text,
        })
    }
}

/// Where it is to go.
#[derive(Debug)]
pub(super) enum Place<'a> {
    Text,
    Picture,
    File(&'a Path, Out),
}

impl Place<'_> {
    /// Gives the text away, and says what the file is called if it is one. `remedy` is what to do if that fails.
    pub(super) fn give(self, context: &Context, text: &str, remedy: &str) -> Result<Option<String>, Failure> {
        match self {
            Self::Text => context.ui.print(text)?,
            Self::Picture => {
                let picture = picture(text.trim_end())
                    .map_err(|e| Failure::new(Exit::Failed, e.to_string()).hint(remedy))?;
                context.ui.print(&picture)?;
            }
            Self::File(path, out) => {
                let failed = |e| Failure::new(Exit::Failed, format!("cannot write {}: {e}", path.display()));
                out.write(text.as_bytes()).map_err(|e| failed(e).hint(remedy))?;
                return Ok(Some(path.display().to_string()));
            }
        }
        Ok(None)
    }
}

/// A file that is about to be there, or something else to write to.
#[derive(Debug)]
pub(super) struct Out {
    file: File,
    /// The file under another name, and its own; none for a pipe, a terminal or a device, which nothing can replace.
    names: Option<(PathBuf, PathBuf)>,
}

impl Out {
    fn open(path: &Path) -> io::Result<Self> {
        let target = match fs::metadata(path) {
            Ok(about) if about.is_file() => fs::canonicalize(path)?,
            Ok(about) if about.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
            Ok(_) => return Ok(Self { file: OpenOptions::new().write(true).open(path)?, names: None }),
            // The name alone may be given; its directory is then this one.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Path::new(".").join(path),
            Err(e) => return Err(e),
        };
        let mut temporary = target.clone().into_os_string();
        temporary.push(format!(".{}.new", std::process::id()));
        let temporary = PathBuf::from(temporary);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        Ok(Self { file, names: Some((temporary, target)) })
    }

    fn write(mut self, text: &[u8]) -> io::Result<()> {
        self.file.write_all(text)?;
        let Some((temporary, target)) = &self.names else { return Ok(()) };
        self.file.sync_all()?;
        fs::rename(temporary, target)?;
        File::open(target.parent().unwrap_or(Path::new("/")))?.sync_all()
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        if let Some((temporary, _)) = &self.names {
            // Not there any more if all went well.
            let _ = fs::remove_file(temporary);
        }
    }
}

/// A QR code in half blocks, with the margin that readers need. Dark on light, whatever the terminal's own colours: many
/// cameras read no other.
fn picture(text: &str) -> Result<String, qrcode::types::QrError> {
    let code = QrCode::with_error_correction_level(text, EcLevel::L)?;
    let blocks = code.render::<Dense1x2>().quiet_zone(true).build();
    Ok(blocks.lines().map(|line| format!("\x1b[30;107m{line}\x1b[0m\n")).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_file_is_there_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("laptop.faas");
        let files = || fs::read_dir(dir.path()).unwrap().count();
        drop(Out::open(&path).unwrap());
        assert_eq!(files(), 0, "nothing is left if the server refuses");
        Out::open(&path).unwrap().write(b"one").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        // By a link, what it leads to is replaced.
        let link = dir.path().join("link");
        symlink(&path, &link).unwrap();
        Out::open(&link).unwrap().write(b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(files(), 2);
        Out::open(dir.path()).unwrap_err();
        Out::open(&dir.path().join("nowhere/x")).unwrap_err();
    }

    #[test]
    fn what_is_no_file_is_written_to_and_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let reader = {
            let path = path.clone();
            std::thread::spawn(move || fs::read(path).unwrap())
        };
        Out::open(&path).unwrap().write(b"text").unwrap();
        assert_eq!(reader.join().unwrap(), b"text");
        assert!(fs::symlink_metadata(&path).unwrap().file_type().is_fifo());
    }

    #[test]
    fn an_invitation_fits() {
        let picture = picture(&format!("faas1-{}", "Ab".repeat(350))).unwrap();
        let lines: Vec<_> = picture.lines().collect();
        assert!(lines.len() < 60, "{}", lines.len());
        assert!(lines.iter().all(|line| line.starts_with("\x1b[30;107m") && line.ends_with("\x1b[0m")));
        assert!(picture.contains('▀') && picture.contains('▄'));
    }
}
