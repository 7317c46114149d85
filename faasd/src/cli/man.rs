//! `faas man`

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use clap_mangen::Man as Page;

use super::{Context, Exit, Failure, When};

/// Write the manual's pages into a directory
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  faas man ~/.local/share/man/man1      # then `man faas-deploy`")]
pub struct Man {
    directory: PathBuf,
}

impl Man {
    pub fn run(self, _context: &Context) -> Result<(), Failure> {
        write_pages(super::command(When::Never), "1", &self.directory).map_err(|e| {
            let exit = match e.kind() {
                io::ErrorKind::PermissionDenied => Exit::Permission,
                _ => Exit::CannotCreate,
            };
            Failure::new(exit, format!("cannot write pages to {}: {e}", self.directory.display()))
        })
    }
}

/// Writes a page for a program and one for each of its verbs, as far as they are for people, into a directory, which is
/// made where it is missing.
///
/// # Errors
/// Those of the file system.
pub fn write_pages(command: clap::Command, section: &str, directory: &Path) -> io::Result<()> {
    let mut command = command;
    command.build();
    std::fs::create_dir_all(directory)?;
    let mut left = vec![command];
    while let Some(command) = left.pop() {
        left.extend(command.get_subcommands().filter(|verb| is_for_people(verb)).cloned());
        // No date: pages of one version are the same whenever they are written.
        let page = Page::new(command).section(section).manual("faasd");
        page.generate_to(directory)?;
    }
    Ok(())
}

/// clap adds `help` to whatever has verbs.
fn is_for_people(verb: &clap::Command) -> bool {
    !verb.is_hide_set() && verb.get_name() != "help"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_has_a_page_and_nothing_hidden_has_one() {
        let directory = tempfile::tempdir().unwrap();
        let pages = directory.path().join("man1");
        write_pages(super::super::command(When::Never), "1", &pages).unwrap();
        let text = std::fs::read_to_string(pages.join("faas-vpn-invite.1")).unwrap();
        assert!(text.contains(".TH faas-vpn-invite 1") && text.contains("Example"), "{text}");
        let names: Vec<_> =
            std::fs::read_dir(&pages).unwrap().map(|page| page.unwrap().file_name()).collect();
        assert!(names.iter().any(|name| name == "faas.1"));
        for hidden in ["faas-run-script.1", "faas-tunnel.1", "faas-help.1", "faas-vpn-help.1"] {
            assert!(!names.iter().any(|name| name == hidden), "{hidden}");
        }
    }
}
