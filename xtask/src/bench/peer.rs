//! Somebody who has joined the daemon's tunnel from a network namespace of their own, at the other end of a cable.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::platform::Place;
use crate::run;

/// Their interface, and their name as a peer.
const TUNNEL: &str = "faasd-bench";

/// Both ends of the cable.
const SERVER: &str = "fd00:faa5:0:1::1";
const CLIENT: &str = "fd00:faa5:0:1::2";

pub struct Client {
    netns: String,
    program: PathBuf,
}

impl Client {
    fn of(place: &Place) -> Self {
        Self { netns: format!("{}-client", place.name()), program: place.program("faas") }
    }

    pub fn netns(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.netns)
    }

    /// Makes the namespace and the cable.
    pub fn beside(place: &Place) -> Result<Self> {
        let client = Self::of(place);
        ip(&["netns", "add", &client.netns])?;
        let (server, own) = (place.name(), client.netns.as_str());
        ip(&["link", "add", "eth0", "netns", server, "type", "veth", "peer", "name", "eth0", "netns", own])?;
        for (netns, address) in [(server, SERVER), (own, CLIENT)] {
            ip(&["-n", netns, "link", "set", "lo", "up"])?;
            ip(&["-n", netns, "address", "add", &format!("{address}/64"), "dev", "eth0", "nodad"])?;
            ip(&["-n", netns, "link", "set", "eth0", "up"])?;
        }
        Ok(client)
    }

    /// Joins the tunnel by an invitation, as anybody would.
    pub fn join(&self, place: &Place) -> Result<()> {
        let said = place.faas(&["vpn", "invite", TUNNEL, "--endpoint", &format!("[{SERVER}]:51820")])?;
        let invitation = said.split_whitespace().find(|word| word.starts_with("faas1-"));
        let invitation = invitation.context("`faas vpn invite` printed no invitation")?;
        let mut connect = self.faas();
        connect.args(["vpn", "connect", invitation, "--interface", TUNNEL]);
        run::quiet(connect.args(["--no-dns", "--wireguard", "userspace"])).map(drop)
    }

    /// Leaves the tunnel and removes the namespace, if there is one.
    pub fn remove(place: &Place) -> Result<()> {
        let client = Self::of(place);
        if !client.netns().exists() {
            return Ok(());
        }
        // It may not have come so far.
        let _ = run::quiet(client.faas().args(["vpn", "disconnect", "--interface", TUNNEL]));
        ip(&["netns", "del", &client.netns])
    }

    fn faas(&self) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.netns]).arg(&self.program);
        command
    }

    /// The processes at both ends of the tunnel: the daemon's and the client's.
    pub fn tunnels(place: &Place) -> Vec<u32> {
        let is_ours = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = line.split(|byte| *byte == 0).map(String::from_utf8_lossy);
            let program =
                words.next().is_some_and(|program| Path::new(&*program).starts_with(place.program("")));
            program && words.next().as_deref() == Some("tunnel")
        };
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_ours).collect()
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    run::quiet(Command::new("ip").args(arguments)).map(drop)
}
