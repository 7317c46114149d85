//! A WebSocket whose server answers each message with one of its own.

use std::time::Instant;

use futures_util::{SinkExt, StreamExt};
use hyper::StatusCode;
use hyper::body::Bytes;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, client_async};

use super::Plan;
use super::fault::Failed;
use super::http1::Came;
use super::target::Target;
use crate::core::load::record::Fault;

#[derive(Debug)]
pub(super) struct Socket {
    stream: WebSocketStream<TcpStream>,
    message: Bytes,
}

impl Socket {
    /// Asks a server to go on by WebSocket.
    pub(super) async fn open(stream: TcpStream, target: &Target, plan: &Plan) -> Result<Self, Failed> {
        let mut request = target.websocket().into_client_request().map_err(|e| Failed::websocket(&e))?;
        request.headers_mut().extend(plan.headers.iter().map(|(name, value)| (name.clone(), value.clone())));
        let (stream, _) = client_async(request, stream).await.map_err(|e| Failed::websocket(&e))?;
        Ok(Self { stream, message: plan.payload.whole() })
    }

    /// Sends a message and takes the next one.
    pub(super) async fn exchange(&mut self) -> Result<Came, Failed> {
        let message = Message::Binary(self.message.clone());
        self.stream.send(message).await.map_err(|e| Failed::websocket(&e))?;
        loop {
            let Some(message) = self.stream.next().await else {
                return Err(Failed::new(Fault::Closed, "the server ended the WebSocket"));
            };
            let message = message.map_err(|e| Failed::websocket(&e))?;
            match message {
                Message::Text(_) | Message::Binary(_) => {
                    let head = Instant::now();
                    let bytes = message.len() as u64;
                    return Ok(Came { status: StatusCode::OK, head, end: head, bytes });
                }
                Message::Close(_) => {
                    return Err(Failed::new(Fault::Closed, "the server closed the WebSocket"));
                }
                // The library answers pings.
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }
}
