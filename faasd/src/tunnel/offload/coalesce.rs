//! Putting segments together that follow each other, so that the kernel takes them as one.

use std::io::IoSlice;

use super::{
    ACK, GSO_TCP6, HEADER_BYTES, Header, IPV6_BYTES, NEEDS_CHECKSUM, PSH, TCP, TCP_BYTES_MIN, TCP_CHECKSUM,
    TCP_FLAGS, fold, pseudo_header,
};

/// Packets in one frame.
const PACKETS_MAX: usize = 64;

/// Flows that are put together at a time; the packets of others go as they come.
const GROUPS_MAX: usize = 16;

/// The longest header of a frame.
const HEAD_BYTES_MAX: usize = HEADER_BYTES + IPV6_BYTES + 60;

/// Segments that wait for those that follow them. Packets of one flow leave in the order in which they came.
///
/// That a segment is what its sender sent is known already, from WireGuard's authentication; as in the kernel's own
/// WireGuard, TCP's checksum is not looked at once more.
#[derive(Debug)]
pub struct Coalescer<P> {
    groups: Vec<Group<P>>,
    /// What was used before, to be used again.
    spare: Vec<Group<P>>,
}

#[derive(Debug)]
struct Group<P> {
    packets: Vec<P>,
    header_bytes: usize,
    segment_bytes: usize,
    payload_bytes: usize,
    next_seq: u32,
    pushed: bool,
}

/// A packet that can be put together with others.
#[derive(Clone, Copy)]
struct Segment<'a> {
    header: &'a [u8],
    payload_bytes: usize,
    seq: u32,
    flags: u8,
}

impl<P> Default for Coalescer<P> {
    fn default() -> Self {
        Self { groups: Vec::new(), spare: Vec::new() }
    }
}

impl<P: AsRef<[u8]>> Coalescer<P> {
    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Takes a packet, and gives to `write` what need not wait: each call is one frame, in parts.
    pub fn push(&mut self, packet: P, write: &mut impl FnMut(&[IoSlice<'_>])) {
        let Some(segment) = Segment::of(packet.as_ref()) else {
            // It may belong to a flow of which something waits, as the end of a connection does.
            if let Some(flow) = flow(packet.as_ref())
                && let Some(at) = self.groups.iter().position(|group| group.flow() == Some(flow))
            {
                self.write_group(at, write);
            }
            return write_plain(packet.as_ref(), write);
        };
        let flow = flow(segment.header);
        if let Some(at) = self.groups.iter().position(|group| group.flow() == flow) {
            if let Some(group) = self.groups.get_mut(at).filter(|group| group.takes(&segment)) {
                group.add(&segment);
                let done = group.is_done(&segment);
                group.packets.push(packet);
                if done {
                    self.write_group(at, write);
                }
                return;
            }
            self.write_group(at, write);
        }
        // What its sender pushes has nothing behind it.
        if segment.flags & PSH != 0 || self.groups.len() >= GROUPS_MAX {
            return write_plain(packet.as_ref(), write);
        }
        let mut group = self.spare.pop().unwrap_or_else(Group::empty);
        group.begin(&segment);
        group.packets.push(packet);
        self.groups.push(group);
    }

    /// Gives away all that waits.
    pub fn flush(&mut self, write: &mut impl FnMut(&[IoSlice<'_>])) {
        while !self.groups.is_empty() {
            self.write_group(0, write);
        }
    }

    fn write_group(&mut self, at: usize, write: &mut impl FnMut(&[IoSlice<'_>])) {
        let mut group = self.groups.remove(at);
        group.write(write);
        group.packets.clear();
        self.spare.push(group);
    }
}

impl<P: AsRef<[u8]>> Group<P> {
    fn empty() -> Self {
        Self {
            packets: Vec::with_capacity(PACKETS_MAX),
            header_bytes: 0,
            segment_bytes: 0,
            payload_bytes: 0,
            next_seq: 0,
            pushed: false,
        }
    }

    fn begin(&mut self, segment: &Segment<'_>) {
        self.header_bytes = segment.header.len();
        self.segment_bytes = segment.payload_bytes;
        self.payload_bytes = 0;
        self.pushed = false;
        self.add(segment);
    }

    fn add(&mut self, segment: &Segment<'_>) {
        self.payload_bytes += segment.payload_bytes;
        self.next_seq = segment.seq.wrapping_add(segment.payload_bytes as u32);
        self.pushed |= segment.flags & PSH != 0;
    }

    fn first(&self) -> &[u8] {
        self.packets.first().map(AsRef::as_ref).unwrap_or_default()
    }

    fn flow(&self) -> Option<[&[u8]; 2]> {
        flow(self.first())
    }

    /// Whether the segment follows, and says the same as those before it in all but what differs from one to the next:
    /// length, sequence number, checksum, PSH.
    fn takes(&self, segment: &Segment<'_>) -> bool {
        let (ours, theirs) = (self.first(), segment.header);
        let same = |part: std::ops::Range<usize>| ours.get(part.clone()) == theirs.get(part);
        self.next_seq == segment.seq
            && segment.payload_bytes <= self.segment_bytes
            && self.packets.len() < PACKETS_MAX
            && self.header_bytes + self.payload_bytes + segment.payload_bytes <= usize::from(u16::MAX)
            && self.header_bytes == theirs.len()
            // Traffic class and flow label; hop limit.
            && same(0..4)
            && same(7..8)
            // Acknowledged, length of header; window; urgent pointer and options.
            && same(IPV6_BYTES + 8..IPV6_BYTES + 13)
            && same(IPV6_BYTES + 14..IPV6_BYTES + 16)
            && same(IPV6_BYTES + 18..self.header_bytes)
    }

    fn is_done(&self, segment: &Segment<'_>) -> bool {
        self.pushed || segment.payload_bytes < self.segment_bytes || self.packets.len() + 1 == PACKETS_MAX
    }

    fn write(&self, write: &mut impl FnMut(&[IoSlice<'_>])) {
        let [_, _, ..] = self.packets[..] else { return write_plain(self.first(), write) };
        let mut head = [0; HEAD_BYTES_MAX];
        let Some(head) = self.head(&mut head) else {
            return self.packets.iter().for_each(|packet| write_plain(packet.as_ref(), write));
        };
        let mut parts = [IoSlice::new(&[]); 1 + PACKETS_MAX];
        parts[0] = IoSlice::new(head);
        for (part, packet) in parts.iter_mut().skip(1).zip(&self.packets) {
            *part = IoSlice::new(packet.as_ref().get(self.header_bytes..).unwrap_or_default());
        }
        if let Some(parts) = parts.get(..=self.packets.len()) {
            write(parts);
        }
    }

    /// The frame's header, and the packet's: the first segment's, for the whole payload.
    fn head<'a>(&self, head: &'a mut [u8; HEAD_BYTES_MAX]) -> Option<&'a [u8]> {
        let tcp_bytes = self.header_bytes - IPV6_BYTES + self.payload_bytes;
        let header = Header {
            flags: NEEDS_CHECKSUM,
            gso_type: GSO_TCP6,
            header_bytes: self.header_bytes as u16,
            segment_bytes: self.segment_bytes as u16,
            checksum_start: IPV6_BYTES as u16,
            checksum_offset: TCP_CHECKSUM as u16,
        };
        let head = head.get_mut(..HEADER_BYTES + self.header_bytes)?;
        let (frame, packet) = head.split_first_chunk_mut::<HEADER_BYTES>()?;
        *frame = header.write();
        packet.copy_from_slice(self.first().get(..self.header_bytes)?);
        let (ipv6, tcp) = packet.split_first_chunk_mut::<IPV6_BYTES>()?;
        ipv6.get_mut(4..6)?.copy_from_slice(&u16::try_from(tcp_bytes).ok()?.to_be_bytes());
        if self.pushed {
            *tcp.get_mut(TCP_FLAGS)? |= PSH;
        }
        let pseudo = fold(pseudo_header(ipv6, tcp_bytes));
        tcp.get_mut(TCP_CHECKSUM..TCP_CHECKSUM + 2)?.copy_from_slice(&pseudo.to_ne_bytes());
        Some(head)
    }
}

impl<'a> Segment<'a> {
    /// A segment with a payload, and no flags but ACK and PSH.
    fn of(packet: &'a [u8]) -> Option<Self> {
        flow(packet)?;
        let data_offset = usize::from(packet.get(IPV6_BYTES + 12)? >> 4);
        let flags = *packet.get(IPV6_BYTES + TCP_FLAGS)?;
        let header_bytes = IPV6_BYTES + 4 * data_offset;
        let length = u16::from_be_bytes(packet.get(4..6)?.try_into().ok()?);
        let is_plain = flags & !PSH == ACK
            && 4 * data_offset >= TCP_BYTES_MIN
            && packet.len() > header_bytes
            && IPV6_BYTES + usize::from(length) == packet.len();
        is_plain.then_some(())?;
        Some(Self {
            header: packet.get(..header_bytes)?,
            payload_bytes: packet.len() - header_bytes,
            seq: u32::from_be_bytes(packet.get(IPV6_BYTES + 4..IPV6_BYTES + 8)?.try_into().ok()?),
            flags,
        })
    }
}

/// Addresses and ports of TCP over IPv6, without extension headers.
fn flow(packet: &[u8]) -> Option<[&[u8]; 2]> {
    let is_tcp = packet.first()? >> 4 == 6 && *packet.get(6)? == TCP;
    is_tcp.then_some(())?;
    Some([packet.get(8..IPV6_BYTES)?, packet.get(IPV6_BYTES..IPV6_BYTES + 4)?])
}

fn write_plain(packet: &[u8], write: &mut impl FnMut(&[IoSlice<'_>])) {
    write(&[IoSlice::new(&Header::PLAIN), IoSlice::new(packet)]);
}

#[cfg(test)]
mod tests {
    use super::super::tests::{joined, packet};
    use super::*;

    const FIN: u8 = 1;

    /// The payloads' lengths in each frame that is written.
    fn written(packets: Vec<Vec<u8>>) -> Vec<usize> {
        let mut coalescer = Coalescer::default();
        let mut frames = Vec::new();
        let mut write = |frame: &[IoSlice<'_>]| {
            frames.push(frame.iter().map(|part| part.len()).sum::<usize>() - HEADER_BYTES - 72);
        };
        for packet in packets {
            coalescer.push(packet, &mut write);
        }
        coalescer.flush(&mut write);
        assert!(coalescer.is_empty());
        frames
    }

    #[test]
    fn only_what_follows_is_put_together() {
        let a = |seq, flags, bytes: usize| packet(seq, flags, &vec![1; bytes]);
        // In order; a gap; a shorter one ends it.
        assert_eq!(written(vec![a(0, ACK, 100), a(100, ACK, 100), a(200, ACK, 100)]), [300]);
        assert_eq!(written(vec![a(0, ACK, 100), a(200, ACK, 100)]), [100, 100]);
        assert_eq!(written(vec![a(0, ACK, 100), a(100, ACK, 50), a(150, ACK, 100)]), [150, 100]);
        // A longer one begins anew.
        assert_eq!(written(vec![a(0, ACK, 50), a(50, ACK, 100)]), [50, 100]);
        // What is pushed, acknowledges alone or ends a connection does not wait, and is not overtaken.
        assert_eq!(written(vec![a(0, ACK | PSH, 100), a(100, ACK, 100)]), [100, 100]);
        assert_eq!(written(vec![a(0, ACK, 100), a(100, ACK, 0), a(100, ACK, 100)]), [100, 0, 100]);
        assert_eq!(written(vec![a(0, ACK, 100), a(100, ACK | FIN, 100)]), [100, 100]);
    }

    #[test]
    fn what_differs_is_not_put_together() {
        for (at, to) in [(1, 0x10), (7, 63), (IPV6_BYTES + 11, 8), (IPV6_BYTES + 14, 2), (IPV6_BYTES + 31, 3)]
        {
            let mut other = packet(100, ACK, &[1; 100]);
            other[at] = to;
            assert_eq!(written(vec![packet(0, ACK, &[1; 100]), other]), [100, 100], "byte {at}");
        }
        // Another flow waits by itself.
        let mut others: Vec<_> = [0, 100].map(|seq| packet(seq, ACK, &[1; 100])).into();
        for other in &mut others {
            other[IPV6_BYTES + 1] = 77;
        }
        let [c, d]: [Vec<u8>; 2] = others.try_into().unwrap();
        assert_eq!(written(vec![packet(0, ACK, &[1; 100]), c, packet(100, ACK, &[1; 100]), d]), [200, 200]);
    }

    #[test]
    fn a_frame_has_its_limits() {
        let many: Vec<_> = (0..130).map(|n| packet(n * 10, ACK, &[1; 10])).collect();
        assert_eq!(written(many), [640, 640, 20]);
        let long: Vec<_> = (0..50).map(|n| packet(n * 1400, ACK, &[1; 1400])).collect();
        assert_eq!(written(long), [46 * 1400, 4 * 1400]);
    }

    #[test]
    fn other_protocols_pass() {
        let mut udp = packet(0, ACK, &[1; 10]);
        udp[6] = 17;
        let four = vec![0x45; 100];
        let short = vec![0x60; 3];
        for packet in [udp, four, short] {
            let mut out = Vec::new();
            Coalescer::default().push(packet.clone(), &mut |frame| out.push(joined(frame)));
            assert_eq!(out, [[&Header::PLAIN[..], &packet].concat()]);
        }
    }
}
