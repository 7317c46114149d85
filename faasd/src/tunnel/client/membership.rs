//! What a client knows of the server it joined, and of one that it is about to join, on disk.

use std::fs;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{ClientError, KEEPALIVE_S, Options};
use crate::core::address::Prefix;
use crate::core::invitation::Invitation;
use crate::tunnel::keys::{PrivateKey, PublicKey, write_private};
use crate::tunnel::{AllowedIp, PeerConfig};

/// What a client knows of the server it joined. Kept on disk, for its owner alone.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The name that the server knows the client by.
    pub name: String,
    pub(super) private_key: String,
    /// The key that is to replace it: the server may know it already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) next_private_key: Option<String>,
    pub address: Ipv6Addr,
    pub server_public_key: String,
    /// `HOST:PORT`, resolved anew at each connect.
    pub endpoint: String,
    pub server: Ipv6Addr,
    pub vpn_prefix: Prefix,
    pub function_prefix: Prefix,
    /// Of the server's API.
    #[serde(default = "default_http_port")]
    pub(super) http_port: u16,
    /// Whether the server has been seen to know our key.
    pub joined: bool,
}

/// A membership that the server has not agreed to yet. What was before it stays until then.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Pending {
    pub membership: Membership,
    /// The invitation's key, by which an interface that was left behind is known.
    pub invitation_key: String,
    /// Whether our own key may have reached the server.
    pub told: bool,
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

impl Membership {
    /// Whose address and key are to be from the invitation.
    pub(super) fn new(invitation: &Invitation, private_key: String) -> Self {
        Self {
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
        }
    }

    pub(super) fn is_of(&self, invitation: &Invitation) -> bool {
        self.server_public_key == invitation.server_public_key && self.address == invitation.address
    }

    pub(super) fn key(&self) -> Result<PrivateKey, ClientError> {
        parse_key("this client", &self.private_key)
    }

    /// The keys by which the server may know us: what we have, and what is to replace it.
    pub(super) fn keys(&self) -> Result<Vec<PrivateKey>, ClientError> {
        let next = self.next_private_key.as_deref().map(|next| parse_key("this client", next));
        std::iter::once(self.key()).chain(next).collect()
    }

    /// The next key is the key.
    pub(super) fn promoted(self) -> Self {
        let Self { private_key, next_private_key, .. } = self;
        Self { private_key: next_private_key.unwrap_or(private_key), next_private_key: None, ..self }
    }

    pub(super) fn server_key(&self) -> Result<PublicKey, ClientError> {
        self.server_public_key.parse().map_err(|source| ClientError::Key { whose: "the server", source })
    }

    pub(super) const fn prefixes(&self) -> [Prefix; 2] {
        [self.vpn_prefix, self.function_prefix]
    }

    /// The server as our peer, at the address that its name has now.
    pub(super) fn server(&self) -> Result<PeerConfig, ClientError> {
        Ok(PeerConfig {
            public_key: self.server_key()?,
            allowed_ips: self
                .prefixes()
                .iter()
                .filter_map(|prefix| AllowedIp::new(prefix.network(), Prefix::BITS))
                .collect(),
            endpoint: Some(resolve(&self.endpoint)?),
            keepalive_s: Some(KEEPALIVE_S),
        })
    }
}

const fn default_http_port() -> u16 {
    9464
}

fn resolve(endpoint: &str) -> Result<SocketAddr, ClientError> {
    let error = |source| ClientError::Endpoint { endpoint: endpoint.to_owned(), source };
    let mut found = endpoint.to_socket_addrs().map_err(error)?;
    found.next().ok_or_else(|| error(io::ErrorKind::NotFound.into()))
}

pub(super) fn parse_key(whose: &'static str, key: &str) -> Result<PrivateKey, ClientError> {
    key.parse().map_err(|source| ClientError::Key { whose, source })
}

fn path(options: &Options) -> PathBuf {
    options.state_dir.join(format!("{}.json", options.name))
}

fn pending_path(options: &Options) -> PathBuf {
    options.state_dir.join(format!("{}.json.joining", options.name))
}

/// Whom the client joined.
pub(super) fn load(options: &Options) -> Result<Option<Membership>, ClientError> {
    read(path(options))
}

pub(super) fn load_pending(options: &Options) -> Result<Option<Pending>, ClientError> {
    read(pending_path(options))
}

fn read<T: for<'a> Deserialize<'a>>(path: PathBuf) -> Result<Option<T>, ClientError> {
    match fs::read(&path) {
        Ok(text) => {
            let parsed = serde_json::from_slice(&text);
            parsed.map(Some).map_err(|source| ClientError::Damaged { path, source })
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ClientError::State { operation: "read", path, source }),
    }
}

/// The server has agreed to it: it takes the place of what was before.
pub(super) fn save(options: &Options, membership: &Membership) -> Result<(), ClientError> {
    write(options, &path(options), membership)
}

pub(super) fn save_pending(options: &Options, pending: &Pending) -> Result<(), ClientError> {
    write(options, &pending_path(options), pending)
}

fn write<T: Serialize>(options: &Options, path: &Path, content: &T) -> Result<(), ClientError> {
    let state = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| ClientError::State { operation, path, source }
    };
    let dir = &options.state_dir;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(state("create", dir))?;
    let text = serde_json::to_vec_pretty(content).map_err(|e| state("write", path)(e.into()))?;
    write_private(path, &text).map_err(state("write", path))
}

/// Nothing will come of it, or it has come true.
pub(super) fn drop_pending(options: &Options) {
    let path = pending_path(options);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, path = %path.display(), "cannot remove what is not needed any more");
        }
        // Made for this alone, perhaps; one with anything in it stays.
        _ => drop(fs::remove_dir(&options.state_dir)),
    }
}
