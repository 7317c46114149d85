//! What is answered to a request.

use std::sync::Arc;

use arc_swap::ArcSwap;
use hickory_server::net::xfer::Protocol;
use hickory_server::proto::op::{Edns, Header, HeaderCounts, Message, Metadata, OpCode, Query, ResponseCode};
use hickory_server::proto::rr::rdata::{AAAA, NS, SOA};
use hickory_server::proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_server::server::{Request, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;

use super::forward::{ForwardError, Forwarder};
use super::metrics::{DnsMetrics, Outcome};
use crate::core::zone::{Answer, EXPIRE_SECONDS, Kind, REFRESH_SECONDS, RETRY_SECONDS, ZONE, Zone};

/// The largest UDP message: what passes every path unfragmented (DNS flag day 2020), the tunnel's MTU included.
pub(super) const UDP_PAYLOAD_BYTES_MAX: u16 = 1232;
/// What every client takes (RFC 1035, 4.2.1).
const UDP_PAYLOAD_BYTES_MIN: u16 = 512;

/// Decides answers.
pub(super) struct Replier {
    zone: Arc<ArcSwap<Zone>>,
    forwarder: Forwarder,
    metrics: Arc<DnsMetrics>,
    apex: Name,
    ns: Name,
    admin: Name,
}

/// A response's parts.
pub(super) struct Reply {
    metadata: Metadata,
    edns: Option<Edns>,
    answers: Vec<Record>,
    authorities: Vec<Record>,
    additionals: Vec<Record>,
}

impl Replier {
    pub(super) fn new(zone: Arc<ArcSwap<Zone>>, forwarder: Forwarder, metrics: Arc<DnsMetrics>) -> Self {
        let below = |label: &str| Name::from_labels([label.as_bytes(), ZONE.as_bytes()]);
        let apex = Name::from_labels([ZONE.as_bytes()]);
        // Three constant names of short labels.
        let (apex, ns, admin) =
            (apex.unwrap_or_default(), below("ns").unwrap_or_default(), below("admin").unwrap_or_default());
        Self { zone, forwarder, metrics, apex, ns, admin }
    }

    pub(super) async fn reply(&self, request: &Request) -> Reply {
        let mut reply = Reply::to(request);
        reply.metadata.recursion_available = self.forwarder.is_enabled();
        let outcome = match check(request) {
            Err(code) => reply.fail(code),
            Ok(query) => match self.answer_by_zone(query, &mut reply) {
                Some(outcome) => outcome,
                None => self.answer_by_upstream(request, query, &mut reply).await,
            },
        };
        self.metrics.count(outcome);
        reply
    }

    /// Fills in what the zone says; `None` if the name is not below it.
    fn answer_by_zone(&self, query: &Query, reply: &mut Reply) -> Option<Outcome> {
        let kind = match query.query_type() {
            RecordType::AAAA => Kind::Aaaa,
            RecordType::SOA => Kind::Soa,
            RecordType::NS => Kind::Ns,
            RecordType::ANY => Kind::Any,
            _ => Kind::Other,
        };
        let zone = self.zone.load();
        let answer = zone.lookup(query.name().iter(), kind);
        if answer == Answer::Outside {
            return None;
        }
        reply.metadata.authoritative = true;
        let ttl = zone.settings().ttl_seconds;
        let aaaa = |name: &Name, address| Record::from_rdata(name.clone(), ttl, RData::AAAA(AAAA(address)));
        if let Answer::Aaaa(address) = answer {
            // The name as it was asked, in its own case (draft-vixie-dnsext-dns0x20).
            reply.answers.push(aaaa(query.name(), address));
        }
        if matches!(answer, Answer::Soa | Answer::Apex) {
            reply.answers.push(self.soa(&zone));
        }
        if matches!(answer, Answer::Ns | Answer::Apex) {
            reply.answers.push(Record::from_rdata(self.apex.clone(), ttl, RData::NS(NS(self.ns.clone()))));
            reply.additionals.push(aaaa(&self.ns, zone.settings().server));
        }
        if matches!(answer, Answer::NoData | Answer::NxDomain) {
            reply.authorities.push(self.soa(&zone));
        }
        if answer == Answer::NxDomain {
            reply.metadata.response_code = ResponseCode::NXDomain;
            return Some(Outcome::NxDomain);
        }
        Some(Outcome::Answered)
    }

    fn soa(&self, zone: &Zone) -> Record {
        let negative_ttl = zone.settings().negative_ttl_seconds;
        let soa = SOA::new(
            self.ns.clone(),
            self.admin.clone(),
            zone.serial(),
            REFRESH_SECONDS as i32,
            RETRY_SECONDS as i32,
            EXPIRE_SECONDS as i32,
            negative_ttl,
        );
        Record::from_rdata(self.apex.clone(), negative_ttl, RData::SOA(soa))
    }

    /// Fills in what an upstream says.
    async fn answer_by_upstream(&self, request: &Request, query: &Query, reply: &mut Reply) -> Outcome {
        let found = match self.forwarder.ask(request, query).await {
            Ok(found) => found,
            Err(ForwardError::Disabled) => return reply.fail(ResponseCode::Refused),
            Err(ForwardError::Busy | ForwardError::NoAnswer) => return reply.fail(ResponseCode::ServFail),
        };
        let code = found.metadata.response_code;
        if code.high() > 0 && reply.edns.is_none() {
            // The code does not fit into the header of an answer without EDNS.
            return reply.fail(ResponseCode::ServFail);
        }
        reply.metadata.response_code = code;
        reply.metadata.authentic_data = found.metadata.authentic_data;
        reply.metadata.truncation = found.metadata.truncation;
        reply.answers = found.answers;
        reply.authorities = found.authorities;
        reply.additionals = found.additionals;
        reply.fit(request, query);
        Outcome::Forwarded
    }
}

/// The request's one question, or why there will be no answer.
fn check(request: &Request) -> Result<&Query, ResponseCode> {
    if request.version() > 0 {
        return Err(ResponseCode::BADVERS);
    }
    if request.metadata.op_code != OpCode::Query {
        return Err(ResponseCode::NotImp);
    }
    let [query] = request.queries.queries() else { return Err(ResponseCode::FormErr) };
    let query = query.original();
    if query.query_class() != DNSClass::IN {
        return Err(ResponseCode::Refused);
    }
    // Everyone may ask for a name, but the list of all names is nobody's business.
    if matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR) {
        return Err(ResponseCode::Refused);
    }
    Ok(query)
}

impl Reply {
    fn to(request: &Request) -> Self {
        let edns = request.edns.as_ref().map(|asked| {
            let mut edns = Edns::new();
            edns.set_version(0);
            edns.set_max_payload(asked.max_payload().clamp(UDP_PAYLOAD_BYTES_MIN, UDP_PAYLOAD_BYTES_MAX));
            edns.set_dnssec_ok(asked.flags().dnssec_ok);
            edns
        });
        Self {
            metadata: Metadata::response_from_request(&request.metadata),
            edns,
            answers: Vec::new(),
            authorities: Vec::new(),
            additionals: Vec::new(),
        }
    }

    fn fail(&mut self, code: ResponseCode) -> Outcome {
        self.metadata.response_code = code;
        if code == ResponseCode::Refused { Outcome::Refused } else { Outcome::Failed }
    }

    /// Leaves an empty answer marked as truncated where UDP cannot carry the whole: a part of an answer would be
    /// used by some clients, and would cost the OPT record that must be there (RFC 6891, 7).
    fn fit(&mut self, request: &Request, query: &Query) {
        if request.protocol() != Protocol::Udp {
            return;
        }
        let bytes_max = self.edns.as_ref().map_or(UDP_PAYLOAD_BYTES_MIN, Edns::max_payload);
        let mut message = Message::new(self.metadata.id, self.metadata.message_type, self.metadata.op_code);
        message.metadata = self.metadata;
        message.queries = vec![query.clone()];
        message.edns = self.edns.clone();
        message.answers = std::mem::take(&mut self.answers);
        message.authorities = std::mem::take(&mut self.authorities);
        message.additionals = std::mem::take(&mut self.additionals);
        match message.to_vec() {
            Ok(bytes) if bytes.len() <= usize::from(bytes_max) => {
                self.answers = message.answers;
                self.authorities = message.authorities;
                self.additionals = message.additionals;
            }
            _ => self.metadata.truncation = true,
        }
    }

    pub(super) async fn send(self, request: &Request, mut response: impl ResponseHandler) -> ResponseInfo {
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &self.edns {
            builder.edns(edns);
        }
        let message = builder.build(self.metadata, &self.answers, &self.authorities, &[], &self.additionals);
        match response.send_response(message).await {
            Ok(info) => info,
            Err(error) => {
                // The client is gone, or asks again.
                tracing::debug!(%error, client = %request.src(), "a DNS answer could not be sent");
                Header { metadata: self.metadata, counts: HeaderCounts::default() }.into()
            }
        }
    }
}
