//! HTTP/1.1 on one connection. hyper's connection is a future of its own, which is polled here, by the task that waits for
//! the answer: another task would cost two switches a request.

use std::future::Future;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::body::Body as _;
use hyper::client::conn::http1::{Connection, SendRequest, handshake};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::fault::Failed;
use super::payload::Payload;

/// How long the server's end of a connection is waited for that both have said to be over.
const FIN: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(super) struct Http1 {
    sender: SendRequest<Payload>,
    connection: Connection<TokioIo<TcpStream>, Payload>,
    is_over: bool,
}

/// When an answer's parts came.
#[derive(Debug)]
pub(super) struct Came {
    pub status: StatusCode,
    pub head: Instant,
    pub end: Instant,
    pub bytes: u64,
}

impl Http1 {
    pub(super) async fn new(stream: TcpStream) -> Result<Self, Failed> {
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|e| Failed::hyper(&e))?;
        Ok(Self { sender, connection, is_over: false })
    }

    /// Whether another request may be sent. It looks at what the server has done since the last one.
    pub(super) async fn is_open(&mut self) -> bool {
        let Self { sender, connection, is_over } = self;
        drive(connection, is_over, sender.ready()).await.is_ok() && !self.is_over
    }

    /// Sends a request and takes the whole answer.
    pub(super) async fn exchange(&mut self, request: Request<Payload>) -> Result<Came, Failed> {
        let Self { sender, connection, is_over } = self;
        let sent = drive(connection, is_over, sender.send_request(request)).await;
        let response = sent.map_err(|e| Failed::hyper(&e))?;
        let (head, status) = (Instant::now(), response.status());
        let (mut body, mut bytes) = (response.into_body(), 0);
        let mut end = head;
        while !body.is_end_stream() {
            let Some(frame) = drive(connection, is_over, body.frame()).await else { break };
            let frame = frame.map_err(|e| Failed::hyper(&e))?;
            bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        if bytes > 0 {
            end = Instant::now();
        }
        Ok(Came { status, head, end, bytes })
    }

    /// Lets the server close first, so that the ports that wait for stray packets are not ours: a client has 28,000.
    pub(super) async fn close(mut self) {
        let over = std::future::poll_fn(|cx| match self.is_over {
            true => Poll::Ready(()),
            false => self.connection.poll_without_shutdown(cx).map(drop),
        });
        if tokio::time::timeout(FIN, over).await.is_err() {
            return;
        }
        let mut stream = self.connection.into_parts().io.into_inner();
        // What else it says is of no interest.
        let _ = tokio::time::timeout(FIN, stream.read(&mut [0; 64])).await;
    }
}

/// Waits for `future` while the connection is kept going.
async fn drive<T>(
    connection: &mut Connection<TokioIo<TcpStream>, Payload>,
    is_over: &mut bool,
    future: impl Future<Output = T>,
) -> T {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| {
        // Its error reaches whoever waits for the answer.
        if !*is_over && connection.poll_without_shutdown(cx).is_ready() {
            *is_over = true;
        }
        future.as_mut().poll(cx)
    })
    .await
}
