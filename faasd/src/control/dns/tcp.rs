//! DNS over TCP, with what hickory's own listener lacks: a bound on connections, and a graceful end.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_server::net::NetError;
use hickory_server::net::runtime::TokioTime;
use hickory_server::net::xfer::Protocol;
use hickory_server::proto::op::{Header, Message, MessageType, Metadata, ResponseCode};
use hickory_server::proto::rr::Record;
use hickory_server::proto::serialize::binary::{BinDecodable, BinDecoder, BinEncoder};
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponse;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Handler;

/// Queries on one connection; a client that has more connects again, behind those who wait.
const QUERIES_MAX: usize = 1_000;

/// How long to wait when the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Listener {
    pub(super) listener: TcpListener,
    pub(super) handler: Handler,
    pub(super) connections: Arc<Semaphore>,
    pub(super) idle_timeout: Duration,
    pub(super) stopped: watch::Receiver<bool>,
}

impl Listener {
    pub(super) async fn serve(self) {
        let mut stopped = self.stopped.clone();
        let mut open = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.accept() => accepted,
                _ = stopped.wait_for(|stopped| *stopped) => break,
            };
            while open.try_join_next().is_some() {}
            match accepted {
                Ok((permit, stream, client)) => {
                    let connection = Connection {
                        stream,
                        client,
                        handler: self.handler.clone(),
                        idle_timeout: self.idle_timeout,
                        stopped: self.stopped.clone(),
                    };
                    open.spawn(async move {
                        let _permit = permit;
                        if let Err(error) = connection.serve().await {
                            tracing::debug!(%error, %client, "a DNS connection ended");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a DNS connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        while open.join_next().await.is_some() {}
    }

    async fn accept(&self) -> io::Result<(tokio::sync::OwnedSemaphorePermit, TcpStream, SocketAddr)> {
        // First the right to a connection, then the connection: the backlog holds those that must wait.
        let permit = Arc::clone(&self.connections).acquire_owned().await.map_err(io::Error::other)?;
        let (stream, client) = self.listener.accept().await?;
        Ok((permit, stream, client))
    }
}

struct Connection {
    stream: TcpStream,
    client: SocketAddr,
    handler: Handler,
    idle_timeout: Duration,
    stopped: watch::Receiver<bool>,
}

impl Connection {
    async fn serve(mut self) -> io::Result<()> {
        for _ in 0..QUERIES_MAX {
            let bytes = tokio::select! {
                bytes = timeout(self.idle_timeout, read_message(&mut self.stream)) => bytes??,
                _ = self.stopped.wait_for(|stopped| *stopped) => return Ok(()),
            };
            let Some(answer) = self.answer(bytes).await else { return Ok(()) };
            let len = u16::try_from(answer.len()).map_err(io::Error::other)?;
            let framed = [&len.to_be_bytes(), answer.as_slice()].concat();
            timeout(self.idle_timeout, self.stream.write_all(&framed)).await??;
        }
        Ok(())
    }

    /// The answer's bytes, or none for what must not be answered.
    async fn answer(&self, bytes: Vec<u8>) -> Option<Vec<u8>> {
        // Nothing shorter than a header can be answered.
        let Metadata { id, op_code, .. } = Header::read(&mut BinDecoder::new(&bytes)).ok()?.metadata;
        match Request::from_bytes(bytes, self.client, Protocol::Tcp) {
            // To answer an answer would let two servers talk for ever.
            Ok(request) if request.metadata.message_type == MessageType::Response => None,
            Ok(request) => {
                let answer = Answer::default();
                self.handler.handle_request::<_, TokioTime>(&request, answer.clone()).await;
                let mut bytes = answer.0.lock().unwrap_or_else(PoisonError::into_inner);
                Some(std::mem::take(&mut *bytes)).filter(|bytes| !bytes.is_empty())
            }
            Err(_) => Message::error_msg(id, op_code, ResponseCode::FormErr).to_vec().ok(),
        }
    }
}

async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// Takes an answer's bytes from the handler.
#[derive(Clone, Default)]
struct Answer(Arc<Mutex<Vec<u8>>>);

#[async_trait::async_trait]
impl ResponseHandler for Answer {
    async fn send_response<'a>(
        &mut self,
        response: MessageResponse<
            '_,
            'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
        >,
    ) -> Result<ResponseInfo, NetError> {
        let mut bytes = Vec::with_capacity(512);
        let mut encoder = BinEncoder::new(&mut bytes);
        encoder.set_max_size(u16::MAX);
        let info = response.destructive_emit(&mut encoder)?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = bytes;
        Ok(info)
    }
}
