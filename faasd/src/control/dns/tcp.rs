//! DNS over TCP: bounded in connections, of which no source can have them all, and with a graceful end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Shared;
use super::metrics::Outcome;
use super::places::Places;
use super::transfer::{self, Transfer};
use crate::core::zone::{self, ANSWER_BYTES_MAX, Origin, Question, Verdict};

/// Queries on one connection; a client that has more connects again, behind those who wait.
const QUERIES_MAX: usize = 1_000;

/// How long to wait when the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Listener {
    pub(super) listener: TcpListener,
    pub(super) shared: Arc<Shared>,
    pub(super) connections: Arc<Semaphore>,
    pub(super) places: Arc<Places>,
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
                    // One that has its share already is closed at once.
                    let Some(place) = self.places.take(client.ip()) else { continue };
                    let (shared, stopped) = (Arc::clone(&self.shared), self.stopped.clone());
                    let connection = Connection { stream, client, shared, stopped };
                    open.spawn(async move {
                        let _held = (permit, place);
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

    async fn accept(&self) -> io::Result<(OwnedSemaphorePermit, TcpStream, SocketAddr)> {
        // First the right to a connection, then the connection: the backlog holds those that must wait.
        let permit = Arc::clone(&self.connections).acquire_owned().await.map_err(io::Error::other)?;
        let (stream, client) = self.listener.accept().await?;
        Ok((permit, stream, client))
    }
}

struct Connection {
    stream: TcpStream,
    client: SocketAddr,
    shared: Arc<Shared>,
    stopped: watch::Receiver<bool>,
}

impl Connection {
    async fn serve(mut self) -> io::Result<()> {
        for _ in 0..QUERIES_MAX {
            let query = tokio::select! {
                query = timeout(self.shared.tcp_idle_timeout, read_message(&mut self.stream)) => query??,
                _ = self.stopped.wait_for(|stopped| *stopped) => return Ok(()),
            };
            if !self.answer(&query).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Returns whether the connection is good for another query.
    async fn answer(&mut self, query: &[u8]) -> io::Result<bool> {
        let mut out = [0; ANSWER_BYTES_MAX];
        let shared = Arc::clone(&self.shared);
        let verdict = zone::answer(&shared.names.load(), query, shared.caller(), &mut out);
        let (length, outcome) = match verdict {
            Verdict::Silence => return Ok(false),
            Verdict::Answer(length, outcome) => (length, outcome.into()),
            Verdict::Elsewhere => {
                shared.log(query, self.client, true, None);
                let answer = shared.forwarder.answer(query, self.client.ip(), true).await;
                let Some(answer) = answer else { return Ok(false) };
                self.send(&answer).await?;
                return Ok(true);
            }
            Verdict::Transfer(origin, question) => {
                if shared.secondaries.contains(&self.client.ip()) {
                    return self.transfer(query, origin, &question).await;
                }
                (zone::refusal(query, &question, &mut out), Outcome::Refused)
            }
        };
        shared.log(query, self.client, true, Some(outcome));
        shared.metrics.count(outcome);
        self.send(&out[..length]).await?;
        Ok(true)
    }

    async fn transfer(&mut self, bytes: &[u8], origin: Origin, question: &Question) -> io::Result<bool> {
        let zone = Arc::clone(&self.shared.names.load());
        let query = Message::from_vec(bytes).map_err(io::Error::other)?;
        if question.is_incremental() && transfer::is_up_to_date(&query, &zone) {
            let mut out = [0; ANSWER_BYTES_MAX];
            let length = zone::soa_answer(&zone, origin, bytes, question, &mut out);
            self.shared.metrics.count(Outcome::Answered);
            self.send(&out[..length]).await?;
            return Ok(true);
        }
        self.shared.log(bytes, self.client, true, Some(Outcome::Transferred));
        tracing::info!(secondary = %self.client, ?origin, serial = zone.serial(), "a zone is transferred");
        let Some(transfer) = Transfer::new(zone, origin, &query) else { return Ok(false) };
        for message in transfer.messages() {
            self.send(&message).await?;
        }
        self.shared.metrics.count(Outcome::Transferred);
        Ok(true)
    }

    async fn send(&mut self, message: &[u8]) -> io::Result<()> {
        let length = u16::try_from(message.len()).map_err(io::Error::other)?;
        let framed = [&length.to_be_bytes(), message].concat();
        timeout(self.shared.tcp_idle_timeout, self.stream.write_all(&framed)).await?
    }
}

async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}
