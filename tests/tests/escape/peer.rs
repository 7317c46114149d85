//! What a peer reaches beside what is declared.

use std::io::ErrorKind;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream};

use anyhow::{Context, Result, ensure};
use faasd::core::address::VPN_PREFIX;
use faasd_tests::Bed;

use crate::{HTTP_PORT, Lures, PORT, SILENCE, address_of, client_address, decided, is_refused};

pub fn a_peer_reaches_what_is_declared_alone() -> Result<()> {
    let bed = Bed::joined()?;
    bed.deploy_hello("hello", "")?;
    let (hello, server) = (address_of("hello")?, VPN_PREFIX.server());
    let unknown = decided(&bed, "unknown")?;
    for port in [22, 79, 81, 443, PORT, 51820] {
        for address in [hello, server, address_of("nobody")?] {
            is_refused(&format!("[{address}]:{port}"), &bed.client().connect(address, port))?;
        }
    }
    ensure!(decided(&bed, "unknown")? >= unknown + 18, "they are not counted");
    // The API is for the host, and for admins.
    for path in ["/v1/functions", "/v1/peers", "/v1/version", "/v1/functions/hello/invoke"] {
        let url = format!("http://[{server}]:{HTTP_PORT}{path}");
        let status =
            bed.client().run(&["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", &url])?.ok()?;
        ensure!(status == "403", "{path}: {status}");
    }

    // Another peer's address is no good to this one: WireGuard drops what does not belong to the key.
    let client = client_address(&bed)?;
    let interface = format!("{}t", bed.name());
    let from = |source: Ipv6Addr, to: Ipv6Addr| {
        bed.client().within(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None)?;
            socket.bind(&SocketAddr::from((source, 0)).into())?;
            socket.connect_timeout(&SocketAddr::from((to, 80)).into(), SILENCE)
        })
    };
    let forged: Ipv6Addr = VPN_PREFIX.host(0x9999);
    let as_function: Ipv6Addr = address_of("nobody")?;
    for address in [forged, as_function, server] {
        let host = format!("{address}/128");
        bed.client().run(&["ip", "addr", "add", &host, "dev", &interface, "nodad"])?.ok()?;
        if address != server {
            let result = from(address, hello);
            ensure!(
                result.as_ref().is_err_and(|e| e.kind() == ErrorKind::TimedOut),
                "from the forged {address}: {result:?}"
            );
        } else {
            let result = from(address, hello);
            ensure!(result.is_err(), "from the server's own address: {result:?}");
        }
        bed.client().run(&["ip", "addr", "del", &host, "dev", &interface])?.ok()?;
    }
    from(client, hello).context("from its own address")?;

    // Other addresses of the ingress, and what lies beyond it.
    let lures = Lures::set(&bed)?;
    for target in ["fd00:1::1", "::1", "fe80::1"] {
        let target: Ipv6Addr = target.parse()?;
        bed.client().run(&["ip", "route", "add", &format!("{target}/128"), "dev", &interface])?;
        let result = bed.client().within(|| {
            let to = SocketAddr::V6(SocketAddrV6::new(target, HTTP_PORT, 0, 0));
            TcpStream::connect_timeout(&to, SILENCE)
        });
        ensure!(result.is_err(), "{target}: {result:?}");
    }
    lures.untouched()?;
    drop(lures);

    // From the host, where no tunnel vouches for an address, functions cannot be reached at all.
    let result = bed.server()?.run(|| TcpStream::connect_timeout(&SocketAddr::from((hello, 80)), SILENCE));
    ensure!(result.is_err(), "from the host: {result:?}");
    bed.finish()
}
