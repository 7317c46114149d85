//! Cutting what the kernel has not.

use bytes::BytesMut;

use super::{
    CWR, FIN, GSO_NONE, GSO_TCP6, HEADER_BYTES, Header, IPV6_BYTES, NEEDS_CHECKSUM, PSH, TCP_BYTES_MIN,
    TCP_CHECKSUM, TCP_FLAGS, fold, pseudo_header, sum,
};

/// A frame that makes no sense. The kernel writes none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame of the TUN interface is malformed")]
pub struct FrameError;

/// The packets that a frame stands for.
#[derive(Debug)]
pub struct Segments<'a> {
    packet: &'a [u8],
    /// How much of `packet` is header, if it is to be cut.
    cut: Option<Cut>,
    /// From where the next payload begins; past the end when all are given.
    at: usize,
}

#[derive(Clone, Copy, Debug)]
struct Cut {
    header_bytes: usize,
    segment_bytes: usize,
}

impl<'a> Segments<'a> {
    /// Reads a frame: a header and a packet. A checksum that lacks its sum is completed in place.
    ///
    /// # Errors
    /// If lengths contradict each other, or it is to be cut by a rule that was not asked for.
    pub fn of(frame: &'a mut [u8]) -> Result<Self, FrameError> {
        let (header, packet) = frame.split_first_chunk_mut::<HEADER_BYTES>().ok_or(FrameError)?;
        let header = Header::read(header);
        match header.gso_type {
            GSO_NONE => {
                if header.flags & NEEDS_CHECKSUM != 0 {
                    complete(packet, header).ok_or(FrameError)?;
                }
                Ok(Self { packet, cut: None, at: 0 })
            }
            GSO_TCP6 => {
                let cut = Cut::of(packet, header).ok_or(FrameError)?;
                Ok(Self { packet, cut: Some(cut), at: cut.header_bytes })
            }
            _ => Err(FrameError),
        }
    }

    /// The packet whose header all of them share.
    #[must_use]
    pub fn packet(&self) -> &[u8] {
        self.packet
    }

    /// Appends the next packet and returns its length; `None` when there are no more.
    pub fn next_onto(&mut self, out: &mut BytesMut) -> Option<usize> {
        let Some(Cut { header_bytes, segment_bytes }) = self.cut else {
            if self.at >= self.packet.len() {
                return None;
            }
            self.at = self.packet.len();
            out.extend_from_slice(self.packet);
            return Some(self.packet.len());
        };
        let (header, payload) = self.packet.split_at_checked(header_bytes)?;
        let begin = self.at - header_bytes;
        let end = (begin + segment_bytes).min(payload.len());
        let part = payload.get(begin..end).filter(|part| !part.is_empty())?;
        let from = out.len();
        out.extend_from_slice(header);
        out.extend_from_slice(part);

        let (ipv6, tcp) = out.get_mut(from..from + header_bytes)?.split_first_chunk_mut::<IPV6_BYTES>()?;
        let tcp_bytes = tcp.len() + part.len();
        ipv6.get_mut(4..6)?.copy_from_slice(&(tcp_bytes as u16).to_be_bytes());
        let seq: &mut [u8; 4] = tcp.get_mut(4..8)?.try_into().ok()?;
        *seq = u32::from_be_bytes(*seq).wrapping_add(begin as u32).to_be_bytes();
        let flags = tcp.get_mut(TCP_FLAGS)?;
        // What ends a stretch stands in its last segment, what begins one in its first.
        if end < payload.len() {
            *flags &= !(FIN | PSH);
        }
        if begin > 0 {
            *flags &= !CWR;
        }
        let checksum: &mut [u8; 2] = tcp.get_mut(TCP_CHECKSUM..TCP_CHECKSUM + 2)?.try_into().ok()?;
        *checksum = [0; 2];
        let total = pseudo_header(ipv6, tcp_bytes) + sum(tcp) + sum(part);
        tcp.get_mut(TCP_CHECKSUM..TCP_CHECKSUM + 2)?.copy_from_slice(&(!fold(total)).to_ne_bytes());
        self.at = header_bytes + end;
        Some(header_bytes + part.len())
    }
}

impl Cut {
    fn of(packet: &[u8], header: Header) -> Option<Self> {
        // The kernel may count some of the payload into its `hdr_len`: TCP itself says where its header ends.
        let data_offset = packet.get(IPV6_BYTES + 12)? >> 4;
        let header_bytes = IPV6_BYTES + 4 * usize::from(data_offset);
        let is_tcp = usize::from(header.checksum_start) == IPV6_BYTES
            && usize::from(header.checksum_offset) == TCP_CHECKSUM
            && header_bytes >= IPV6_BYTES + TCP_BYTES_MIN
            && packet.first()? >> 4 == 6;
        let segment_bytes = usize::from(header.segment_bytes);
        (is_tcp && segment_bytes > 0 && packet.len() > header_bytes)
            .then_some(Self { header_bytes, segment_bytes })
    }
}

/// Adds what the checksum lacks to what is there of it.
fn complete(packet: &mut [u8], header: Header) -> Option<()> {
    let covered = packet.get_mut(usize::from(header.checksum_start)..)?;
    let at = usize::from(header.checksum_offset);
    covered.get(at..at + 2)?;
    let complete = match !fold(sum(covered)) {
        // In UDP a checksum of zero says that there is none; both are the same to TCP.
        0 => 0xffff,
        other => other,
    };
    covered.get_mut(at..at + 2)?.copy_from_slice(&complete.to_ne_bytes());
    Some(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{packet, sum_of};
    use super::*;

    fn frame(header: Header, packet: &[u8]) -> Vec<u8> {
        [&header.write()[..], packet].concat()
    }

    #[test]
    fn a_lacking_checksum_is_completed() {
        let whole = packet(1, 0x18, b"hello, world!");
        let mut lacking = whole.clone();
        let ipv6: [u8; IPV6_BYTES] = lacking[..IPV6_BYTES].try_into().unwrap();
        let pseudo = fold(pseudo_header(&ipv6, lacking.len() - IPV6_BYTES));
        lacking[IPV6_BYTES + TCP_CHECKSUM..][..2].copy_from_slice(&pseudo.to_ne_bytes());
        let header =
            Header { flags: NEEDS_CHECKSUM, checksum_start: 40, checksum_offset: 16, ..Header::default() };
        let mut frame = frame(header, &lacking);
        let mut segments = Segments::of(&mut frame).unwrap();
        let mut out = BytesMut::new();
        assert_eq!(segments.next_onto(&mut out), Some(whole.len()));
        assert_eq!(segments.next_onto(&mut out), None);
        assert_eq!(out, whole);
        assert_eq!(sum_of(&out), 0xffff);
    }

    #[test]
    fn flags_stand_where_they_belong() {
        let header = Header {
            flags: NEEDS_CHECKSUM,
            gso_type: GSO_TCP6,
            header_bytes: 72,
            segment_bytes: 10,
            checksum_start: 40,
            checksum_offset: 16,
        };
        let mut frame = frame(header, &packet(7, CWR | FIN | PSH | 0x10, &[9; 25]));
        let mut segments = Segments::of(&mut frame).unwrap();
        let mut out = BytesMut::new();
        let mut seen = Vec::new();
        while let Some(bytes) = segments.next_onto(&mut out) {
            let out = out.split();
            assert_eq!((out.len(), sum_of(&out)), (bytes, 0xffff));
            seen.push((bytes - 72, out[IPV6_BYTES + 7], out[IPV6_BYTES + TCP_FLAGS]));
        }
        assert_eq!(seen, [(10, 7, CWR | 0x10), (10, 17, 0x10), (5, 27, FIN | PSH | 0x10)]);
    }

    #[test]
    fn nonsense_is_refused() {
        let good = packet(1, 0x10, &[1; 100]);
        let gso = Header {
            flags: NEEDS_CHECKSUM,
            gso_type: GSO_TCP6,
            header_bytes: 72,
            segment_bytes: 10,
            checksum_start: 40,
            checksum_offset: 16,
        };
        for (header, packet) in [
            (Header { segment_bytes: 0, ..gso }, &good[..]),
            (Header { gso_type: 1, ..gso }, &good),
            (Header { checksum_start: 20, ..gso }, &good),
            (gso, &good[..72]),
            (gso, &good[..30]),
            (Header { gso_type: GSO_NONE, checksum_start: 400, ..gso }, &good),
            (Header { gso_type: GSO_NONE, checksum_offset: u16::MAX, ..gso }, &good),
        ] {
            assert_eq!(Segments::of(&mut frame(header, packet)).map(drop), Err(FrameError), "{header:?}");
        }
        assert_eq!(Segments::of(&mut [0; 9]).map(drop), Err(FrameError));
    }
}
