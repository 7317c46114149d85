//! A query's bytes in, an answer's bytes out.
//!
//! Whatever comes in, nothing is allocated, nothing is read past the message's end, and what goes out fits in what
//! every client takes without being asked.

use super::find::{Found, Labels};
use super::wire::{CLASS_IN, Edns, HEADER_BYTES, Malformed, Reader, Writer, kind};
use super::{EXPIRE_SECONDS, Origin, PEERS_LABEL, REFRESH_SECONDS, RETRY_SECONDS, SERVER_LABEL, ZONE, Zone};

/// The largest answer from a zone: what every client takes over UDP (RFC 1035, 4.2.1). The longest question takes 271
/// of it, and the longest answer to that an SOA of a reverse zone or a pointer to a revision: far less than the rest.
pub const ANSWER_BYTES_MAX: usize = 512;

/// What every client takes over UDP.
pub const UDP_PAYLOAD_BYTES_MIN: u16 = 512;
/// The largest UDP message that is sent: what passes every path unfragmented (DNS flag day 2020), the tunnel's MTU
/// included.
pub const UDP_PAYLOAD_BYTES_MAX: u16 = 1232;

/// Our own record of options: the root's name, type and payload.
const OPT_HEAD: [u8; 5] = {
    let payload = UDP_PAYLOAD_BYTES_MAX.to_be_bytes();
    [0, 0, kind::OPT as u8, payload[0], payload[1]]
};

const NO_ERROR: u8 = 0;
const FORMAT_ERROR: u8 = 1;
const NX_DOMAIN: u8 = 3;
const NOT_IMPLEMENTED: u8 = 4;
const REFUSED: u8 = 5;
/// Sixteen, of which the lower four bits are in the header and the others with the options (RFC 6891, 6.1.3).
const BAD_VERSION_HIGH: u8 = 1;

/// What is known of who asks, beside the query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Names that are in none of our zones are asked elsewhere, rather than refused.
    pub recursion: bool,
}

/// What became of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Answered,
    NxDomain,
    Refused,
    /// Malformed, or not implemented.
    Failed,
}

/// What is to be done about a query.
#[derive(Debug)]
pub enum Verdict {
    /// Send so many bytes of the buffer.
    Answer(usize, Outcome),
    /// Say nothing: it is no query.
    Silence,
    /// Its name is in none of our zones.
    Elsewhere,
    /// All of a zone is asked for, or what changed in it: for who may have it.
    Transfer(Origin, Box<Question>),
}

/// A query that was read.
#[derive(Clone, Debug)]
pub struct Question {
    pub name: Labels,
    pub kind: u16,
    /// Where the question ends.
    end: usize,
    edns: Option<Edns>,
    below: usize,
}

impl Question {
    /// What changed is asked for, rather than the whole.
    #[must_use]
    pub const fn is_incremental(&self) -> bool {
        self.kind == kind::IXFR
    }
}

/// Reads a query, and answers it if the zones can. Every kind of query that is refused for what it is, is refused here.
pub fn answer(zone: &Zone, query: &[u8], caller: Caller, out: &mut [u8; ANSWER_BYTES_MAX]) -> Verdict {
    let Some(header) = query.first_chunk::<HEADER_BYTES>() else { return Verdict::Silence };
    // To answer an answer would let two servers talk for ever.
    if header[2] & 0x80 != 0 {
        return Verdict::Silence;
    }
    let bare = |code, out: &mut [u8; ANSWER_BYTES_MAX]| {
        out[..HEADER_BYTES].copy_from_slice(&response_header(header, caller, code));
        Verdict::Answer(HEADER_BYTES, Outcome::Failed)
    };
    if header[2] & 0x78 != 0 {
        return bare(NOT_IMPLEMENTED, out);
    }
    let (mut question, class) = match read(query, header) {
        Ok(read) => read,
        Err(Malformed) => return bare(FORMAT_ERROR, out),
    };
    let reply = Reply::new(query, &question, caller, out);
    if question.edns.is_some_and(|edns| edns.version > 0) {
        return reply.finish(Outcome::Failed, BAD_VERSION_HIGH);
    }
    if class != CLASS_IN {
        return reply.fail(REFUSED, Outcome::Refused);
    }
    let is_transfer = matches!(question.kind, kind::AXFR | kind::IXFR);
    let Some((origin, below, found)) = zone.find(&question.name) else {
        return match caller.recursion && !is_transfer {
            true => Verdict::Elsewhere,
            false => reply.fail(REFUSED, Outcome::Refused),
        };
    };
    question.below = below;
    if is_transfer {
        return match found {
            Found::Apex => Verdict::Transfer(origin, Box::new(question)),
            _ => reply.fail(REFUSED, Outcome::Refused),
        };
    }
    reply.answer(zone, origin, &question, found)
}

/// The zone's SOA alone: an answer to who asks what changed since the serial that it has (RFC 1995, 4), and over UDP to
/// who asks that at all.
pub fn soa_answer(
    zone: &Zone,
    origin: Origin,
    query: &[u8],
    question: &Question,
    out: &mut [u8; ANSWER_BYTES_MAX],
) -> usize {
    let caller = Caller { recursion: false };
    let mut reply = Reply::new(query, question, caller, out);
    reply.authoritative();
    reply.soa(zone, origin, question, 0);
    reply.written(0)
}

/// Says that what was asked for is not for the client.
pub fn refusal(query: &[u8], question: &Question, out: &mut [u8; ANSWER_BYTES_MAX]) -> usize {
    let mut reply = Reply::new(query, question, Caller { recursion: false }, out);
    reply.code(REFUSED);
    reply.written(0)
}

/// An answer without records that tells the client to ask over TCP; `None` for what has no question.
pub fn truncated_answer(query: &[u8], recursion: bool, out: &mut [u8; ANSWER_BYTES_MAX]) -> Option<usize> {
    let header = query.first_chunk::<HEADER_BYTES>().filter(|header| header[2] & 0xf8 == 0)?;
    let (question, _) = read(query, header).ok()?;
    let mut reply = Reply::new(query, &question, Caller { recursion }, out);
    reply.writer.set(2, &[header[2] & 1 | 0x82]);
    Some(reply.written(0))
}

/// What an answer to this query begins with: that it is one, and what it was asked to copy.
fn response_header(query: &[u8; HEADER_BYTES], caller: Caller, code: u8) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..2].copy_from_slice(&query[..2]);
    // A response, of the same opcode, with "recursion desired" as it was.
    header[2] = 0x80 | query[2] & 0x79;
    // "Recursion available", and "checking disabled" as it was (RFC 4035, 3.1.6).
    header[3] = u8::from(caller.recursion) << 7 | query[3] & 0x10 | code;
    header
}

impl Labels {
    /// The name and the type that a query asks for, as they came, for a log.
    #[must_use]
    pub fn of_query(query: &[u8]) -> Option<(String, u16)> {
        let mut reader = Reader::new(query, HEADER_BYTES);
        let (name, kind) = (reader.name().ok()?, reader.u16().ok()?);
        let labels: Vec<String> = name.iter().map(|label| label.escape_ascii().to_string()).collect();
        Some((labels.join(".") + ".", kind))
    }
}

fn read(query: &[u8], header: &[u8; HEADER_BYTES]) -> Result<(Question, u16), Malformed> {
    let count = |i: usize| u16::from_be_bytes([header[i], header[i + 1]]);
    let mut reader = Reader::new(query, HEADER_BYTES);
    // One question. A second one has never had a meaning (RFC 9619).
    if count(4) != 1 || count(6) != 0 {
        return Err(Malformed);
    }
    let name = reader.name()?;
    let (kind, class) = (reader.u16()?, reader.u16()?);
    let end = reader.at();
    // A secondary says here which serial it has (RFC 1995, 3).
    if count(8) > u16::from(kind == kind::IXFR) {
        return Err(Malformed);
    }
    let edns = reader.options(count(8), count(10))?;
    match reader.is_at_end() {
        true => Ok((Question { name, kind, end, edns, below: 0 }, class)),
        false => Err(Malformed),
    }
}

/// An answer while it is written. It begins with the question, in its own case (draft-vixie-dnsext-dns0x20), which
/// names in the answer point into.
struct Reply<'b> {
    writer: Writer<'b>,
    /// The header's third and fourth bytes, as they began.
    flags: u8,
    code: u8,
    question_end: usize,
    edns: Option<Edns>,
}

impl<'b> Reply<'b> {
    fn new(query: &[u8], question: &Question, caller: Caller, out: &'b mut [u8; ANSWER_BYTES_MAX]) -> Self {
        let mut writer = Writer::new(out);
        let Some(header) = query.first_chunk() else {
            return Self { writer, flags: 0, code: 0, question_end: 0, edns: None };
        };
        let mut header = response_header(header, caller, NO_ERROR);
        header[5] = 1;
        writer.put(&header);
        writer.put(&query[HEADER_BYTES..question.end]);
        let [_, _, flags, code, ..] = header;
        Self { writer, flags, code, question_end: question.end, edns: question.edns }
    }

    fn code(&mut self, code: u8) {
        self.writer.set(3, &[self.code | code]);
    }

    fn authoritative(&mut self) {
        self.writer.set(2, &[self.flags | 0x04]);
    }

    fn fail(mut self, code: u8, outcome: Outcome) -> Verdict {
        self.code(code);
        self.finish(outcome, 0)
    }

    fn finish(mut self, outcome: Outcome, code_high: u8) -> Verdict {
        Verdict::Answer(self.written(code_high), outcome)
    }

    /// Ends the message with our options, if the client sent its own.
    fn written(&mut self, code_high: u8) -> usize {
        if let Some(edns) = self.edns {
            self.writer.count(2);
            self.writer.put(&OPT_HEAD);
            // "DNSSEC OK" comes back as it was (RFC 3225, 3), though nothing here is signed.
            self.writer.put(&[code_high, 0, u8::from(edns.dnssec_ok) << 7, 0, 0, 0]);
        }
        if !self.writer.is_whole() {
            // Cannot be: see `ANSWER_BYTES_MAX`. Were it so, the client would be told.
            self.writer.set(2, &[self.flags | 0x02]);
            self.writer.set(6, &[0; 6]);
            return self.question_end;
        }
        self.writer.len()
    }

    fn answer(mut self, zone: &Zone, origin: Origin, question: &Question, found: Found<'_>) -> Verdict {
        let ttl = zone.settings.ttl_seconds;
        let (asked, w) = (question.kind, &mut self.writer);
        // Of all that a name has, one set of records is enough (RFC 8482).
        let wants = |kind| asked == kind || asked == kind::ANY;
        let before = w.len();
        match found {
            Found::Apex if wants(kind::SOA) => self.soa(zone, origin, question, 0),
            Found::Apex if wants(kind::NS) => self.ns(zone, origin, question),
            Found::Server if wants(kind::AAAA) => self.address(ttl, zone.settings.vpn.server()),
            Found::Function(function) if wants(kind::AAAA) => self.address(ttl, function.address),
            Found::Revision(address) | Found::Peer(address) if wants(kind::AAAA) => {
                self.address(ttl, address);
            }
            Found::Alias(number, address) => self.alias(ttl, question, number, address),
            Found::Service(function, port) if wants(kind::SRV) => {
                self.pointed(kind::SRV, ttl, |w| {
                    // Priority and weight, of one target, say nothing.
                    w.u32(0);
                    w.u16(port);
                    // Never compressed (RFC 2782).
                    w.label(function.name.as_str().as_bytes());
                    w.name(ZONE);
                });
            }
            Found::ToServer if wants(kind::PTR) => self.pointed(kind::PTR, ttl, |w| {
                w.label(SERVER_LABEL.as_bytes());
                w.name(ZONE);
            }),
            Found::ToPeer(peer) if wants(kind::PTR) => self.pointed(kind::PTR, ttl, |w| {
                w.label(peer.as_bytes());
                w.label(PEERS_LABEL.as_bytes());
                w.name(ZONE);
            }),
            Found::ToFunction(function, revision) if wants(kind::PTR) => {
                self.pointed(kind::PTR, ttl, |w| {
                    if let Some(number) = revision {
                        w.label(revision_label(number, &mut [0; 21]));
                    }
                    w.label(function.name.as_str().as_bytes());
                    w.name(ZONE);
                });
            }
            _ => {}
        }
        self.authoritative();
        let is_denied = matches!(found, Found::Missing);
        let is_alias_without_data =
            matches!(found, Found::Alias(..)) && !matches!(asked, kind::AAAA | kind::CNAME | kind::ANY);
        if self.writer.len() == before || is_alias_without_data {
            self.soa(zone, origin, question, 1);
        }
        match is_denied {
            true => self.fail(NX_DOMAIN, Outcome::NxDomain),
            false => self.finish(Outcome::Answered, 0),
        }
    }

    /// A record of the name that was asked for.
    fn pointed(&mut self, kind: u16, ttl: u32, data: impl FnOnce(&mut Writer<'b>)) {
        self.writer.count(0);
        self.writer.pointer(HEADER_BYTES);
        self.writer.record(kind, ttl, data);
    }

    fn address(&mut self, ttl: u32, address: std::net::Ipv6Addr) {
        self.pointed(kind::AAAA, ttl, |w| w.put(&address.octets()));
    }

    /// The name that it stands for, and unless something else is asked for what that has.
    fn alias(&mut self, ttl: u32, question: &Question, number: u64, address: std::net::Ipv6Addr) {
        let mut target_at = 0;
        self.pointed(kind::CNAME, ttl, |w| {
            target_at = w.len();
            w.label(revision_label(number, &mut [0; 21]));
            w.pointer(HEADER_BYTES + question.name.wire_offset(1));
        });
        if question.kind == kind::AAAA {
            self.writer.count(0);
            self.writer.aaaa(target_at, ttl, address);
        }
    }

    fn soa(&mut self, zone: &Zone, origin: Origin, question: &Question, section: usize) {
        let negative_ttl = zone.settings.negative_ttl_seconds;
        let apex = HEADER_BYTES + question.name.wire_offset(question.below);
        self.writer.count(section);
        self.writer.pointer(apex);
        self.writer.record(kind::SOA, negative_ttl, |w| {
            let zone_at = server_name(w, SERVER_LABEL, (origin == Origin::Names).then_some(apex));
            server_name(w, "admin", Some(zone_at));
            let timers = [zone.serial, REFRESH_SECONDS, RETRY_SECONDS, EXPIRE_SECONDS, negative_ttl];
            timers.into_iter().for_each(|timer| w.u32(timer));
        });
    }

    fn ns(&mut self, zone: &Zone, origin: Origin, question: &Question) {
        let ttl = zone.settings.ttl_seconds;
        let apex = HEADER_BYTES + question.name.wire_offset(question.below);
        let mut name_at = 0;
        self.pointed(kind::NS, ttl, |w| {
            name_at = w.len();
            server_name(w, SERVER_LABEL, (origin == Origin::Names).then_some(apex));
        });
        self.writer.count(2);
        self.writer.aaaa(name_at, ttl, zone.settings.vpn.server());
    }
}

/// A name below `faas.`, which may stand in the message already. Where it stands then.
fn server_name(w: &mut Writer<'_>, label: &str, zone_at: Option<usize>) -> usize {
    w.label(label.as_bytes());
    match zone_at {
        Some(at) => {
            w.pointer(at);
            at
        }
        None => {
            let at = w.len();
            w.name(ZONE);
            at
        }
    }
}

/// `v3`.
fn revision_label(number: u64, buffer: &mut [u8; 21]) -> &[u8] {
    let mut at = buffer.len();
    let mut rest = number;
    loop {
        at -= 1;
        buffer[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    at -= 1;
    buffer[at] = b'v';
    &buffer[at..]
}
