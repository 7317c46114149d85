//! Segmentation that is put off, for TCP over IPv6: the kernel hands over up to 64 KB at once with one header, and takes
//! as much back. What a packet costs in system calls and walks through the stack is then shared by some forty of them.
//!
//! Pure: bytes in, bytes out. The format is that of `virtio_net_hdr`, which a TUN interface made with `IFF_VNET_HDR`
//! puts before each packet.

pub mod coalesce;
pub mod segment;

/// The length of [`Header`], in bytes.
pub const HEADER_BYTES: usize = 10;

/// The longest packet with its header, in bytes.
pub const FRAME_BYTES_MAX: usize = HEADER_BYTES + IPV6_BYTES + u16::MAX as usize;

/// The checksum is that of the pseudo-header alone; the rest is to be added.
const NEEDS_CHECKSUM: u8 = 1;

const GSO_NONE: u8 = 0;
const GSO_TCP6: u8 = 4;

const IPV6_BYTES: usize = 40;
const TCP_BYTES_MIN: usize = 20;
const TCP: u8 = 6;

/// Where the checksum is in a TCP header.
const TCP_CHECKSUM: usize = 16;
/// Where the flags are.
const TCP_FLAGS: usize = 13;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const CWR: u8 = 0x80;

/// What stands before a packet: how it is to be cut, and what its checksum lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    flags: u8,
    gso_type: u8,
    header_bytes: u16,
    segment_bytes: u16,
    checksum_start: u16,
    checksum_offset: u16,
}

impl Header {
    /// Nothing is to be cut, nothing lacks.
    pub const PLAIN: [u8; HEADER_BYTES] = [0; HEADER_BYTES];

    fn read(bytes: &[u8; HEADER_BYTES]) -> Self {
        let [flags, gso_type, a, b, c, d, e, f, g, h] = *bytes;
        Self {
            flags,
            gso_type,
            header_bytes: u16::from_ne_bytes([a, b]),
            segment_bytes: u16::from_ne_bytes([c, d]),
            checksum_start: u16::from_ne_bytes([e, f]),
            checksum_offset: u16::from_ne_bytes([g, h]),
        }
    }

    fn write(self) -> [u8; HEADER_BYTES] {
        let ([a, b], [c, d]) = (self.header_bytes.to_ne_bytes(), self.segment_bytes.to_ne_bytes());
        let ([e, f], [g, h]) = (self.checksum_start.to_ne_bytes(), self.checksum_offset.to_ne_bytes());
        [self.flags, self.gso_type, a, b, c, d, e, f, g, h]
    }
}

/// The sum of the Internet checksum (RFC 1071), in the machine's byte order and not folded: the order does not matter
/// to it, and wide words are added faster.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let sum: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let mut last = [0; 4];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    sum + u64::from(u32::from_ne_bytes(last))
}

/// The sum in 16 bits.
fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// The sum of what TCP's checksum covers besides its own packet: addresses, length and protocol.
fn pseudo_header(ipv6: &[u8; IPV6_BYTES], tcp_bytes: usize) -> u64 {
    let length = (tcp_bytes as u32).to_be_bytes();
    sum(&ipv6[8..]) + u64::from(u32::from_ne_bytes(length)) + u64::from(u32::from_ne_bytes([0, 0, 0, TCP]))
}

#[cfg(test)]
mod tests {
    use super::coalesce::Coalescer;
    use super::segment::Segments;
    use super::*;

    /// A frame in one piece.
    pub(super) fn joined(frame: &[std::io::IoSlice<'_>]) -> Vec<u8> {
        frame.iter().flat_map(|part| part.iter().copied()).collect()
    }

    /// The checksum as the RFC writes it down.
    fn plainly(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    /// A TCP segment over IPv6, with a timestamp option and a right checksum.
    pub(super) fn packet(seq: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let tcp_bytes = 32 + payload.len();
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, TCP, 64];
        packet[4..6].copy_from_slice(&(tcp_bytes as u16).to_be_bytes());
        packet.extend([0xfd, 0, 0xfa, 0xa5, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        packet.extend([0xfd, 0, 0xfa, 0xa5, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
        packet.extend([0xc0, 1, 0, 80]);
        packet.extend(seq.to_be_bytes());
        packet.extend([0, 0, 0, 7, 8 << 4, flags, 1, 0, 0, 0, 0, 0]);
        packet.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
        packet.extend(payload);
        let sum = sum_of(&packet);
        packet[IPV6_BYTES + TCP_CHECKSUM..][..2].copy_from_slice(&(!sum).to_be_bytes());
        packet
    }

    /// What a receiver adds up: all ones when the checksum is right.
    pub(super) fn sum_of(packet: &[u8]) -> u16 {
        let tcp = &packet[IPV6_BYTES..];
        let mut covered = packet[8..IPV6_BYTES].to_vec();
        covered.extend((tcp.len() as u32).to_be_bytes());
        covered.extend([0, 0, 0, TCP]);
        covered.extend(tcp);
        plainly(&covered)
    }

    #[test]
    fn the_sum_is_the_rfcs() {
        for length in 0..70 {
            let bytes: Vec<u8> = (0..length).map(|i| (i * 97 + 31) as u8 | 0x80).collect();
            assert_eq!(fold(sum(&bytes)).to_be(), plainly(&bytes), "{length}");
        }
        let ones = [0xff; 1 << 16];
        assert_eq!(fold(sum(&ones)).to_be(), plainly(&ones));
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let header = Header {
            flags: NEEDS_CHECKSUM,
            gso_type: GSO_TCP6,
            header_bytes: 72,
            segment_bytes: 1348,
            checksum_start: 40,
            checksum_offset: 16,
        };
        assert_eq!(Header::read(&header.write()), header);
        assert_eq!(Header::read(&Header::PLAIN), Header::default());
    }

    /// Put together and cut again, a stream is what it was, byte for byte: headers and checksums too.
    #[test]
    fn what_is_put_together_is_cut_again() {
        let data: Vec<u8> = (0..50_000_u32).map(|i| (i % 251) as u8).collect();
        let count = data.chunks(1348).count();
        let sent: Vec<Vec<u8>> = data
            .chunks(1348)
            .enumerate()
            .map(|(i, chunk)| {
                let last = if i + 1 == count { PSH } else { 0 };
                // The numbers run over on the way.
                packet((u32::MAX - 5000).wrapping_add(1348 * i as u32), ACK | last, chunk)
            })
            .collect();
        let mut frames: Vec<Vec<u8>> = Vec::new();
        let mut coalescer = Coalescer::default();
        for packet in sent.clone() {
            coalescer.push(packet, &mut |frame| frames.push(joined(frame)));
        }
        // The last one carries PSH: nothing waits any more.
        assert!(coalescer.is_empty());
        assert_eq!(frames.len(), 1);
        let mut segments = Segments::of(&mut frames[0]).unwrap();
        let mut got = Vec::new();
        let mut out = bytes::BytesMut::new();
        while segments.next_onto(&mut out).is_some() {
            got.push(out.split().to_vec());
        }
        assert_eq!(got, sent);
        assert!(got.iter().all(|packet| sum_of(packet) == 0xffff));
    }
}
