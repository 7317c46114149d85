//! One of a kind at a time.

use std::fs::{self, File, TryLockError};
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Holds `path` for a task until what is returned is dropped.
///
/// # Errors
/// If another of its kind has it, or it cannot be made.
pub fn hold(path: &Path, task: &str) -> Result<File> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    }
    let file = File::create(path).with_context(|| format!("making {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!("another `cargo xtask {task}` is at work: it has {}", path.display())
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("locking {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_and_the_next_is_not() {
        let path = std::env::temp_dir().join(format!("faasd-xtask-lock-{}", std::process::id()));
        let first = hold(&path, "vm").unwrap();
        let said = hold(&path, "vm").unwrap_err().to_string();
        assert!(said.starts_with("another `cargo xtask vm` is at work"), "{said}");
        drop(first);
        drop(hold(&path, "vm").unwrap());
        fs::remove_file(&path).unwrap();
    }
}
