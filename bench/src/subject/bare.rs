//! The function with nothing in front of it.

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
            to,
            gateway: Vec::new(),
            function,
            processes,
            _adopted: Adopted::default(),
        })
    }
}
