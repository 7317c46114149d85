//! A function with something of everything: a short answer, a long one, a stream, a WebSocket, a failure.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use faasd_sdk::http::{self, BodyExt, Bytes, Full, Incoming, Method, Request, Response, StatusCode};
use futures_util::{SinkExt, StreamExt};
use http_body_util::Either;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;
use tokio_tungstenite::tungstenite::protocol::Role;

/// The longest answer of `/big`.
const BIG_BYTES_MAX: usize = 64 << 20;

/// The longest pause of `/sleep`.
const SLEEP_MS_MAX: u64 = 60_000;

type Answer = Response<Either<Full<Bytes>, Incoming>>;

fn main() -> Result<(), faasd_sdk::Error> {
    http::run(|request| async { Ok::<_, Infallible>(answer(request).await) })
}

async fn answer(request: Request<Incoming>) -> Answer {
    match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/") => text("hello from faasd\n"),
        (&Method::GET, "/env") => {
            let mut lines: Vec<_> =
                std::env::vars_os().map(|(k, v)| format!("{}={}\n", k.display(), v.display())).collect();
            lines.sort_unstable();
            text(lines.concat())
        }
        (&Method::GET, "/big") => match number(&request, "bytes") {
            Some(bytes) if bytes <= BIG_BYTES_MAX as u64 => text(vec![b'x'; bytes as usize]),
            _ => status(StatusCode::BAD_REQUEST, "write /big?bytes=N, up to 67108864\n"),
        },
        (&Method::GET, "/sleep") => match number(&request, "ms") {
            Some(ms) if ms <= SLEEP_MS_MAX => {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                text("slept\n")
            }
            _ => status(StatusCode::BAD_REQUEST, "write /sleep?ms=N, up to 60000\n"),
        },
        (&Method::GET, "/ws") => websocket(request),
        (&Method::POST, "/echo") => Response::new(Either::Right(request.into_body())),
        (&Method::POST, "/count") => match count(request.into_body()).await {
            Ok(bytes) => text(format!("{bytes}\n")),
            Err(_) => status(StatusCode::BAD_REQUEST, "the body broke off\n"),
        },
        (_, "/crash") => std::process::exit(1),
        (_, "/panic") => panic!("as it was asked to"),
        _ => status(
            StatusCode::NOT_FOUND,
            "there is /, /big, /count, /crash, /echo, /env, /panic, /sleep and /ws\n",
        ),
    }
}

fn text(body: impl Into<Bytes>) -> Answer {
    Response::new(Either::Left(Full::new(body.into())))
}

fn status(status: StatusCode, body: &'static str) -> Answer {
    let mut answer = text(body);
    *answer.status_mut() = status;
    answer
}

/// Says each message back.
fn websocket(mut request: Request<Incoming>) -> Answer {
    let upgrade = http::upgrade::on(&mut request);
    // The handshake looks at no body.
    let request = request.map(drop);
    let Ok(response) = create_response_with_body(&request, || Either::Left(Full::default())) else {
        return status(StatusCode::BAD_REQUEST, "not the handshake of a WebSocket\n");
    };
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        // An error is the client's: it hung up, or spoke something else.
        while let Some(Ok(message)) = socket.next().await {
            let said = if message.is_text() || message.is_binary() {
                socket.send(message).await
            } else {
                socket.flush().await
            };
            if said.is_err() {
                return;
            }
        }
    });
    response
}

/// The number that the query has for `key`.
fn number(request: &Request<Incoming>, key: &str) -> Option<u64> {
    let query = request.uri().query()?;
    query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
}

async fn count(mut body: Incoming) -> io::Result<u64> {
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        bytes += frame.map_err(io::Error::other)?.data_ref().map_or(0, |data| data.len() as u64);
    }
    Ok(bytes)
}
