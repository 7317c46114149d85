//! The daemon's settings: `/etc/faasd/faasd.toml`. An empty file, or none, is a working daemon.

use std::io;
use std::net::{SocketAddr, SocketAddrV6};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::dns::{SECONDARIES_MAX, UPSTREAMS_MAX};
use crate::core::access::Access;
use crate::core::address::{FUNCTION_PREFIX, Prefix, VPN_PREFIX};
use crate::core::endpoint;
use crate::core::spec::explain;
use crate::tunnel::Choice;

/// The port of DNS.
pub const DNS_PORT: u16 = 53;

/// The longest time that "no such name" may be kept: what RFC 2308 calls sensible.
const NEGATIVE_TTL_SECONDS_MAX: u32 = 3600;

/// What can be set.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `HOST` or `HOST:PORT` that clients of the tunnel dial; `FAAS_VPN_ENDPOINT` comes first.
    pub endpoint: Option<String>,
    /// Who encrypts: `auto`, `kernel` or `userspace`.
    pub wireguard: Choice,
    /// The tunnel's interface, in the ingress namespace.
    pub interface: String,
    /// The tunnel's UDP port, on the host.
    pub listen_port: u16,
    pub mtu_bytes: u32,
    /// The tunnel's addresses: the server is `::1`.
    pub vpn_prefix: Prefix,
    /// The functions' addresses.
    pub function_prefix: Prefix,
    /// The port of the API, `/metrics`, `/v1/join` and `/v1/rotate` on the server's address in the tunnel.
    pub http_port: u16,
    /// Who may call a function that no rule speaks of: `open`, every peer, or `closed`, nobody.
    pub access: Access,
    /// Name servers for every other name. None: such queries are refused.
    pub dns_upstreams: Option<Vec<SocketAddr>>,
    /// How long a client may remember that a name was not there.
    pub dns_negative_ttl_seconds: u32,
    /// Peers that serve copies of our zones: they may have them whole, and are told of changes.
    pub dns_secondaries: Vec<Secondary>,
    /// DNS queries that a peer may send in a second over UDP, and as many at once; 0 for no limit.
    pub dns_rate_limit: u32,
    /// Log every DNS query.
    pub dns_query_log: bool,
    /// Threads that accept connections.
    pub acceptors: usize,
    /// Connections that may queue at one function while it has no instance, and between two sweeps.
    pub backlog: u32,
    /// Containers kept prepared, over all functions. Each takes some 9 MiB of memory, and 16 to 43 where a runner is held
    /// in it (`docs/BENCHMARKS.md`).
    pub prepared_max: usize,
    /// Changes that the API takes in a second, with the double at once.
    pub api_writes_per_second: NonZeroU32,
}

/// A name server that copies our zones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Secondary {
    pub address: SocketAddrV6,
}

impl TryFrom<String> for Secondary {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let address = text.parse().or_else(|_| text.parse().map(|ip| SocketAddrV6::new(ip, DNS_PORT, 0, 0)));
        let wrong = |_| format!("'{text}' is no IPv6 address; write ADDRESS or [ADDRESS]:PORT");
        address.map(|address| Self { address }).map_err(wrong)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            endpoint: None,
            wireguard: Choice::Auto,
            interface: "wg0".to_owned(),
            listen_port: 51820,
            mtu_bytes: 1420,
            vpn_prefix: VPN_PREFIX,
            function_prefix: FUNCTION_PREFIX,
            http_port: 9464,
            access: Access::Open,
            dns_upstreams: None,
            dns_negative_ttl_seconds: 1,
            dns_secondaries: Vec::new(),
            dns_rate_limit: 10_000,
            dns_query_log: false,
            acceptors: 1,
            backlog: 4096,
            api_writes_per_second: super::api::WRITES_PER_SECOND,
            prepared_max: 64,
        }
    }
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: {text}", path.display())]
    Syntax { path: PathBuf, text: String },
    #[error("{}: `{key}` is {value}; {allowed}", path.display())]
    Value { path: PathBuf, key: &'static str, value: String, allowed: &'static str },
}

impl Config {
    /// Reads the file; without one, the defaults.
    ///
    /// # Errors
    /// [`ConfigError`], with the nearest valid key for an unknown one.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
        };
        Self::parse(&text, path)
    }

    /// The keys whose values differ.
    #[must_use]
    pub fn changed(&self, other: &Self) -> Vec<&'static str> {
        macro_rules! changed {
            ($($key:ident),* $(,)?) => {{
                // No key is forgotten.
                let Self { $($key),* } = self;
                let all = [$((stringify!($key), *$key != other.$key)),*];
                all.into_iter().filter_map(|(key, differs)| differs.then_some(key)).collect()
            }};
        }
        changed!(
            endpoint,
            wireguard,
            interface,
            listen_port,
            mtu_bytes,
            vpn_prefix,
            function_prefix,
            http_port,
            access,
            dns_upstreams,
            dns_negative_ttl_seconds,
            dns_secondaries,
            dns_rate_limit,
            dns_query_log,
            acceptors,
            backlog,
            api_writes_per_second,
            prepared_max,
        )
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)
            .map_err(|e| ConfigError::Syntax { path: path.to_owned(), text: explain(&e) })?;
        let value = |key, value: &dyn ToString, allowed| {
            Err(ConfigError::Value { path: path.to_owned(), key, value: value.to_string(), allowed })
        };
        if config.vpn_prefix == config.function_prefix {
            return value("function_prefix", &config.function_prefix, "choose another than `vpn_prefix`");
        }
        if !is_interface_name(&config.interface) {
            return value(
                "interface",
                &config.interface,
                "use 1 to 15 characters without '/', ':' or space, and another name than lo",
            );
        }
        if config.dns_secondaries.len() > SECONDARIES_MAX {
            return value("dns_secondaries", &config.dns_secondaries.len(), "name 8 at most");
        }
        let upstreams = config.dns_upstreams.as_ref().map_or(0, Vec::len);
        if upstreams > UPSTREAMS_MAX {
            return value("dns_upstreams", &upstreams, "name 8 at most");
        }
        if config.listen_port == 0 {
            return value("listen_port", &config.listen_port, "use 1 to 65535");
        }
        if let Some(given) = &config.endpoint
            && let Err(error) = endpoint::normalize(given, config.listen_port)
        {
            return Err(ConfigError::Syntax { path: path.to_owned(), text: format!("`endpoint`: {error}") });
        }
        let is_peer = |secondary: &&Secondary| config.vpn_prefix.contains(*secondary.address.ip());
        if let Some(other) = config.dns_secondaries.iter().find(|secondary| !is_peer(secondary)) {
            let allowed = "a secondary is a peer: use its address in `vpn_prefix` (`faas vpn peers`)";
            return value("dns_secondaries", &other.address, allowed);
        }
        if config.dns_negative_ttl_seconds > NEGATIVE_TTL_SECONDS_MAX {
            let allowed =
                "use 0 to 3600: a name that is deployed is not found for as long by who asked before";
            return value("dns_negative_ttl_seconds", &config.dns_negative_ttl_seconds, allowed);
        }
        if config.http_port == 0 || config.http_port == 53 {
            return value("http_port", &config.http_port, "use 1 to 65535, but not 53, which is DNS");
        }
        if !(1..=64).contains(&config.acceptors) {
            return value("acceptors", &config.acceptors, "use 1 to 64");
        }
        if !(16..=65_535).contains(&config.backlog) {
            return value("backlog", &config.backlog, "use 16 to 65535");
        }
        if config.prepared_max > 4096 {
            return value("prepared_max", &config.prepared_max, "use 0 to 4096");
        }
        if !(1280..=65_535).contains(&config.mtu_bytes) {
            return value("mtu_bytes", &config.mtu_bytes, "IPv6 needs 1280 at least");
        }
        Ok(config)
    }
}

/// What the kernel takes for an interface's name, and is not the name of the one that every namespace has.
fn is_interface_name(name: &str) -> bool {
    let is_odd = |c: char| matches!(c, '/' | ':' | '\0') || c.is_whitespace();
    (1..=15).contains(&name.len()) && !name.contains(is_odd) && !matches!(name, "." | ".." | "lo")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_file_is_the_defaults() {
        let manual = include_str!("../../../docs/CONFIGURATION.md");
        let example = manual.split("```toml").nth(2).and_then(|rest| rest.split("```").next()).unwrap();
        assert_eq!(Config::parse(example, Path::new("faasd.toml")).unwrap(), Config::default());
    }

    #[test]
    fn the_installed_file_changes_nothing_and_names_every_setting() {
        let keys = |text: &str| {
            let is_setting = |line: &&str| !line.starts_with("# ") && line.contains(" = ");
            let key = |line: &str| line.trim_start_matches('#').split(' ').next().unwrap().to_owned();
            text.lines().filter(is_setting).map(key).collect::<std::collections::BTreeSet<_>>()
        };
        let installed = include_str!("../../../packaging/faasd.toml");
        assert_eq!(Config::parse(installed, Path::new("faasd.toml")).unwrap(), Config::default());
        let manual = include_str!("../../../docs/CONFIGURATION.md");
        assert_eq!(
            keys(installed),
            keys(manual.split("```toml").nth(2).unwrap().split("```").next().unwrap())
        );

        let shown: String =
            installed.lines().filter(|line| !line.starts_with("# ")).collect::<Vec<_>>().join("\n");
        let shown = Config::parse(&shown.replace('#', ""), Path::new("faasd.toml")).unwrap();
        let hidden = Config { endpoint: shown.endpoint.clone(), dns_upstreams: None, ..shown };
        assert_eq!(hidden, Config { endpoint: Some("vpn.example.org".to_owned()), ..Config::default() });
    }

    #[test]
    fn settings_are_read_and_mistakes_are_named() {
        let parse = |text| Config::parse(text, Path::new("faasd.toml"));
        assert_eq!(parse("").unwrap().listen_port, 51820);
        let secondaries = "dns_secondaries = ['fd00:faa5:0:100::5', '[fd00:faa5:0:100::6]:5353']";
        let ports =
            parse(secondaries).unwrap().dns_secondaries.iter().map(|s| s.address.port()).collect::<Vec<_>>();
        assert_eq!(ports, [53, 5353]);
        assert_eq!(parse("wireguard = 'userspace'").unwrap().wireguard, Choice::Userspace);
        for (text, why) in [
            ("listenport = 1", "did you mean `listen_port`"),
            ("function_prefix = 'fd00:faa5:0:100::/64'", "another than"),
            ("vpn_prefix = 'fd00::/48'", "no IPv6 /64"),
            ("acceptors = 0", "1 to 64"),
            ("http_port = 53", "DNS"),
            ("interface = 'a long name for one'", "1 to 15 characters"),
            ("interface = 'lo'", "another name"),
            ("dns_secondaries = ['192.0.2.1']", "no IPv6 address"),
            ("dns_secondaries = ['2001:db8::1']", "is a peer"),
            ("dns_negative_ttl_seconds = 86400", "0 to 3600"),
            ("dns_upstreams = [\"::1\"]", "dns_upstreams"),
            (&format!("dns_upstreams = [{}]", "'[::1]:53',".repeat(9)), "8 at most"),
            ("listen_port = 0", "1 to 65535"),
            ("endpoint = 'vpn.example.org:99999'", "a port is"),
            ("endpoint = ''", "empty"),
            ("endpoint = 'fe80::1%eth0'", "zone"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(why) && error.starts_with("faasd.toml"), "{text}: {error}");
        }
    }
}
