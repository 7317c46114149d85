//! The client's side: joining by an invitation, connecting again, disconnecting.
//!
//! An invitation brings a key that is good for one exchange. Through the tunnel that it opens, the client tells
//! the server the public half of a key of its own, which from then on is the peer's. The own key is on disk
//! before the server hears of it, so that a crash at any point leaves a client that can connect.

use std::fs;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};

use super::dns::{self, Dns, DnsError, DnsMode};
use super::keys::{KeyFormatError, PrivateKey, PublicKey, write_private};
use super::{
    AllowedIp, Choice, Error, Interface, InterfaceStatus, Kind, Launch, MTU_BYTES, PeerConfig, Setup,
};
use crate::core::address::Prefix;
use crate::core::invitation::Invitation;
use crate::sys::netlink::Netlink;
use crate::sys::netns::NetNs;

/// The interface's usual name.
pub const INTERFACE: &str = "faas0";

/// Where it is noted what this machine is connected to.
pub const RUN: &str = "/run/faas";

/// Keeps the path through a NAT open; common ones forget it after 30 s.
const KEEPALIVE_S: u16 = 25;

/// How long a handshake may take: it is repeated after 5 s, should its first packet be lost.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(12);

/// How long the server may take to answer, once the tunnel is up.
const JOIN_DEADLINE: Duration = Duration::from_secs(10);

/// How long a first packet may take to the server and back before another is sent.
const FIRST_PACKET_DEADLINE: Duration = Duration::from_millis(100);

/// The server's routes for peers.
const JOIN: &str = "/v1/join";
const ROTATE: &str = "/v1/rotate";

/// The longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 16 << 10;

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

/// What a client knows of the server it joined. Kept on disk, for its owner alone.
#[derive(Clone, Serialize, Deserialize)]
pub struct Membership {
    /// The name that the server knows the client by.
    pub name: String,
    private_key: String,
    /// The key that is to replace it: the server may know it already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next_private_key: Option<String>,
    pub address: Ipv6Addr,
    pub server_public_key: String,
    /// `HOST:PORT`, resolved anew at each connect.
    pub endpoint: String,
    pub server: Ipv6Addr,
    pub vpn_prefix: Prefix,
    pub function_prefix: Prefix,
    /// Of the server's API.
    #[serde(default = "default_http_port")]
    http_port: u16,
    /// Whether the server has been seen to know our key.
    pub joined: bool,
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

/// The body of `POST /v1/join`, as `api::types::Join` reads it.
#[derive(Serialize)]
struct Join {
    public_key: String,
}

/// What is read of an error's body.
#[derive(Deserialize)]
struct Problem {
    title: String,
}

impl std::fmt::Debug for Membership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Membership")
            .field("name", &self.name)
            .field("address", &self.address)
            .field("endpoint", &self.endpoint)
            .field("joined", &self.joined)
            .finish_non_exhaustive()
    }
}

/// Joins the server that the invitation is from and stays connected, in the calling thread's namespace.
///
/// # Errors
/// If the invitation is not good any more, or the tunnel does not come up. What was begun is undone; the own key
/// stays on disk, for a second try.
pub fn join(invitation: &Invitation, options: &Options) -> Result<Connected, ClientError> {
    let before = match load(options) {
        Ok(before) => Some(before).filter(|before| {
            before.server_public_key == invitation.server_public_key && before.address == invitation.address
        }),
        Err(ClientError::NeverJoined) => None,
        Err(e) => return Err(e),
    };
    if before.as_ref().is_some_and(|before| before.joined) {
        return Err(ClientError::RedeemedHere);
    }
    let second_try = before.is_some();
    let private_key = before.map_or_else(|| PrivateKey::generate().to_base64(), |before| before.private_key);
    let membership = Membership {
        name: invitation.name.clone(),
        private_key,
        next_private_key: None,
        address: invitation.address,
        server_public_key: invitation.server_public_key.clone(),
        endpoint: invitation.endpoint.clone(),
        server: invitation.server,
        vpn_prefix: invitation.vpn_prefix,
        function_prefix: invitation.function_prefix,
        http_port: invitation.http_port,
        joined: false,
    };
    let temporary = parse_key("the invitation", &invitation.private_key)?;
    let ns = here()?;
    // A former server's tunnel makes room; its membership is replaced only once this one is certain to be ours.
    disconnect(options)?;
    let joined = || {
        let (interface, server) = bring_up(&ns, &membership, &temporary, options)?;
        let met = wait_for_handshake(&*interface, server.public_key)?;
        match met {
            Some(_) => {
                save(options, &membership)?;
                tell(&membership, JOIN, &own_key(&membership)?)?;
            }
            // The server may have taken our key at the first try, and the answer was lost.
            None if second_try => {}
            None => return Err(no_handshake(&server, &membership)),
        }
        // The session of the temporary key goes, and with it the last that the key is good for.
        switch(&*interface, &server, &own_key(&membership)?)?;
        let handshake = wait_for_handshake(&*interface, server.public_key)?;
        if handshake.is_none() {
            return Err(no_handshake(&server, &membership));
        }
        wait_until_heard(&membership)?;
        let membership = Membership { joined: true, ..membership.clone() };
        save(options, &membership)?;
        finish(&*interface, membership, options, handshake)
    };
    joined().inspect_err(|_| undo(options))
}

/// Connects again to the server that was joined. A server that does not answer at the moment is no error: the
/// tunnel comes to life when it does.
///
/// # Errors
/// If no server has been joined, or the tunnel does not come up.
pub fn connect(options: &Options) -> Result<Connected, ClientError> {
    let membership = load(options)?;
    let connected = || {
        let (interface, server) = bring_up(&here()?, &membership, &own_key(&membership)?, options)?;
        let mut handshake = wait_for_handshake(&*interface, server.public_key)?;
        let mut membership = membership.clone();
        if let (None, Some(next)) = (handshake, membership.next_private_key.clone()) {
            // The server has taken the new key, and we did not hear of it.
            switch(&*interface, &server, &parse_key("this client", &next)?)?;
            handshake = wait_for_handshake(&*interface, server.public_key)?;
            if handshake.is_some() {
                membership.private_key = next;
                membership.next_private_key = None;
                save(options, &membership)?;
            }
        }
        let joined = membership.joined || handshake.is_some();
        if joined != membership.joined {
            membership.joined = joined;
            save(options, &membership)?;
        }
        finish(&*interface, membership, options, handshake)
    };
    connected().inspect_err(|_| undo(options))
}

/// Replaces the client's key by a new one, in place, and returns how long the new key's handshake took. Connections go on:
/// the addresses stay, and what is lost between two keys is sent again.
///
/// # Errors
/// If the client is not connected, or the server does not take the key; the former one then stays.
pub fn rotate(options: &Options) -> Result<Duration, ClientError> {
    let membership = load(options)?;
    let interface =
        super::open(&here()?, &options.name, &options.launch)?.ok_or(ClientError::Disconnected)?;
    let server: PublicKey = membership
        .server_public_key
        .parse()
        .map_err(|source| ClientError::Key { whose: "the server", source })?;
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
    save(options, &both)?;
    tell(&membership, ROTATE, &next)?;
    switch(&*interface, &server, &next)?;
    let Some(handshake) = wait_for_handshake(&*interface, server.public_key)? else {
        switch(&*interface, &server, &own_key(&membership)?)?;
        return Err(no_handshake(&server, &membership));
    };
    wait_until_heard(&membership)?;
    save(options, &Membership { private_key: next.to_base64(), next_private_key: None, ..membership })?;
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
/// The first of what could not be undone; the rest is tried all the same.
pub fn disconnect(options: &Options) -> Result<(), ClientError> {
    let names = dns::restore(&options.name, &options.state_dir);
    forget_server(Path::new(RUN), &options.name);
    let tunnel = here().and_then(|ns| Ok(super::take_down(&ns, &options.name, &options.launch)?));
    names?;
    tunnel
}

/// Whom the client joined, and how the tunnel is.
///
/// # Errors
/// If no server has been joined, or the interface does not answer.
pub fn status(options: &Options) -> Result<ClientStatus, ClientError> {
    let membership = load(options)?;
    let interface = match super::open(&here()?, &options.name, &options.launch)? {
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

fn here() -> Result<NetNs, ClientError> {
    Ok(NetNs::current().map_err(|source| Error::Namespace { source })?)
}

fn undo(options: &Options) {
    if let Err(error) = disconnect(options) {
        tracing::warn!(%error, "cannot undo what was begun");
    }
}

fn bring_up(
    ns: &NetNs,
    membership: &Membership,
    key: &PrivateKey,
    options: &Options,
) -> Result<(Box<dyn Interface>, PeerConfig), ClientError> {
    let prefixes = [membership.vpn_prefix, membership.function_prefix];
    let server = PeerConfig {
        public_key: membership
            .server_public_key
            .parse()
            .map_err(|source| ClientError::Key { whose: "the server", source })?,
        allowed_ips: prefixes
            .iter()
            .filter_map(|prefix| AllowedIp::new(prefix.network(), Prefix::BITS))
            .collect(),
        endpoint: Some(resolve(&membership.endpoint)?),
        keepalive_s: Some(KEEPALIVE_S),
    };
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
    for prefix in prefixes {
        netlink.add_route(prefix.network(), Prefix::BITS, &options.name).map_err(Error::from)?;
    }
    interface.set_peer(server.clone())?;
    Ok((interface, server))
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

const fn default_http_port() -> u16 {
    9464
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

fn resolve(endpoint: &str) -> Result<SocketAddr, ClientError> {
    let error = |source| ClientError::Endpoint { endpoint: endpoint.to_owned(), source };
    let mut found = endpoint.to_socket_addrs().map_err(error)?;
    found.next().ok_or_else(|| error(io::ErrorKind::NotFound.into()))
}

fn wait_for_handshake(interface: &dyn Interface, server: PublicKey) -> Result<Option<Duration>, Error> {
    let start = Instant::now();
    loop {
        if interface.peer(server)?.is_some_and(|peer| peer.last_handshake.is_some()) {
            return Ok(Some(start.elapsed()));
        }
        if start.elapsed() > HANDSHAKE_DEADLINE {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until packets reach the server under our own key: it shakes hands with the key at once, but gives it our
/// address only once its answer to the join has had time to arrive. What is sent before that is lost.
fn wait_until_heard(membership: &Membership) -> Result<(), ClientError> {
    let (start, mut patience) = (Instant::now(), FIRST_PACKET_DEADLINE);
    loop {
        let error =
            match TcpStream::connect_timeout(&(membership.server, membership.http_port).into(), patience) {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => return Ok(()),
                Err(e) => e,
            };
        if start.elapsed() > JOIN_DEADLINE {
            return Err(ClientError::Exchange { source: error });
        }
        // Sooner again than TCP itself would send, but no less patient in the end.
        if error.kind() == io::ErrorKind::TimedOut {
            patience *= 2;
        } else {
            std::thread::sleep(FIRST_PACKET_DEADLINE);
        }
    }
}

/// Tells the server a key of ours, on a thread of its own, since the caller may be a runtime's.
fn tell(membership: &Membership, path: &'static str, key: &PrivateKey) -> Result<(), ClientError> {
    let public_key = key.public().to_string();
    let (server, port) = (membership.server, membership.http_port);
    let exchange = |source| ClientError::Exchange { source };
    let (status, body) = std::thread::scope(|scope| {
        let post = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                tokio::time::timeout(JOIN_DEADLINE, post_key(server, port, path, public_key)).await?
            })
        };
        scope.spawn(post).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
    .map_err(exchange)?;
    if status.is_success() {
        return Ok(());
    }
    let said = serde_json::from_slice(&body)
        .map_or_else(|_| String::from_utf8_lossy(&body).trim().to_owned(), |problem: Problem| problem.title);
    Err(ClientError::Refused { status, said })
}

async fn post_key(
    server: Ipv6Addr,
    port: u16,
    path: &str,
    public_key: String,
) -> io::Result<(StatusCode, Bytes)> {
    let body = serde_json::to_vec(&Join { public_key })?;
    let request = Request::post(path)
        .header(header::HOST, format!("[{server}]:{port}"))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(io::Error::other)?;
    let stream = tokio::net::TcpStream::connect((server, port)).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // Ends with the runtime.
    tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    let status = response.status();
    let body =
        Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(io::Error::other)?;
    Ok((status, body.to_bytes()))
}

fn parse_key(whose: &'static str, key: &str) -> Result<PrivateKey, ClientError> {
    key.parse().map_err(|source| ClientError::Key { whose, source })
}

fn own_key(membership: &Membership) -> Result<PrivateKey, ClientError> {
    parse_key("this client", &membership.private_key)
}

fn path(options: &Options) -> PathBuf {
    options.state_dir.join(format!("{}.json", options.name))
}

fn load(options: &Options) -> Result<Membership, ClientError> {
    let path = path(options);
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map_err(|source| ClientError::Damaged { path, source }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(ClientError::NeverJoined),
        Err(source) => Err(ClientError::State { operation: "read", path, source }),
    }
}

fn save(options: &Options, membership: &Membership) -> Result<(), ClientError> {
    let state = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| ClientError::State { operation, path, source }
    };
    let dir = &options.state_dir;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(state("create", dir))?;
    let path = path(options);
    let text = serde_json::to_vec_pretty(membership).map_err(|e| state("write", &path)(e.into()))?;
    write_private(&path, &text).map_err(state("write", &path))
}
