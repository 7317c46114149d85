//! Upstreams' answers, kept for as long as they say, in bounded memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::RData;
use moka::Expiry;
use moka::sync::Cache as Entries;

/// What is kept may take so much memory.
const BYTES_MAX: u64 = 8 << 20;
/// What an entry takes beside its message and its name: its places in the table, in the orders of use and of time.
const ENTRY_BYTES: u32 = 768;

/// Whatever they say, answers are not kept for longer.
const TTL_MAX: Duration = Duration::from_secs(24 * 3600);
/// The same for "no such name", which is the answer that annoys when it is old (RFC 2308, 5).
const NEGATIVE_TTL_MAX: Duration = Duration::from_secs(900);

/// A question, and whether signatures were asked for with it.
pub(super) type Key = (Query, bool);

#[derive(Clone)]
struct Entry {
    /// As on the wire: read, a record takes up to twenty-four times as much, by the choice of whoever wrote it.
    message: Arc<[u8]>,
    since: Instant,
    ttl: Duration,
}

pub(super) struct Cache(Entries<Key, Entry>);

/// Entries are dropped at the end of their time.
struct AtEnd;

impl Expiry<Key, Entry> for AtEnd {
    fn expire_after_create(&self, _: &Key, entry: &Entry, _: Instant) -> Option<Duration> {
        Some(entry.ttl)
    }

    fn expire_after_update(
        &self,
        _: &Key,
        entry: &Entry,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(entry.ttl)
    }
}

impl Cache {
    pub(super) fn new() -> Self {
        Self(Entries::builder().weigher(weigh).max_capacity(BYTES_MAX).expire_after(AtEnd).build())
    }

    /// The answer that is kept, with what is left of its records' time.
    pub(super) fn get(&self, key: &Key, now: Instant) -> Option<Message> {
        let Entry { message, since, ttl, .. } = self.0.get(key)?;
        let age = now.saturating_duration_since(since);
        if age >= ttl {
            return None;
        }
        let mut message = Message::from_vec(&message).ok()?;
        let age_s = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        for records in [&mut message.answers, &mut message.authorities, &mut message.additionals] {
            for record in records {
                record.ttl = record.ttl.saturating_sub(age_s);
            }
        }
        Some(message)
    }

    /// Keeps an answer, if it says for how long.
    pub(super) fn keep(&self, key: Key, message: &Message, now: Instant) {
        if let Some(ttl) = ttl(message)
            && let Ok(bytes) = message.to_vec()
        {
            self.0.insert(key, Entry { message: bytes.into(), since: now, ttl });
        }
    }
}

/// How much memory an entry takes, in bytes.
fn weigh((question, _): &Key, entry: &Entry) -> u32 {
    let bytes = entry.message.len() + question.name().len();
    u32::try_from(bytes).unwrap_or(u32::MAX).saturating_add(ENTRY_BYTES)
}

fn ttl(message: &Message) -> Option<Duration> {
    let code = message.metadata.response_code;
    if message.metadata.truncation || !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
        return None;
    }
    let positive = message.answers.iter().map(|record| record.ttl).min();
    let is_negative = positive.is_none() || code == ResponseCode::NXDomain;
    let ttl = if is_negative {
        // Without an SOA it is not said, and so not kept (RFC 2308, 5).
        let negative = message.authorities.iter().find_map(|record| match &record.data {
            RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
            _ => None,
        })?;
        let ttl = positive.map_or(negative, |positive| positive.min(negative));
        Duration::from_secs(ttl.into()).min(NEGATIVE_TTL_MAX)
    } else {
        Duration::from_secs(positive?.into()).min(TTL_MAX)
    };
    Some(ttl).filter(|ttl| !ttl.is_zero())
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::OpCode;
    use hickory_proto::rr::rdata::{A, SOA};
    use hickory_proto::rr::{Name, Record, RecordType};

    use super::*;

    fn message(code: ResponseCode, answers: &[u32], soa: Option<(u32, u32)>) -> Message {
        let name = Name::from_ascii("example.com.").unwrap();
        let mut message = Message::response(1, OpCode::Query);
        message.metadata.response_code = code;
        let a = |ttl| Record::from_rdata(name.clone(), ttl, RData::A(A::new(192, 0, 2, 1)));
        message.answers = answers.iter().copied().map(a).collect();
        message.authorities = soa
            .map(|(ttl, minimum)| {
                let soa = SOA::new(name.clone(), name.clone(), 1, 2, 3, 4, minimum);
                Record::from_rdata(name.clone(), ttl, RData::SOA(soa))
            })
            .into_iter()
            .collect();
        message
    }

    #[test]
    fn an_answer_is_kept_for_as_long_as_it_says() {
        use ResponseCode as C;
        for (code, answers, soa, expected) in [
            (C::NoError, &[300, 60][..], None, Some(60)),
            (C::NoError, &[10_000_000], None, Some(24 * 3600)),
            (C::NoError, &[0], None, None),
            (C::NXDomain, &[], Some((600, 30)), Some(30)),
            (C::NXDomain, &[], Some((20, 30)), Some(20)),
            (C::NXDomain, &[], Some((86_400, 86_400)), Some(900)),
            (C::NXDomain, &[5], Some((20, 30)), Some(5)),
            (C::NoError, &[], Some((20, 30)), Some(20)),
            (C::NoError, &[], None, None),
            (C::NXDomain, &[], None, None),
            (C::ServFail, &[60], Some((20, 30)), None),
        ] {
            let found = ttl(&message(code, answers, soa)).map(|ttl| ttl.as_secs());
            assert_eq!(found, expected, "{code} {answers:?} {soa:?}");
        }
        let mut cut = message(C::NoError, &[60], None);
        cut.metadata.truncation = true;
        assert_eq!(ttl(&cut), None);
    }

    #[test]
    fn time_passes_for_what_is_kept() {
        let cache = Cache::new();
        let key = |name: &str| (Query::query(Name::from_ascii(name).unwrap(), RecordType::A), false);
        let now = Instant::now();
        cache.keep(key("example.com."), &message(ResponseCode::NoError, &[60], None), now);
        let get = |name, after_s| cache.get(&key(name), now + Duration::from_secs(after_s));
        assert_eq!(get("Example.COM.", 20).map(|m| m.answers[0].ttl), Some(40));
        assert!(get("example.com.", 60).is_none() && get("example.org.", 0).is_none());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let cache = Cache::new();
        let answer = message(ResponseCode::NoError, &[60], None);
        for i in 0..20_000 {
            let name = Name::from_ascii(format!("n{i}.example.")).unwrap();
            cache.keep((Query::query(name, RecordType::A), false), &answer, Instant::now());
        }
        cache.0.run_pending_tasks();
        assert!(cache.0.weighted_size() <= BYTES_MAX, "{}", cache.0.weighted_size());
    }

    #[test]
    fn what_is_small_on_the_wire_is_small_in_memory() {
        let cache = Cache::new();
        let key = (Query::query(Name::from_ascii("example.com.").unwrap(), RecordType::TXT), false);
        let mut answer = message(ResponseCode::NoError, &[60; 500], None);
        let strings = vec![String::new(); 250];
        let text = RData::TXT(hickory_proto::rr::rdata::TXT::new(strings));
        answer.answers.push(Record::from_rdata(Name::root(), 60, text));
        cache.keep(key.clone(), &answer, Instant::now());
        let entry = cache.0.get(&key).unwrap();
        // Five hundred addresses and a text of 250 empty strings.
        assert_eq!(*entry.message, answer.to_vec().unwrap());
        assert!(entry.message.len() < 500 * size_of::<Record>() / 4, "{}", entry.message.len());
        assert!(weigh(&key, &entry) as usize >= entry.message.len() + size_of::<(Key, Entry)>());
        assert_eq!(cache.get(&key, Instant::now()).unwrap().answers, answer.answers);
    }
}
