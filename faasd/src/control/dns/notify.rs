//! Telling secondaries that the zones have changed (RFC 1996).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::RecordType;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::timeout;

use super::metrics::DnsMetrics;
use super::names::Names;
use super::transfer;
use crate::core::zone::Origin;

/// A notification that is not confirmed is sent again after this time, then after twice that, and so on.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// In all 31 seconds; then the secondary is left to ask by itself, after the SOA's refresh time.
const TRIES: u32 = 6;

/// Tells one secondary.
pub(super) struct Notifier {
    pub(super) secondary: SocketAddr,
    pub(super) socket: UdpSocket,
    pub(super) names: Arc<Names>,
    pub(super) metrics: Arc<DnsMetrics>,
    /// The serial of the zones that are on disk.
    pub(super) written: watch::Receiver<u32>,
}

impl Notifier {
    /// Until nobody writes zones any more.
    pub(super) async fn run(mut self) {
        if let Err(error) = self.socket.connect(self.secondary).await {
            tracing::error!(%error, secondary = %self.secondary, "a DNS secondary cannot be notified");
            return;
        }
        self.written.mark_changed();
        while self.written.changed().await.is_ok() {
            self.written.mark_unchanged();
            for origin in Origin::ALL {
                // A later change is told instead; its notification comes from the beginning of the loop.
                let mut newer = self.written.clone();
                tokio::select! {
                    confirmed = self.tell(origin) => if !confirmed {
                        self.metrics.count_unconfirmed();
                        tracing::warn!(secondary = %self.secondary, ?origin, "a DNS secondary does not confirm notifications");
                    },
                    _ = newer.changed() => break,
                }
            }
        }
    }

    async fn tell(&self, origin: Origin) -> bool {
        let mut wait = FIRST_WAIT;
        for _ in 0..TRIES {
            match timeout(wait, self.exchange(origin)).await {
                Ok(Ok(())) => return true,
                Ok(Err(error)) => {
                    tracing::debug!(%error, secondary = %self.secondary, "a notification failed");
                    // Nobody listens there now.
                    tokio::time::sleep(wait).await;
                }
                Err(_) => {}
            }
            wait *= 2;
        }
        false
    }

    async fn exchange(&self, origin: Origin) -> io::Result<()> {
        let soa = transfer::soa(&self.names.load(), origin);
        let mut message = Message::query();
        message.metadata.op_code = OpCode::Notify;
        message.metadata.authoritative = true;
        message.queries = vec![Query::query(soa.name.clone(), RecordType::SOA)];
        message.answers = vec![soa];
        let bytes = message.to_vec().map_err(io::Error::other)?;
        self.socket.send(&bytes).await?;
        let mut buffer = [0; 512];
        loop {
            let length = self.socket.recv(&mut buffer).await?;
            // That it is not one of that zone's servers is an answer, too.
            let is_answer = Message::from_vec(&buffer[..length]).is_ok_and(|answer| {
                answer.metadata.id == message.metadata.id
                    && answer.metadata.message_type == MessageType::Response
            });
            if is_answer {
                return Ok(());
            }
        }
    }
}
