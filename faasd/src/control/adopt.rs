//! Taking over from wg-quick: a server that has served peers by `/etc/wireguard/wg0.conf` goes on to serve them, under
//! the same key, port and addresses, and the file is never written to.
//!
//! That happens once, when there is no key of ours yet, and is put on record: a key that is removed later is replaced by a
//! new one, and neither the file's key nor a peer that was revoked comes back. The port is the file's as long as the key
//! is, unless the settings name another than the usual one.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::net::Ipv6Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::config::Config;
use super::records::{AdoptionRecord, PEERS, PeerRecord};
use super::store::{Expect, Store, StoreError, get_json, list_json, put_json};
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
    #[error(
        "{} can be read by others (mode {mode:04o}); whoever read it can pass for the server: `chmod 600` it if nobody \
         did, else move the file away to start with a new key",
        path.display()
    )]
    Exposed { path: PathBuf, mode: u32 },
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
    let read_error = |source| AdoptError::Read { path: path.clone(), source };
    let Some((text, mode)) = read(&path).map_err(read_error)? else { return Ok(()) };
    let has_key = dir.join(PRIVATE_KEY_FILE).exists();
    let adopted = get_json::<AdoptionRecord>(store, AdoptionRecord::KEY)?.map(|stored| stored.record);
    if let (Some(adopted), false) = (&adopted, has_key) {
        tracing::warn!(
            file = %path.display(), at = %adopted.at,
            "was taken over already, and our key was removed since: a new one is made, and the peers on record are to be \
             invited again"
        );
        return Ok(());
    }
    let is_first = !has_key;
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
        if mode & 0o077 != 0 {
            return Err(AdoptError::Exposed { path, mode });
        }
        if Netlink::new(host)
            .link(&config.interface)?
            .is_some_and(|link| link.kind.as_deref() == Some("wireguard"))
        {
            return Err(AdoptError::Up { name: config.interface.clone() });
        }
        let records = records(&found, &key, config, store, &refused)?;
        for record in &records {
            put_json(store, &PeerRecord::key(&record.name), record, Expect::Absent)?;
            tracing::info!(peer = %record.name, address = %record.address, "taken over from wg-quick");
        }
        // After the peers: with the key there, the file's are not looked at again.
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
    // Last, and made up for where the start that took over was cut short here.
    if adopted.is_none() {
        let record = AdoptionRecord { public_key: key.public().to_string(), at: Timestamp::now() };
        put_json(store, AdoptionRecord::KEY, &record, Expect::Any)?;
    }
    if config.listen_port == Config::default().listen_port
        // 0 is any, which no client could be told of.
        && let Some(port) = found.listen_port.filter(|port| *port != 0)
    {
        config.listen_port = port;
    }
    Ok(())
}

/// The file and its mode, if it is there.
fn read(path: &Path) -> io::Result<Option<(String, u32)>> {
    let file = match fs::File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let about = file.metadata()?;
    if about.len() > FILE_BYTES_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(Some((text, about.mode() & 0o7777)))
}

/// The peers as we keep them, without those that an interrupted start has taken over already.
fn records(
    found: &WgQuick,
    own: &PrivateKey,
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
    let mut keys = BTreeSet::from([own.public()]);
    let mut records = Vec::new();
    for (number, peer) in found.peers.iter().enumerate() {
        let who = format!("the peer at line {}", peer.line);
        let key = peer.public_key.ok_or_else(|| refused(format!("{who} has no PublicKey"), "give it one"))?;
        if !keys.insert(key) {
            let remedy = "a key is one machine's alone: give it one of its own, or take it out";
            return Err(refused(format!("{who} has the PublicKey of another"), remedy));
        }
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
    use std::os::unix::fs::PermissionsExt;

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
            write_private(&dir.path().join("wg0.conf"), file.as_bytes()).unwrap();
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
        // Before the key was written, and then between the key and the record.
        fs::remove_file(place.dir.path().join(PRIVATE_KEY_FILE)).unwrap();
        place.store.delete(AdoptionRecord::KEY, Expect::Any).unwrap();
        place.adopt(&mut Config::default()).unwrap();
        assert_eq!(place.peers().len(), 2);
        place.store.delete(AdoptionRecord::KEY, Expect::Any).unwrap();
        place.adopt(&mut Config::default()).unwrap();
        fs::remove_file(place.dir.path().join(PRIVATE_KEY_FILE)).unwrap();
        place.adopt(&mut Config::default()).unwrap();
        assert!(!place.dir.path().join(PRIVATE_KEY_FILE).exists());
    }

    #[test]
    fn a_key_that_was_removed_does_not_come_back_and_nor_does_who_was_revoked() {
        let place = Place::new(FILE);
        place.adopt(&mut Config::default()).unwrap();
        let old = keys::load_or_create(place.dir.path()).unwrap().public();
        place.store.delete("peers/peer-2", Expect::Any).unwrap();
        fs::remove_file(place.dir.path().join(PRIVATE_KEY_FILE)).unwrap();
        for _ in 0..2 {
            let mut config = Config::default();
            place.adopt(&mut config).unwrap();
            assert_ne!(keys::load_or_create(place.dir.path()).unwrap().public(), old);
            assert_eq!((config.listen_port, place.peers().len()), (51820, 1));
        }
    }

    #[test]
    fn a_file_that_others_can_read_is_not_trusted() {
        let place = Place::new(FILE);
        let path = place.dir.path().join("wg0.conf");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = place.adopt(&mut Config::default()).unwrap_err().to_string();
        assert!(error.contains("0644") && error.contains("chmod 600"), "{error}");
        assert!(place.peers().is_empty() && !place.dir.path().join(PRIVATE_KEY_FILE).exists());
        // With a key of ours it is nobody's business.
        keys::load_or_create(place.dir.path()).unwrap();
        place.adopt(&mut Config::default()).unwrap();
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
            (
                "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=",
                "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=",
                "PublicKey of another",
                "take it out",
            ),
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
