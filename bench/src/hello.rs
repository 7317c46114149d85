//! The function that every subject serves, unless `--hello PROGRAM` names another: one thread, hyper, `hello` on `/` and
//! so many bytes on `/big?bytes=N`. Like a program made with the SDK it listens by itself if `FAAS_LISTEN` is set,
//! and takes connections over the hand-off protocol otherwise.

use std::convert::Infallible;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::Context;
use bytes::Bytes;
use faasd_sdk::wire::SOCKET_FD;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::Interest;

use crate::wire;

/// The most bytes that `/big` gives.
const BYTES_MAX: usize = 64 << 20;

/// Serves until the process is ended, or the daemon's end of the socket is closed.
///
/// # Errors
/// If it cannot listen, or its inherited descriptors are missing.
pub fn run() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    match std::env::var("FAAS_LISTEN") {
        Ok(address) => {
            let address = address.parse().with_context(|| format!("FAAS_LISTEN={address} is no address"))?;
            let listener = wire::listen(address)?;
            listener.set_nonblocking(true)?;
            runtime.block_on(serve_listener(listener))
        }
        Err(_) => runtime.block_on(serve_handed_over(wire::inherited(SOCKET_FD)?)),
    }
}

async fn serve_listener(listener: std::net::TcpListener) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (connection, _) = listener.accept().await?;
        tokio::spawn(serve(connection));
    }
}

async fn serve_handed_over(socket: OwnedFd) -> anyhow::Result<()> {
    wire::send_ready(socket.as_fd())?;
    // The type is for readiness alone, which tokio gives to any socket in this dress; messages come by recvmsg(2).
    let socket = std::os::unix::net::UnixStream::from(socket);
    socket.set_nonblocking(true)?;
    let socket = tokio::net::UnixStream::from_std(socket)?;
    while let Some(connections) =
        socket.async_io(Interest::READABLE, || wire::receive(socket.as_fd())).await?
    {
        for connection in connections {
            let connection = TcpStream::from(connection);
            connection.set_nonblocking(true)?;
            tokio::spawn(serve(tokio::net::TcpStream::from_std(connection)?));
        }
    }
    Ok(())
}

async fn serve(connection: tokio::net::TcpStream) {
    // The peer's error, if it is one, shows in the load's count.
    let _ = hyper::server::conn::http1::Builder::new()
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(connection), service_fn(answer))
        .await;
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let bytes = || request.uri().query()?.strip_prefix("bytes=")?.parse().ok();
    let body = match (request.uri().path(), bytes()) {
        ("/", _) => Ok(Bytes::from_static(b"hello\n")),
        ("/big", Some(length @ 0..=BYTES_MAX)) => Ok(zeros(length)),
        _ => Err(StatusCode::NOT_FOUND),
    };
    let mut response = Response::new(Full::new(body.clone().unwrap_or_default()));
    if let Err(status) = body {
        *response.status_mut() = status;
    }
    Ok(response)
}

/// Shared between requests: filling memory is not what is measured.
fn zeros(length: usize) -> Bytes {
    static ZEROS: std::sync::OnceLock<Bytes> = std::sync::OnceLock::new();
    ZEROS.get_or_init(|| Bytes::from(vec![0; BYTES_MAX])).slice(..length)
}
