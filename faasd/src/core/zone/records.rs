//! All that the zones hold, record by record, for the zone files and for transfers.

use std::net::Ipv6Addr;

use super::{FunctionNames, Origin, PEERS_LABEL, SERVER_LABEL, ZONE, Zone, host, nibbles};

/// A record of a zone, but for those of its apex.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Relative to the zone's apex.
    pub name: String,
    pub data: Data,
}

/// What a record says. Names in it are absolute, and end with a dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    Aaaa(Ipv6Addr),
    Cname(String),
    Ptr(String),
    /// Port and target. There is one target for each service, so that priority and weight are 0.
    Srv(u16, String),
}

impl Zone {
    /// A zone's records, but for the SOA and NS of its apex.
    pub fn records(&self, origin: Origin) -> Box<dyn Iterator<Item = Record> + Send + '_> {
        match origin {
            Origin::Names => {
                let server = record(SERVER_LABEL.to_owned(), Data::Aaaa(self.settings.vpn.server()));
                let functions = self.functions.values().flat_map(|function| of_function(function));
                let peers = self
                    .peers
                    .iter()
                    .map(|(peer, address)| record(format!("{peer}.{PEERS_LABEL}"), Data::Aaaa(*address)));
                Box::new(std::iter::once(server).chain(functions).chain(peers))
            }
            Origin::Peers => {
                let server = (host(self.settings.vpn.server()), format!("{SERVER_LABEL}.{ZONE}."));
                let peers = self.peers_by_host.iter();
                let peers = peers.map(|(host, peer)| (*host, format!("{peer}.{PEERS_LABEL}.{ZONE}.")));
                Box::new(std::iter::once(server).chain(peers).map(pointer))
            }
            Origin::Functions => Box::new(self.owners.iter().map(|(host, owner)| {
                let name = &owner.function.name;
                pointer((
                    *host,
                    match owner.revision {
                        Some(number) => format!("v{number}.{name}.{ZONE}."),
                        None => format!("{name}.{ZONE}."),
                    },
                ))
            })),
        }
    }
}

fn record(name: String, data: Data) -> Record {
    Record { name, data }
}

fn pointer((host, name): (u64, String)) -> Record {
    record(nibbles(host), Data::Ptr(name))
}

fn of_function(function: &FunctionNames) -> impl Iterator<Item = Record> {
    let name = &function.name;
    let own = record(name.to_string(), Data::Aaaa(function.address));
    let service = function
        .port
        .map(|port| record(format!("_http._tcp.{name}"), Data::Srv(port, format!("{name}.{ZONE}."))));
    let revisions = function
        .revisions
        .iter()
        .map(move |(number, address)| record(format!("v{number}.{name}"), Data::Aaaa(*address)));
    let aliases = function.aliases().map(move |(alias, number, _)| {
        record(format!("{alias}.{name}"), Data::Cname(format!("v{number}.{name}.{ZONE}.")))
    });
    std::iter::once(own).chain(service).chain(revisions).chain(aliases)
}
