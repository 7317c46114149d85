//! The function with nothing in front of it.

use anyhow::Context;
use nix::unistd::Pid;

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
        let to = site.free_destination()?;
        let (program, args) = site.hello();
        let env = [("FAAS_LISTEN", to.address.to_string())];
        let mut processes = vec![site.spawn(self.0, &program, &args, &env, Vec::new())?];
        site.await_answer(&to, &mut processes)?;
        let function = vec![processes[0].pid()];
        Ok(Running {
            name: self.0.to_owned(),
            base: None,
            to,
            gateway: Vec::new(),
            function,
            scraped: None,
            processes,
            _adopted: Adopted::default(),
        })
    }
}

/// A bare server under a CPU limit like a target's. A limit is a cgroup, and to schedule in one costs something by
/// itself: this tells it from what the target does.
#[derive(Debug)]
pub struct Limited {
    pub like: Pid,
}

impl Limited {
    const NAME: &'static str = "bare-limited";
}

impl Subject for Limited {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn unavailable(&self) -> Option<String> {
        (!rustix::process::geteuid().is_root()).then(|| "a cgroup can be made by root alone".to_owned())
    }

    fn start(&self, site: &Site) -> anyhow::Result<Running> {
        let mut running = Bare(Self::NAME).start(site)?;
        let adopted = Adopted::limited(running.function[0], self.like)?;
        running._adopted =
            adopted.context("the target is under no CPU limit that a bare server could share")?;
        Ok(running)
    }
}
