//! How something that lets a machine in leaves this one: as text, as a file for its owner's eyes, or to be photographed.

use std::path::{Path, PathBuf};

use clap::Args;
use qrcode::render::unicode::Dense1x2;
use qrcode::{EcLevel, QrCode};

use crate::cli::{Context, Exit, Failure};
use crate::tunnel::keys::write_private;

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

    /// Gives the text away, and says what the file is called if it is one.
    pub(super) fn give(&self, context: &Context, text: &str) -> Result<Option<String>, Failure> {
        if let Some(path) = &self.out {
            let failed = |e| Failure::new(Exit::Failed, format!("cannot write {}: {e}", path.display()));
            // The name alone may be given; its directory is then this one.
            let whole = Path::new(".").join(path);
            write_private(&whole, text.as_bytes()).map_err(failed)?;
            return Ok(Some(path.display().to_string()));
        }
        if self.qr {
            let picture = picture(text.trim_end()).map_err(|e| Failure::new(Exit::Failed, e.to_string()))?;
            context.ui.print(&picture)?;
        } else {
            context.ui.print(text)?;
        }
        Ok(None)
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
    use super::*;

    #[test]
    fn an_invitation_fits() {
        let picture = picture(&format!("faas1-{}", "Ab".repeat(350))).unwrap();
        let lines: Vec<_> = picture.lines().collect();
        assert!(lines.len() < 60, "{}", lines.len());
        assert!(lines.iter().all(|line| line.starts_with("\x1b[30;107m") && line.ends_with("\x1b[0m")));
        assert!(picture.contains('▀') && picture.contains('▄'));
    }
}
