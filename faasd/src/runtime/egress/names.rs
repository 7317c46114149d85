//! Who is asked for names of the outside.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::system_conf::parse_resolv_conf;

/// Where the host says who is asked, and what it knows by itself.
const RESOLV_CONF: &str = "/etc/resolv.conf";
const HOSTS: &str = "/etc/hosts";

/// A file as it is now: another one, or another content, has another.
type Stamp = Option<(u64, u64, i64, i64)>;

fn stamp(path: &Path) -> Stamp {
    // Through the link that many of them are: where it leads is what changes.
    let file = fs::metadata(path).ok()?;
    Some((file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
}

/// The resolver, which caches what it was told.
#[derive(Debug)]
pub(super) struct Names {
    /// Those of the settings. The host's own files have no part in it then.
    upstreams: Option<Vec<SocketAddr>>,
    resolv_conf: PathBuf,
    hosts: PathBuf,
    made: Mutex<Option<Made>>,
}

#[derive(Debug)]
struct Made {
    of: [Stamp; 2],
    asked: Vec<IpAddr>,
    resolver: TokioResolver,
}

impl Names {
    pub fn new(upstreams: Option<&[SocketAddr]>) -> Self {
        Self {
            upstreams: upstreams.map(<[SocketAddr]>::to_vec),
            resolv_conf: RESOLV_CONF.into(),
            hosts: HOSTS.into(),
            made: Mutex::default(),
        }
    }

    /// What a name stands for.
    pub async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        // With the closing dot: no search list is gone through.
        let found = self.resolver()?.lookup_ip(format!("{name}.")).await.map_err(io::Error::other)?;
        Ok(found.iter().collect())
    }

    /// As the host's files have it now: a laptop that moves, or a server whose lease is renewed, has other resolvers then.
    /// While they cannot be read the last one is good.
    fn resolver(&self) -> io::Result<TokioResolver> {
        let mut made = self.made();
        let stamps = match self.upstreams {
            Some(_) => [None; 2],
            None => [stamp(&self.resolv_conf), stamp(&self.hosts)],
        };
        if let Some(made) = made.as_ref().filter(|made| made.of == stamps) {
            return Ok(made.resolver.clone());
        }
        let (asked, resolver) = match (self.make(), made.take()) {
            (Ok((asked, resolver)), _) => {
                tracing::info!(?asked, "who is asked for names of the outside");
                (asked, resolver)
            }
            (Err(error), Some(last)) => {
                tracing::warn!(%error, asked = ?last.asked, "who is asked for names of the outside stays as it was");
                (last.asked, last.resolver)
            }
            (Err(error), None) => {
                let what = format!("nobody can be asked for names ({}): {error}", self.resolv_conf.display());
                return Err(io::Error::new(error.kind(), what));
            }
        };
        *made = Some(Made { of: stamps, asked, resolver: resolver.clone() });
        Ok(resolver)
    }

    fn make(&self) -> io::Result<(Vec<IpAddr>, TokioResolver)> {
        let (config, options) = match &self.upstreams {
            None => parse_resolv_conf(fs::read(&self.resolv_conf)?).map_err(io::Error::other)?,
            Some(upstreams) => {
                let servers = upstreams.iter().map(|upstream| {
                    let mut server = NameServerConfig::udp_and_tcp(upstream.ip());
                    server.connections.iter_mut().for_each(|connection| connection.port = upstream.port());
                    server
                });
                let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
                (config, ResolverOpts::default())
            }
        };
        let asked = config.name_servers.iter().map(|server| server.ip).collect();
        let mut builder =
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options);
        if self.upstreams.is_some() {
            builder.options_mut().use_hosts_file = ResolveHosts::Never;
        }
        Ok((asked, builder.build().map_err(io::Error::other)?))
    }

    fn made(&self) -> MutexGuard<'_, Option<Made>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(names: &Names) -> Vec<IpAddr> {
        names.resolver().unwrap();
        names.made().as_ref().unwrap().asked.clone()
    }

    #[tokio::test]
    async fn who_is_asked_follows_the_hosts_file() {
        let dir = tempfile::tempdir().unwrap();
        let resolv_conf = dir.path().join("resolv.conf");
        let names = Names { resolv_conf: resolv_conf.clone(), ..Names::new(None) };
        names.resolver().unwrap_err();
        fs::write(&resolv_conf, "nameserver 192.0.2.1\n").unwrap();
        assert_eq!(asked(&names), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        // As resolvers' managers do it: another file in its place.
        let new = dir.path().join("new");
        fs::write(&new, "nameserver 192.0.2.2\n").unwrap();
        fs::rename(&new, &resolv_conf).unwrap();
        assert_eq!(asked(&names), ["192.0.2.2".parse::<IpAddr>().unwrap()]);
        fs::remove_file(&resolv_conf).unwrap();
        assert_eq!(asked(&names), ["192.0.2.2".parse::<IpAddr>().unwrap()], "for want of a better one");
    }

    #[tokio::test]
    async fn with_upstreams_the_host_has_no_say() {
        let upstream: SocketAddr = "192.0.2.3:5353".parse().unwrap();
        let names = Names::new(Some(&[upstream]));
        assert_eq!(asked(&names), [upstream.ip()]);
        assert_eq!(names.resolver().unwrap().options().use_hosts_file, ResolveHosts::Never);
    }
}
