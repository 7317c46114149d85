//! How a verb ends: a code from sysexits.h, a sentence, a remedy.

use std::fmt;
use std::io;
use std::process::ExitCode;

use crate::api::client::ClientError;

/// Exit codes, after sysexits.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Ok = 0,
    /// The operation was tried and failed.
    Failed = 1,
    /// EX_USAGE: the command line.
    Usage = 64,
    /// EX_DATAERR: a file's content.
    Data = 65,
    /// EX_NOINPUT: a file that is not there.
    NoInput = 66,
    /// EX_UNAVAILABLE: the daemon.
    Unavailable = 69,
    /// EX_CANTCREAT: a file that cannot be made, or must not be overwritten.
    CannotCreate = 73,
    /// EX_IOERR.
    Io = 74,
    /// EX_PROTOCOL: an answer that makes no sense.
    Protocol = 76,
    /// EX_NOPERM.
    Permission = 77,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a verb did not do what it was asked to.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    /// Nothing when everything has been said already.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Failure {
    #[must_use]
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// An error with its chain of causes beneath it.
    #[must_use]
    pub fn chain(exit: Exit, error: &dyn std::error::Error) -> Self {
        let mut causes = Vec::new();
        let mut cause = error.source();
        while let Some(error) = cause {
            causes.push(error.to_string());
            cause = error.source();
        }
        let hint = (!causes.is_empty()).then(|| causes.join(": "));
        Self { exit, message: error.to_string(), hint }
    }

    /// Ends with a code, and says nothing more.
    #[must_use]
    pub const fn silent(exit: Exit) -> Self {
        Self { exit, message: String::new(), hint: None }
    }

    /// A file that could not be used.
    #[must_use]
    pub fn file(operation: &str, path: &std::path::Path, error: &io::Error) -> Self {
        let exit = match error.kind() {
            io::ErrorKind::NotFound => Exit::NoInput,
            io::ErrorKind::PermissionDenied => Exit::Permission,
            _ => Exit::Io,
        };
        Self::new(exit, format!("cannot {operation} {}: {error}", path.display()))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit = match &error {
            ClientError::Unreachable { .. }
            | ClientError::ServerUnreachable { .. }
            | ClientError::Broken(_) => Exit::Unavailable,
            ClientError::Permission { .. } => Exit::Permission,
            ClientError::TimedOut(_) => Exit::Failed,
            ClientError::Request(_) => Exit::Usage,
            ClientError::TooLarge { .. } | ClientError::ImageTooLarge { .. } => Exit::Data,
            ClientError::Answer(_) => Exit::Protocol,
            ClientError::Problem(problem) if problem.status == 503 => Exit::Unavailable,
            ClientError::Problem(problem) if problem.status == 403 => Exit::Permission,
            ClientError::Problem(_) => Exit::Failed,
        };
        let hint = match &error {
            ClientError::Problem(problem) => problem.detail.clone(),
            ClientError::Unreachable { source, .. } | ClientError::ServerUnreachable { source, .. } => {
                Some(source.to_string())
            }
            ClientError::Broken(source) => Some(source.to_string()),
            _ => None,
        };
        Self { exit, message: error.to_string(), hint }
    }
}

/// Writing to standard output. A reader that has seen enough (`faas ls | head`) is no failure worth a word.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::silent(Exit::Ok);
        }
        Self::new(Exit::Io, format!("cannot write the output: {error}"))
    }
}
