//! Whole zones, for secondaries (RFC 5936).

use std::iter::Peekable;
use std::sync::Arc;

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::rdata::{AAAA, CNAME, NS, PTR, SOA, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::core::zone::{
    self, Data, EXPIRE_SECONDS, Origin, REFRESH_SECONDS, RETRY_SECONDS, ZONE, Zone, origin_name,
    serial_is_later,
};

/// A message is sent when it has about so many bytes: some thousand names, a fraction of what a message may have.
const MESSAGE_BYTES: usize = 32 << 10;
/// What a record takes beside its names.
const RECORD_BYTES: usize = 40;

/// Whether who asks what changed has all that there is (RFC 1995, 2).
pub(super) fn is_up_to_date(query: &Message, zone: &Zone) -> bool {
    let known = query.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(soa.serial),
        _ => None,
    });
    known.is_some_and(|known| !serial_is_later(zone.serial(), known))
}

/// The messages of a transfer: the SOA, everything else, the SOA again. All of the one zone that was given.
pub(super) struct Transfer {
    zone: Arc<Zone>,
    origin: Origin,
    query: Query,
    id: u16,
}

impl Transfer {
    pub(super) fn new(zone: Arc<Zone>, origin: Origin, query: &Message) -> Option<Self> {
        Some(Self { zone, origin, query: query.queries.first()?.clone(), id: query.metadata.id })
    }

    pub(super) fn messages(&self) -> impl Iterator<Item = Vec<u8>> + Send + '_ {
        let apex = Name::from_ascii(format!("{}.", origin_name(self.origin, self.zone.settings())));
        let apex = apex.unwrap_or_default();
        let ends = self.apex(&apex);
        let [first, ns] = ends.clone();
        let records = self.zone.records(self.origin).filter_map({
            let ttl = self.zone.settings().ttl_seconds;
            move |record| to_record(record, &apex, ttl)
        });
        let records = [first, ns].into_iter().chain(records).chain(std::iter::once(ends[0].clone()));
        Messages { of: self, records: records.peekable(), is_first: true }
    }

    /// SOA and NS.
    fn apex(&self, apex: &Name) -> [Record; 2] {
        let settings = self.zone.settings();
        let below = |label: &str| Name::from_ascii(format!("{label}.{ZONE}.")).unwrap_or_default();
        let soa = SOA::new(
            below("ns"),
            below("admin"),
            self.zone.serial(),
            REFRESH_SECONDS as i32,
            RETRY_SECONDS as i32,
            EXPIRE_SECONDS as i32,
            settings.negative_ttl_seconds,
        );
        [
            Record::from_rdata(apex.clone(), settings.negative_ttl_seconds, RData::SOA(soa)),
            Record::from_rdata(apex.clone(), settings.ttl_seconds, RData::NS(NS(below("ns")))),
        ]
    }
}

/// A NOTIFY's SOA (RFC 1996, 3.7).
pub(super) fn soa(zone: &Arc<Zone>, origin: Origin) -> Record {
    let name = Name::from_ascii(format!("{}.", origin_name(origin, zone.settings()))).unwrap_or_default();
    let query = Query::query(name.clone(), RecordType::SOA);
    let [soa, _] = Transfer { zone: Arc::clone(zone), origin, query, id: 0 }.apex(&name);
    soa
}

fn to_record(record: zone::Record, apex: &Name, ttl: u32) -> Option<Record> {
    let name = Name::from_ascii(&record.name).ok()?.append_domain(apex).ok()?;
    let target = |name: String| Name::from_ascii(name).ok();
    let data = match record.data {
        Data::Aaaa(address) => RData::AAAA(AAAA(address)),
        Data::Cname(name) => RData::CNAME(CNAME(target(name)?)),
        Data::Ptr(name) => RData::PTR(PTR(target(name)?)),
        Data::Srv(port, name) => RData::SRV(SRV::new(0, 0, port, target(name)?)),
    };
    Some(Record::from_rdata(name, ttl, data))
}

struct Messages<'t, I: Iterator<Item = Record>> {
    of: &'t Transfer,
    records: Peekable<I>,
    is_first: bool,
}

impl<I: Iterator<Item = Record>> Iterator for Messages<'_, I> {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        self.records.peek()?;
        let mut message = Message::response(self.of.id, hickory_proto::op::OpCode::Query);
        message.metadata.authoritative = true;
        if std::mem::take(&mut self.is_first) {
            message.queries = vec![self.of.query.clone()];
        }
        let mut bytes = 0;
        while bytes < MESSAGE_BYTES
            && let Some(record) = self.records.next()
        {
            // No data is longer than two names.
            bytes += record.name.len() * 2 + RECORD_BYTES;
            message.answers.push(record);
        }
        match message.to_vec() {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                // The secondary finds the transfer cut off, and comes again.
                tracing::error!(%error, "a zone transfer cannot be encoded");
                None
            }
        }
    }
}
