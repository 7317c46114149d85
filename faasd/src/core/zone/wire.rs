//! Bytes of DNS messages (RFC 1035, 4.1): a question is read strictly, an answer is written into a fixed buffer.

use std::net::Ipv6Addr;

use super::find::Labels;

pub(super) const HEADER_BYTES: usize = 12;

pub(super) const CLASS_IN: u16 = 1;

/// Types of records.
pub(super) mod kind {
    pub const NS: u16 = 2;
    pub const CNAME: u16 = 5;
    pub const SOA: u16 = 6;
    pub const PTR: u16 = 12;
    pub const AAAA: u16 = 28;
    pub const SRV: u16 = 33;
    pub const OPT: u16 = 41;
    pub const IXFR: u16 = 251;
    pub const AXFR: u16 = 252;
    pub const ANY: u16 = 255;
}

/// A message is no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Reads a message from its beginning to its end.
#[derive(Debug)]
pub(super) struct Reader<'m> {
    message: &'m [u8],
    at: usize,
}

impl<'m> Reader<'m> {
    pub(super) const fn new(message: &'m [u8], at: usize) -> Self {
        Self { message, at }
    }

    pub(super) const fn at(&self) -> usize {
        self.at
    }

    pub(super) const fn is_at_end(&self) -> bool {
        self.at == self.message.len()
    }

    pub(super) fn bytes(&mut self, count: usize) -> Result<&'m [u8], Malformed> {
        let bytes = self.message.get(self.at..).and_then(|rest| rest.get(..count)).ok_or(Malformed)?;
        self.at += count;
        Ok(bytes)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.bytes(1)?[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16, Malformed> {
        let bytes = self.bytes(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// The question's name. Nothing stands before it that it could point to.
    pub(super) fn name(&mut self) -> Result<Labels, Malformed> {
        let mut labels = Labels::default();
        loop {
            match self.u8()? {
                0 => return Ok(labels),
                length @ 1..=63 => {
                    let label = self.bytes(usize::from(length))?;
                    labels.push(label).ok_or(Malformed)?;
                }
                _ => return Err(Malformed),
            }
        }
    }

    fn skip_name(&mut self) -> Result<(), Malformed> {
        loop {
            match self.u8()? {
                0 => return Ok(()),
                length @ 1..=63 => drop(self.bytes(usize::from(length))?),
                0xc0..=0xff => return self.u8().map(drop),
                _ => return Err(Malformed),
            }
        }
    }

    /// Reads what may follow a question: first the SOA records that tell which serial a secondary has, then the record
    /// that carries options (RFC 6891), if there is one.
    pub(super) fn options(&mut self, soas: u16, additional: u16) -> Result<Option<Edns>, Malformed> {
        for _ in 0..soas {
            self.skip_name()?;
            let kind = self.u16()?;
            self.bytes(6)?;
            let length = self.u16()?;
            self.bytes(usize::from(length))?;
            if kind != kind::SOA {
                return Err(Malformed);
            }
        }
        if additional == 0 {
            return Ok(None);
        }
        // Nothing else has a meaning in a query that we can serve: no signature, no second set of options.
        if additional > 1 || self.u8()? != 0 || self.u16()? != kind::OPT {
            return Err(Malformed);
        }
        // How much the client takes: never less than our answers have (RFC 6891, 6.2.3).
        let _payload = self.u16()?;
        let [_, version, flags, _] = *self.bytes(4)? else { return Err(Malformed) };
        let length = self.u16()?;
        let end = self.at + usize::from(length);
        while self.at < end {
            let _code = self.u16()?;
            let length = self.u16()?;
            self.bytes(usize::from(length))?;
        }
        match self.at == end {
            true => Ok(Some(Edns { version, dnssec_ok: flags & 0x80 != 0 })),
            false => Err(Malformed),
        }
    }
}

/// What the asking side can do (RFC 6891, 6.1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edns {
    pub version: u8,
    pub dnssec_ok: bool,
}

/// Writes a message. What does not fit is not written, and the message is known to be incomplete.
#[derive(Debug)]
pub(super) struct Writer<'b> {
    buffer: &'b mut [u8],
    len: usize,
    is_whole: bool,
}

impl<'b> Writer<'b> {
    pub(super) const fn new(buffer: &'b mut [u8]) -> Self {
        Self { buffer, len: 0, is_whole: true }
    }

    /// Whether all fitted that was written.
    pub(super) const fn is_whole(&self) -> bool {
        self.is_whole
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) fn put(&mut self, bytes: &[u8]) {
        match self.buffer.get_mut(self.len..self.len + bytes.len()) {
            Some(place) => {
                place.copy_from_slice(bytes);
                self.len += bytes.len();
            }
            None => self.is_whole = false,
        }
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.put(&value.to_be_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.put(&value.to_be_bytes());
    }

    /// Replaces what was written at `at`.
    pub(super) fn set(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.buffer.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    /// One more record in a section: 0 the answers, 1 the authorities, 2 the additional ones.
    pub(super) fn count(&mut self, section: usize) {
        // No answer of ours has more records than the lower byte counts.
        if let Some(byte) = self.buffer.get_mut(7 + 2 * section) {
            *byte = byte.saturating_add(1);
        }
    }

    pub(super) fn label(&mut self, label: &[u8]) {
        self.put(&[label.len() as u8]);
        self.put(label);
    }

    /// A name without its last dot, whole.
    pub(super) fn name(&mut self, name: &str) {
        name.split('.').for_each(|label| self.label(label.as_bytes()));
        self.put(&[0]);
    }

    /// A name, or its end, that stands in the message already.
    pub(super) fn pointer(&mut self, at: usize) {
        self.u16(0xc000 | at as u16);
    }

    /// A record's head: the owner's name is written before. Its data, written by `data`, follows.
    pub(super) fn record(&mut self, kind: u16, ttl: u32, data: impl FnOnce(&mut Self)) {
        self.u16(kind);
        self.u16(CLASS_IN);
        self.u32(ttl);
        let length_at = self.len;
        self.u16(0);
        data(self);
        let length = (self.len - length_at).saturating_sub(2) as u16;
        self.set(length_at, &length.to_be_bytes());
    }

    pub(super) fn aaaa(&mut self, owner_at: usize, ttl: u32, address: Ipv6Addr) {
        self.pointer(owner_at);
        self.record(kind::AAAA, ttl, |w| w.put(&address.octets()));
    }
}
