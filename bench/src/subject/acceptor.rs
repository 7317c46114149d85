//! One of our acceptors in front of the function, which gets its connections over the hand-off protocol.

use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::Context;
use faasd_sdk::wire::{SOCKET_FD, STATUS_FD};

use super::conditions::Adopted;
use super::{Running, Site, Subject};
use crate::acceptors::Acceptor;
use crate::wire;

const READY_MAX: Duration = Duration::from_secs(10);

/// See [`crate::acceptors`].
#[derive(Debug)]
pub struct HandedOver(pub Acceptor);

impl Subject for HandedOver {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn start(&self, site: &Site) -> anyhow::Result<Running> {
        let name = self.0.name();
        let to = site.free_destination()?;
        let (daemon, instance) = wire::pair()?;
        let (program, args) = site.hello();
        let descriptors = vec![(instance, SOCKET_FD), (wire::status_page()?, STATUS_FD)];
        let mut function = site.spawn(&format!("{name}-function"), &program, &args, &[], descriptors)?;
        wire::await_ready(daemon.as_fd(), READY_MAX)
            .or_else(|e| function.check().and(Err(e)))
            .with_context(|| format!("{} does not take part in the hand-off", program.display()))?;
        let kind = clap::ValueEnum::to_possible_value(&self.0).context("every acceptor has a name")?;
        let args = ["acceptor".to_owned(), kind.get_name().to_owned(), to.address.to_string()];
        // Standard input is the one descriptor that a program may take safely.
        let acceptor = site.spawn(name, &site.program, &args, &[], vec![(daemon, 0)])?;
        let (gateway, functions) = (vec![acceptor.pid()], vec![function.pid()]);
        let mut processes = vec![acceptor, function];
        site.await_answer(&to, &mut processes)?;
        Ok(Running {
            name: name.to_owned(),
            base: None,
            to,
            gateway,
            function: functions,
            scraped: None,
            processes,
            _adopted: Adopted::default(),
        })
    }
}
