//! Where the daemon is: behind a socket of this machine's, or at the server's address in the tunnel.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::str::FromStr;

use hyper::Uri;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWrite;
use tokio::net::{TcpStream, UnixStream};

use super::*;

/// The port of the API in the tunnel, if none is given.
const PORT: u16 = 9464;

#[derive(Clone, Debug)]
pub(super) enum Place {
    Socket(PathBuf),
    Server(Server),
}

/// A server's API in the tunnel: `http://[fd00:faa5:0:100::1]:9464`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    host: String,
    port: u16,
}

/// A text that names no server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no server; write one like http://[fd00:faa5:0:100::1]:9464")]
pub struct ServerError(String);

impl FromStr for Server {
    type Err = ServerError;

    fn from_str(text: &str) -> std::result::Result<Self, ServerError> {
        let error = || ServerError(text.to_owned());
        let uri: Uri = text.parse().map_err(|_| error())?;
        let path_is_empty = uri.path_and_query().is_none_or(|path| path.as_str() == "/");
        match (uri.scheme_str(), uri.host()) {
            (Some("http"), Some(host)) if path_is_empty => {
                Ok(Self { host: host.to_owned(), port: uri.port_u16().unwrap_or(PORT) })
            }
            _ => Err(error()),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}:{}", self.host, self.port)
    }
}

impl Client {
    /// Connects, and sends a request up to the head of its response.
    pub(super) async fn send(&self, request: Request<Body>, limit: Duration) -> Result<Response<Incoming>> {
        match &self.place {
            Place::Socket(socket) => {
                let stream = within(CONNECT, UnixStream::connect(socket)).await?;
                speak(stream.map_err(|e| unreachable(socket, e))?, request, limit).await
            }
            Place::Server(server) => {
                let host = server.host.trim_matches(['[', ']']);
                let unreachable = |source| ClientError::ServerUnreachable { server: server.clone(), source };
                let stream = timeout(CONNECT, TcpStream::connect((host, server.port))).await;
                // Packets that nobody answers are how a tunnel shows that it is down.
                let stream = stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
                speak(stream.map_err(unreachable)?, request, limit).await
            }
        }
    }
}

async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Body>,
    limit: Duration,
) -> Result<Response<Incoming>> {
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(ClientError::Broken)?;
    // The connection's end shows in the request or in its body; it needs no second report.
    tokio::spawn(connection);
    within(limit + MARGIN, sender.send_request(request)).await?.map_err(ClientError::Broken)
}

fn unreachable(socket: &Path, source: io::Error) -> ClientError {
    let socket = socket.to_owned();
    if source.kind() == io::ErrorKind::PermissionDenied {
        // When even the directory is closed to us, its group is the one to join.
        let gid = [Some(socket.as_path()), socket.parent()]
            .into_iter()
            .flatten()
            .find_map(|path| std::fs::metadata(path).ok())
            .map(|metadata| nix::unistd::Gid::from_raw(metadata.gid()));
        let group = gid.and_then(|gid| nix::unistd::Group::from_gid(gid).ok().flatten());
        return ClientError::Permission { socket, group: group.map(|group| group.name) };
    }
    ClientError::Unreachable { socket, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_and_written() {
        for (text, written) in [
            ("http://[fd00:faa5:0:100::1]:9464", "http://[fd00:faa5:0:100::1]:9464"),
            ("http://[fd00::1]", "http://[fd00::1]:9464"),
            ("http://node1.example.org:80/", "http://node1.example.org:80"),
        ] {
            assert_eq!(text.parse::<Server>().unwrap().to_string(), written);
        }
        for bad in
            ["", "fd00::1", "https://[fd00::1]:9464", "http://[fd00::1]/v1", "unix:///run/x", "node1:9464"]
        {
            assert!(bad.parse::<Server>().is_err(), "{bad}");
        }
    }
}
