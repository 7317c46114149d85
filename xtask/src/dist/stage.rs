//! What packages contain beside the programs, made once for all of them: manual pages and completions, which the client
//! says of itself, the licences of what is linked, the change log.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::build::Programs;
use super::{Release, changelog, fresh, licences};
use crate::{repo, run};

const COMPLETIONS: [(&str, &str); 3] = [("bash", "faas.bash"), ("zsh", "_faas"), ("fish", "faas.fish")];

/// A directory with everything that is the same on each architecture.
#[derive(Debug)]
pub struct Stage(PathBuf);

impl Stage {
    pub fn make(release: &Release, programs: &[Programs]) -> Result<Self> {
        let stage = Self(release.work.join("stage"));
        fresh(&stage.0)?;
        stage.pages_and_completions(programs)?;
        stage.documents(release)?;
        Ok(stage)
    }

    /// By the programs that run here; if none of them do, by ones built for that.
    fn pages_and_completions(&self, programs: &[Programs]) -> Result<()> {
        let directory = match programs.iter().find(|programs| programs.arch.is_ours()) {
            Some(programs) => programs.directory.clone(),
            None => {
                run::run(repo::cargo().args(["build", "--quiet", "--locked", "-p", "faasd", "--bins"]))?;
                repo::target_dir().join("debug")
            }
        };
        for (name, section) in [("faas", "man1"), ("faasd", "man8")] {
            let pages = self.0.join("man").join(section);
            run::quiet(Command::new(directory.join(name)).arg("man").arg(&pages))?;
            let mut gzip = Command::new("gzip");
            gzip.args(["--no-name", "--best"]);
            for page in fs::read_dir(&pages)? {
                gzip.arg(page?.path());
            }
            run::quiet(&mut gzip)?;
        }
        let completions = self.0.join("completions");
        fs::create_dir_all(&completions)?;
        for (shell, file) in COMPLETIONS {
            let script = run::stdout(Command::new(directory.join("faas")).args(["completions", shell]))?;
            fs::write(completions.join(file), script)?;
        }
        Ok(())
    }

    fn documents(&self, release: &Release) -> Result<()> {
        let doc = self.0.join("doc");
        fs::create_dir_all(&doc)?;
        let news = fs::read_to_string(repo::root().join("CHANGELOG.md")).context("reading CHANGELOG.md")?;
        let date = |format: &str| {
            let mut date = Command::new("date");
            date.env("LC_ALL", "C").args(["--utc", &format!("--date=@{}", release.epoch), format]);
            run::stdout(&mut date).map(|text| text.trim().to_owned())
        };
        let version = &release.version;
        fs::write(doc.join("nfpm.yaml"), changelog::nfpm(&news, version, &date("+%Y-%m-%dT%H:%M:%SZ")?)?)?;
        let files = [
            ("changelog", changelog::debian(&news, version, &date("+%a, %d %b %Y %H:%M:%S +0000")?)?),
            ("NEWS", news),
            ("THIRD-PARTY.txt", licences::text(version)?),
        ];
        for (name, text) in files {
            fs::write(doc.join(name), text)?;
            run::quiet(Command::new("gzip").args(["--no-name", "--best", "--keep"]).arg(doc.join(name)))?;
        }
        Ok(())
    }

    /// The same, with the programs for one architecture in `bin`.
    pub fn with(&self, programs: &Programs) -> Result<PathBuf> {
        programs.copy_to(&self.0.join("bin"))?;
        Ok(self.0.clone())
    }
}

/// nfpm's description of changes, in a staged tree.
pub fn changes(tree: &Path) -> PathBuf {
    tree.join("doc/nfpm.yaml")
}
