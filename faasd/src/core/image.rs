//! What root images are called: `nginx:1.27`, `ghcr.io/owner/name:tag`, `localhost:5000/name@sha256:…`.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The longest name.
pub const NAME_BYTES_MAX: usize = 255;

const TAG_BYTES_MAX: usize = 128;
const DEFAULT_TAG: &str = "latest";

/// Left out of names: where images are that have no other place.
const DEFAULT_PLACES: [&str; 4] =
    ["docker.io/library/", "index.docker.io/library/", "docker.io/", "index.docker.io/"];

/// A name with its tag or digest, in its short form: `docker.io/library/nginx` is `nginx:latest`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("minLength" = 1, "maxLength" = NAME_BYTES_MAX))]
pub struct ImageName(String);

/// Why a text names no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is no name of an image: {why}")]
pub struct ImageNameError {
    text: String,
    why: &'static str,
}

impl ImageName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ImageName {
    type Err = ImageNameError;

    fn from_str(text: &str) -> Result<Self, ImageNameError> {
        let error = |why| ImageNameError { text: text.chars().take(NAME_BYTES_MAX).collect(), why };
        if text.is_empty() || text.len() > NAME_BYTES_MAX {
            return Err(error("it has 1 to 255 characters"));
        }
        let short = DEFAULT_PLACES.iter().find_map(|place| text.strip_prefix(place)).unwrap_or(text);
        let (short, digest) = match short.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (short, None),
        };
        if digest.is_some_and(|digest| !is_digest(digest)) {
            return Err(error("after '@' comes sha256: and 64 digits"));
        }
        // A colon before a slash is that of a port.
        let (path, tag) = match short.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (short, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(error(
                "a tag has up to 128 of A-Z, a-z, 0-9, '_', '.' and '-', and does not begin with the last two",
            ));
        }
        let (host, rest) = match path.split_once('/') {
            Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (Some(host), rest),
            _ => (None, path),
        };
        if host.is_some_and(|host| !is_host(host)) {
            return Err(error("its registry is no HOST or HOST:PORT"));
        }
        if !rest.split('/').all(is_part) {
            return Err(error(
                "it consists of a-z and 0-9, with single '.', '_' and '-' within, and '/' between its parts",
            ));
        }
        Ok(Self(match (digest, tag) {
            (Some(digest), _) => format!("{path}@{digest}"),
            (None, tag) => format!("{path}:{}", tag.unwrap_or(DEFAULT_TAG)),
        }))
    }
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

fn is_tag(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= TAG_BYTES_MAX
        && text.bytes().next().is_some_and(is_word)
        && text.bytes().all(|b| is_word(b) || b == b'.' || b == b'-')
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            let is_address = address.parse::<std::net::Ipv6Addr>().is_ok();
            return is_address && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
        }
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    host.split('.').all(is_label) && port.is_none_or(is_port)
}

fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok_and(|port| port > 0)
}

fn is_part(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends = bytes.first().zip(bytes.last()).is_some_and(|(first, last)| is_word(*first) && is_word(*last));
    ends && bytes.iter().all(|b| is_word(*b) || matches!(b, b'.' | b'_' | b'-')) && !text.contains("..")
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ImageName {
    type Error = ImageNameError;

    fn try_from(text: String) -> Result<Self, ImageNameError> {
        text.parse()
    }
}

impl From<ImageName> for String {
    fn from(name: ImageName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_form() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (text, name) in [
            ("nginx", "nginx:latest"),
            ("docker.io/library/nginx:1.27", "nginx:1.27"),
            ("index.docker.io/owner/name", "owner/name:latest"),
            ("localhost:5000/x/y", "localhost:5000/x/y:latest"),
            ("[::1]:5000/x:T-1", "[::1]:5000/x:T-1"),
            ("ghcr.io/a/b_c.d:v1", "ghcr.io/a/b_c.d:v1"),
            (&format!("a:tag@{digest}"), &format!("a@{digest}")),
        ] {
            let parsed: ImageName = text.parse().unwrap();
            assert_eq!(parsed.as_str(), name);
            assert_eq!(parsed.as_str().parse::<ImageName>().unwrap(), parsed);
        }
    }

    #[test]
    fn what_is_no_name_is_told() {
        let long = "a".repeat(256);
        for text in [
            "",
            "A",
            "a/../b",
            "a//b",
            "/a",
            "a/",
            "a:",
            "a:.x",
            "a@sha256:12",
            "a b",
            "-.io/x",
            "x.io:0/a",
            &long,
        ] {
            assert!(text.parse::<ImageName>().is_err(), "{text}");
        }
    }
}
