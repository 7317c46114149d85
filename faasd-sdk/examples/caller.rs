//! A function that calls others: it connects to the host and port that its path names, as far as its declaration allows
//! it (`allow`, `outside`), and passes the answer on. `GET /hello.faas:80`.

use std::convert::Infallible;
use std::io;

use faasd_sdk::http::{self, Bytes, Full, Incoming, Request, Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The longest answer that is passed on.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

fn main() -> Result<(), faasd_sdk::Error> {
    http::run(|request| async move { Ok::<_, Infallible>(answer(&request).await) })
}

async fn answer(request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let place = request.uri().path().trim_start_matches('/');
    match call(place).await {
        Ok(answer) => Response::new(Full::new(answer.into())),
        Err(error) => {
            let mut answer = Response::new(Full::new(format!("{place}: {error}\n").into()));
            *answer.status_mut() = StatusCode::BAD_GATEWAY;
            answer
        }
    }
}

/// The answer as it comes, with its head.
async fn call(place: &str) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(place).await?;
    let request = format!("GET / HTTP/1.1\r\nhost: {place}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    Ok(answer)
}
