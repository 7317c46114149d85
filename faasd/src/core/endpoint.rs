//! Where clients of the tunnel dial: `HOST:PORT`.

use std::net::{IpAddr, Ipv6Addr};

/// The longest name that DNS has, as it is written.
const HOST_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

/// A text that nobody can dial.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{text}' is no endpoint: {why}; write HOST:PORT, such as vpn.example.org:51820 or [2001:db8::1]:51820"
)]
pub struct EndpointError {
    text: String,
    why: &'static str,
}

/// The endpoint as it is written in an invitation: with a port, `default_port` if the text has none, and an IPv6 address in
/// brackets.
///
/// # Errors
/// If it has no host or no port that there can be, or an address that other machines cannot reach.
pub fn normalize(text: &str, default_port: u16) -> Result<String, EndpointError> {
    let wrong = |why| EndpointError { text: text.to_owned(), why };
    let trimmed = text.trim();
    if trimmed.is_empty() {
        return Err(wrong("it is empty"));
    }
    let (host, port) = if let Some(rest) = trimmed.strip_prefix('[') {
        let (host, port) = rest.split_once(']').ok_or_else(|| wrong("the bracket is not closed"))?;
        if !host.contains(':') {
            return Err(wrong("brackets are for IPv6 addresses"));
        }
        match port {
            "" => (host, None),
            port => (host, Some(port.strip_prefix(':').ok_or_else(|| wrong("what follows is no port"))?)),
        }
    } else {
        match trimmed.split_once(':') {
            // Without brackets, more than one colon is an address.
            Some((_, rest)) if rest.contains(':') => (trimmed, None),
            Some((host, port)) => (host, Some(port)),
            None => (trimmed, None),
        }
    };
    let port = match port {
        None => default_port,
        Some(port) if !port.bytes().all(|b| b.is_ascii_digit()) => {
            return Err(wrong("the port is no number"));
        }
        Some(port) => {
            port.parse().ok().filter(|port| *port != 0).ok_or_else(|| wrong("a port is 1 to 65535"))?
        }
    };
    check_host(host).map_err(wrong)?;
    Ok(if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") })
}

fn check_host(host: &str) -> Result<(), &'static str> {
    if host.contains('%') {
        return Err("an address with a zone is good on one link of one machine only");
    }
    if let Ok(address) = host.parse::<IpAddr>() {
        return check_address(address);
    }
    if host.contains(':') {
        return Err("it is no IPv6 address");
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    let is_label = |label: &str| {
        (1..=LABEL_BYTES_MAX).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if name.len() > HOST_BYTES_MAX || !name.split('.').all(is_label) {
        return Err("its host is no name and no address");
    }
    // The C library takes these for IPv4 addresses, and not for those that were meant.
    if name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit())) {
        return Err("its host is no whole IPv4 address");
    }
    Ok(())
}

fn check_address(address: IpAddr) -> Result<(), &'static str> {
    let is_link_local = |v6: Ipv6Addr| v6.is_unicast_link_local();
    if address.is_unspecified() || address.is_multicast() {
        return Err("nobody can dial that address");
    }
    match address {
        IpAddr::V6(v6) if is_link_local(v6) => Err("a link-local address is good on one link only"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_added_where_there_is_none() {
        for (text, expected) in [
            ("vpn.example.org", "vpn.example.org:51820"),
            ("vpn.example.org.:7", "vpn.example.org.:7"),
            (" host_1 \n", "host_1:51820"),
            ("192.0.2.1", "192.0.2.1:51820"),
            ("192.0.2.1:65535", "192.0.2.1:65535"),
            ("2001:db8::1", "[2001:db8::1]:51820"),
            ("[2001:db8::1]", "[2001:db8::1]:51820"),
            ("[2001:db8::1]:1", "[2001:db8::1]:1"),
        ] {
            assert_eq!(normalize(text, 51820).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_nobody_can_dial_is_refused_with_the_reason() {
        for (text, why) in [
            ("", "empty"),
            (" ", "empty"),
            ("host:99999", "1 to 65535"),
            ("host:0", "1 to 65535"),
            ("host:", "1 to 65535"),
            ("host:+1", "no number"),
            (":51820", "no name"),
            ("fe80::1%eth0", "zone"),
            ("[fe80::1%eth0]:51820", "zone"),
            ("fe80::1", "link-local"),
            ("[2001:db8::1", "not closed"),
            ("[2001:db8::1]51820", "no port"),
            ("[host]:51820", "for IPv6"),
            ("2001:db8::g", "no IPv6 address"),
            ("::", "nobody"),
            ("0.0.0.0:51820", "nobody"),
            ("192.0.2", "whole IPv4"),
            ("192.0.2.256", "whole IPv4"),
            ("a b", "no name"),
            ("a..b", "no name"),
            ("http://host", "no number"),
        ] {
            let error = normalize(text, 51820).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("HOST:PORT"), "{text}: {error}");
        }
    }
}
