//! Names that are in none of our zones: from what is kept, else from an upstream.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::cache::{Cache, Key};
use super::flights::Flights;
use super::metrics::{DnsMetrics, Outcome};
use super::names::Names;
use super::places::Places;
use super::upstream::{exchange, message, options};
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
    /// By question, and whether it is asked over TCP.
    flights: Flights<(Key, bool), Result<Arc<Message>, ForwardError>>,
    names: Arc<Names>,
    metrics: Arc<DnsMetrics>,
}

#[derive(Clone, Copy, Debug)]
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
            flights: Flights::default(),
            names,
            metrics,
        }
    }

    pub(super) fn is_enabled(&self) -> bool {
        !self.upstreams.is_empty()
    }

    /// How many queries wait for an upstream.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.waiting.count()
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
                    let wants_to_know = query.metadata.authentic_data
                        || query.edns.as_ref().is_some_and(|asked| asked.flags().dnssec_ok);
                    answer.metadata.authentic_data = found.metadata.authentic_data && wants_to_know;
                    answer.metadata.truncation = found.metadata.truncation;
                    let found = Arc::unwrap_or_clone(found);
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
    ) -> Result<(Arc<Message>, Outcome), ForwardError> {
        let dnssec_ok = query.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
        let key = (question.clone(), dnssec_ok);
        // Who switches off the upstream's checks gets answers that are for nobody else.
        let is_checked = !query.metadata.checking_disabled;
        if is_checked && let Some(found) = self.cache.get(&key, Instant::now().into_std()) {
            return Ok((Arc::new(found), Outcome::Cached));
        }
        let _place = self.waiting.take(source).ok_or(ForwardError::Busy)?;
        // Without recursion it says what the upstream happens to know: a referral perhaps, and no answer for others.
        let is_for_all = is_checked && query.metadata.recursion_desired;
        let leader = if is_for_all {
            match self.flights.join((key.clone(), tcp)) {
                Ok(leader) => Some(leader),
                Err(mut told) => {
                    let told = told.wait_for(Option::is_some).await.ok().and_then(|told| told.clone());
                    if let Some(told) = told {
                        return told.map(|found| (found, Outcome::Forwarded));
                    }
                    None
                }
            }
        } else {
            None
        };
        let asked = self.ask(query, question, dnssec_ok, tcp).await.map(|mut found| {
            if rebind::strip(&mut found, &self.names.load()) {
                self.metrics.count_rebind();
                tracing::warn!(
                    name = %question.name(), %source, "an upstream's answer points into our own network"
                );
            }
            if is_for_all {
                self.cache.keep(key, &found, Instant::now().into_std());
            }
            Arc::new(found)
        });
        if let Some(leader) = leader {
            leader.tell(asked.clone());
        }
        asked.map(|found| (found, Outcome::Forwarded))
    }

    /// Asks the preferred upstream, and further ones as those before fail or take long. The first good answer
    /// counts; a failure that an upstream reports is passed on when there is nothing better.
    async fn ask(
        &self,
        query: &Message,
        question: &Query,
        dnssec_ok: bool,
        tcp: bool,
    ) -> Result<Message, ForwardError> {
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
                Ok(Some(Ok((i, Ok(answer))))) => {
                    if is_failure(answer.metadata.response_code) {
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

/// Whether another upstream may know better.
const fn is_failure(code: ResponseCode) -> bool {
    use ResponseCode as C;
    matches!(code, C::ServFail | C::Refused | C::FormErr | C::NotImp)
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
