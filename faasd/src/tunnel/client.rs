//! The client's side: joining by an invitation, connecting again, disconnecting.
//!
//! An invitation brings a key that is good for one exchange. Through the tunnel that it opens, the client tells
//! the server the public half of a key of its own, which from then on is the peer's. The own key is on disk
//! before the server hears of it, so that a crash at any point leaves a client that can connect.

mod exchange;
mod membership;

use std::fs;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::StatusCode;

use super::dns::{self, Dns, DnsError, DnsMode};
use super::keys::{KeyFormatError, PrivateKey, PublicKey};
use super::{Choice, Error, Interface, InterfaceStatus, Kind, Launch, MTU_BYTES, PeerConfig, Setup};
use crate::core::address::Prefix;
use crate::core::invitation::Invitation;
use crate::sys::netlink::Netlink;
use crate::sys::netns::NetNs;
use exchange::{JOIN, ROTATE, tell, wait_for_handshake, wait_until_alive, wait_until_heard};
pub use membership::Membership;
use membership::{Pending, parse_key};

/// The interface's usual name.
pub const INTERFACE: &str = "faas0";

/// Where a machine keeps whom it joined.
pub const STATE: &str = "/var/lib/faas";

/// Where it is noted what this machine is connected to.
pub const RUN: &str = "/run/faas";

/// Keeps the path through a NAT open; common ones forget it after 30 s.
const KEEPALIVE_S: u16 = 25;

/// How, and where, a client connects.
#[derive(Clone, Debug)]
pub struct Options {
    /// The interface's name.
    pub name: String,
    /// Holds `NAME.json`: the client's key, and whom it joined.
    pub state_dir: PathBuf,
    pub launch: Launch,
    pub choice: Choice,
    pub dns: DnsMode,
}

/// A tunnel that has come up.
#[derive(Debug)]
pub struct Connected {
    pub name: String,
    pub address: Ipv6Addr,
    pub server: Ipv6Addr,
    pub kind: Kind,
    pub dns: Dns,
    /// How long the last handshake took; none if the server has not answered yet.
    pub handshake: Option<Duration>,
}

/// A client, as it is.
#[derive(Debug)]
pub struct ClientStatus {
    pub membership: Membership,
    /// None while disconnected.
    pub interface: Option<(Kind, InterfaceStatus)>,
    /// What was done about names, and whether that is still so.
    pub dns: Option<(Dns, bool)>,
}

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(transparent)]
    Tunnel(#[from] Error),
    #[error(transparent)]
    Dns(#[from] DnsError),
    #[error("cannot {operation} {}", path.display())]
    State { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is damaged; ask for a new invitation, and remove it", path.display())]
    Damaged { path: PathBuf, source: serde_json::Error },
    #[error("there is nobody to connect to yet; `faas vpn connect INVITATION` joins a server")]
    NeverJoined,
    #[error("this machine is not connected; `faas vpn connect` connects it")]
    Disconnected,
    #[error("this invitation has been redeemed by this machine; `faas vpn connect` connects again")]
    RedeemedHere,
    #[error(
        "no answer from {endpoint}: the invitation has been redeemed or revoked, or UDP does not get through; \
         ask for a new one (`faas vpn invite {name}`) if the server can be reached otherwise"
    )]
    NoHandshake { endpoint: SocketAddr, name: String },
    #[error("the server's endpoint '{endpoint}' does not resolve")]
    Endpoint { endpoint: String, source: io::Error },
    #[error("the key of {whose} is malformed")]
    Key { whose: &'static str, source: KeyFormatError },
    #[error("the tunnel is up, but the server does not answer in it")]
    Exchange { source: io::Error },
    #[error("the server refused the key ({status}): {said}")]
    Refused { status: StatusCode, said: String },
}

/// Joins the server that the invitation is from and stays connected, in the calling thread's namespace. A former membership
/// is replaced once the server has agreed to the new one.
///
/// # Errors
/// If the invitation is not good any more, or the tunnel does not come up. What was begun is undone, and a former
/// connection taken up again; the own key stays on disk for a second try, if the server may have it.
pub fn join(invitation: &Invitation, options: &Options) -> Result<Connected, ClientError> {
    let former = membership::load(options)?;
    let pending = membership::load_pending(options)?.filter(|pending| pending.membership.is_of(invitation));
    if former.as_ref().is_some_and(|former| former.joined && former.is_of(invitation)) {
        return Err(ClientError::RedeemedHere);
    }
    let second_try = pending.as_ref().is_some_and(|pending| pending.told);
    let temporary = parse_key("the invitation", &invitation.private_key)?;
    let private_key =
        pending.map_or_else(|| PrivateKey::generate().to_base64(), |pending| pending.membership.private_key);
    let membership = Membership::new(invitation, private_key);
    // All that can be known to be wrong, before anything is touched.
    let own = membership.key()?;
    let server = membership.server()?;
    let ns = here()?;
    let was_connected = match whose(&ns, options, &known(options)?)? {
        There::Ours(Some(key)) => former.as_ref().is_some_and(|former| has_key(former, key)),
        There::Absent | There::Ours(None) => false,
    };
    let mut pending =
        Pending { membership, invitation_key: temporary.public().to_string(), told: second_try };
    membership::save_pending(options, &pending)?;
    // A former server's tunnel makes room.
    disconnect(options)?;
    let mut agreed = false;
    let mut joined = || {
        let interface = bring_up(&ns, &pending.membership, &temporary, options)?;
        interface.set_peer(server.clone())?;
        let met = wait_for_handshake(&*interface, server.public_key)?;
        let mut unheard = None;
        match met {
            Some(_) => {
                pending.told = true;
                membership::save_pending(options, &pending)?;
                match tell(&pending.membership, JOIN, &own) {
                    Ok(()) => {}
                    // The server may have taken our key all the same: whether it answers to that tells.
                    Err(error @ ClientError::Exchange { .. }) => unheard = Some(error),
                    Err(error) => {
                        // It has not; of a failure of its own that is not certain.
                        pending.told = !matches!(&error, ClientError::Refused { status, .. } if status.is_client_error());
                        return Err(error);
                    }
                }
            }
            // The server may have taken our key at the first try, and the answer was lost.
            None if second_try => {}
            None => return Err(no_handshake(&server, &pending.membership)),
        }
        // The session of the temporary key goes, and with it the last that the key is good for.
        switch(&*interface, &server, &own)?;
        let handshake = wait_for_handshake(&*interface, server.public_key)?;
        if handshake.is_none() {
            return Err(unheard.unwrap_or_else(|| no_handshake(&server, &pending.membership)));
        }
        let membership = Membership { joined: true, ..pending.membership.clone() };
        membership::save(options, &membership)?;
        agreed = true;
        membership::drop_pending(options);
        wait_until_heard(&membership)?;
        finish(&*interface, membership, options, handshake)
    };
    let joined = joined();
    if joined.is_err() {
        undo(options);
        if !pending.told {
            membership::drop_pending(options);
        }
        if was_connected
            && !agreed
            && let Err(error) = connect(options)
        {
            tracing::warn!(%error, "the former connection cannot be taken up again");
        }
    }
    joined
}

/// Connects again to the server that was joined. A server that does not answer at the moment is no error: the
/// tunnel comes to life when it does. A connection that is there, and works, is left as it is.
///
/// # Errors
/// If no server has been joined, or the tunnel does not come up. What was there before the call is there after it.
pub fn connect(options: &Options) -> Result<Connected, ClientError> {
    let membership = match membership::load(options)? {
        Some(membership) => membership,
        // The server may have agreed, and we were stopped before we could write it down.
        None => {
            membership::load_pending(options)?
                .filter(|pending| pending.told)
                .ok_or(ClientError::NeverJoined)?
                .membership
        }
    };
    // All that can be known to be wrong, before anything is touched.
    let mut keys = membership.keys()?;
    let server = membership.server()?;
    let ns = here()?;
    let there = whose(&ns, options, &known(options)?)?;
    let (held, mut made) = match there {
        There::Ours(held) => (held, false),
        There::Absent => (None, true),
    };
    // The one that the interface has is the first to be tried.
    keys.sort_by_key(|key| Some(key.public()) != held);
    let mut connected = || {
        if held.is_some_and(|held| !has_key(&membership, held)) {
            // A join was cut short: nothing goes through it.
            disconnect(options)?;
            made = true;
        }
        let [first, others @ ..] = &keys[..] else { return Err(ClientError::NeverJoined) };
        let interface = bring_up(&ns, &membership, first, options)?;
        let met = interface.peer(server.public_key)?.is_some_and(|peer| peer.last_handshake.is_some());
        let mut handshake = if met { wait_until_alive(&*interface, &membership)? } else { None };
        if handshake.is_none() {
            // From the beginning, and to where the server's name leads now.
            switch(&*interface, &server, first)?;
            handshake = wait_for_handshake(&*interface, server.public_key)?;
        }
        let mut key = first;
        if let (None, Some(other)) = (handshake, others.first()) {
            // A rotation was cut short, and the server knows the other key.
            switch(&*interface, &server, other)?;
            handshake = wait_for_handshake(&*interface, server.public_key)?;
            match handshake {
                Some(_) => key = other,
                None => switch(&*interface, &server, first)?,
            }
        }
        let mut settled = membership.clone();
        if handshake.is_some() {
            if key.public() != membership.key()?.public() {
                settled = settled.promoted();
            }
            settled.joined = true;
            if settled != membership {
                membership::save(options, &settled)?;
                membership::drop_pending(options);
            }
        }
        finish(&*interface, settled, options, handshake)
    };
    let connected = connected();
    if connected.is_err() && made {
        undo(options);
    }
    connected
}

/// Replaces the client's key by a new one, in place, and returns how long the new key's handshake took. Connections go on:
/// the addresses stay, and what is lost between two keys is sent again.
///
/// # Errors
/// If the client is not connected, or the server does not take the key. The former one then stays in use, and the new one
/// on disk for the next try, since the server may know it.
pub fn rotate(options: &Options) -> Result<Duration, ClientError> {
    let membership = membership::load(options)?.ok_or(ClientError::NeverJoined)?;
    let ns = here()?;
    let There::Ours(_) = whose(&ns, options, &known(options)?)? else {
        return Err(ClientError::Disconnected);
    };
    let interface = super::open(&ns, &options.name, &options.launch)?.ok_or(ClientError::Disconnected)?;
    let server = membership.server_key()?;
    let now = interface.peer(server)?.ok_or(ClientError::Disconnected)?;
    let server = PeerConfig {
        public_key: server,
        allowed_ips: now.allowed_ips,
        endpoint: now.endpoint,
        keepalive_s: now.keepalive_s,
    };
    // A key of an earlier try is tried again: the server may have it.
    let next = match &membership.next_private_key {
        Some(next) => parse_key("this client", next)?,
        None => PrivateKey::generate(),
    };
    // On disk before the server hears of it, so that a crash at any point leaves a client that can connect.
    let both = Membership { next_private_key: Some(next.to_base64()), ..membership.clone() };
    membership::save(options, &both)?;
    let unheard = match tell(&membership, ROTATE, &next) {
        Err(error @ ClientError::Exchange { .. }) => Some(error),
        told => told.map(|()| None)?,
    };
    switch(&*interface, &server, &next)?;
    let Some(handshake) = wait_for_handshake(&*interface, server.public_key)? else {
        switch(&*interface, &server, &membership.key()?)?;
        return Err(unheard.unwrap_or_else(|| no_handshake(&server, &membership)));
    };
    membership::save(options, &both.promoted())?;
    wait_until_heard(&membership)?;
    Ok(handshake)
}

/// Gives the interface another key. The session of the former one goes.
fn switch(interface: &dyn Interface, server: &PeerConfig, key: &PrivateKey) -> Result<(), Error> {
    interface.remove_peer(server.public_key)?;
    interface.configure(key, 0)?;
    interface.set_peer(server.clone())
}

/// Takes the tunnel down and gives names back to whom they belonged. The membership stays.
///
/// # Errors
/// If the interface of that name is not this client's: nothing is touched then. Else the first of what could not be
/// undone; the rest is tried all the same.
pub fn disconnect(options: &Options) -> Result<(), ClientError> {
    let ns = here()?;
    let there = whose(&ns, options, &known(options)?)?;
    let names = dns::restore(&options.name, &options.state_dir);
    forget_server(Path::new(RUN), &options.name);
    let tunnel = match there {
        There::Absent => Ok(()),
        There::Ours(_) => super::take_down(&ns, &options.name, &options.launch),
    };
    names?;
    Ok(tunnel?)
}

/// Whom the client joined, and how the tunnel is.
///
/// # Errors
/// If no server has been joined, or the interface does not answer.
pub fn status(options: &Options) -> Result<ClientStatus, ClientError> {
    let membership = membership::load(options)?.ok_or(ClientError::NeverJoined)?;
    let ns = here()?;
    let interface = match whose(&ns, options, &known(options)?) {
        Ok(There::Ours(_)) => super::open(&ns, &options.name, &options.launch)?,
        // Somebody else's tells nothing of our connection.
        Ok(There::Absent) | Err(ClientError::Tunnel(Error::Foreign { .. } | Error::Taken { .. })) => None,
        Err(e) => return Err(e),
    };
    let interface = match interface {
        Some(interface) => Some((interface.kind(), interface.status()?)),
        None => None,
    };
    let dns = dns::state(&options.name, &options.state_dir);
    let dns = dns.filter(|_| interface.is_some()).map(|dns| {
        let in_effect = dns::is_in_effect(&dns, &options.name);
        (dns, in_effect)
    });
    Ok(ClientStatus { membership, interface, dns })
}

/// The interface's MTU, while it is there.
#[must_use]
pub fn mtu_bytes(options: &Options) -> Option<u32> {
    Some(Netlink::new(&here().ok()?).link(&options.name).ok()??.mtu)
}

fn here() -> Result<NetNs, ClientError> {
    Ok(NetNs::current().map_err(|source| Error::Namespace { source })?)
}

fn undo(options: &Options) {
    if let Err(error) = disconnect(options) {
        tracing::warn!(%error, "cannot undo what was begun");
    }
}

/// How the interface of our name is to be known: by its key, or, where its process is gone, by its address.
#[derive(Default)]
struct Known {
    keys: Vec<PublicKey>,
    addresses: Vec<Ipv6Addr>,
}

/// An interface of our name.
#[derive(Clone, Copy)]
enum There {
    Absent,
    /// With this key; without one if nobody serves it any more.
    Ours(Option<PublicKey>),
}

fn has_key(membership: &Membership, key: PublicKey) -> bool {
    membership.keys().is_ok_and(|keys| keys.iter().any(|own| own.public() == key))
}

/// What this client may have left there.
fn known(options: &Options) -> Result<Known, ClientError> {
    let mut known = Known::default();
    let mut add = |membership: &Membership| -> Result<(), ClientError> {
        known.keys.extend(membership.keys()?.iter().map(PrivateKey::public));
        known.addresses.push(membership.address);
        Ok(())
    };
    if let Some(membership) = membership::load(options)? {
        add(&membership)?;
    }
    if let Some(pending) = membership::load_pending(options)? {
        add(&pending.membership)?;
        known.keys.extend(pending.invitation_key.parse::<PublicKey>());
    }
    Ok(known)
}

/// Whether the interface of our name is ours: another's is not to be changed, and least of all removed.
fn whose(ns: &NetNs, options: &Options, known: &Known) -> Result<There, ClientError> {
    let name = options.name.as_str();
    let Some(holder) = super::holder(ns, name, &options.launch)? else { return Ok(There::Absent) };
    let is_ours = match holder {
        Some(key) => known.keys.contains(&key),
        None => {
            let has = Netlink::new(ns).addresses(name).map_err(Error::from)?;
            known.addresses.iter().any(|address| has.contains(address))
        }
    };
    if is_ours { Ok(There::Ours(holder)) } else { Err(Error::Foreign { name: name.to_owned() }.into()) }
}

/// Brings the interface up, or finds it up, without its peer.
fn bring_up(
    ns: &NetNs,
    membership: &Membership,
    key: &PrivateKey,
    options: &Options,
) -> Result<Box<dyn Interface>, ClientError> {
    let interface = super::bring_up(
        ns,
        &Setup {
            name: &options.name,
            address: membership.address,
            bits: 128,
            private_key: key,
            listen_port: 0,
            mtu_bytes: MTU_BYTES,
            choice: options.choice,
            launch: &options.launch,
        },
    )?;
    let netlink = Netlink::new(ns);
    for prefix in membership.prefixes() {
        netlink.add_route(prefix.network(), Prefix::BITS, &options.name).map_err(Error::from)?;
    }
    Ok(interface)
}

fn finish(
    interface: &dyn Interface,
    membership: Membership,
    options: &Options,
    handshake: Option<Duration>,
) -> Result<Connected, ClientError> {
    let dns = dns::point(options.dns, &options.name, membership.server, &options.state_dir)?;
    note_server(Path::new(RUN), &options.name, membership.server, membership.http_port);
    Ok(Connected {
        name: membership.name,
        address: membership.address,
        server: membership.server,
        kind: interface.kind(),
        dns,
        handshake,
    })
}

/// Leaves a note of where the server's API is, for everyone on this machine: whoever is no admin gets no further by it.
fn note_server(run: &Path, interface: &str, server: Ipv6Addr, port: u16) {
    let path = noted(run, interface);
    let noted =
        fs::create_dir_all(run).and_then(|()| fs::write(&path, format!("http://[{server}]:{port}\n")));
    if let Err(error) = noted {
        tracing::warn!(%error, path = %path.display(), "`faas` has to be told of the server by --server");
    }
}

fn forget_server(run: &Path, interface: &str) {
    // One that is not there, or a directory that is not ours: nothing was noted.
    let _ = fs::remove_file(noted(run, interface));
}

fn noted(run: &Path, interface: &str) -> PathBuf {
    run.join(format!("{interface}.server"))
}

/// The server that this machine is connected to, by its usual interface.
#[must_use]
pub fn connected_to<T: std::str::FromStr>(run: &Path) -> Option<T> {
    fs::read_to_string(noted(run, INTERFACE)).ok()?.trim().parse().ok()
}

fn no_handshake(server: &PeerConfig, membership: &Membership) -> ClientError {
    match server.endpoint {
        Some(endpoint) => ClientError::NoHandshake { endpoint, name: membership.name.clone() },
        None => ClientError::NeverJoined,
    }
}
