//! Names that are in none of our zones: from what is kept, else from an upstream.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, Query, ResponseCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::cache::Cache;
use super::metrics::{DnsMetrics, Outcome};
use super::names::Names;
use super::places::Places;
use super::{DnsConfig, rebind};
use crate::core::zone::{UDP_PAYLOAD_BYTES_MAX, UDP_PAYLOAD_BYTES_MIN};

/// After so long without an answer, the next upstream is asked as well.
const NEXT_AFTER: Duration = Duration::from_millis(250);

pub(super) struct Forwarder {
    upstreams: Arc<[SocketAddr]>,
    timeout: Duration,
    waiting: Arc<Places>,
    /// The upstream that answered last: with a dead one in the list, only the first query waits for it.
    preferred: AtomicUsize,
    cache: Cache,
    names: Arc<Names>,
    metrics: Arc<DnsMetrics>,
}

#[derive(Debug)]
enum ForwardError {
    /// Too many queries wait already.
    Busy,
    /// None answered in time.
    NoAnswer,
}

impl Forwarder {
    pub(super) fn new(config: &DnsConfig, names: Arc<Names>, metrics: Arc<DnsMetrics>) -> Self {
        Self {
            upstreams: config.upstreams.as_slice().into(),
            timeout: config.upstream_timeout,
            waiting: Places::new(config.forwarded_max),
            preferred: AtomicUsize::new(0),
            cache: Cache::new(),
            names,
            metrics,
        }
    }

    pub(super) fn is_enabled(&self) -> bool {
        !self.upstreams.is_empty()
    }

    /// Answers a query for a name that is in none of our zones.
    pub(super) async fn answer(&self, query: &[u8], source: IpAddr, tcp: bool) -> Option<Vec<u8>> {
        let Ok(query) = Message::from_vec(query) else {
            let [high, low, ..] = *query else { return None };
            let id = u16::from_be_bytes([high, low]);
            self.metrics.count(Outcome::Failed);
            return Message::error_msg(id, hickory_proto::op::OpCode::Query, ResponseCode::FormErr)
                .to_vec()
                .ok();
        };
        let [question] = query.queries.as_slice() else { return None };
        let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
        answer.metadata.recursion_desired = query.metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        answer.metadata.checking_disabled = query.metadata.checking_disabled;
        answer.queries = vec![question.clone()];
        answer.edns = query.edns.as_ref().map(|asked| options(asked.flags().dnssec_ok));
        let outcome = match self.find(&query, question, source, tcp).await {
            Ok((found, outcome)) => {
                let code = found.metadata.response_code;
                if code.high() > 0 && answer.edns.is_none() {
                    // The code does not fit into the header of an answer without EDNS.
                    answer.metadata.response_code = ResponseCode::ServFail;
                    Outcome::Failed
                } else {
                    answer.metadata.response_code = code;
                    answer.metadata.authentic_data = found.metadata.authentic_data;
                    answer.metadata.truncation = found.metadata.truncation;
                    answer.answers = found.answers;
                    answer.authorities = found.authorities;
                    answer.additionals = found.additionals;
                    outcome
                }
            }
            Err(error) => {
                tracing::debug!(?error, "a DNS query was not forwarded");
                answer.metadata.response_code = ResponseCode::ServFail;
                Outcome::Failed
            }
        };
        self.metrics.count(outcome);
        encode(answer, query.edns.as_ref(), tcp)
    }

    async fn find(
        &self,
        query: &Message,
        question: &Query,
        source: IpAddr,
        tcp: bool,
    ) -> Result<(Message, Outcome), ForwardError> {
        let dnssec_ok = query.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
        let key = (question.clone(), dnssec_ok);
        // Who switches off the upstream's checks gets answers that are for nobody else.
        let is_kept = !query.metadata.checking_disabled;
        if is_kept && let Some(found) = self.cache.get(&key, Instant::now().into_std()) {
            return Ok((found, Outcome::Cached));
        }
        let (mut found, bytes) = self.ask(query, question, dnssec_ok, source, tcp).await?;
        if rebind::strip(&mut found, &self.names.load()) {
            self.metrics.count_rebind();
            tracing::warn!(name = %question.name(), %source, "an upstream's answer points into our own network");
        }
        if is_kept {
            self.cache.keep(key, &found, bytes, Instant::now().into_std());
        }
        Ok((found, Outcome::Forwarded))
    }

    /// Asks the preferred upstream, and further ones as those before fail or take long. The first good answer
    /// counts; a failure that an upstream reports is passed on when there is nothing better.
    async fn ask(
        &self,
        query: &Message,
        question: &Query,
        dnssec_ok: bool,
        source: IpAddr,
        tcp: bool,
    ) -> Result<(Message, usize), ForwardError> {
        let _place = self.waiting.take(source).ok_or(ForwardError::Busy)?;
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
                let (upstream, message) = (self.upstreams[i], message(query, question, dnssec_ok));
                asked.spawn(async move { (i, exchange(upstream, tcp, &message).await) });
            }
            let until = if left_count > 0 { deadline.min(Instant::now() + NEXT_AFTER) } else { deadline };
            match timeout_at(until, asked.join_next()).await {
                Ok(Some(Ok((i, Ok((answer, bytes)))))) => {
                    if matches!(answer.metadata.response_code, ResponseCode::ServFail | ResponseCode::Refused)
                    {
                        failure = Some((answer, bytes));
                    } else {
                        self.preferred.store(i, Ordering::Relaxed);
                        return Ok((answer, bytes));
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

fn options(dnssec_ok: bool) -> Edns {
    let mut edns = Edns::new();
    edns.set_version(0);
    edns.set_max_payload(UDP_PAYLOAD_BYTES_MAX);
    edns.set_dnssec_ok(dnssec_ok);
    edns
}

/// The client's question under an identifier of our own.
fn message(query: &Message, question: &Query, dnssec_ok: bool) -> Message {
    // `query()` draws the identifier at random; with the kernel's choice of the port it is what a forger must guess.
    let mut message = Message::query();
    message.metadata.recursion_desired = query.metadata.recursion_desired;
    message.metadata.checking_disabled = query.metadata.checking_disabled;
    message.metadata.authentic_data = query.metadata.authentic_data;
    message.queries = vec![question.clone()];
    // Options such as cookies are between two neighbours (RFC 6891, 6.2.6), so the client's are not passed on.
    message.edns = Some(options(dnssec_ok));
    message
}

/// The answer's bytes. Over UDP, one that is too large is left empty and marked as truncated: a part of it would be
/// used by some clients, and would cost the options that must be there (RFC 6891, 7).
fn encode(mut answer: Message, asked: Option<&Edns>, tcp: bool) -> Option<Vec<u8>> {
    let bytes_max = match (tcp, asked) {
        (true, _) => u16::MAX,
        (false, None) => UDP_PAYLOAD_BYTES_MIN,
        (false, Some(asked)) => asked.max_payload().clamp(UDP_PAYLOAD_BYTES_MIN, UDP_PAYLOAD_BYTES_MAX),
    };
    if let Ok(bytes) = answer.to_vec()
        && bytes.len() <= usize::from(bytes_max)
    {
        return Some(bytes);
    }
    answer.metadata.truncation = true;
    answer.metadata.authentic_data = false;
    answer.answers.clear();
    answer.authorities.clear();
    answer.additionals.clear();
    answer.to_vec().ok()
}

async fn exchange(upstream: SocketAddr, tcp: bool, question: &Message) -> io::Result<(Message, usize)> {
    let bytes = question.to_vec().map_err(io::Error::other)?;
    match tcp {
        true => exchange_tcp(upstream, question, &bytes).await,
        false => exchange_udp(upstream, question, &bytes).await,
    }
}

async fn exchange_udp(
    upstream: SocketAddr,
    question: &Message,
    bytes: &[u8],
) -> io::Result<(Message, usize)> {
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
            return Ok((answer, len));
        }
    }
}

async fn exchange_tcp(
    upstream: SocketAddr,
    question: &Message,
    bytes: &[u8],
) -> io::Result<(Message, usize)> {
    let mut stream = TcpStream::connect(upstream).await?;
    let len = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&len.to_be_bytes(), bytes].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    answer_to(question, &answer)
        .map(|message| (message, answer.len()))
        .ok_or_else(|| io::Error::other("the answer does not fit the question"))
}

fn answer_to(question: &Message, bytes: &[u8]) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    let fits = answer.metadata.id == question.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && answer.queries == question.queries;
    fits.then_some(answer)
}
