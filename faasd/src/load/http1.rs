//! HTTP/1.1 on one connection. hyper's connection is a future of its own, which is polled here, by the task that waits for
//! the answer: another task would cost two switches a request.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll};
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
    connection: Driven,
}

/// hyper's part of a connection, for as long as it has something to do.
#[derive(Debug)]
enum Driven {
    Going(Box<Connection<TokioIo<TcpStream>, Payload>>),
    /// What is left of it, if the server has not been seen to close it.
    Over(Option<TcpStream>),
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
        Ok(Self { sender, connection: Driven::Going(Box::new(connection)) })
    }

    /// Whether another request may be sent. It looks at what the server has done since the last one.
    pub(super) async fn is_open(&mut self) -> bool {
        let Self { sender, connection } = self;
        connection.drive(sender.ready()).await.is_ok() && matches!(connection, Driven::Going(_))
    }

    /// Sends a request and takes the whole answer.
    pub(super) async fn exchange(&mut self, request: Request<Payload>) -> Result<Came, Failed> {
        let Self { sender, connection } = self;
        let sent = connection.drive(sender.send_request(request)).await;
        let response = sent.map_err(|e| Failed::hyper(&e))?;
        let (head, status) = (Instant::now(), response.status());
        let (mut body, mut bytes) = (response.into_body(), 0);
        let mut end = head;
        while !body.is_end_stream() {
            let Some(frame) = connection.drive(body.frame()).await else { break };
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
        let over = std::future::poll_fn(|cx| self.connection.poll(cx));
        if tokio::time::timeout(FIN, over).await.is_err() {
            return;
        }
        if let Driven::Over(Some(mut stream)) = self.connection {
            // What else it says is of no interest.
            let _ = tokio::time::timeout(FIN, stream.read(&mut [0; 64])).await;
        }
    }
}

impl Driven {
    /// Goes on as far as it can; ready when there is nothing more to do.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Self::Going(connection) = self else { return Poll::Ready(()) };
        let Poll::Ready(ended) = connection.poll_without_shutdown(cx) else { return Poll::Pending };
        // Taking it apart tells whoever waits for an answer that none will come; an error has reached them already.
        if let Self::Going(connection) = std::mem::replace(self, Self::Over(None))
            && ended.is_ok()
        {
            *self = Self::Over(Some(connection.into_parts().io.into_inner()));
        }
        Poll::Ready(())
    }

    /// Waits for `future` while the connection is kept going.
    async fn drive<T>(&mut self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        std::future::poll_fn(|cx| {
            let _ = self.poll(cx);
            future.as_mut().poll(cx)
        })
        .await
    }
}
