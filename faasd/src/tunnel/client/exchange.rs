//! What a client says to the server, and how it knows that it is heard.

use std::io;
use std::net::{Ipv6Addr, TcpStream};
use std::time::{Duration, Instant, SystemTime};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};

use super::ClientError;
use super::membership::Membership;
use crate::tunnel::keys::{PrivateKey, PublicKey};
use crate::tunnel::{Error, Interface};

/// How long a handshake may take: it is repeated after 5 s, should its first packet be lost.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(12);

/// How long the server may take to answer, once the tunnel is up.
const JOIN_DEADLINE: Duration = Duration::from_secs(10);

/// How long a first packet may take to the server and back before another is sent.
const FIRST_PACKET_DEADLINE: Duration = Duration::from_millis(100);

/// The server's routes for peers.
pub(super) const JOIN: &str = "/v1/join";
pub(super) const ROTATE: &str = "/v1/rotate";

/// The longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// The body of `POST /v1/join`, as `api::types::Join` reads it.
#[derive(Serialize)]
struct Join {
    public_key: String,
}

/// What is read of an error's body.
#[derive(Deserialize)]
struct Problem {
    title: String,
}

pub(super) fn wait_for_handshake(
    interface: &dyn Interface,
    server: PublicKey,
) -> Result<Option<Duration>, Error> {
    let start = Instant::now();
    loop {
        if interface.peer(server)?.is_some_and(|peer| peer.last_handshake.is_some()) {
            return Ok(Some(start.elapsed()));
        }
        if start.elapsed() > HANDSHAKE_DEADLINE {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until packets reach the server under our own key: it shakes hands with the key at once, but gives it our
/// address only once its answer to the join has had time to arrive. What is sent before that is lost.
pub(super) fn wait_until_heard(membership: &Membership) -> Result<(), ClientError> {
    let (start, mut patience) = (Instant::now(), FIRST_PACKET_DEADLINE);
    loop {
        let error =
            match TcpStream::connect_timeout(&(membership.server, membership.http_port).into(), patience) {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => return Ok(()),
                Err(e) => e,
            };
        if start.elapsed() > JOIN_DEADLINE {
            return Err(ClientError::Exchange { source: error });
        }
        // Sooner again than TCP itself would send, but no less patient in the end.
        if error.kind() == io::ErrorKind::TimedOut {
            patience *= 2;
        } else {
            std::thread::sleep(FIRST_PACKET_DEADLINE);
        }
    }
}

/// Tells the server a key of ours, on a thread of its own, since the caller may be a runtime's.
pub(super) fn tell(membership: &Membership, path: &'static str, key: &PrivateKey) -> Result<(), ClientError> {
    let public_key = key.public().to_string();
    let (server, port) = (membership.server, membership.http_port);
    let exchange = |source| ClientError::Exchange { source };
    let (status, body) = std::thread::scope(|scope| {
        let post = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                tokio::time::timeout(JOIN_DEADLINE, post_key(server, port, path, public_key)).await?
            })
        };
        scope.spawn(post).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
    .map_err(exchange)?;
    if status.is_success() {
        return Ok(());
    }
    let said = serde_json::from_slice(&body)
        .map_or_else(|_| String::from_utf8_lossy(&body).trim().to_owned(), |problem: Problem| problem.title);
    Err(ClientError::Refused { status, said })
}

async fn post_key(
    server: Ipv6Addr,
    port: u16,
    path: &str,
    public_key: String,
) -> io::Result<(StatusCode, Bytes)> {
    let body = serde_json::to_vec(&Join { public_key })?;
    let request = Request::post(path)
        .header(header::HOST, format!("[{server}]:{port}"))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(io::Error::other)?;
    let stream = tokio::net::TcpStream::connect((server, port)).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // Ends with the runtime.
    tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    let status = response.status();
    let body =
        Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(io::Error::other)?;
    Ok((status, body.to_bytes()))
}

/// Whether a tunnel that was up before works: the server answers in it, or has shaken hands anew. A handshake of before
/// says nothing.
pub(super) fn wait_until_alive(
    interface: &dyn Interface,
    membership: &Membership,
) -> Result<Option<Duration>, ClientError> {
    let server = membership.server_key()?;
    let last = || Ok::<_, Error>(interface.peer(server)?.and_then(|peer| peer.last_handshake));
    // By the clock: some tell how long ago it was, and not the same of one twice.
    let (begin, start, mut patience) = (SystemTime::now(), Instant::now(), FIRST_PACKET_DEADLINE);
    while start.elapsed() <= HANDSHAKE_DEADLINE {
        let dialled = TcpStream::connect_timeout(&(membership.server, membership.http_port).into(), patience);
        let is_heard =
            dialled.as_ref().map_or_else(|e| e.kind() == io::ErrorKind::ConnectionRefused, |_| true);
        if is_heard || last()?.is_some_and(|at| at >= begin) {
            return Ok(Some(start.elapsed()));
        }
        if dialled.is_err_and(|e| e.kind() != io::ErrorKind::TimedOut) {
            std::thread::sleep(FIRST_PACKET_DEADLINE);
        }
        patience = (patience * 2).min(Duration::from_secs(2));
    }
    Ok(None)
}
