//! Taking over from wg-quick: a server that has served peers by `/etc/wireguard/wg0.conf` goes on to serve them, under
//! the same key, port and addresses, and the file is never written to.
//!
//! Peers are taken over once, when there is no key of ours yet: after that they are on record, and one that was revoked
//! stays away. The port is the file's as long as the key is, unless the settings name another than the usual one.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

use super::config::Config;
use super::records::{PEERS, PeerRecord};
use super::store::{Expect, Store, StoreError, list_json, put_json};
use crate::core::access::Role;
use crate::core::name::FunctionName;
use crate::sys::netlink::{Netlink, NetlinkError};
use crate::sys::netns::NetNs;
use crate::tunnel::keys::{self, PRIVATE_KEY_FILE, PrivateKey, PublicKey, write_private};

/// The largest file that is read, in bytes: some ten thousand peers.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Why a file is not taken over.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}, line {line}: {what}; correct it, or move the file away to start with a new key", path.display())]
    Syntax { path: PathBuf, line: usize, what: String },
    #[error("cannot take over {}: {what}; {remedy}, or move the file away to start with a new key", path.display())]
    Refused { path: PathBuf, what: String, remedy: String },
    #[error(
        "the interface {name} of wg-quick is up on this machine; `wg-quick down {name}` and `systemctl disable \
         wg-quick@{name}` first: faasd then takes over its key, port and peers"
    )]
    Up { name: String },
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// What a wg-quick file says that matters here.
#[derive(Debug, Default)]
struct WgQuick {
    private_key: Option<PrivateKey>,
    listen_port: Option<u16>,
    /// As written: addresses with or without a prefix.
    addresses: Vec<String>,
    peers: Vec<WgQuickPeer>,
    /// Settings that have no effect any more.
    ignored: BTreeSet<String>,
}

#[derive(Debug)]
struct WgQuickPeer {
    line: usize,
    /// The comment right before or within its section, which is what people name peers by.
    comment: Option<String>,
    public_key: Option<PublicKey>,
    allowed_ips: Vec<String>,
    has_preshared_key: bool,
}

/// Takes over what `INTERFACE.conf` in `dir` says, where that applies, and sets the port. Says so in the log.
///
/// # Errors
/// If the file cannot be taken over as a whole: nothing is, then.
pub fn adopt(config: &mut Config, dir: &Path, store: &dyn Store, host: &NetNs) -> Result<(), AdoptError> {
    let path = dir.join(format!("{}.conf", config.interface));
    let text = match fs::metadata(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(about) if about.len() > FILE_BYTES_MAX => Err(io::ErrorKind::FileTooLarge.into()),
        Ok(_) => fs::read_to_string(&path),
        Err(e) => Err(e),
    }
    .map_err(|source| AdoptError::Read { path: path.clone(), source })?;
    let is_first = !dir.join(PRIVATE_KEY_FILE).exists();
    let found = match WgQuick::parse(&text) {
        Ok(found) => found,
        Err((line, what)) if is_first => return Err(AdoptError::Syntax { path, line, what }),
        // It was written after we had a key of our own: it is somebody else's business.
        Err(_) => return Ok(()),
    };
    let refused = |what: String, remedy: &str| AdoptError::Refused {
        path: path.clone(),
        what,
        remedy: remedy.to_owned(),
    };
    let Some(key) = found.private_key.clone() else {
        return match is_first {
            true => Err(refused("it has no PrivateKey".to_owned(), "give it one")),
            false => Ok(()),
        };
    };
    if !is_first && keys::load_or_create(dir).is_ok_and(|ours| ours.public() != key.public()) {
        tracing::info!(file = %path.display(), "has another key than ours, and is left alone");
        return Ok(());
    }
    if is_first {
        if Netlink::new(host)
            .link(&config.interface)?
            .is_some_and(|link| link.kind.as_deref() == Some("wireguard"))
        {
            return Err(AdoptError::Up { name: config.interface.clone() });
        }
        let records = records(&found, config, store, &refused)?;
        for record in &records {
            put_json(store, &PeerRecord::key(&record.name), record, Expect::Absent)?;
            tracing::info!(peer = %record.name, address = %record.address, "taken over from wg-quick");
        }
        // Last: with the key there, the file's peers are not looked at again.
        let target = dir.join(PRIVATE_KEY_FILE);
        write_private(&target, format!("{}\n", key.to_base64()).as_bytes())
            .map_err(|source| AdoptError::Write { path: target, source })?;
        for setting in &found.ignored {
            tracing::warn!(setting, file = %path.display(), "has no effect any more");
        }
        tracing::info!(
            file = %path.display(), public_key = %key.public(), peers = records.len(),
            "took over from wg-quick; the file stays as it is, and is not used by wg-quick any more"
        );
    }
    if config.listen_port == Config::default().listen_port
        && let Some(port) = found.listen_port
    {
        config.listen_port = port;
    }
    Ok(())
}

/// The peers as we keep them, without those that an interrupted start has taken over already.
fn records(
    found: &WgQuick,
    config: &Config,
    store: &dyn Store,
    refused: &dyn Fn(String, &str) -> AdoptError,
) -> Result<Vec<PeerRecord>, AdoptError> {
    let prefix = config.vpn_prefix;
    for text in &found.addresses {
        let address = text.split('/').next().and_then(|address| address.parse::<Ipv6Addr>().ok());
        if address != Some(prefix.server()) {
            let remedy = format!(
                "the server's address is to be {}/64 alone: for another prefix set `vpn_prefix` in faasd.toml",
                prefix.server()
            );
            return Err(refused(format!("its address is {text}"), &remedy));
        }
    }
    let known = list_json::<PeerRecord>(store, PEERS)?;
    let mut names: BTreeSet<String> = known.iter().map(|(_, peer)| peer.record.name.to_string()).collect();
    let mut addresses: BTreeSet<Ipv6Addr> = known.iter().map(|(_, peer)| peer.record.address).collect();
    let mut records = Vec::new();
    for (number, peer) in found.peers.iter().enumerate() {
        let who = format!("the peer at line {}", peer.line);
        let key = peer.public_key.ok_or_else(|| refused(format!("{who} has no PublicKey"), "give it one"))?;
        if known.iter().any(|(_, known)| known.record.public_key == key.to_string()) {
            continue;
        }
        if peer.has_preshared_key {
            return Err(refused(format!("{who} has a PresharedKey"), "take it out at both ends"));
        }
        let [ip] = &peer.allowed_ips[..] else {
            let what = format!("{who} has {} allowed IPs", peer.allowed_ips.len());
            return Err(refused(what, "leave it one address, as fd00:faa5:0:100::2/128"));
        };
        let address = ip.strip_suffix("/128").and_then(|address| address.parse::<Ipv6Addr>().ok());
        let Some(address) =
            address.filter(|address| prefix.contains(*address) && *address != prefix.server())
        else {
            let remedy = format!(
                "give it one address of {prefix}, as a /128, or set `vpn_prefix` in faasd.toml to the prefix that \
                 your peers are in"
            );
            return Err(refused(format!("{who} has {ip}, which is no peer's address in {prefix}"), &remedy));
        };
        if !addresses.insert(address) {
            return Err(refused(format!("{who} has {ip}, as another has"), "give it one of its own"));
        }
        let name = name(peer.comment.as_deref(), number + 1, &names);
        names.insert(name.to_string());
        records.push(PeerRecord {
            name,
            number: 0,
            address,
            role: Role::User,
            public_key: key.to_string(),
            invited_until: None,
            endpoint: None,
        });
    }
    Ok(records)
}

/// A name that is free: the comment's words if they make one, else the peer's number.
fn name(comment: Option<&str>, number: usize, taken: &BTreeSet<String>) -> FunctionName {
    let words = comment.unwrap_or_default().to_lowercase();
    let words: Vec<&str> =
        words.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let plain = words.join("-");
    let numbered = |n: usize| format!("peer-{n}");
    std::iter::once(plain)
        .chain((number..).map(numbered))
        .filter(|name| !taken.contains(name))
        .find_map(|name| name.parse().ok())
        .unwrap_or_else(|| unreachable!("numbers do not end"))
}

impl WgQuick {
    /// Reads the file, or says in which line there is what.
    fn parse(text: &str) -> Result<Self, (usize, String)> {
        let mut found = Self::default();
        let mut comment = None;
        let mut in_interface = false;
        for (line, content) in (1..).zip(text.lines()) {
            let (content, remark) =
                content.split_once('#').map_or((content, None), |(c, r)| (c, Some(r.trim())));
            let content = content.trim();
            let remark = remark.filter(|remark| !remark.is_empty()).map(str::to_owned);
            let in_peer = !in_interface && !found.peers.is_empty();
            match content.to_ascii_lowercase().as_str() {
                "" => {
                    match found.peers.last_mut() {
                        // Within a section that has no name yet, as long as it has no key either.
                        Some(peer) if in_peer && peer.comment.is_none() && peer.public_key.is_none() => {
                            peer.comment = remark;
                        }
                        _ => comment = remark.or(comment),
                    }
                    continue;
                }
                "[interface]" => {
                    in_interface = true;
                    comment = None;
                    continue;
                }
                "[peer]" => {
                    in_interface = false;
                    found.peers.push(WgQuickPeer {
                        line,
                        comment: comment.take().or(remark),
                        public_key: None,
                        allowed_ips: Vec::new(),
                        has_preshared_key: false,
                    });
                    continue;
                }
                _ => {}
            }
            let (key, value) = content
                .split_once('=')
                .ok_or_else(|| (line, "neither a section nor `Key = Value`".to_owned()))?;
            let (key, value) = (key.trim().to_ascii_lowercase(), value.trim());
            let list = || value.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty());
            match (in_interface, key.as_str(), found.peers.last_mut()) {
                (true, "privatekey", _) => {
                    found.private_key =
                        Some(value.parse().map_err(|e: keys::KeyFormatError| (line, e.to_string()))?);
                }
                (true, "listenport", _) => {
                    found.listen_port =
                        Some(value.parse().map_err(|_| (line, format!("'{value}' is no port")))?);
                }
                (true, "address", _) => found.addresses.extend(list()),
                (true, "saveconfig", _) => {}
                (true, other, _) => {
                    found.ignored.insert(other.to_owned());
                }
                (false, "publickey", Some(peer)) => {
                    peer.public_key =
                        Some(value.parse().map_err(|e: keys::KeyFormatError| (line, e.to_string()))?);
                }
                (false, "allowedips", Some(peer)) => peer.allowed_ips.extend(list()),
                (false, "presharedkey", Some(peer)) => peer.has_preshared_key = true,
                // They begin themselves, and keep their own way open.
                (false, "endpoint" | "persistentkeepalive", Some(_)) => {}
                (false, _, Some(_)) => return Err((line, format!("unknown setting '{key}'"))),
                (false, _, None) => return Err((line, "a setting outside of a section".to_owned())),
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::store::Embedded;

    /// As wg-quick's users write them.
    const FILE: &str = "\
[Interface]
Address = fd00:faa5:0:100::1/64
ListenPort = 51899
PrivateKey = oLOpXjeMiGXkxOY9f55ga4qTWACDAmVHqoN9iFNnqWg=
PostUp = sysctl -w net.ipv6.conf.all.forwarding=1
SaveConfig = false

# Anna's laptop
[Peer]
PublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
AllowedIPs = fd00:faa5:0:100::7/128
PersistentKeepalive = 25

[Peer]
# 測試
PublicKey = TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=   # the second
AllowedIPs = fd00:faa5:0:100::9/128
Endpoint = 192.0.2.7:51820
";

    struct Place {
        dir: tempfile::TempDir,
        store: Embedded,
        host: NetNs,
    }

    impl Place {
        fn new(file: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("wg0.conf"), file).unwrap();
            let store = Embedded::open(&dir.path().join("store")).unwrap();
            Self { dir, store, host: NetNs::current().unwrap() }
        }

        fn adopt(&self, config: &mut Config) -> Result<(), AdoptError> {
            adopt(config, self.dir.path(), &self.store, &self.host)
        }

        fn peers(&self) -> Vec<(String, Ipv6Addr)> {
            let found = list_json::<PeerRecord>(&self.store, PEERS).unwrap();
            found.into_iter().map(|(_, peer)| (peer.record.name.to_string(), peer.record.address)).collect()
        }
    }

    #[test]
    fn a_file_is_taken_over_once_and_stays_as_it_is() {
        let place = Place::new(FILE);
        let mut config = Config::default();
        place.adopt(&mut config).unwrap();
        assert_eq!(config.listen_port, 51899);
        let vpn = |host| config.vpn_prefix.host(host);
        let both = [("anna-s-laptop".to_owned(), vpn(7)), ("peer-2".to_owned(), vpn(9))];
        assert_eq!(place.peers(), both);
        let key = keys::load_or_create(place.dir.path()).unwrap();
        assert_eq!(key.public().to_string(), "asBP5Y2M63hAEiW3poXssW5Yh4EbS+Pq4zo4l2/OdlA=");
        assert_eq!(fs::read_to_string(place.dir.path().join("wg0.conf")).unwrap(), FILE);

        // Who was revoked stays away; the port is still the file's, unless the settings say otherwise.
        place.store.delete("peers/peer-2", Expect::Any).unwrap();
        let mut config = Config::default();
        place.adopt(&mut config).unwrap();
        assert_eq!((config.listen_port, place.peers()), (51899, both[..1].to_vec()));
        let mut config = Config { listen_port: 4242, ..Config::default() };
        place.adopt(&mut config).unwrap();
        assert_eq!(config.listen_port, 4242);
    }

    #[test]
    fn a_start_that_was_interrupted_is_taken_up_again() {
        let place = Place::new(FILE);
        place.adopt(&mut Config::default()).unwrap();
        fs::remove_file(place.dir.path().join(PRIVATE_KEY_FILE)).unwrap();
        place.adopt(&mut Config::default()).unwrap();
        assert_eq!(place.peers().len(), 2);
    }

    #[test]
    fn a_file_with_another_key_is_left_alone() {
        let place = Place::new(FILE);
        keys::load_or_create(place.dir.path()).unwrap();
        let mut config = Config::default();
        place.adopt(&mut config).unwrap();
        assert_eq!((config.listen_port, place.peers()), (51820, vec![]));
        // None is no reason to do anything.
        fs::remove_file(place.dir.path().join("wg0.conf")).unwrap();
        place.adopt(&mut config).unwrap();
    }

    #[test]
    fn what_cannot_be_taken_over_is_refused_whole_with_a_remedy() {
        for (from, to, what, remedy) in [
            ("::9/128", "::9/128, 10.0.0.9/32", "line 14 has 2 allowed IPs", "one address"),
            ("fd00:faa5:0:100::9/128", "fd99::9/128", "fd99::9/128, which is no peer's", "vpn_prefix"),
            ("fd00:faa5:0:100::9/128", "fd00:faa5:0:100::7/128", "as another has", "one of its own"),
            ("fd00:faa5:0:100::1/64", "10.0.0.1/24", "its address is 10.0.0.1/24", "vpn_prefix"),
            ("Endpoint = 192.0.2.7:51820", "PresharedKey = x", "PresharedKey", "both ends"),
            ("PrivateKey = oLOpXje", "PrivateKey = oL", "line 4", "correct it"),
            ("ListenPort = 51899", "ListenPort", "line 3: neither", "correct it"),
        ] {
            assert!(FILE.contains(from));
            let place = Place::new(&FILE.replace(from, to));
            let error = place.adopt(&mut Config::default()).unwrap_err().to_string();
            assert!(error.contains(what) && error.contains(remedy) && error.contains("wg0.conf"), "{error}");
            assert!(place.peers().is_empty() && !place.dir.path().join(PRIVATE_KEY_FILE).exists());
        }
    }
}
