//! The hand-off protocol's bytes (`docs/HANDOFF.md` is the prose). All numbers are little-endian.
//!
//! An instance is started with two descriptors: [`SOCKET_FD`], its end of a `SOCK_SEQPACKET` pair, and [`STATUS_FD`],
//! a sealed memfd of one page that both ends map (`Status`).

mod caller;

pub use caller::{CALLER_BYTES, CALLER_NAME_BYTES_MAX, Caller, CallerName, FUNCTION_PREFIX};

/// The protocol's version: the first number of every message and of the status page.
pub const VERSION: u16 = 1;

/// Where an instance finds its end of the socket pair.
pub const SOCKET_FD: i32 = 3;

/// Where an instance finds the status page.
pub const STATUS_FD: i32 = 4;

/// The most connections in one message, each with one descriptor. The kernel's own limit is 253 (`SCM_MAX_FD`).
pub const CONNECTIONS_MAX: usize = 64;

/// Bytes of a message's header: version (u16), kind (u16), count (u16), bytes of a record (u16).
pub const HEADER_BYTES: usize = 8;

/// Bytes of a [`Record`], with which every connection's record begins. A receiver steps by the size that the header
/// gives, so that more can be appended.
pub const RECORD_BYTES: usize = 32;

/// Bytes of one connection's record in `Connections`: a [`Record`] and its [`Caller`].
pub const ARRIVAL_BYTES: usize = RECORD_BYTES + CALLER_BYTES;

/// The longest message, in bytes: what receivers have had room for since the first version, when records were shorter
/// and no names followed them. A message whose names do not fit carries fewer connections.
pub const MESSAGE_BYTES_MAX: usize = 4096;

/// Bytes that the names of a full message may take.
pub const NAMES_BYTES_MAX: usize = MESSAGE_BYTES_MAX - HEADER_BYTES - CONNECTIONS_MAX * ARRIVAL_BYTES;

/// The longest name of a function.
pub const NAME_BYTES_MAX: usize = 63;

/// What a message says. Daemon to instance: `Connections`, `Drain`, `Go`. Instance to daemon: the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// One [`Arrival`] and one descriptor (SCM_RIGHTS, in the same order) a connection; the callers' names follow.
    Connections = 1,
    /// No further connections follow: finish what is open, answer `Drained`, exit with 0.
    Drain = 2,
    /// The instance can take connections from now on.
    Ready = 3,
    /// Everything is finished.
    Drained = 4,
    /// A connection is another function's: its record, the function's name, its descriptor.
    Forward = 5,
    /// An instance that was at its limit of connections ([`status::LIMIT`]) has room again.
    Room = 6,
    /// A runner that was started to be held has all that it needs but the function's code, and waits for `Go`.
    Held = 7,
    /// Load the function's code.
    Go = 8,
}

/// One connection's record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Unique while the function is deployed; it stands in the daemon's trace of a connection.
    pub id: u64,
    /// When the daemon accepted it: nanoseconds of `CLOCK_MONOTONIC`.
    pub accepted_ns: u64,
    /// When the answer is of no more use, on the same clock; 0 is never.
    pub deadline_ns: u64,
    /// How often it was handed over before: 0, or more if an earlier instance died with it queued.
    pub attempt: u32,
    /// [`FORWARDED`], or 0. Further bits may come.
    pub flags: u32,
}

/// A connection as it is handed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrival {
    pub record: Record,
    pub caller: Caller,
}

/// Another function was handed the connection first and passed it on.
pub const FORWARDED: u32 = 1;

/// A message that breaks the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("a message of {0} bytes is shorter than its header says")]
    Short(usize),
    #[error(
        "protocol version {0} is not {VERSION}: the function and faasd are too far apart; rebuild the function"
    )]
    Version(u16),
    #[error("message kind {0} is unknown")]
    Kind(u16),
    #[error("{records} connections came with {descriptors} descriptors")]
    Count { records: usize, descriptors: usize },
    #[error("descriptors were lost on the way (MSG_CTRUNC): raise the limit of open files (`limits.files`)")]
    Truncated,
}

/// Writes a header for records that are a [`Record`] each, or for none.
#[must_use]
pub fn header(kind: Kind, count: u16) -> [u8; HEADER_BYTES] {
    header_of(kind, count, RECORD_BYTES as u16)
}

/// Writes the header of `Connections` whose records are an [`Arrival`] each.
#[must_use]
pub fn arrivals_header(count: u16) -> [u8; HEADER_BYTES] {
    header_of(Kind::Connections, count, ARRIVAL_BYTES as u16)
}

fn header_of(kind: Kind, count: u16, record_bytes: u16) -> [u8; HEADER_BYTES] {
    let mut out = [0; HEADER_BYTES];
    out[0..2].copy_from_slice(&VERSION.to_le_bytes());
    out[2..4].copy_from_slice(&(kind as u16).to_le_bytes());
    out[4..6].copy_from_slice(&count.to_le_bytes());
    out[6..8].copy_from_slice(&record_bytes.to_le_bytes());
    out
}

/// Writes a [`Kind::Forward`].
#[must_use]
pub fn forward(record: &Record, to: &str) -> Vec<u8> {
    [header(Kind::Forward, 1).as_slice(), &record.encode(), to.as_bytes()].concat()
}

impl Record {
    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut out = [0; RECORD_BYTES];
        out[0..8].copy_from_slice(&self.id.to_le_bytes());
        out[8..16].copy_from_slice(&self.accepted_ns.to_le_bytes());
        out[16..24].copy_from_slice(&self.deadline_ns.to_le_bytes());
        out[24..28].copy_from_slice(&self.attempt.to_le_bytes());
        out[28..32].copy_from_slice(&self.flags.to_le_bytes());
        out
    }

    /// Reads a record; `bytes` holds at least [`RECORD_BYTES`].
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Self {
        let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        Self { id: long(0), accepted_ns: long(8), deadline_ns: long(16), attempt: word(24), flags: word(28) }
    }
}

impl Arrival {
    /// The record's bytes, with the caller's name standing at `name_at` after the records.
    #[must_use]
    pub fn encode(&self, name_at: u16) -> [u8; ARRIVAL_BYTES] {
        let mut out = [0; ARRIVAL_BYTES];
        out[..RECORD_BYTES].copy_from_slice(&self.record.encode());
        out[RECORD_BYTES..].copy_from_slice(&self.caller.encode(name_at));
        out
    }

    /// Reads a record of any length from [`RECORD_BYTES`] on; `names` is what follows the records. A short one says
    /// nothing of its caller.
    #[must_use]
    pub fn decode(bytes: &[u8], names: &[u8]) -> Self {
        let caller = match bytes.get(RECORD_BYTES..ARRIVAL_BYTES) {
            Some(caller) => Caller::decode(caller, names),
            None => Caller::default(),
        };
        Self { record: Record::decode(bytes), caller }
    }
}

/// A message, read without copying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    pub kind: Kind,
    record_bytes: usize,
    records: &'a [u8],
    /// What follows the records: of `Connections` the callers' names, of a `Forward` the function's.
    pub rest: &'a [u8],
}

impl<'a> Message<'a> {
    /// Reads a message.
    ///
    /// # Errors
    /// [`WireError`] for anything that this version of the protocol does not allow.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, WireError> {
        let short = WireError::Short(bytes.len());
        let word = |at: usize| Some(u16::from_le_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
        let [Some(version), Some(kind), Some(count), Some(record_bytes)] =
            [word(0), word(2), word(4), word(6)]
        else {
            return Err(short);
        };
        if version != VERSION {
            return Err(WireError::Version(version));
        }
        let kind = match kind {
            1 => Kind::Connections,
            2 => Kind::Drain,
            3 => Kind::Ready,
            4 => Kind::Drained,
            5 => Kind::Forward,
            6 => Kind::Room,
            7 => Kind::Held,
            8 => Kind::Go,
            other => return Err(WireError::Kind(other)),
        };
        let (count, record_bytes) = (usize::from(count), usize::from(record_bytes));
        if count > 0 && record_bytes < RECORD_BYTES {
            return Err(short);
        }
        let records = bytes.get(HEADER_BYTES..HEADER_BYTES + count * record_bytes).ok_or(short)?;
        let rest = &bytes[HEADER_BYTES + records.len()..];
        Ok(Self { kind, record_bytes, records, rest })
    }

    /// How many connections it carries.
    #[must_use]
    pub fn count(&self) -> usize {
        if self.records.is_empty() { 0 } else { self.records.len() / self.record_bytes }
    }

    /// The records, in the order of the descriptors.
    pub fn records(&self) -> impl ExactSizeIterator<Item = Record> + '_ {
        self.records.chunks_exact(self.record_bytes.max(1)).map(Record::decode)
    }

    /// The same with what is said of the callers.
    pub fn arrivals(&self) -> impl ExactSizeIterator<Item = Arrival> + '_ {
        self.records.chunks_exact(self.record_bytes.max(1)).map(|bytes| Arrival::decode(bytes, self.rest))
    }
}

/// Offsets within the status page. Each field has one writer; readers take it as it comes.
pub mod status {
    /// Bytes of the page.
    pub const BYTES: usize = 4096;
    /// u64, written by the daemon: connections handed to this instance.
    pub const SENT: usize = 0;
    /// u64, written by the daemon: 1 once the instance was asked to finish, so that a new daemon does not ask again.
    pub const DRAINING: usize = 8;
    /// u64, written by the instance: connections that it has received.
    pub const RECEIVED: usize = 64;
    /// u64, written by the instance: connections that it is done with. `SENT - FINISHED` are in flight.
    pub const FINISHED: usize = 72;
    /// u64, written by the instance: requests served. A connection carries any number of them.
    pub const REQUESTS: usize = 80;
    /// u64, written by the instance: requests that ended in an error of its own (status 500 and above).
    pub const ERRORS: usize = 88;
    /// u64, written by the instance: 1 once it is ready, so that a new daemon knows it without having seen `Ready`.
    pub const READY: usize = 96;
    /// u64, written by the instance: the most connections that it takes at a time; 0 is any number.
    pub const LIMIT: usize = 104;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(records: &[Record]) -> Vec<u8> {
        let mut out = header(Kind::Connections, records.len() as u16).to_vec();
        records.iter().for_each(|r| out.extend(r.encode()));
        out
    }

    #[test]
    fn what_is_written_is_read() {
        let records =
            [Record { id: 7, accepted_ns: 8, deadline_ns: 9, attempt: 1, flags: 0 }, Record::default()];
        let bytes = message(&records);
        let read = Message::parse(&bytes).unwrap();
        assert_eq!((read.kind, read.count()), (Kind::Connections, 2));
        assert!(read.records().eq(records));
    }

    #[test]
    fn a_forward_names_the_function() {
        let record = Record { id: 3, ..Record::default() };
        let bytes = forward(&record, "other");
        let read = Message::parse(&bytes).unwrap();
        assert_eq!((read.kind, read.count(), read.rest), (Kind::Forward, 1, b"other".as_slice()));
        assert!(read.records().eq([record]));
    }

    #[test]
    fn a_longer_record_of_a_later_version_is_stepped_over() {
        let mut bytes = header(Kind::Connections, 2).to_vec();
        bytes[6] = 40;
        for id in [1u64, 2] {
            bytes.extend(Record { id, ..Record::default() }.encode());
            bytes.extend([0xff; 8]);
        }
        assert!(Message::parse(&bytes).unwrap().records().map(|r| r.id).eq([1, 2]));
    }

    fn caller(name: &str) -> Caller {
        Caller { address: "fd00::7".parse().unwrap(), port: 40_000, name: CallerName::new(name).unwrap() }
    }

    #[test]
    fn who_dialled_is_read_as_it_was_written() {
        let names = ["laptop", "", "fn:hello"];
        let mut bytes = arrivals_header(3).to_vec();
        let mut at = 0;
        for (id, name) in (1..).zip(names) {
            let record = Record { id, ..Record::default() };
            bytes.extend(Arrival { record, caller: caller(name) }.encode(at));
            at += name.len() as u16;
        }
        bytes.extend(names.concat().as_bytes());
        let message = Message::parse(&bytes).unwrap();
        let read: Vec<_> = message.arrivals().collect();
        assert!(read.iter().map(|a| a.record.id).eq([1, 2, 3]));
        assert!(read.iter().map(|a| a.caller).eq(names.map(caller)));
        // A receiver of before there were callers steps over them.
        assert!(message.records().map(|r| r.id).eq([1, 2, 3]));
    }

    #[test]
    fn a_record_of_before_says_nothing_of_its_caller() {
        let bytes = message(&[Record { id: 5, ..Record::default() }]);
        let read = Message::parse(&bytes).unwrap().arrivals().next().unwrap();
        assert_eq!((read.record.id, read.caller), (5, Caller::default()));
        assert_eq!(read.caller.socket_address(), None);
    }

    #[test]
    fn a_name_that_is_not_there_is_unknown() {
        let arrival = Arrival { record: Record::default(), caller: caller("laptop") };
        let whole = [&arrivals_header(1)[..], &arrival.encode(0), b"laptop"].concat();
        let name = |bytes: &[u8]| Message::parse(bytes).unwrap().arrivals().next().unwrap().caller.name;
        assert_eq!(name(&whole).as_str(), "laptop");
        assert!(!name(&whole[..whole.len() - 1]).is_known());
        let mut garbled = whole;
        *garbled.last_mut().unwrap() = 0xff;
        assert!(!name(&garbled).is_known());
        assert!(CallerName::new(&"x".repeat(CALLER_NAME_BYTES_MAX)).is_some());
        assert!(CallerName::new(&"x".repeat(CALLER_NAME_BYTES_MAX + 1)).is_none());
    }

    #[test]
    fn a_full_message_has_room_for_names() {
        const { assert!(NAMES_BYTES_MAX > CALLER_NAME_BYTES_MAX) };
    }

    #[test]
    fn broken_messages_are_refused() {
        let good = message(&[Record::default()]);
        for cut in 0..good.len() {
            assert!(matches!(Message::parse(&good[..cut]), Err(WireError::Short(_))), "{cut}");
        }
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            Message::parse(&bytes).map(|_| ()).unwrap_err()
        };
        assert_eq!(with(0, 9), WireError::Version(9));
        assert_eq!(with(2, 9), WireError::Kind(9));
        assert!(matches!(with(4, 9), WireError::Short(_)));
        assert!(matches!(with(6, 9), WireError::Short(_)));
    }

    proptest::proptest! {
        /// Whatever comes, it is read or refused, and never panics; what is read has as many records as it says.
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..512)) {
            if let Ok(message) = Message::parse(&bytes) {
                proptest::prop_assert_eq!(message.records().count(), message.count());
                proptest::prop_assert_eq!(message.arrivals().count(), message.count());
            }
        }

        /// The same behind a header that is nearly right, which random bytes seldom have.
        #[test]
        fn any_counts_are_read_or_refused(kind in 0u16..10, count in 0u16..200, size in 0u16..80, bytes in 0usize..4096) {
            let mut message = vec![0; HEADER_BYTES + bytes];
            for (at, number) in [(0, VERSION), (2, kind), (4, count), (6, size)] {
                message[at..at + 2].copy_from_slice(&number.to_le_bytes());
            }
            let enough = usize::from(count) * usize::from(size) <= bytes;
            let valid = (1..=8).contains(&kind) && enough && (count == 0 || usize::from(size) >= RECORD_BYTES);
            let read = Message::parse(&message);
            proptest::prop_assert_eq!(read.is_ok(), valid);
            if let Ok(read) = read {
                proptest::prop_assert_eq!(read.records().len(), usize::from(count));
                proptest::prop_assert_eq!(read.arrivals().count(), usize::from(count));
            }
        }

        /// Names that lie anywhere, and are anything.
        #[test]
        fn any_caller_is_read_or_unknown(record: [u8; ARRIVAL_BYTES], names in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let read = Arrival::decode(&record, &names);
            proptest::prop_assert!(read.caller.name.as_bytes().len() <= CALLER_NAME_BYTES_MAX);
        }

        #[test]
        fn any_record_is_read_as_it_was_written(id: u64, accepted_ns: u64, deadline_ns: u64, attempt: u32, flags: u32) {
            let record = Record { id, accepted_ns, deadline_ns, attempt, flags };
            let bytes = message(&[record]);
            proptest::prop_assert!(Message::parse(&bytes).unwrap().records().eq([record]));
        }
    }
}
