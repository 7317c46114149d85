//! Something that runs already: this is how the whole platform is measured.

use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::unistd::Pid;

use super::conditions::Adopted;
use super::{Running, Site, Subject};
use crate::host::Cpus;
use crate::load::Destination;

/// A scraper of the daemon's metrics, while the load runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scraped {
    pub metrics: SocketAddr,
    /// From where they are scraped; without, from where the target is dialled.
    pub from: Option<PathBuf>,
    /// From one scrape's beginning to the next one's; zero for one after the other.
    pub every: Duration,
}

/// `NAME=ADDRESS[,netns=PATH][,pids=PID+PID…][,gateway=PID+PID…][,tunnel=PID+PID…][,base=NAME][,metrics=ADDRESS,every=MS[,scraper=NETNS]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub name: String,
    pub address: SocketAddr,
    /// The namespace from which the address can be reached.
    pub netns: Option<PathBuf>,
    pub gateway: Vec<Pid>,
    pub function: Vec<Pid>,
    /// Processes of a tunnel in front: they get our priority, and any CPU, as those of our own tunnels have.
    pub tunnel: Vec<Pid>,
    /// The target that it is compared with; itself, if it is only there for others.
    pub base: Option<String>,
    pub scraped: Option<Scraped>,
}

impl FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        const FORM: &str = "a target is NAME=ADDRESS[,netns=PATH][,pids=PID+PID…]\
            [,gateway=PID+PID…][,tunnel=PID+PID…][,base=NAME][,metrics=ADDRESS,every=MS[,scraper=NETNS]]";
        let (name, rest) = text.split_once('=').context(FORM)?;
        let mut parts = rest.split(',');
        let address = parts.next().unwrap_or_default();
        let address =
            address.parse().with_context(|| format!("`{address}` is no address with a port; {FORM}"))?;
        let mut target = Self {
            name: name.to_owned(),
            address,
            netns: None,
            gateway: Vec::new(),
            function: Vec::new(),
            tunnel: Vec::new(),
            base: None,
            scraped: None,
        };
        let (mut metrics, mut every, mut from) = (None, None, None);
        for part in parts {
            match part.split_once('=') {
                Some(("netns", path)) => target.netns = Some(path.into()),
                Some(("pids", list)) => target.function = pids(list)?,
                Some(("gateway", list)) => target.gateway = pids(list)?,
                Some(("tunnel", list)) => target.tunnel = pids(list)?,
                Some(("base", base)) => target.base = Some(base.to_owned()),
                Some(("metrics", address)) => metrics = Some(address.parse().context(FORM)?),
                Some(("scraper", path)) => from = Some(path.into()),
                Some(("every", ms)) => every = Some(Duration::from_millis(ms.parse().context(FORM)?)),
                _ => bail!("`{part}` is not understood; {FORM}"),
            }
        }
        target.scraped = metrics.zip(every).map(|(metrics, every)| Scraped { metrics, from, every });
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
        let mut adopted = Adopted::new(&pids, cpus.as_ref())?;
        adopted.add(&self.tunnel, None)?;
        Ok(Running {
            name: self.name.clone(),
            base: self.base.clone(),
            to,
            gateway: self.gateway.clone(),
            function: self.function.clone(),
            scraped: self.scraped.clone(),
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
        assert_eq!((target.base, target.scraped), (None, None));
        let scraped: Target = "x=[::1]:80,base=y,metrics=[::1]:9464,every=1000".parse().unwrap();
        assert_eq!(scraped.base.as_deref(), Some("y"));
        assert_eq!(scraped.scraped.unwrap().every, Duration::from_secs(1));
        for wrong in
            ["", "x", "x=", "x=[::1]", "x=[::1]:80,pids=a", "x=[::1]:80,nets=/a", "x=[::1]:80,every=a"]
        {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }
}
