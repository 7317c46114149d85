//! Connections, as a client opens them.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};

use super::fault::Failed;
use super::target::{Preferred, Target};
use crate::core::load::record::{Answer, Phase};

/// Opens a connection and notes how long its parts took.
pub(super) async fn connect(
    target: &Target,
    preferred: &Preferred,
    answer: &mut Answer,
) -> Result<TcpStream, Failed> {
    let begin = Instant::now();
    let asked;
    let addresses = if target.resolve_each {
        asked = target.look_up().await.map_err(|e| Failed::dns(&e).connecting())?;
        answer.set(Phase::Dns, begin.elapsed());
        &asked
    } else {
        &target.addresses
    };
    let begin = Instant::now();
    let mut failed = Failed::dns(&io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    for index in preferred.order(addresses.len()) {
        match dial(addresses[index], target.netns.is_some()).await {
            Ok(stream) => {
                preferred.answered(index);
                answer.set(Phase::Connect, begin.elapsed());
                return Ok(stream);
            }
            Err(error) => failed = Failed::io(&error),
        }
    }
    Err(failed.connecting())
}

async fn dial(address: SocketAddr, as_daemon: bool) -> io::Result<TcpStream> {
    let socket = if address.is_ipv6() { TcpSocket::new_v6() } else { TcpSocket::new_v4() }?;
    if as_daemon {
        SockRef::from(&socket).set_mark(faasd_common::DAEMON_MARK)?;
    }
    socket.set_nodelay(true)?;
    socket.connect(address).await
}
