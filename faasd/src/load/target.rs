//! What is asked: a URL, the addresses behind its host, and from where it is dialled.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use hyper::Uri;
use hyper::header::HeaderValue;
use hyper::http::uri::{PathAndQuery, Scheme};

use crate::sys::netns::NetNs;

/// Why a text is no target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    #[error("'{0}' is no URL; write one like http://[::1]:8080/path")]
    Url(String),
    #[error("'{0}' asks for TLS, which this does not speak: measure the server behind it, by http://")]
    Tls(String),
    #[error("'{0}' has a scheme other than http:// and ws://")]
    Scheme(String),
}

/// A server.
#[derive(Debug)]
pub struct Target {
    /// As somebody gave it.
    pub name: String,
    host: String,
    port: u16,
    authority: HeaderValue,
    path: PathAndQuery,
    /// In the order in which they are tried.
    pub addresses: Vec<SocketAddr>,
    /// Asks anew for each connection.
    pub resolve_each: bool,
    /// Dialled from there, by its own daemon's right: what others would open in it is refused.
    pub(super) netns: Option<NetNs>,
}

impl Target {
    /// Reads a URL. Its host has no addresses yet.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        let bad = || TargetError::Url(text.to_owned());
        let uri: Uri = text.parse().map_err(|_| bad())?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(bad)?;
        match uri.scheme_str() {
            Some("http" | "ws") => {}
            Some("https" | "wss") => return Err(TargetError::Tls(text.to_owned())),
            Some(_) => return Err(TargetError::Scheme(text.to_owned())),
            None => return Err(bad()),
        }
        let port = uri.port_u16().unwrap_or(80);
        let authority = if port == 80 { host.to_owned() } else { format!("{host}:{port}") };
        Ok(Self {
            name: text.to_owned(),
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
            authority: authority.parse().map_err(|_| bad())?,
            path: uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/")),
            addresses: Vec::new(),
            resolve_each: false,
            netns: None,
        })
    }

    /// Has it dialled from inside a daemon's network namespace, where alone its functions' addresses are.
    ///
    /// # Errors
    /// If there is no such namespace, or it may not be looked at.
    pub fn dial_from(&mut self, netns: &Path) -> io::Result<()> {
        self.netns = Some(NetNs::open(netns)?);
        Ok(())
    }

    /// Looks its host up, and tells how long that took. An address takes nothing.
    ///
    /// # Errors
    /// If it has no address.
    pub async fn resolve(&mut self) -> io::Result<Duration> {
        let begin = Instant::now();
        self.addresses = self.look_up().await?;
        Ok(if self.host.parse::<IpAddr>().is_ok() { Duration::ZERO } else { begin.elapsed() })
    }

    pub(super) async fn look_up(&self) -> io::Result<Vec<SocketAddr>> {
        if let Ok(address) = self.host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, self.port)]);
        }
        let found: Vec<SocketAddr> =
            tokio::net::lookup_host((self.host.as_str(), self.port)).await?.collect();
        match found.is_empty() {
            true => Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address")),
            false => Ok(found),
        }
    }

    /// The `host` header.
    pub(super) fn authority(&self) -> HeaderValue {
        self.authority.clone()
    }

    /// As a request's first line has it: whole for HTTP/2.
    pub(super) fn uri(&self, whole: bool) -> Uri {
        let mut parts = hyper::http::uri::Parts::default();
        parts.path_and_query = Some(self.path.clone());
        if whole {
            parts.scheme = Some(Scheme::HTTP);
            parts.authority = self.authority.to_str().ok().and_then(|authority| authority.parse().ok());
        }
        // A path alone is a URI, and so is one with scheme and authority.
        Uri::from_parts(parts).unwrap_or_default()
    }

    /// The URL of its WebSocket.
    pub(super) fn websocket(&self) -> String {
        format!("ws://{}{}", self.authority.to_str().unwrap_or_default(), self.path)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority.to_str().unwrap_or_default(), self.path)
    }
}

/// Which of several addresses answers: the first that did is tried first from then on.
#[derive(Debug, Default)]
pub(super) struct Preferred(Cell<usize>);

impl Preferred {
    pub(super) fn order(&self, count: usize) -> impl Iterator<Item = usize> + use<> {
        let first = self.0.get();
        (0..count).map(move |step| (first + step) % count)
    }

    pub(super) fn answered(&self, index: usize) {
        self.0.set(index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read() {
        for (text, shown) in [
            ("http://hello.faas", "http://hello.faas/"),
            ("http://hello.faas:80/a?b=c", "http://hello.faas/a?b=c"),
            ("http://[::1]:8080", "http://[::1]:8080/"),
            ("ws://127.0.0.1:9/x", "http://127.0.0.1:9/x"),
        ] {
            assert_eq!(Target::parse(text).unwrap().to_string(), shown);
        }
        let target = Target::parse("http://[::1]:8080/x?y").unwrap();
        assert_eq!(target.uri(false), "/x?y");
        assert_eq!(target.uri(true), "http://[::1]:8080/x?y");
        assert_eq!(target.websocket(), "ws://[::1]:8080/x?y");
    }

    #[test]
    fn what_is_no_target_is_told_why() {
        for (text, why) in
            [("hello", "no URL"), ("", "no URL"), ("https://x/", "TLS"), ("ftp://x/", "scheme")]
        {
            let error = Target::parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn the_address_that_answered_is_tried_first() {
        let preferred = Preferred::default();
        assert_eq!(preferred.order(3).collect::<Vec<_>>(), [0, 1, 2]);
        preferred.answered(1);
        assert_eq!(preferred.order(3).collect::<Vec<_>>(), [1, 2, 0]);
        assert_eq!(preferred.order(0).count(), 0);
    }
}
