//! Asking an upstream, on behalf of a client.
//!
//! Answers are passed on as they are and not kept: clients and upstreams both have caches, and what is not kept
//! cannot be poisoned or grow stale here.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_server::net::xfer::Protocol;
use hickory_server::proto::op::{Edns, Message, MessageType, Query, ResponseCode};
use hickory_server::server::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::reply::UDP_PAYLOAD_BYTES_MAX;

/// After so long without an answer, the next upstream is asked as well.
const NEXT_AFTER: Duration = Duration::from_millis(250);

pub(super) struct Forwarder {
    upstreams: Arc<[SocketAddr]>,
    timeout: Duration,
    waiting: Semaphore,
    /// The upstream that answered last: with a dead one in the list, only the first query waits for it.
    preferred: AtomicUsize,
}

#[derive(Debug)]
pub(super) enum ForwardError {
    /// There are no upstreams.
    Disabled,
    /// Too many queries wait already.
    Busy,
    /// None answered in time.
    NoAnswer,
}

impl Forwarder {
    pub(super) fn new(upstreams: &[SocketAddr], timeout: Duration, waiting_max: usize) -> Self {
        Self {
            upstreams: upstreams.into(),
            timeout,
            waiting: Semaphore::new(waiting_max),
            preferred: AtomicUsize::new(0),
        }
    }

    pub(super) fn is_enabled(&self) -> bool {
        !self.upstreams.is_empty()
    }

    /// Asks the preferred upstream, and further ones as those before fail or take long. The first good answer
    /// counts; a failure that an upstream reports is passed on when there is nothing better.
    pub(super) async fn ask(&self, request: &Request, query: &Query) -> Result<Message, ForwardError> {
        if !self.is_enabled() {
            return Err(ForwardError::Disabled);
        }
        let _permit = self.waiting.try_acquire().map_err(|_| ForwardError::Busy)?;
        let deadline = Instant::now() + self.timeout;
        let first = self.preferred.load(Ordering::Relaxed);
        let mut left = (0..self.upstreams.len()).map(|i| (first + i) % self.upstreams.len());
        let mut left_count = self.upstreams.len();
        // Dropped on return, which ends what still waits.
        let mut asked = JoinSet::new();
        let mut failure = None;
        loop {
            if let Some(i) = left.next() {
                left_count -= 1;
                let (upstream, question) = (self.upstreams[i], question(request, query));
                let protocol = request.protocol();
                asked.spawn(async move { (i, exchange(upstream, protocol, &question).await) });
            }
            let until = if left_count > 0 { deadline.min(Instant::now() + NEXT_AFTER) } else { deadline };
            match timeout_at(until, asked.join_next()).await {
                Ok(Some(Ok((i, Ok(answer))))) => {
                    if matches!(answer.metadata.response_code, ResponseCode::ServFail | ResponseCode::Refused)
                    {
                        failure = Some(answer);
                    } else {
                        self.preferred.store(i, Ordering::Relaxed);
                        return Ok(answer);
                    }
                }
                Ok(Some(Ok((i, Err(error))))) => {
                    tracing::debug!(%error, upstream = %self.upstreams[i], "a DNS upstream failed");
                }
                Ok(Some(Err(error))) => tracing::warn!(%error, "a forwarded DNS query ended early"),
                // Each one has failed.
                Ok(None) if left_count == 0 => break,
                Ok(None) => {}
                Err(_) if Instant::now() >= deadline => break,
                Err(_) => {}
            }
        }
        failure.ok_or(ForwardError::NoAnswer)
    }
}

/// The client's question under an identifier of our own.
fn question(request: &Request, query: &Query) -> Message {
    // `query()` draws the identifier at random; with the kernel's choice of the port it is what a forger must guess.
    let mut message = Message::query();
    message.metadata.recursion_desired = request.metadata.recursion_desired;
    message.metadata.checking_disabled = request.metadata.checking_disabled;
    message.metadata.authentic_data = request.metadata.authentic_data;
    message.queries = vec![query.clone()];
    // Options such as cookies are between two neighbours (RFC 6891, 6.2.6), so the client's are not passed on.
    let mut edns = Edns::new();
    edns.set_version(0);
    edns.set_max_payload(UDP_PAYLOAD_BYTES_MAX);
    edns.set_dnssec_ok(request.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok));
    message.edns = Some(edns);
    message
}

async fn exchange(upstream: SocketAddr, protocol: Protocol, question: &Message) -> io::Result<Message> {
    let bytes = question.to_vec().map_err(io::Error::other)?;
    if protocol == Protocol::Udp {
        exchange_udp(upstream, question, &bytes).await
    } else {
        exchange_tcp(upstream, question, &bytes).await
    }
}

async fn exchange_udp(upstream: SocketAddr, question: &Message, bytes: &[u8]) -> io::Result<Message> {
    let any = match upstream {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    // Connected, so that the kernel drops what others send and reports what the upstream's host rejects.
    socket.connect(upstream).await?;
    socket.send(bytes).await?;
    let mut buffer = [0; UDP_PAYLOAD_BYTES_MAX as usize];
    loop {
        let len = socket.recv(&mut buffer).await?;
        // What does not fit may be a forgery; the true answer may still come.
        if let Some(answer) = answer_to(question, &buffer[..len]) {
            return Ok(answer);
        }
    }
}

async fn exchange_tcp(upstream: SocketAddr, question: &Message, bytes: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect(upstream).await?;
    let len = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&len.to_be_bytes(), bytes].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    answer_to(question, &answer).ok_or_else(|| io::Error::other("the answer does not fit the question"))
}

fn answer_to(question: &Message, bytes: &[u8]) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    let fits = answer.metadata.id == question.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && answer.queries == question.queries;
    fits.then_some(answer)
}
