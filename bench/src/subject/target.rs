//! Something that runs already: this is how the whole platform is measured.

use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, bail};
use nix::unistd::Pid;

use super::conditions::Adopted;
use super::{Running, Site, Subject};
use crate::host::Cpus;
use crate::load::Destination;

/// `NAME=ADDRESS[,netns=PATH][,pids=PID+PID…][,gateway=PID+PID…]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub name: String,
    pub address: SocketAddr,
    /// The namespace from which the address can be reached.
    pub netns: Option<PathBuf>,
    pub gateway: Vec<Pid>,
    pub function: Vec<Pid>,
}

impl FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        const FORM: &str = "a target is NAME=ADDRESS[,netns=PATH][,pids=PID+PID…][,gateway=PID+PID…]";
        let (name, rest) = text.split_once('=').context(FORM)?;
        let mut parts = rest.split(',');
        let address = parts.next().unwrap_or_default();
        let address =
            address.parse().with_context(|| format!("`{address}` is no address with a port; {FORM}"))?;
        let mut target =
            Self { name: name.to_owned(), address, netns: None, gateway: Vec::new(), function: Vec::new() };
        for part in parts {
            match part.split_once('=') {
                Some(("netns", path)) => target.netns = Some(path.into()),
                Some(("pids", list)) => target.function = pids(list)?,
                Some(("gateway", list)) => target.gateway = pids(list)?,
                _ => bail!("`{part}` is not understood; {FORM}"),
            }
        }
        Ok(target)
    }
}

fn pids(list: &str) -> anyhow::Result<Vec<Pid>> {
    let pid = |pid: &str| pid.parse().map(Pid::from_raw).with_context(|| format!("`{pid}` is no process id"));
    list.split('+').map(pid).collect()
}

impl Subject for Target {
    fn name(&self) -> &str {
        &self.name
    }

    fn start(&self, site: &Site) -> anyhow::Result<Running> {
        let open = |path: &PathBuf| {
            File::open(path).map(Arc::new).with_context(|| format!("cannot open {}", path.display()))
        };
        let netns = self.netns.as_ref().map(open).transpose()?;
        let to = Destination { address: self.address, netns, mark: site.mark };
        site.await_answer(&to, &mut [])?;
        let pids: Vec<_> = self.gateway.iter().chain(&self.function).copied().collect();
        let cpus = site.server_cpus.as_ref().map(Cpus::set);
        let adopted = Adopted::new(&pids, cpus.as_ref())?;
        Ok(Running {
            name: self.name.clone(),
            to,
            gateway: self.gateway.clone(),
            function: self.function.clone(),
            processes: Vec::new(),
            _adopted: adopted,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_read() {
        let target: Target = "handoff=[fd00::1]:80,netns=/run/netns/x,pids=7+8,gateway=9".parse().unwrap();
        assert_eq!(target.address, "[fd00::1]:80".parse().unwrap());
        assert_eq!(target.netns, Some("/run/netns/x".into()));
        assert_eq!(target.function, [7, 8].map(Pid::from_raw));
        assert_eq!(target.gateway, [Pid::from_raw(9)]);
        for wrong in ["", "x", "x=", "x=[::1]", "x=[::1]:80,pids=a", "x=[::1]:80,nets=/a"] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }
}
