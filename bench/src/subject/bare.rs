//! The function with nothing in front of it.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use nix::unistd::Pid;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use super::conditions::Adopted;
use super::{Running, Site, Subject};

/// A bare server under the given name: once as what all is compared with, once more as the control that shows how far
/// from 1.00 equal things come out.
#[derive(Debug)]
pub struct Bare(pub &'static str);

impl Bare {
    pub const BASE: &'static str = "bare";
    pub const CONTROL: &'static str = "control";
}

impl Subject for Bare {
    fn name(&self) -> &str {
        self.0
    }

    fn start(&self, site: &Site) -> anyhow::Result<Running> {
        let (program, args) = site.hello();
        started(site, self.0, &program, &args)
    }
}

fn started(site: &Site, name: &str, program: &Path, args: &[String]) -> anyhow::Result<Running> {
    let to = site.free_destination()?;
    let env = [("FAAS_LISTEN", to.address.to_string())];
    let mut processes = vec![site.spawn(name, program, args, &env, Vec::new())?];
    site.await_answer(&to, &mut processes)?;
    let function = vec![processes[0].pid()];
    Ok(Running {
        name: name.to_owned(),
        base: None,
        to,
        gateway: Vec::new(),
        function,
        scraped: None,
        processes,
        _adopted: Adopted::default(),
    })
}

/// A bare server confined as a target is: under the same CPU limit, and with a filter of its system calls. A limit is a
/// cgroup, and to schedule in one costs something by itself; so does to ask a filter at each call, though it lets all pass.
/// This tells what any container costs from what the target adds.
#[derive(Debug)]
pub struct Confined {
    pub like: Pid,
}

impl Confined {
    const NAME: &'static str = "bare-confined";
}

impl Subject for Confined {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn unavailable(&self) -> Option<String> {
        (!rustix::process::geteuid().is_root()).then(|| "a cgroup can be made by root alone".to_owned())
    }

    fn start(&self, site: &Site) -> anyhow::Result<Running> {
        let (program, args) = site.hello();
        let words: Vec<_> =
            [FILTERED.to_owned(), program.display().to_string()].into_iter().chain(args).collect();
        let mut running = started(site, Self::NAME, &site.program, &words)?;
        let adopted = Adopted::limited(running.function[0], self.like)?;
        running._adopted =
            adopted.context("the target is under no CPU limit that a bare server could share")?;
        Ok(running)
    }
}

/// The command that [`filtered`] is.
pub const FILTERED: &str = "filtered";

/// Replaces this process by a program under a filter that lets every system call pass.
///
/// # Errors
/// If there is no such program, or the kernel takes no filter.
pub fn filtered(words: &[String]) -> anyhow::Result<()> {
    let [program, args @ ..] = words else { bail!("no program") };
    let arch = std::env::consts::ARCH.try_into()?;
    let none = SeccompFilter::new(BTreeMap::new(), SeccompAction::Allow, SeccompAction::KillProcess, arch)?;
    seccompiler::apply_filter(&BpfProgram::try_from(none)?)?;
    Err(Command::new(program).args(args).exec()).with_context(|| format!("cannot run {program}"))
}
